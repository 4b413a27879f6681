"""The sounds of a file that holds several, of which libsndfile would read only the first.

libsndfile reads the first sound of a file and trusts its header. Real files hold more: sounds one after another, tags
in front, sizes of 32 bits that have overflowed, headers that a recorder did not update. `links_of` finds each sound in
a file; libsndfile then reads it under a corrected header.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import BinaryIO

from .chunk_containers import split_au, split_caf, split_iff, split_w64
from .container_kinds import FLAC_HEADERS, Link, as_it_is, container_kind, is_name, next_beginning
from .container_kinds import HARMLESS as HARMLESS
from .file_parts import Reader, after_tags
from .flac_frames import ends_of
from .mp3_frames import frame_of, is_mp3, mp3_runs, next_frame

MAX_LINKS = 10_000  # sounds in one file
_MAX_MP4S = 100  # sounds where the last one is an mp4, which takes milliseconds to open
_OGG_SOUND = b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   "


def links_of(file: BinaryIO, name: str) -> tuple[list[Link], int]:
    """Find the sounds of a file in their order, and the number of unknown bytes after the last one.

    A file of an unknown kind is one link, without changes.

    Args:
        file: open for reading.
        name: of the file, in errors.

    Raises:
        ValueError: there are more than `MAX_LINKS`.
    """
    reader, links = Reader(file), []
    offset = after_tags(reader, 0)
    if frame_of(reader.peek(offset, 4)) and not is_mp3(reader, offset):  # a partial frame before an MP3
        offset = max(next_frame(reader, offset), offset)
    while kind := container_kind(reader, offset):
        new, end = _SPLITTERS[kind](reader, offset)
        links += new
        most = _MAX_MP4S if kind == "mp4" else MAX_LINKS
        if len(links) > most:
            raise ValueError(f"{name} holds more than {most} sounds one after another: cut it")
        offset = after_tags(reader, max(end, offset + 1))
    if not links:
        return [Link()], 0
    return links, reader.size - offset


def _mp4(reader: Reader, start: int) -> tuple[list[Link], int]:
    """Split mp4: boxes of a size and a name, up to the end of the file or the first box of another mp4."""
    offset = start
    while is_name(reader.peek(offset + 4, 4)) and (offset == start or not container_kind(reader, offset)):
        length = reader.number(offset, ">I")
        length = reader.number(offset + 8, ">Q") if length == 1 else length
        offset = min(offset + length, reader.size) if length >= 8 else reader.size
    end = offset if container_kind(reader, offset) else reader.size
    return as_it_is(reader, start, end), end


def _other(reader: Reader, start: int) -> tuple[list[Link], int]:
    """Split a container that is not parsed: it ends where another begins, or with the file."""
    end = next_beginning(reader, start)
    end = reader.size if end < 0 else end
    return as_it_is(reader, start, end), end


def _flac(reader: Reader, start: int) -> tuple[list[Link], int]:
    """Split FLAC, which states no size in bytes.

    It ends with its last frame, where another sound begins, or with the file. The number of samples
    in the header becomes 0, unknown, since libsndfile reads no more than that.
    """
    end = next_beginning(reader, start)
    if end < 0:
        end = reader.size - (128 if reader.peek(reader.size - 128, 3) == b"TAG" else 0)
    if reader.peek(start + 4, 4) not in FLAC_HEADERS:
        return as_it_is(reader, start, end), end
    stream_info = reader.number(start + 18, ">Q")
    samples = stream_info & (2**36 - 1)
    ends = ends_of(reader, start, end)
    before_sounds = [offset for offset in ends if container_kind(reader, after_tags(reader, offset))]
    end = before_sounds[0] if before_sounds else end
    pieces = [(start, start + 18), (stream_info - samples).to_bytes(8, "big"), (start + 26, end)]
    if not before_sounds and samples and ends and after_tags(reader, ends[-1]) + HARMLESS < end == reader.size:
        end = ends[0]  # unknown bytes follow; libsndfile stops by itself
    return [Link(pieces, samples or None, complete=samples > 0)], end


def _ogg(reader: Reader, start: int) -> tuple[list[Link], int]:
    """Split Ogg: a link is pages that begin streams, then other pages, each of which states its length."""
    starts, cuts, offset, sound = [start], [], start, False
    while offset < reader.size and len(starts) <= MAX_LINKS:
        head = reader.peek(offset, 27 + 255)
        table = head[27 : 27 + head[26]] if len(head) > 26 else b""
        first = len(head) > 5 and head[5] & 2
        begins = first and reader.peek(offset + 27 + len(table), 8).startswith(_OGG_SOUND)
        if begins and sound:
            starts.append(offset)
        sound = not begins and (sound or not first)
        end = offset + 27 + len(table) + sum(table)
        if end != reader.size and reader.peek(end, 4) != b"OggS":
            following = reader.find(b"OggS", offset + 4)
            if end > reader.size or 0 <= following < end:
                cuts.append(offset)
            elif following < 0 or container_kind(reader, after_tags(reader, end)) not in (None, "ogg"):
                offset = end
                break
            end = following if following >= 0 else reader.size
        offset = end
    ends = [*starts[1:], offset]
    links = []
    for first, end in zip(starts, ends, strict=True):
        near = bisect_left(cuts, end) - 1  # the last page of a link may be cut
        links += as_it_is(reader, first, end, near >= 0 and cuts[near] >= max(first, end - 65307))
    return links, offset


def _mp3(reader: Reader, start: int) -> tuple[list[Link], int]:
    """Split MP3: a link for each run of frames, with a Xing header where it needs one."""
    runs, end = mp3_runs(reader, start, MAX_LINKS)
    if len(runs) == 1 and not runs[0].header and start == 0 and after_tags(reader, end) == reader.size:
        return [Link(None, runs[0].samples, cut=runs[0].cut)], end
    pieces = [[run.header, (run.start, run.stop)] if run.header else [(run.start, run.stop)] for run in runs]
    return [Link(parts, run.samples, cut=run.cut) for parts, run in zip(pieces, runs, strict=True)], end


_SPLITTERS: dict[str, Callable[[Reader, int], tuple[list[Link], int]]] = {
    "iff": split_iff,
    "au": split_au,
    "caf": split_caf,
    "w64": split_w64,
    "flac": _flac,
    "ogg": _ogg,
    "mp3": _mp3,
    "mp4": _mp4,
    "other": _other,
}
