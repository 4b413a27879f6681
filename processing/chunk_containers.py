"""Containers whose headers state the size of the sound: WAV, AIFF, AU, CAF and W64, with corrected sizes."""

import struct
from collections.abc import Callable

from .container_kinds import HARMLESS, SHORT_MAGICS, Link, as_it_is, container_kind, is_name
from .file_parts import Reader, after_tags

_OPEN = 0x7FFF0000  # programs that do not know the size yet write this or more
_PART = 1 << 30  # bytes of sound under one corrected header, whose sizes have 32 bits


def split_iff(reader: Reader, start: int) -> tuple[list[Link], int]:
    """Split WAV of 32 and 64 bits and AIFF: chunks of a name, a size, the content, and a pad byte where it is odd.

    Returns:
        The links of the sound that begins at `start`, and the offset after it; so for all functions `split_*`.
    """
    magic = reader.peek(start, 4)
    order, block, long = "<>"[magic in (b"RIFX", b"FORM")], 0, 0
    offset = start + 12
    while (name := reader.peek(offset, 4)) not in (b"data", b"SSND"):
        if not is_name(name) or offset + 8 > reader.size:
            return as_it_is(reader, start, reader.size), reader.size
        if name == b"fmt ":
            block = reader.number(offset + 20, order + "H")
        elif name == b"COMM":
            block = 24 * reader.number(offset + 8, order + "H")  # a multiple of the size of a frame
        elif name == b"ds64":
            long = reader.number(offset + 16, "<Q")
        offset = _next_chunk(reader, offset, order)
    declared, body = reader.number(offset + 4, order + "I"), offset + 8
    if name == b"SSND":  # an offset and a block size precede the sound
        body, declared = offset + 16 + reader.number(offset + 8, order + "I"), max(0, declared - 8)
    if magic in (b"RF64", b"BW64") and declared >= _OPEN:
        declared = long
        body_size = declared if 0 < declared < 2**63 else max(0, reader.size - body)
    else:
        body_size = _body_size(reader, body, declared, lambda end: _chunks_end(reader, end, order))
    end = min(_chunks_end(reader, body + body_size, order), reader.size)
    if block and _is_stale(reader, body, body_size, end):
        return _stale(_parts(start, offset, body, reader.size - body, block, magic), body_size), reader.size
    if body_size == declared or not block:
        return as_it_is(reader, start, end, cut=body_size > reader.size - body and body_size < _OPEN), end
    return [Link(piece) for piece in _parts(start, offset, body, body_size, block, magic)], end


