"""From a sound file to float32 mono samples, by libsndfile and soxr."""

import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
import soundfile
from transformers.utils import logging

from .audio_inputs_wavlink import LOUDEST as LOUDEST
from .audio_inputs_wavlink import MAX_SAMPLES, check_rate, check_samples, load_source, local_source, resample_blocks
from .audio_inputs_wavlink import RATES as RATES
from .audio_inputs_wavlink import at_rate as at_rate
from .containers import HARMLESS, Link, links_of
from .downmix_wavlink import block_length, mono_blocks
from .video import open_video

_FOREIGN = 1, 4, 161  # libsndfile's errors for a format and an encoding that it does not know, and for FLAC in Ogg

logger = logging.get_logger(__name__)


class AudioDecoder(Protocol):
    """A decoder of torchcodec, as the `Audio` columns of `datasets` hold."""

    def get_all_samples(self) -> Any: ...


# A sound, wherever one is taken: a file's path or content, {"array", "sampling_rate"}, {"path", "bytes"}, a decoder.
AudioSource = str | os.PathLike[str] | bytes | Mapping[str, Any] | AudioDecoder


@dataclass(frozen=True)
class Sound:
    """An open sound file.

    Args:
        name: what errors call it.
        samplerate: in Hz.
        blocks: float32 mono `[samples]` at that rate, at most a second at a time, to be read once.
    """

    name: str
    samplerate: int
    blocks: Iterator[np.ndarray]


def load_audio(
    path_or_bytes: str | os.PathLike[str] | bytes, sampling_rate: int = 16000, name: str = ""
) -> np.ndarray:
    """Decode a sound file to mono samples; the content says what it is, not the name.

    Any format that libsndfile reads (wav, flac, ogg, opus, mp3, ...), with all sounds of a file that holds several one
    after another; through PyAV (`pip install 'wavlink[formats]'`) also m4a, aac, wma, webm and the sound of videos.

    Args:
        path_or_bytes: a file's path, or its content.
        sampling_rate: wanted, in Hz; other rates are resampled at soxr's high quality.
        name: what errors call the file (default: its path).

    Returns:
        float32 `[samples]` in [-1, 1], the mean of the channels (see `downmix_wavlink` for those that cancel out).

    Raises:
        ValueError: the file cannot be read, is empty, has more than `MAX_SAMPLES` at its own or the wanted rate, a
            rate outside `RATES`, or samples that are NaN, infinite or beyond `LOUDEST`; it names the file.

    Example:

    ```python
    >>> from wavlink import load_audio
    >>> samples = load_audio(sounds_folder / "low.wav", sampling_rate=16000)
    >>> samples.shape, samples.dtype
    ((16000,), dtype('float32'))

    ```
    """
    with opened(path_or_bytes, name) as sound:
        most = MAX_SAMPLES * min(1, sound.samplerate / sampling_rate)
        # a few kB can claim to be hours of silence, and be that
        blocks = limited(
            sound,
            most,
            f"has more than {MAX_SAMPLES} samples, too many to be held at once: hear it in windows "
            "(processing.windows.stream_windows, as the index and wavlink.long_recordings do), or cut it",
        )
        return np.concatenate(list(resampled(blocks, sound.samplerate, sampling_rate, sound.name)))


@contextmanager
def opened(path_or_bytes: str | os.PathLike | bytes, name: str = "") -> Iterator[Sound]:
    """The open file; what goes wrong with it while it is open is a ValueError with its name."""
    path_or_bytes = local_source(path_or_bytes)
    if isinstance(path_or_bytes, bytes):
        name = name or f"a clip of {len(path_or_bytes)} bytes"
    elif isinstance(path_or_bytes, (str, os.PathLike)):
        name = name or os.fspath(path_or_bytes)
        if not os.path.isfile(path_or_bytes):
            raise ValueError(f"{name} does not exist or is not a file")
    else:
        raise ValueError(f"a sound is a file's path or its bytes, not {type(path_or_bytes).__name__}")
    try:
        # Not by its path: of what libsndfile does not know it would believe the name, and hear a web page named x.au.
        file = io.BytesIO(path_or_bytes) if isinstance(path_or_bytes, bytes) else open(path_or_bytes, "rb")
        with file, ExitStack() as stack:
            yield _sound(file, name, stack)
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        why = getattr(error, "error_string", str(error)) or "it is damaged or cut off."
        raise ValueError(f"cannot read {name} as sound: {why}") from error


def _sound(file: BinaryIO, name: str, stack: ExitStack) -> Sound:
    size = file.seek(0, io.SEEK_END)
    links, rest = links_of(file, name)
    rate, parts = _link(file, links[0], name, stack) if len(links) == 1 else _linked(file, links, name)
    return Sound(name, rate, _joined(parts, rate, rest, size, name))


