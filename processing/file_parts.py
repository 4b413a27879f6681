"""Bytes of a file by their position, parts of it as a file of their own, and the tags between sounds."""

import io
import re
import struct
from bisect import bisect_right
from itertools import accumulate
from typing import BinaryIO


class Pieces(io.RawIOBase):
    """Parts of a file, and bytes between them, as one file to read."""

    def __init__(self, file: BinaryIO, pieces: list):
        self.file, self.pieces, self.place = file, pieces, 0
        sizes = [len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces]
        self.starts = list(accumulate(sizes, initial=0))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.starts[-1]}[whence]
        self.place = max(0, origin + offset)
        return self.place

    def readinto(self, buffer) -> int:
        view, filled = memoryview(buffer).cast("B"), 0
        while filled < len(view) and self.place < self.starts[-1]:  # libsndfile takes a short read for the end
            number = bisect_right(self.starts, self.place) - 1
            piece, within = self.pieces[number], self.place - self.starts[number]
            most = min(len(view) - filled, self.starts[number + 1] - self.place)
            if isinstance(piece, bytes):
                content = piece[within : within + most]
            else:
                self.file.seek(piece[0] + within)
                content = self.file.read(most)
            if not content:
                break
            view[filled : filled + len(content)] = content
            filled, self.place = filled + len(content), self.place + len(content)
        return filled


class Reader:
    """Bytes of a file by their position; none after its end."""

    def __init__(self, file: BinaryIO):
        self.file, self.size = file, file.seek(0, io.SEEK_END)
        self._start, self._window = 0, b""

    def peek(self, place: int, length: int) -> bytes:
        if not 0 <= place < self.size:
            return b""
        if not self._start <= place <= place + length <= self._start + len(self._window):
            self.file.seek(place)
            self._start, self._window = place, self.file.read(max(length, 1 << 16))
        return self._window[place - self._start : place - self._start + length]

    def find(self, wanted: bytes, place: int) -> int:
        """Where `wanted` is next, -1 if nowhere."""
        while place < self.size:
            content = self.peek(place, 1 << 20)
            if (found := content.find(wanted)) >= 0:
                return place + found
            place += max(1, len(content) - len(wanted) + 1)
        return -1

    def find_any(self, wanted: tuple[bytes, ...], place: int) -> int:
        """Where the first of `wanted` is next, -1 if none is anywhere."""
        overlap, any_of = max(map(len, wanted)) - 1, re.compile(b"|".join(map(re.escape, wanted)))
        while place < self.size:
            content = self.peek(place, 1 << 20)
            if found := any_of.search(content):  # which stops there: a search for each would take all of `content`
                return place + found.start()
            place += max(1, len(content) - overlap)
        return -1

    def number(self, place: int, form: str) -> int:
        """One number of `struct`'s form, 0 after the end of the file."""
        content = self.peek(place, struct.calcsize(form))
        return struct.unpack(form, content)[0] if len(content) == struct.calcsize(form) else 0


def after_tags(reader: Reader, place: int) -> int:
    """Behind the zeros and tags (ID3, APE, Lyrics3) that begin at `place`."""
    while place < reader.size:
        head = reader.peek(place, 32)
        if head[0] == 0:
            content = reader.peek(place, 1 << 20)
            place += len(content) - len(content.lstrip(b"\0"))
            if reader.peek(place + 1, 4) == b"ftyp":  # of an mp4, the size of the first box begins with zeros
                return place - 3
        elif head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 128:
            a, b, c, d = head[6:10]
            place += 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if head[5] & 16 else 0)
        elif head[:3] == b"TAG" and reader.size - place in (128, 128 + 227):
            place = reader.size
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            holds_header = head[23] & 0x20  # this is the header: the size counts what follows it
            place += 32 + (int.from_bytes(head[12:16], "little") if holds_header else 0)
        elif head[:11] == b"LYRICSBEGIN" and (end := reader.find(b"LYRICS200", place)) >= 0:
            place = end + 9
        else:
            break
    return min(place, reader.size)
