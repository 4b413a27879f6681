"""How the sounds of a file are framed, so that nothing after the place where libsndfile stops is lost.

libsndfile reads the first sound of a file and believes its header. Files in use hold more: sounds put one after
another, tags in front, sizes of 32 bits that have overflowed, headers that a recorder did not close. `links_of` finds
each sound in a file; what libsndfile would read wrongly is given to it under a corrected header.
"""

import struct
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from .file_parts import Pieces, Reader, after_tags
from .flac_frames import ends_of
from .mp3_frames import frame_of, is_mp3, mp3_runs, next_frame

MAX_LINKS = 10_000  # sounds in one file
_MAX_MP4S = 100  # the same where one is an mp4, which takes milliseconds to open
HARMLESS = 1024  # bytes of an unknown kind at the end of a file that need no warning
_OPEN = 0x7FFF0000  # sizes from here on are what programs write that do not know the size yet
_PART = 1 << 30  # bytes of sound under one corrected header, whose sizes have 32 bits
_OGG_SOUND = b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   "
_FLAC_HEADERS = b"\0\0\0\x22", b"\x80\0\0\x22"  # the first block's, of 34 bytes
_OTHERS = (  # of which this module knows the beginning alone
    b"Creative Voice File\x1a",
    b"NIST_1A\n",
    b"MATLAB 5.0 MAT-file",
    b" paf\0\0\0",
    b"fap \0\0\0",
)
# Too short to be looked for; where one stands behind a sound, it is another: IRCAM, AVR, PVF, MPC2K.
_SHORT_OTHERS = *(b"\x64\xa3" + bytes([kind]) for kind in range(5)), b"2BIT", b"PVF1\n", b"\1\4"
_BEGINNINGS = (
    *_OTHERS,
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
    """One sound of a file, as libsndfile is to be given it.

    Args:
        pieces: parts of the file (start, stop) and bytes to put between them; None: the file as it is.
        samples: of each channel, that there must be at least; None: unknown.
        complete: what comes after `samples` is no sound, so that an error there is none.
        cut: the file ends, or another sound begins, before this one is over.
        stated: the share of this sound that its header tells of, where that is less than there is.
    """

    pieces: list | None = None
    samples: int | None = None
    complete: bool = False
    cut: bool = False
    stated: float = 1.0

    def open(self, file: BinaryIO) -> BinaryIO:
        file.seek(0)
        return file if self.pieces is None else Pieces(file, self.pieces)


def links_of(file: BinaryIO, name: str) -> tuple[list[Link], int]:
    """The sounds of a file in their order, and how many bytes after the last one are of no known kind.

    What this module does not know is one link, the file as it is.

    Raises:
        ValueError: there are more than `MAX_LINKS`.
    """
    reader, links = Reader(file), []
    place = after_tags(reader, 0)
    if frame_of(reader.peek(place, 4)) and not is_mp3(reader, place):  # a frame that is cut, before a whole MP3
        place = max(next_frame(reader, place), place)
    while split := _kind(reader, place):
        found, end = split(reader, place)
        links += found
        most = _MAX_MP4S if split is _mp4 else MAX_LINKS
        if len(links) > most:
            raise ValueError(f"{name} holds more than {most} sounds one after another: cut it")
        place = after_tags(reader, max(end, place + 1))
    if not links:
        return [Link()], 0
    return links, reader.size - place


def _kind(reader: Reader, place: int) -> Callable | None:
    """What splits the container that begins at `place`."""
    head = reader.peek(place, 20)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return _iff
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _iff
    kinds = {b"fLaC": _flac, b"OggS": _ogg, b".snd": _au, b"dns.": _au, b"caff": _caf}
    if head[:4] in kinds:
        return kinds[head[:4]]
    if head[:16] == _W64_RIFF:
        return _w64
    if head.startswith(_OTHERS) or (head[:4] == b"FORM" and head[8:12] in (b"8SVX", b"16SV")):
        return _other
    if head[4:8] == b"ftyp":
        return _mp4
    return _mp3 if is_mp3(reader, place) else None


def _begins(reader: Reader, place: int) -> bool:
    """Whether a container begins at `place`, amid the bytes of another; of an MP3 too little is certain."""
    if reader.peek(place, 4) == b"fLaC":
        return reader.peek(place + 4, 4) in _FLAC_HEADERS
    return _kind(reader, place) not in (None, _mp3)


def _iff(reader: Reader, start: int) -> tuple[list[Link], int]:
    """WAV in 32 and 64 bits, and AIFF: chunks of a name, a size, and that many bytes and one if they are odd."""
    magic = reader.peek(start, 4)
    order, block, long = "<>"[magic in (b"RIFX", b"FORM")], 0, 0
    place = start + 12
    while (name := reader.peek(place, 4)) not in (b"data", b"SSND"):
        if not _is_name(name) or place + 8 > reader.size:
            return _as_it_is(reader, start, reader.size), reader.size
        if name == b"fmt ":
            block = reader.number(place + 20, order + "H")
        elif name == b"COMM":
            block = 24 * reader.number(place + 8, order + "H")  # a multiple of whatever a frame takes
        elif name == b"ds64":
            long = reader.number(place + 16, "<Q")
        place = _next_chunk(reader, place, order)
    told, body = reader.number(place + 4, order + "I"), place + 8
    if name == b"SSND":  # an offset and a block size are before the sound
        body, told = place + 16 + reader.number(place + 8, order + "I"), max(0, told - 8)
    if magic in (b"RF64", b"BW64") and told >= _OPEN:
        told = long
        held = told if 0 < told < 2**63 else max(0, reader.size - body)
    else:
        held = _held(reader, body, told, lambda end: _chunks_end(reader, end, order))
    end = min(_chunks_end(reader, body + held, order), reader.size)
    if block and _is_stale(reader, body, held, end):
        return _stale(_parts(start, place, body, reader.size - body, block, magic), held), reader.size
    if held == told or not block:
        return _as_it_is(reader, start, end, cut=held > reader.size - body and held < _OPEN), end
    return [Link(piece) for piece in _parts(start, place, body, held, block, magic)], end


def _parts(start: int, place: int, body: int, held: int, block: int, magic: bytes) -> list[list]:
    """`held` bytes of sound as files of at most `_PART` each, whose sizes are right."""
    order = ">I" if magic in (b"RIFX", b"FORM") else "<I"
    kept, parts, most = [(start + 8, place + 4)], [], max(_PART // block, 1) * block
    if magic in (b"RF64", b"BW64"):  # sizes of 64 bits are in the first chunk
        magic, kept = b"RIFF", [b"WAVEJUNK", (start + 16, place + 4)]
    for first in range(body, body + held, most):
        length = min(most, body + held - first)
        size = struct.pack(order, length + 8) + bytes(8) if magic == b"FORM" else struct.pack(order, length)
        parts.append([magic + struct.pack(order, 2**32 - 1), *kept, size, (first, first + length)])
    return parts


def _as_it_is(reader: Reader, start: int, end: int, cut: bool = False) -> list[Link]:
    return [Link(None if (start, end) == (0, reader.size) else [(start, end)], cut=cut)]


def _held(reader: Reader, body: int, told: int, after: Callable[[int], int]) -> int:
    """How many bytes of sound there are where a header tells `told` in 32 bits; more than there are if it is cut.

    A header that was not closed tells nothing, or what a program writes before it knows. One of more than 4 GiB has
    lost its higher bits. `after` says where what is known after the sound ends.
    """
    there = max(0, reader.size - body)
    if told > there:
        return told
    if told == 0 or _OPEN <= told <= 2**31 or told >= 2**32 - 256:
        end = after(body + told)
        if not (end == reader.size or _kind(reader, end)) or (told == 0 and end == body):
            return there
    return told + (there - told) // 2**32 * 2**32


def _is_stale(reader: Reader, body: int, held: int, end: int) -> bool:
    """Whether a header was written early and never again: it tells of less than half of what is there, and what
    follows is neither chunks nor tags nor another sound.

    Args:
        held: bytes of sound by the header.
        end: of the chunks behind them.
    """
    rest = reader.size - body - held
    if not 0 < held <= rest - HARMLESS or end > body + held + 1:
        return False
    behind = body + held
    while content := reader.peek(behind, 1 << 20):  # over silence
        behind += len(content) - len(content.lstrip(b"\0"))
        if content.strip(b"\0"):
            break
    head = reader.peek(behind, 5)
    known = _is_name(head[:4]) or head.startswith(_SHORT_OTHERS) or _kind(reader, behind)
    known = known or 0 < behind - body - held < 16  # a few zeros begin HTK and MAT4
    return after_tags(reader, behind) == behind < reader.size and not known


def _stale(parts: list[list], held: int) -> list[Link]:
    """Links of a sound of which the header tells of `held` bytes only."""
    start, stop = parts[0][-1]
    return [Link(parts[0], stated=held / (stop - start)), *map(Link, parts[1:])]


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= letter < 127 for letter in name)


def _next_chunk(reader: Reader, place: int, order: str) -> int:
    """Where the chunk after this one is; not every program writes the byte that makes its size even."""
    length = reader.number(place + 4, order + "I")
    end = place + 8 + length
    return end if length % 2 == 0 or _is_name(reader.peek(end, 4)) else end + 1


def _chunks_end(reader: Reader, place: int, order: str) -> int:
    """Behind the chunks that begin at `place`, or one byte later."""
    if not _is_name(reader.peek(place, 4)) and _is_name(reader.peek(place + 1, 4)):
        place += 1
    while place + 8 <= reader.size and not _kind(reader, place):
        following = _next_chunk(reader, place, order)
        if not _is_name(reader.peek(place, 4)) or following > reader.size + 1:
            break
        place = following
    return min(place, reader.size) if reader.size - place >= 8 else reader.size


def _au(reader: Reader, start: int) -> tuple[list[Link], int]:
    order = "<" if reader.peek(start, 4) == b"dns." else ">"
    offset, told, _, _, channels = struct.unpack(order + "5I", reader.peek(start + 4, 20).ljust(20, b"\0"))
    body, block = start + offset, 24 * max(1, min(channels, 1024))  # a multiple of whatever a frame takes
    held = _held(reader, body, told, lambda end: end)
    stated = held
    if _is_stale(reader, body, held, body + held):
        held = reader.size - body
    end = min(body + held, reader.size)
    if held == told < _OPEN:
        return _as_it_is(reader, start, end, cut=body + held > reader.size), end
    most, links = _PART // block * block, []
    for first in range(body, end, most):
        length = min(most, end - first)
        size = struct.pack(order + "I", length)
        links.append([(start, start + 8), size, (start + 12, body), (first, first + length)])
    if held > stated:
        return _stale(links, stated), end
    return list(map(Link, links)) or _as_it_is(reader, start, end), end


def _caf(reader: Reader, start: int) -> tuple[list[Link], int]:
    place, pieces, cut, stated = start + 8, [], False, 1.0
    while place + 12 <= reader.size and _is_name(name := reader.peek(place, 4)) and not _kind(reader, place):
        length = reader.number(place + 4, ">q")
        end = reader.size if length < 0 else place + 12 + length
        if name == b"data" and (length < 0 or end > reader.size):  # libsndfile reads neither
            cut, held = length >= 0, struct.pack(">q", reader.size - place - 12)
            pieces = [(start, place + 4), held, (place + 12, reader.size)]
        elif name == b"data" and _is_stale(reader, place + 12, length, _caf_end(reader, end)):
            stated, end = length / (reader.size - place - 12), reader.size
            pieces = [(start, place + 4), struct.pack(">q", end - place - 12), (place + 12, end)]
        elif end > reader.size:
            break
        place = min(end, reader.size)
    return [Link(pieces, cut=cut, stated=stated)] if pieces else _as_it_is(reader, start, place), place


def _caf_end(reader: Reader, place: int) -> int:
    """Behind the chunk at `place`, or `place` where there is none."""
    length = reader.number(place + 4, ">q")
    known = _is_name(reader.peek(place, 4)) and -1 <= length <= reader.size - place - 12
    return reader.size if known and length < 0 else place + 12 + length if known else place


def _w64(reader: Reader, start: int) -> tuple[list[Link], int]:
    """libsndfile takes all of a file behind the beginning of the sound for sound."""
    place, end, cut = start + 40, reader.size, False
    while (length := reader.number(place + 16, "<Q")) >= 24 and not _kind(reader, place):
        following = place + length + -length % 8
        if reader.peek(place, 4) == b"data":
            end, cut = min(place + length, reader.size), reader.size < place + length < 2**62
        elif following > reader.size + 8:
            break
        place = following
    return _as_it_is(reader, start, end, cut), min(max(place, end), reader.size)


def _mp4(reader: Reader, start: int) -> tuple[list[Link], int]:
    """Boxes of a size and a name, to the end of the file or to the first box of another mp4."""
    place = start
    while _is_name(reader.peek(place + 4, 4)) and (place == start or not _kind(reader, place)):
        length = reader.number(place, ">I")
        length = reader.number(place + 8, ">Q") if length == 1 else length
        place = min(place + length, reader.size) if length >= 8 else reader.size
    end = place if _kind(reader, place) else reader.size
    return _as_it_is(reader, start, end), end


def _other(reader: Reader, start: int) -> tuple[list[Link], int]:
    end = _next_beginning(reader, start)
    end = reader.size if end < 0 else end
    return _as_it_is(reader, start, end), end


def _next_beginning(reader: Reader, start: int) -> int:
    """Where the next container begins after the one at `start`, -1 if none does; that may be an MP3 too."""
    end = reader.find_any(_BEGINNINGS, start + 4)
    while end >= 0 and not _begins(reader, end):
        end = reader.find_any(_BEGINNINGS, end + 4)
    return end


def _flac(reader: Reader, start: int) -> tuple[list[Link], int]:
    """A FLAC tells no size in bytes: it ends where its last frame does, where another sound begins, or with the file.
    The number of samples in its header becomes 0, unknown, since libsndfile reads no more than that."""
    end = _next_beginning(reader, start)
    if end < 0:
        end = reader.size - (128 if reader.peek(reader.size - 128, 3) == b"TAG" else 0)
    if reader.peek(start + 4, 4) not in _FLAC_HEADERS:
        return _as_it_is(reader, start, end), end
    about = reader.number(start + 18, ">Q")
    samples = about & (2**36 - 1)
    ends = ends_of(reader, start, end)
    known = [place for place in ends if _kind(reader, after_tags(reader, place))]
    end = known[0] if known else end
    pieces = [(start, start + 18), (about - samples).to_bytes(8, "big"), (start + 26, end)]
    if not known and samples and ends and after_tags(reader, ends[-1]) + HARMLESS < end == reader.size:
        end = ends[0]  # what follows is of no known kind; libsndfile stops by itself, wherever that is
    return [Link(pieces, samples or None, complete=samples > 0)], end


def _ogg(reader: Reader, start: int) -> tuple[list[Link], int]:
    """Pages that begin streams, then others, are a link; each page tells its length."""
    starts, cuts, place, sound = [start], [], start, False
    while place < reader.size and len(starts) <= MAX_LINKS:
        head = reader.peek(place, 27 + 255)
        table = head[27 : 27 + head[26]] if len(head) > 26 else b""
        first = len(head) > 5 and head[5] & 2
        begins = first and reader.peek(place + 27 + len(table), 8).startswith(_OGG_SOUND)
        if begins and sound:
            starts.append(place)
        sound = not begins and (sound or not first)
        end = place + 27 + len(table) + sum(table)
        if end != reader.size and reader.peek(end, 4) != b"OggS":
            following = reader.find(b"OggS", place + 4)
            if end > reader.size or 0 <= following < end:
                cuts.append(place)
            elif following < 0 or _kind(reader, after_tags(reader, end)) not in (None, _ogg):
                place = end
                break
            end = following if following >= 0 else reader.size
        place = end
    ends = [*starts[1:], place]
    links = []
    for one, end in zip(starts, ends, strict=True):
        near = bisect_left(cuts, end) - 1  # a page that is cut is the last one
        links += _as_it_is(reader, one, end, near >= 0 and cuts[near] >= max(one, end - 65307))
    return links, place


def _mp3(reader: Reader, start: int) -> tuple[list[Link], int]:
    runs, end = mp3_runs(reader, start, MAX_LINKS)
    if len(runs) == 1 and not runs[0].header and start == 0 and after_tags(reader, end) == reader.size:
        return [Link(None, runs[0].samples, cut=runs[0].cut)], end
    pieces = [[run.header, (run.start, run.stop)] if run.header else [(run.start, run.stop)] for run in runs]
    return [Link(one, run.samples, cut=run.cut) for one, run in zip(pieces, runs, strict=True)], end
