"""Decoding of m4a, aac, wma, webm and the sound of videos, with FFmpeg through PyAV.

FFmpeg gets an open file without a name, so that it can open no other file. It uses only the demuxers and decoders
named here, so that playlists, which name files and addresses, are not read, and images are not decoded.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import chain, groupby
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from .file_parts import Pieces, Reader

DEMUXERS = "matroska,webm,aac,asf,avi,flv,mpegts,mpeg,amr,ac3,eac3,caf,ogg"
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"  # for files that begin like none of the others
_BEGINNINGS = (
    b"\x1aE\xdf\xa3",
    b"0&\xb2u",
    b"FLV",
    b"RIFF",
    b"OggS",
    b"caff",
    b"#!AMR",
    b"\0\0\1\xba",
    b"\x0bw",
    b"ID3",
    b"G",
)
_ADTS = b"\xff\xf0", b"\xff\xf1", b"\xff\xf8", b"\xff\xf9"
DECODERS = (
    "aac,aac_latm,alac,mp1float,mp2float,mp3float,opus,vorbis,flac,speex,wmav1,wmav2,wmapro,wmalossless,wmavoice,ac3,"
    "eac3,dca,amrnb,amrwb,gsm,gsm_ms,adpcm_ms,adpcm_ima_wav,adpcm_ima_qt,adpcm_swf,nellymoser,pcm_alaw,pcm_mulaw,"
    "pcm_u8,pcm_s8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_f32le,pcm_f32be,pcm_f64le,pcm_f64be"
)
_SHORT = 1.0  # seconds that may be missing of the stated length

logger = logging.getLogger(__name__)


def open_video(file: BinaryIO, name: str, error: Exception, stack: ExitStack) -> tuple[int, Iterator[tuple]]:
    """Open the first audio stream: its sample rate, and parts that are each a rate and blocks `[samples, channels]`.

    Args:
        file: open for reading.
        name: of the file, in errors.
        error: of libsndfile.
        stack: closes the file.

    Raises:
        ValueError: PyAV is not installed, or the file has another format or no sound.
    """
    av, container, reader = _container(file, name, error, stack)
    if not container.streams.audio:
        raise ValueError(f"{name} has no sound: FFmpeg finds no audio stream in it")
    if container.streams.audio[0].codec_context is None:
        raise ValueError(f"{name} holds sound of a codec that is not read: convert it to wav or flac")
    frames = _frames(container, av, name, _missing(reader))
    stack.callback(frames.close)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{name} holds no samples")
    alike = groupby(chain([first], frames), key=lambda frame: (frame[0], frame[1].shape[1]))
    return first[0], ((rate, (block for _, block in group)) for (rate, _), group in alike)


def video_tags(file: BinaryIO, name: str, error: Exception) -> dict[str, str]:
    """Return the tags of a file and of its first audio stream, such as its title; for the errors, see `open_video`."""
    with ExitStack() as stack:
        _, container, _ = _container(file, name, error, stack)
        streams = container.streams.audio
        return {**(streams[0].metadata if streams else {}), **container.metadata}


def _container(file: BinaryIO, name: str, error: Exception, stack: ExitStack) -> tuple[ModuleType, Any, Reader]:
    """Return PyAV, the opened file and a reader of its bytes."""
    why = f"cannot read {name} as sound: {getattr(error, 'error_string', error)}"
    try:
        import av
    except ImportError:
        raise ValueError(
            f"{why} If it is m4a, aac, wma, webm or a video: pip install 'wavlink[formats]', in a checkout pip "
            "install -e '.[formats]', or convert it to wav or flac"
        ) from error
    allowed = {"format_whitelist": DEMUXERS, "codec_whitelist": DECODERS, "protocol_whitelist": "none"}
    reader = Reader(file)
    if not (reader.peek(0, 16).startswith((*_BEGINNINGS, *_ADTS)) or reader.peek(4, 1) == reader.peek(196, 1) == b"G"):
        allowed["format_whitelist"] = MP4
        if _packets(reader) > reader.size:
            raise ValueError(f"{why} It tells of more packets than it has bytes")
    try:
        # without a name, from which FFmpeg would guess the format
        container = stack.enter_context(av.open(Pieces(file, [(0, reader.size)]), container_options=allowed))
    except (av.error.FFmpegError, ValueError) as ffmpeg_error:
        raise ValueError(why) from ffmpeg_error
    return av, container, reader


def _packets(reader: Reader) -> int:
    """Return how many packets the tables of an mp4 or mov declare; FFmpeg allocates memory for each of them.

    Tables are searched for in all boxes but `mdat`, which holds the sound.
    """
    offset, packets = 0, 0
    while offset < reader.size:
        length = reader.number(offset, ">I")
        length = reader.number(offset + 8, ">Q") if length == 1 else length
        end = min(offset + length, reader.size) if length >= 8 else reader.size
        for table, fixed in (
            ((b"stsz", 12), (b"stz2", 12), (b"trun", 8)) if reader.peek(offset + 4, 4) != b"mdat" else ()
        ):
            position = offset
            while 0 <= (position := reader.find(table, position + 1)) < end:
                packets += reader.number(position + fixed, ">I")
        if reader.peek(offset + 4, 4) != b"mdat" and 0 <= reader.find(b"cmov", offset) < end:
            return reader.size + 1  # compressed tables
        offset = end
    return packets


def _missing(reader: Reader) -> bool:
    """Whether a Matroska or AVI is shorter than its outermost element says."""
    if reader.peek(0, 4) == b"RIFF":
        return 8 + reader.number(4, "<I") > reader.size
    if reader.peek(0, 4) != _BEGINNINGS[0]:
        return False
    length, offset = _matroska_size(reader, 4)
    size, body = _matroska_size(reader, offset + length + 4)  # of the segment, after the header and its name
    return body + size > reader.size


def _matroska_size(reader: Reader, offset: int) -> tuple[int, int]:
    """Return the size at `offset`, 0 where the writer did not know it, and the offset after it."""
    first = reader.number(offset, "B")
    width = 9 - first.bit_length()
    size = int.from_bytes(reader.peek(offset, width), "big") & ((1 << 7 * width) - 1)
    return (0 if size == (1 << 7 * width) - 1 else size), offset + width


def _frames(container, av, name: str, missing: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the sample rate and float32 `[samples, channels]` of each frame of the first audio stream."""
    stream, seconds, damaged = container.streams.audio[0], 0.0, 0
    stream.codec_context.thread_count = 1
    try:
        for packet in _packets_of(container, stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                damaged += 1
                continue
            for frame in frames:
                seconds += frame.samples / frame.sample_rate
                yield frame.sample_rate, _floats(frame)
    except av.error.FFmpegError as error:
        raise ValueError(f"cannot read {name} as sound: {error.strerror}") from error
    if damaged:
        logger.warning(f"{name} is damaged: {damaged} of its packets cannot be decoded and are left out")
    stated = _stated(container, stream)
    if missing or seconds < stated - _SHORT:
        of = f" of {stated:.1f} s" if seconds < stated else ""
        logger.warning(f"{name} ends before its sound does, after {seconds:.1f} s{of}: it was cut off")


def _packets_of(container, stream) -> Iterator:
    """Yield the packets of a stream.

    At the end, after all of them, PyAV raises an IndexError where another stream began late, as one may in FLV.
    """
    with suppress(IndexError):
        yield from container.demux(stream)


def _stated(container, stream) -> float:
    """Return the seconds of sound that the file states; 0 where it states nothing, and FFmpeg estimates."""
    if "mov" in container.format.name and stream.duration:
        return float(stream.duration * stream.time_base)
    if "matroska" in container.format.name and len(container.streams) == 1 and container.duration:
        return container.duration / 1e6
    return 0.0


def _floats(frame) -> np.ndarray:
    samples, channels = frame.to_ndarray(), frame.layout.nb_channels
    block = samples.T if frame.format.is_planar else samples.reshape(-1, channels)  # (samples, channels)
    if block.dtype.kind == "f":
        return np.ascontiguousarray(block, np.float32)
    scale = 2.0 ** (8 * block.dtype.itemsize - 1)
    return ((block.astype(np.float64) - (scale if block.dtype.kind == "u" else 0)) / scale).astype(np.float32)