def _parts(start: int, offset: int, body: int, body_size: int, block: int, magic: bytes) -> list[list]:
    """Divide `body_size` bytes of sound into files of at most `_PART` bytes, with correct sizes in their headers."""
    order = ">I" if magic in (b"RIFX", b"FORM") else "<I"
    header, parts, most = [(start + 8, offset + 4)], [], max(_PART // block, 1) * block
    if magic in (b"RF64", b"BW64"):  # sizes of 64 bits are in the first chunk
        magic, header = b"RIFF", [b"WAVEJUNK", (start + 16, offset + 4)]
    for first in range(body, body + body_size, most):
        length = min(most, body + body_size - first)
        size = struct.pack(order, length + 8) + bytes(8) if magic == b"FORM" else struct.pack(order, length)
        parts.append([magic + struct.pack(order, 2**32 - 1), *header, size, (first, first + length)])
    return parts


def _body_size(reader: Reader, body: int, declared: int, after: Callable[[int], int]) -> int:
    """Return the number of bytes of a sound, which a file that is cut has only in part.

    A header that was not updated declares nothing, or a placeholder. One of more than 4 GiB has lost its higher bits.

    Args:
        body: offset of the first byte.
        declared: size in the header, in 32 bits.
        after: gives for the end of the sound the end of the chunks after it.
    """
    available = max(0, reader.size - body)
    if declared > available:
        return declared
    if declared == 0 or _OPEN <= declared <= 2**31 or declared >= 2**32 - 256:
        end = after(body + declared)
        if not (end == reader.size or container_kind(reader, end)) or (declared == 0 and end == body):
            return available
    return declared + (available - declared) // 2**32 * 2**32


def _is_stale(reader: Reader, body: int, body_size: int, end: int) -> bool:
    """Whether a header was written early and never updated.

    It then declares too little, and no chunks, tags or another sound follow.

    Args:
        body_size: bytes of sound by the header.
        end: of the chunks after them.
    """
    rest = reader.size - body - body_size
    if not 0 < body_size <= rest - HARMLESS or end > body + body_size + 1:
        return False
    following = body + body_size
    while content := reader.peek(following, 1 << 20):  # skip silence
        following += len(content) - len(content.lstrip(b"\0"))
        if content.strip(b"\0"):
            break
    head = reader.peek(following, 5)
    known = is_name(head[:4]) or head.startswith(SHORT_MAGICS) or container_kind(reader, following)
    known = known or 0 < following - body - body_size < 16  # HTK and MAT4 begin with a few zeros
    return after_tags(reader, following) == following < reader.size and not known


def _stale(parts: list[list], body_size: int) -> list[Link]:
    """Make the links of a sound whose header declares `body_size` bytes only."""
    start, stop = parts[0][-1]
    return [Link(parts[0], stated=body_size / (stop - start)), *map(Link, parts[1:])]


def _next_chunk(reader: Reader, offset: int, order: str) -> int:
    """Return the offset of the chunk after the one at `offset`; some programs omit the pad byte."""
    length = reader.number(offset + 4, order + "I")
    end = offset + 8 + length
    return end if length % 2 == 0 or is_name(reader.peek(end, 4)) else end + 1


def _chunks_end(reader: Reader, offset: int, order: str) -> int:
    """Return the end of the chunks that begin at `offset`, or one byte later."""
    if not is_name(reader.peek(offset, 4)) and is_name(reader.peek(offset + 1, 4)):
        offset += 1
    while offset + 8 <= reader.size and not container_kind(reader, offset):
        following = _next_chunk(reader, offset, order)
        if not is_name(reader.peek(offset, 4)) or following > reader.size + 1:
            break
        offset = following
    return min(offset, reader.size) if reader.size - offset >= 8 else reader.size


def split_au(reader: Reader, start: int) -> tuple[list[Link], int]:
    """Split AU, also of more than 4 GiB; see `split_iff`."""
    order = "<" if reader.peek(start, 4) == b"dns." else ">"
    header_size, declared, _, _, channels = struct.unpack(order + "5I", reader.peek(start + 4, 20).ljust(20, b"\0"))
    body, block = start + header_size, 24 * max(1, min(channels, 1024))  # a multiple of the size of a frame
    body_size = _body_size(reader, body, declared, lambda end: end)
    stated = body_size
    if _is_stale(reader, body, body_size, body + body_size):
        body_size = reader.size - body
    end = min(body + body_size, reader.size)
    if body_size == declared < _OPEN:
        return as_it_is(reader, start, end, cut=body + body_size > reader.size), end
    most, links = _PART // block * block, []
    for first in range(body, end, most):
        length = min(most, end - first)
        size = struct.pack(order + "I", length)
        links.append([(start, start + 8), size, (start + 12, body), (first, first + length)])
    if body_size > stated:
        return _stale(links, stated), end
    return list(map(Link, links)) or as_it_is(reader, start, end), end


def split_caf(reader: Reader, start: int) -> tuple[list[Link], int]:
    """Split CAF, also where libsndfile does not read the size of its data; see `split_iff`."""
    offset, pieces, cut, stated = start + 8, [], False, 1.0
    while (
        offset + 12 <= reader.size and is_name(name := reader.peek(offset, 4)) and not container_kind(reader, offset)
    ):
        length = reader.number(offset + 4, ">q")
        end = reader.size if length < 0 else offset + 12 + length
        if name == b"data" and (length < 0 or end > reader.size):  # libsndfile reads neither
            cut, body_size = length >= 0, struct.pack(">q", reader.size - offset - 12)
            pieces = [(start, offset + 4), body_size, (offset + 12, reader.size)]
        elif name == b"data" and _is_stale(reader, offset + 12, length, _caf_end(reader, end)):
            stated, end = length / (reader.size - offset - 12), reader.size
            pieces = [(start, offset + 4), struct.pack(">q", end - offset - 12), (offset + 12, end)]
        elif end > reader.size:
            break
        offset = min(end, reader.size)
    return [Link(pieces, cut=cut, stated=stated)] if pieces else as_it_is(reader, start, offset), offset


def _caf_end(reader: Reader, offset: int) -> int:
    """Return the end of the chunk at `offset`, or `offset` where there is none."""
    length = reader.number(offset + 4, ">q")
    known = is_name(reader.peek(offset, 4)) and -1 <= length <= reader.size - offset - 12
    return reader.size if known and length < 0 else offset + 12 + length if known else offset


def split_w64(reader: Reader, start: int) -> tuple[list[Link], int]:
    """Split W64, of which libsndfile would read everything up to the end of the file as sound; see `split_iff`."""
    offset, end, cut = start + 40, reader.size, False
    while (length := reader.number(offset + 16, "<Q")) >= 24 and not container_kind(reader, offset):
        following = offset + length + -length % 8
        if reader.peek(offset, 4) == b"data":
            end, cut = min(offset + length, reader.size), reader.size < offset + length < 2**62
        elif following > reader.size + 8:
            break
        offset = following
    return as_it_is(reader, start, end, cut), min(max(offset, end), reader.size)