def _link(file: BinaryIO, link: Link, name: str, stack: ExitStack) -> tuple[int, Iterable[tuple]]:
    """The rate of one sound, and of each of its parts the rate and blocks `[samples, channels]`; `stack` closes it."""
    content = link.open(file)
    try:
        sound = stack.enter_context(soundfile.SoundFile(content))
    except soundfile.LibsndfileError as error:
        if error.code not in _FOREIGN:
            raise
        rate, parts = open_video(content, name, error, stack)
    else:
        rate, parts = sound.samplerate, [(sound.samplerate, _blocks(sound, link, name))]
        if sound.format == "SDS":  # libsndfile prints a line for each damaged word of one
            raise ValueError(f"{name} is a MIDI sample dump: convert it to wav")
    check_rate(rate, name)
    return rate, parts


def _linked(file: BinaryIO, links: list[Link], name: str) -> tuple[int, Iterator[tuple]]:
    """The highest rate of several sounds, and their parts."""
    rates, errors = {}, []
    for place, link in enumerate(links):
        try:
            with ExitStack() as stack:
                rates[place], _ = _link(file, link, name, stack)
        except (soundfile.SoundFileError, ValueError) as error:
            errors.append(error)
    if not rates:
        raise errors[0]
    if errors:
        logger.warning(f"{name} holds {len(links)} sounds, of which {len(errors)} cannot be read: convert or cut it")

    def parts() -> Iterator[tuple[int, Iterator[np.ndarray]]]:
        for place in rates:
            with ExitStack() as stack:
                yield from _link(file, links[place], name, stack)[1]

    return max(rates.values()), parts()


def _blocks(sound: soundfile.SoundFile, link: Link, name: str) -> Iterator[np.ndarray]:
    """float32 `[samples, channels]` of one link.

    The file is read until nothing comes. What its header says of its length is not believed: a FLAC that was written
    as a stream tells none, and memory is not taken for samples that are not there.
    """
    sound.seekable = lambda: False  # else every read is cut to the header's length, and followed by a seek
    frames = block_length(sound.samplerate, sound.channels)
    done, promised = 0, link.samples or 0
    while True:
        left = promised - done if link.complete else 0
        try:
            block = sound.read(min(frames, left) if left > 0 else frames, dtype="float32", always_2d=True)
        except soundfile.SoundFileError:
            if link.complete and left <= 0:  # behind the sound is something else
                break
            raise
        if not len(block):
            break
        done += len(block)
        yield block
    if link.stated < 1:
        seconds = done / sound.samplerate
        logger.warning(
            f"{name} has a header that tells of {link.stated * seconds:.1f} s of sound, but {seconds:.1f} s are there "
            "and read: if a recorder stopped before it wrote the header again, repair it, for example with `sox "
            "--ignore-length in.wav out.wav`; else cut off what is no sound"
        )
    if link.cut or done < promised:
        of = f" of {promised / sound.samplerate:.1f} s" if done < promised else ""
        logger.warning(
            f"{name} ends before its sound does, after {done / sound.samplerate:.1f} s{of}: it is damaged or was "
            "copied in part"
        )


def _joined(parts: Iterable[tuple], rate: int, rest: int, size: int, name: str) -> Iterator[np.ndarray]:
    """Mono `[samples]` at one rate of parts at several; `rest`: bytes of `size` that no part holds."""
    done = 0
    for own, blocks in parts:
        check_rate(own, name)
        mono = mono_blocks(blocks, own)
        for block in mono if own == rate else resample_blocks(mono, own, rate):
            done += len(block)
            yield block
    if rest > HARMLESS:
        seconds = done / rate
        logger.warning(
            f"{name} goes on for {rest} bytes after its sound, which are not read: {seconds:.1f} s are read, and the "
            f"rest would be {seconds * rest / max(size - rest, 1):.1f} s at as many bytes a second; if it is sound, "
            "repair the header, for example with `sox --ignore-length in.wav out.wav`, or cut the file there"
        )


def limited(sound: Sound, most: float = math.inf, problem: str = "") -> Iterator[np.ndarray]:
    """A sound's blocks, checked; ValueError at the first sample over `most`."""
    for block in sound.blocks:
        most -= len(block)
        if most < 0:
            raise ValueError(f"{sound.name} {problem}")
        check_samples(block, sound.name)
        yield block


def resampled(blocks: Iterable[np.ndarray], rate: int, wanted: int, name: str) -> Iterator[np.ndarray]:
    """Mono `[samples]` at the rate `wanted`, in the memory of a few blocks; the same as all at once, to the last bit.

    Raises:
        ValueError: they hold no samples.
    """
    samples = 0
    for block in blocks if rate == wanted else resample_blocks(blocks, rate, wanted):
        samples += len(block)
        yield block
    if not samples:
        raise ValueError(f"{name} holds no samples at {wanted} Hz")


def load_column(value, sampling_rate: int = 16000) -> np.ndarray:
    """What an `audio` column holds, as `load_audio` gives it: a path, bytes, `{"bytes", "path"}`, `{"array",
    "sampling_rate"}`, whose array must be mono floats, or a decoder of `datasets`."""
    return load_source(value, sampling_rate, load_audio)


def clip_name(audio, index: int) -> str:
    """What to call a row in a message: its file, or its number."""
    path = audio.get("path") if isinstance(audio, dict) else audio
    return os.fspath(path) if path and isinstance(path, str | os.PathLike) else f"row {index}"
