"""Recognition of sound containers by the bytes that they begin with."""

from dataclasses import dataclass
from typing import BinaryIO

from .file_parts import Pieces, Reader
from .mp3_frames import is_mp3

HARMLESS = 1024  # unknown bytes at the end of a file that need no warning
FLAC_HEADERS = b"\0\0\0\x22", b"\x80\0\0\x22"  # the first block's, of 34 bytes
_OTHER_MAGICS = (  # of containers that are recognised but not parsed
    b"Creative Voice File\x1a",
    b"NIST_1A\n",
    b"MATLAB 5.0 MAT-file",
    b" paf\0\0\0",
    b"fap \0\0\0",
)
# Too short to be searched for, but directly after a sound they begin another one: IRCAM, AVR, PVF, MPC2K.
SHORT_MAGICS = *(b"\x64\xa3" + bytes([kind]) for kind in range(5)), b"2BIT", b"PVF1\n", b"\1\4"
_MAGICS = (
    *_OTHER_MAGICS,
    b"fLaC",
    b"OggS\0\2",
    b"RIFF",
    b"RIFX",
    b"RF64",
    b"BW64",
    b"FORM",
    b"caff\0\1",
    b".snd\0\0",
    b"riff\x2e\x91\xcf",
)
_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"


@dataclass(frozen=True)
class Link:
    """One sound of a file, and the bytes from which libsndfile reads it.

    Args:
        pieces: parts of the file (start, stop) and bytes to put between them; None: the file as it is.
        samples: the least number of samples of each channel; None: unknown.
        complete: the sound ends after `samples`, so that an error there is ignored.
        cut: the file ends, or another sound begins, before the end of this one.
        stated: the share of this sound that its header states, where it states too little.
    """

    pieces: list | None = None
    samples: int | None = None
    complete: bool = False
    cut: bool = False
    stated: float = 1.0

    def open(self, file: BinaryIO) -> BinaryIO:
        """Return this sound as a file to read."""
        file.seek(0)
        return file if self.pieces is None else Pieces(file, self.pieces)


def as_it_is(reader: Reader, start: int, end: int, cut: bool = False) -> list[Link]:
    """Return the bytes from `start` to `end` as one link, without a corrected header."""
    return [Link(None if (start, end) == (0, reader.size) else [(start, end)], cut=cut)]


def container_kind(reader: Reader, offset: int) -> str | None:
    """Return the kind of container that begins at `offset`: iff, au, caf, w64, flac, ogg, mp3, mp4 or other."""
    head = reader.peek(offset, 20)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return "iff"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "iff"
    kinds = {b"fLaC": "flac", b"OggS": "ogg", b".snd": "au", b"dns.": "au", b"caff": "caf"}
    if head[:4] in kinds:
        return kinds[head[:4]]
    if head[:16] == _W64_RIFF:
        return "w64"
    if head.startswith(_OTHER_MAGICS) or (head[:4] == b"FORM" and head[8:12] in (b"8SVX", b"16SV")):
        return "other"
    if head[4:8] == b"ftyp":
        return "mp4"
    return "mp3" if is_mp3(reader, offset) else None


def _begins(reader: Reader, offset: int) -> bool:
    """Whether a container begins at `offset`, within the bytes of another; too little identifies an MP3."""
    if reader.peek(offset, 4) == b"fLaC":
        return reader.peek(offset + 4, 4) in FLAC_HEADERS
    return container_kind(reader, offset) not in (None, "mp3")


def next_beginning(reader: Reader, start: int) -> int:
    """Return the offset of the next container after the one at `start`, -1 if there is none.

    An MP3 is not found in this way.
    """
    end = reader.find_any(_MAGICS, start + 4)
    while end >= 0 and not _begins(reader, end):
        end = reader.find_any(_MAGICS, end + 4)
    return end


def is_name(name: bytes) -> bool:
    """Whether bytes can be the name of a chunk: four printable characters."""
    return len(name) == 4 and all(32 <= letter < 127 for letter in name)
