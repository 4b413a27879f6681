"""The end of a FLAC, whose header does not state its size in bytes."""

import re
from collections.abc import Iterator
from functools import cache

from .file_parts import Reader

_SYNC = re.compile(b"\xff[\xf8\xf9]")
_LARGEST = 1 << 18  # bytes of a frame where the header does not state the largest
_STEP = 1 << 20


def ends_of(reader: Reader, start: int, end: int) -> list[int]:
    """Return the offsets where the last frame of the FLAC at `start` may end, usually one; `[]` if it is not complete.

    A frame ends where its checksum of 16 bits matches, which may accidentally happen within or after it, too.

    Args:
        end: bytes from here on are ignored.
    """
    block, largest = reader.number(start + 10, ">H"), reader.number(start + 15, ">I") >> 8 & 0xFFFFFF
    samples = reader.number(start + 18, ">Q") & (2**36 - 1)
    most = largest or _LARGEST
    for offset, *_ in reversed(list(_headers(reader, max(start + 42, end - most), end, block))):
        if _crc16(reader.peek(offset, end - offset)) == 0:
            return [end]
    last, expected = None, 0
    for offset, first, length in _headers(reader, start + 42, end, block):
        if first == expected or (samples and first + length == samples):
            last, expected = offset, first + length
        if samples and expected == samples:
            break
    if last is None or (samples and expected < samples):
        return []
    return _zero_crcs(reader.peek(last, min(most, end - last)), last)


def _headers(reader: Reader, start: int, end: int, block: int) -> Iterator[tuple[int, int, int]]:
    """Yield the offset, the first sample, and the samples of each channel of each frame header between two offsets."""
    for offset in range(start, end, _STEP):
        content = reader.peek(offset, min(_STEP, end - offset) + 16)
        for sync in _SYNC.finditer(content, 0, _STEP + 1):
            if header := _header(content[sync.start() : sync.start() + 16], block):
                yield offset + sync.start(), *header


def _header(head: bytes, block: int) -> tuple[int, int] | None:
    """Return the first sample and the samples of each channel of the frame that begins with these bytes."""
    if len(head) < 6 or head[3] & 1 or head[3] >> 4 > 10:
        return None
    size, rate = head[2] >> 4, head[2] & 15
    ones = next((ones for ones in range(8) if not head[4] << ones & 128), 8)
    offset = 4 + max(ones, 1)
    more = head[5:offset]
    if size == 0 or rate == 15 or ones in (1, 8) or any(byte >> 6 != 2 for byte in more):
        return None
    number = head[4] & (0x7F >> ones)
    for byte in more:
        number = number << 6 | byte & 63
    extra = 2 if size == 7 else 1 if size == 6 else 0
    samples = 192 if size == 1 else 576 << (size - 2) if size < 6 else 256 << (size - 8) if size > 7 else 0
    if extra:
        samples = int.from_bytes(head[offset : offset + extra], "big") + 1
    offset += extra + (1 if rate == 12 else 2 if rate in (13, 14) else 0)
    if offset >= len(head) or _crc8(head[:offset]) != head[offset]:
        return None
    return (number if head[1] & 1 else number * block), samples


def _crc8(content: bytes) -> int:
    crc, table = 0, _table(0x07, 8)
    for byte in content:
        crc = table[crc ^ byte]
    return crc


def _crc16(content: bytes) -> int:
    crc, table = 0, _table(0x8005, 16)
    for byte in content:
        crc = (crc << 8 & 0xFFFF) ^ table[crc >> 8 ^ byte]
    return crc


def _zero_crcs(content: bytes, start: int) -> list[int]:
    """Return the offsets up to which the checksum of all bytes is 0, as at the end of a frame with its checksum.

    Zeros keep the checksum at 0; offsets after them are left out.
    """
    crc, table, ends = 0, _table(0x8005, 16), []
    for offset, byte in enumerate(content, 1):
        before, crc = crc, (crc << 8 & 0xFFFF) ^ table[crc >> 8 ^ byte]
        if crc == 0 and before:
            ends.append(start + offset)
    return ends


@cache
def _table(polynomial: int, bits: int) -> list[int]:
    """Return a checksum's remainders of each byte, highest bit first."""
    table, top = [], 1 << bits - 1
    for byte in range(256):
        crc = byte << bits - 8
        for _ in range(8):
            crc = (crc << 1 ^ polynomial if crc & top else crc << 1) & (top << 1) - 1
        table.append(crc)
    return table
