"""Access to the bytes of a file by their offset, to parts of it as a file, and to the tags between sounds."""

import io
import re
import struct
from bisect import bisect_right
from itertools import accumulate
from typing import Any, BinaryIO


class Pieces(io.RawIOBase):
    """A readable file made of parts of another file and of bytes between them.

    Args:
        file: open for reading.
        pieces: parts (start, stop) of `file`, and bytes.
    """

    def __init__(self, file: BinaryIO, pieces: list):
        self.file, self.pieces, self.position = file, pieces, 0
        sizes = [len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces]
        self.starts = list(accumulate(sizes, initial=0))

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.starts[-1]}[whence]
        self.position = max(0, origin + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or what of it the rest of the file fills; libsndfile takes a short read for the end."""
        view, filled = memoryview(buffer).cast("B"), 0
        while filled < len(view) and self.position < self.starts[-1]:
            number = bisect_right(self.starts, self.position) - 1
            piece, within = self.pieces[number], self.position - self.starts[number]
            most = min(len(view) - filled, self.starts[number + 1] - self.position)
            if isinstance(piece, bytes):
                content = piece[within : within + most]
            else:
                self.file.seek(piece[0] + within)
                content = self.file.read(most)
            if not content:
                break
            view[filled : filled + len(content)] = content
            filled, self.position = filled + len(content), self.position + len(content)
        return filled


class Reader:
    """Bytes of a file by their offset; none after its end."""

    def __init__(self, file: BinaryIO):
        self.file, self.size = file, file.seek(0, io.SEEK_END)
        self._start, self._window = 0, b""

    def peek(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on, fewer at the end of the file."""
        if not 0 <= offset < self.size:
            return b""
        if not self._start <= offset <= offset + length <= self._start + len(self._window):
            self.file.seek(offset)
            self._start, self._window = offset, self.file.read(max(length, 1 << 16))
        return self._window[offset - self._start : offset - self._start + length]

    def find(self, wanted: bytes, offset: int) -> int:
        """Return the next offset of `wanted`, -1 if there is none."""
        while offset < self.size:
            content = self.peek(offset, 1 << 20)
            if (index := content.find(wanted)) >= 0:
                return offset + index
            offset += max(1, len(content) - len(wanted) + 1)
        return -1

    def find_any(self, wanted: tuple[bytes, ...], offset: int) -> int:
        """Return the next offset of any of `wanted`, -1 if there is none."""
        overlap, any_of = max(map(len, wanted)) - 1, re.compile(b"|".join(map(re.escape, wanted)))
        while offset < self.size:
            content = self.peek(offset, 1 << 20)
            if match := any_of.search(content):  # one search, which stops at the first match
                return offset + match.start()
            offset += max(1, len(content) - overlap)
        return -1

    def number(self, offset: int, form: str) -> int:
        """Return the number at `offset` in a format of `struct`, 0 after the end of the file."""
        content = self.peek(offset, struct.calcsize(form))
        return struct.unpack(form, content)[0] if len(content) == struct.calcsize(form) else 0


def after_tags(reader: Reader, offset: int) -> int:
    """Return the offset after the zeros and tags (ID3, APE, Lyrics3) that begin at `offset`."""
    while offset < reader.size:
        head = reader.peek(offset, 32)
        if head[0] == 0:
            content = reader.peek(offset, 1 << 20)
            offset += len(content) - len(content.lstrip(b"\0"))
            if reader.peek(offset + 1, 4) == b"ftyp":  # of an mp4, the size of the first box begins with zeros
                return offset - 3
        elif head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 128:
            a, b, c, d = head[6:10]
            offset += 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if head[5] & 16 else 0)
        elif head[:3] == b"TAG" and reader.size - offset in (128, 128 + 227):
            offset = reader.size
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            holds_header = head[23] & 0x20  # a header, whose size counts the bytes after it
            offset += 32 + (int.from_bytes(head[12:16], "little") if holds_header else 0)
        elif head[:11] == b"LYRICSBEGIN" and (end := reader.find(b"LYRICS200", offset)) >= 0:
            offset = end + 9
        else:
            break
    return min(offset, reader.size)
