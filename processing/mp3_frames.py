"""Where MP3s begin and end in a file: by walking from frame to frame, and from one Xing header to the next."""

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
_RESYNC = 1024  # bytes that are no frame, over which libsndfile's decoder goes on by itself
_SEARCH = 1 << 20  # bytes that are searched for the next frame
_SLACK = 8  # frames that decoders may leave out at the ends
_OTHERS = b"RIFF", b"RIFX", b"FORM", b"fLaC", b"OggS", b"caff", b".snd"  # what may begin after an MP3


class Frame(NamedTuple):
    length: int  # bytes
    samples: int  # of each channel
    form: tuple  # version, layer, rate, whether it is mono: what a decoder cannot change on its way
    kbps: int
    info: int  # where a Xing header would be


@lru_cache(4096)
def frame_of(head: bytes) -> Frame | None:
    """What the four bytes that begin a frame say; None if they are no such bytes, or do not tell its length."""
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
    """Frames that one decoder decodes, from `start` to `stop` bytes."""

    start: int
    stop: int
    form: tuple
    told: int | None  # frames, by its Xing header
    frames: int = 0
    frame_samples: int = 0
    rates: frozenset = frozenset()  # kbit/s
    cut: bool = False
    told_stop: int = 0  # where the last frame ends that the header tells of
    last: int = 0  # where the last frame begins

    @property
    def header(self) -> bytes:
        """A Xing header that tells how many frames there are, for a run that needs one: of changing bit rates, from
        which libsndfile's decoder guesses too few."""
        version, layer, hertz, mono = self.form
        if self.told is not None or len(self.rates) < 2 or layer != 3:
            return b""
        first = 0xE0 | version << 3 | 1 << 1 | 1
        head = bytes([255, first, 9 << 4 | _RATES[version].index(hertz) << 2, 0xC0 if mono else 0])
        frame = frame_of(head)
        content = bytes(frame.info - 4) + b"Xing" + (1).to_bytes(4, "big") + self.frames.to_bytes(4, "big")
        return (head + content).ljust(frame.length, b"\0")

    @property
    def samples(self) -> int:
        """That there are at least."""
        return max(0, max(self.frames, self.told or 0) - _SLACK) * self.frame_samples


def is_mp3(reader: Reader, place: int) -> bool:
    """Whether two frames follow each other here, or one and the end of the file."""
    frame = frame_of(reader.peek(place, 4))
    if frame is None:
        return False
    after = frame_of(reader.peek(place + frame.length, 4))
    return after.form == frame.form if after else place + frame.length == reader.size


def mp3_runs(reader: Reader, start: int, most: int) -> tuple[list[Run], int]:
    """The runs of frames from `start` on, where a frame is, and where the last one ends; up to `most` and one more."""
    runs, place = [], start
    while place < reader.size and len(runs) <= most:
        head = reader.peek(place, 64)
        frame, run = frame_of(head[:4]), runs[-1] if runs else None
        known = run is not None and frame is not None and frame.form == run.form
        if known and place + frame.length > reader.size:
            run.cut = run.frames != run.told
            return runs, reader.size
        if known or (frame and is_mp3(reader, place)):
            told = _told(head, frame)
            if not known or told is not None or place > run.stop + _RESYNC:
                runs.append(Run(place, place, frame.form, told or None, frame_samples=frame.samples, last=place))
            elif run.told is not None and run.frames > run.told:  # its header tells of fewer than there are
                more = run.frames - run.told
                first = run.told_stop
                runs.append(Run(first, run.stop, run.form, None, more, frame.samples, run.rates, last=run.last))
                run.stop, run.frames = run.told_stop, run.told
            if told is None:
                _add(runs[-1], frame, place)
            elif not told:  # it tells nothing
                runs[-1].start += frame.length
            runs[-1].stop = place = place + frame.length
            continue
        behind = after_tags(reader, place)
        if behind == place:
            behind = -1 if head.startswith(_OTHERS) else next_frame(reader, run.last if run else place)
            if run and run.last < behind < place:  # the last frame was cut off by another MP3
                run.stop, run.frames = run.last, max(0, run.frames - 1)
        if behind < 0:
            break
        place = behind
    return [run for run in runs if run.frames], min(place, reader.size)


def _add(run: Run, frame: Frame, place: int) -> None:
    run.stop, run.last, run.frames = place + frame.length, place, run.frames + 1
    if frame.kbps not in run.rates:
        run.rates |= {frame.kbps}
    if run.told == run.frames:
        run.told_stop = run.stop


def _told(head: bytes, frame: Frame) -> int | None:
    """The number of frames by a header of Xing, LAME or Fraunhofer, 0 if it tells none; None if this frame is none."""
    if frame.form[1] != 3:
        return None
    if head[frame.info : frame.info + 4] in (b"Xing", b"Info"):
        flags = int.from_bytes(head[frame.info + 4 : frame.info + 8], "big")
        return int.from_bytes(head[frame.info + 8 : frame.info + 12], "big") if flags & 1 else 0
    return int.from_bytes(head[50:54], "big") if head[36:40] == b"VBRI" else None


def next_frame(reader: Reader, place: int) -> int:
    """The next place where two frames follow each other, -1 if there is none nearby."""
    end = place + _SEARCH
    while 0 <= (place := reader.find(b"\xff", place + 1)) < end:
        if is_mp3(reader, place):
            return place
    return -1
