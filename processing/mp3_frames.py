"""Beginnings and ends of MP3s in a file, found from frame to frame and from one Xing header to the next."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from .file_parts import Reader, after_tags

_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version: MPEG 1, 2, 2.5
_KBPS = {  # by (is MPEG 1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RESYNC = 1024  # bytes without a frame, after which libsndfile's decoder continues by itself
_SEARCH = 1 << 20  # bytes that are searched for the next frame
_SLACK = 8  # frames that decoders may omit at both ends
_OTHERS = b"RIFF", b"RIFX", b"FORM", b"fLaC", b"OggS", b"caff", b".snd"  # what may begin after an MP3


class Frame(NamedTuple):
    """Header of an MPEG audio frame."""

    length: int  # bytes
    samples: int  # of each channel
    form: tuple  # version, layer, rate, whether it is mono: constant within a stream
    kbps: int
    info: int  # where a Xing header would be


@lru_cache(4096)
def frame_of(head: bytes) -> Frame | None:
    """Parse the four bytes of a frame header; None if they are none, or do not state its length."""
    if len(head) < 4 or head[0] != 255 or head[1] < 0xE0:
        return None
    version, layer, bits, rate = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or bits in (0, 15) or rate == 3 or head[3] & 3 == 2:
        return None
    mpeg1, mono, hertz = version == 3, head[3] >> 6 == 3, _RATES[version][rate]
    kbps = _KBPS[mpeg1, layer][bits - 1]
    samples = 384 if layer == 1 else 1152 if mpeg1 or layer == 2 else 576
    padding = head[2] >> 1 & 1
    length = (12000 * kbps // hertz + padding) * 4 if layer == 1 else samples * 125 * kbps // hertz + padding
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    return Frame(length, samples, (version, layer, hertz, mono), kbps, 4 + side + (0 if head[1] & 1 else 2))


@dataclass
class Run:
    """Frames that one decoder decodes, from byte `start` to `stop`."""

    start: int
    stop: int
    form: tuple
    declared: int | None  # number of frames in its Xing header
    frames: int = 0
    frame_samples: int = 0
    rates: frozenset = frozenset()  # kbit/s
    cut: bool = False
    declared_stop: int = 0  # end of the last frame that the header declares
    last: int = 0  # offset of the last frame

    @property
    def header(self) -> bytes:
        """A Xing header with the number of frames, b"" where none is needed.

        Runs of changing bit rates need one: libsndfile's decoder estimates too few frames.
        """
        version, layer, hertz, mono = self.form
        if self.declared is not None or len(self.rates) < 2 or layer != 3:
            return b""
        first = 0xE0 | version << 3 | 1 << 1 | 1
        head = bytes([255, first, 9 << 4 | _RATES[version].index(hertz) << 2, 0xC0 if mono else 0])
        frame = frame_of(head)
        content = bytes(frame.info - 4) + b"Xing" + (1).to_bytes(4, "big") + self.frames.to_bytes(4, "big")
        return (head + content).ljust(frame.length, b"\0")

    @property
    def samples(self) -> int:
        """Least number of samples of each channel."""
        return max(0, max(self.frames, self.declared or 0) - _SLACK) * self.frame_samples


def is_mp3(reader: Reader, offset: int) -> bool:
    """Whether two frames, or one frame and the end of the file, follow at `offset`."""
    frame = frame_of(reader.peek(offset, 4))
    if frame is None:
        return False
    after = frame_of(reader.peek(offset + frame.length, 4))
    return after.form == frame.form if after else offset + frame.length == reader.size


def mp3_runs(reader: Reader, start: int, most: int) -> tuple[list[Run], int]:
    """Find the runs of frames from `start` on, where a frame is, and the end of the last one.

    Args:
        most: number of runs after which the search stops with one more.
    """
    runs, offset = [], start
    while offset < reader.size and len(runs) <= most:
        head = reader.peek(offset, 64)
        frame, run = frame_of(head[:4]), runs[-1] if runs else None
        known = run is not None and frame is not None and frame.form == run.form
        if known and offset + frame.length > reader.size:
            run.cut = run.frames != run.declared
            return runs, reader.size
        if known or (frame and is_mp3(reader, offset)):
            declared = _declared_frames(head, frame)
            if not known or declared is not None or offset > run.stop + _RESYNC:
                runs.append(
                    Run(offset, offset, frame.form, declared or None, frame_samples=frame.samples, last=offset)
                )
            elif run.declared is not None and run.frames > run.declared:  # its header declares fewer than there are
                more = run.frames - run.declared
                first = run.declared_stop
                runs.append(Run(first, run.stop, run.form, None, more, frame.samples, run.rates, last=run.last))
                run.stop, run.frames = run.declared_stop, run.declared
            if declared is None:
                _add(runs[-1], frame, offset)
            elif not declared:  # a header without a number
                runs[-1].start += frame.length
            runs[-1].stop = offset = offset + frame.length
            continue
        following = after_tags(reader, offset)
        if following == offset:
            following = -1 if head.startswith(_OTHERS) else next_frame(reader, run.last if run else offset)
            if run and run.last < following < offset:  # the last frame was cut off by another MP3
                run.stop, run.frames = run.last, max(0, run.frames - 1)
        if following < 0:
            break
        offset = following
    return [run for run in runs if run.frames], min(offset, reader.size)


def _add(run: Run, frame: Frame, offset: int) -> None:
    run.stop, run.last, run.frames = offset + frame.length, offset, run.frames + 1
    if frame.kbps not in run.rates:
        run.rates |= {frame.kbps}
    if run.declared == run.frames:
        run.declared_stop = run.stop


def _declared_frames(head: bytes, frame: Frame) -> int | None:
    """Return the number of frames in a Xing, LAME or Fraunhofer header, 0 if it has none, None without a header."""
    if frame.form[1] != 3:
        return None
    if head[frame.info : frame.info + 4] in (b"Xing", b"Info"):
        flags = int.from_bytes(head[frame.info + 4 : frame.info + 8], "big")
        return int.from_bytes(head[frame.info + 8 : frame.info + 12], "big") if flags & 1 else 0
    return int.from_bytes(head[50:54], "big") if head[36:40] == b"VBRI" else None


def next_frame(reader: Reader, offset: int) -> int:
    """Return the next offset where two frames follow each other, -1 if there is none within `_SEARCH` bytes."""
    end = offset + _SEARCH
    while 0 <= (offset := reader.find(b"\xff", offset + 1)) < end:
        if is_mp3(reader, offset):
            return offset
    return -1
