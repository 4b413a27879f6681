"""Decoding of sound files to float32 mono samples, with libsndfile and soxr."""

import io
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any, BinaryIO, Protocol

import numpy as np
import soundfile

from .audio_inputs_wavlink import LOUDEST as LOUDEST
from .audio_inputs_wavlink import (
    MAX_SAMPLES,
    LocalFile,
    check_rate,
    check_samples,
    is_source,
    load_source,
    local_source,
    read_block,
    resample_blocks,
)
from .audio_inputs_wavlink import RATES as RATES
from .audio_inputs_wavlink import at_rate as at_rate
from .containers import HARMLESS, Link, links_of
from .downmix_wavlink import block_length, mono_blocks
from .plain_wav import plain_blocks, plain_wav
from .video import open_video

_UNKNOWN_FORMAT = 1, 4, 161  # libsndfile's errors for an unknown format, an unknown encoding, and FLAC in Ogg

logger = logging.getLogger(__name__)


class AudioDecoder(Protocol):
    """Interface of torchcodec's decoder, as the `Audio` columns of `datasets` hold."""

    def get_all_samples(self) -> Any:
        """Return an object with `data` `[channels, samples]` and `sample_rate`."""
        ...


# Every input that is a sound: a file's path or content, {"array", "sampling_rate"}, {"path", "bytes"}, a decoder.
AudioSource = str | os.PathLike[str] | bytes | Mapping[str, Any] | AudioDecoder


@dataclass(frozen=True)
class Sound:
    """An open sound file.

    Args:
        name: of the file, in errors.
        samplerate: in Hz.
        blocks: float32 mono `[samples]` at that rate, at most a second at a time; an iterator.
        bounded: the file holds integers, whose samples are in [-1, 1] and need no check.
    """

    name: str
    samplerate: int
    blocks: Iterator[np.ndarray]
    bounded: bool = False


def load_audio(
    path_or_bytes: str | os.PathLike[str] | bytes, sampling_rate: int = 16000, name: str = ""
) -> np.ndarray:
    """Decode a sound file to mono samples; the format is recognised by the content, not by the name.

    Any format that libsndfile reads (wav, flac, ogg, opus, mp3, ...), with all sounds of a file that holds several one
    after another; through PyAV (`pip install 'wavlink[formats]'`) also m4a, aac, wma, webm and the sound of videos.

    Args:
        path_or_bytes: a file's path, or its content.
        sampling_rate: of the result, in Hz; other rates are resampled at soxr's high quality.
        name: of the file in errors (default: its path).

    Returns:
        float32 `[samples]` in [-1, 1], the mean of the channels (see `downmix_wavlink` for those that cancel out).

    Raises:
        ValueError: the file cannot be read, is empty, has more than `MAX_SAMPLES` at its own or the wanted rate, a
            rate outside `RATES`, or samples that are NaN, infinite or beyond `LOUDEST`; it names the file. Or a wanted
            rate outside `RATES`.

    Example:

    ```python
    >>> from wavlink import load_audio
    >>> samples = load_audio(sounds_folder / "low.wav", sampling_rate=16000)
    >>> samples.shape, samples.dtype
    ((16000,), dtype('float32'))

    ```
    """
    if not isinstance(sampling_rate, Real) or not RATES[0] <= sampling_rate <= RATES[1]:
        raise ValueError(
            f"sampling_rate={sampling_rate!r} is not one of {RATES[0]} to {RATES[1]} Hz: give the rate that the "
            "result is to have, such as a model's 16000"
        )
    with opened(path_or_bytes, name) as sound:
        most = MAX_SAMPLES * min(1, sound.samplerate / sampling_rate)
        # a file of a few kB can hold hours of silence
        blocks = limited(
            sound,
            most,
            f"has more than {MAX_SAMPLES} samples, too many to be held at once: read it in windows "
            "(processing.windows.stream_windows, as the index and wavlink.long_recordings do), or cut it",
        )
        return np.concatenate(list(resampled(blocks, sound.samplerate, sampling_rate, sound.name)))


@contextmanager
def opened(path_or_bytes: str | os.PathLike | bytes, name: str = "") -> Iterator[Sound]:
    """Open a sound file; errors while it is open are ValueErrors that name it.

    Args:
        path_or_bytes: a file's path, or its content.
        name: of the file in errors (default: its path).
    """
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
        # Not by its path: libsndfile trusts the suffix of an unknown file, and would read a web page named x.au.
        file: io.BytesIO | io.BufferedReader
        file = io.BytesIO(path_or_bytes) if isinstance(path_or_bytes, bytes) else LocalFile(path_or_bytes)
        with file, ExitStack() as stack:
            yield _sound(file, name, stack)
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        why = getattr(error, "error_string", str(error)) or "it is damaged or cut off."
        raise ValueError(f"cannot read {name} as sound: {why}") from error


def _sound(file: io.BytesIO | io.BufferedReader, name: str, stack: ExitStack) -> Sound:
    if plain := plain_wav(file):
        rate, channels = plain
        return Sound(name, rate, mono_blocks(plain_blocks(file, rate, channels), rate), bounded=True)
    size = file.seek(0, io.SEEK_END)
    links, rest = links_of(file, name)
    rate, parts = _link(file, links[0], name, stack) if len(links) == 1 else _linked(file, links, name)
    return Sound(name, rate, _joined(parts, rate, rest, size, name))


def _link(file: BinaryIO, link: Link, name: str, stack: ExitStack) -> tuple[int, Iterable[tuple]]:
    """Open one sound: its rate, and for each of its parts the rate and blocks `[samples, channels]`.

    `stack` closes it.
    """
    content = link.open(file)
    try:
        sound = stack.enter_context(soundfile.SoundFile(content))
    except soundfile.LibsndfileError as error:
        if error.code not in _UNKNOWN_FORMAT:
            raise
        rate, parts = open_video(content, name, error, stack)
    else:
        rate, parts = sound.samplerate, [(sound.samplerate, _blocks(sound, link, name))]
        if sound.format == "SDS":  # libsndfile prints a line for each damaged word of it
            raise ValueError(f"{name} is a MIDI sample dump: convert it to wav")
    check_rate(rate, name)
    return rate, parts


def _linked(file: BinaryIO, links: list[Link], name: str) -> tuple[int, Iterator[tuple]]:
    """Return the highest rate of several sounds, and their parts."""
    rates, errors = {}, []
    for index, link in enumerate(links):
        try:
            with ExitStack() as stack:
                rates[index], _ = _link(file, link, name, stack)
        except (soundfile.SoundFileError, ValueError) as error:
            errors.append(error)
    if not rates:
        raise errors[0]
    if errors:
        logger.warning(f"{name} holds {len(links)} sounds, of which {len(errors)} cannot be read: convert or cut it")

    def parts() -> Iterator[tuple[int, Iterator[np.ndarray]]]:
        for index in rates:
            with ExitStack() as stack:
                yield from _link(file, links[index], name, stack)[1]

    return max(rates.values()), parts()


def _blocks(sound: soundfile.SoundFile, link: Link, name: str) -> Iterator[np.ndarray]:
    """Yield float32 `[samples, channels]` of one link until the end of the file.

    The length in the header is not trusted: a FLAC that was written as a stream has none, and a wrong length must not
    allocate memory.
    """
    sound.seekable = lambda: False  # else each read stops at the header's length, and is followed by a seek
    frames = block_length(sound.samplerate, sound.channels)
    done, promised = 0, link.samples or 0
    while True:
        left = promised - done if link.complete else 0
        try:
            block = read_block(sound, min(frames, left) if left > 0 else frames)
        except soundfile.SoundFileError:
            if link.complete and left <= 0:  # something else follows the sound
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
    """Yield mono `[samples]` at `rate` of parts at several rates.

    Args:
        rest: bytes at the end of a file of `size` bytes that belong to no part.
    """
    done = 0
    for part_rate, blocks in parts:
        check_rate(part_rate, name)
        mono = mono_blocks(blocks, part_rate)
        for block in mono if part_rate == rate else resample_blocks(mono, part_rate, rate):
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
    """Yield a sound's blocks, checked.

    Args:
        most: number of samples.
        problem: the error's text for more, after the sound's name.

    Raises:
        ValueError: more than `most` samples, or some that `check_samples` refuses.
    """
    for block in sound.blocks:
        most -= len(block)
        if most < 0:
            raise ValueError(f"{sound.name} {problem}")
        if not sound.bounded:
            check_samples(block, sound.name)
        yield block


def resampled(blocks: Iterable[np.ndarray], rate: int, wanted: int, name: str) -> Iterator[np.ndarray]:
    """Resample mono blocks `[samples]` from `rate` to `wanted` Hz, bit-equal to resampling all at once.

    Raises:
        ValueError: they hold no samples; it holds `name`.
    """
    samples = 0
    for block in blocks if rate == wanted else resample_blocks(blocks, rate, wanted):
        samples += len(block)
        yield block
    if not samples:
        raise ValueError(f"{name} holds no samples at {wanted} Hz")


def load_column(value: Any, sampling_rate: int = 16000) -> np.ndarray:
    """Decode a value of an `audio` column as `load_audio` does.

    Args:
        value: a path, bytes, `{"bytes", "path"}`, `{"array", "sampling_rate"}` with a mono array of floats, or a
            decoder of `datasets`.
        sampling_rate: of the result, in Hz.

    Raises:
        ValueError: see `load_source`.
    """
    if isinstance(value, dict) and not isinstance(value.get("path"), str | os.PathLike | None):
        raise ValueError(
            f"the path of a sound is a {type(value['path']).__name__}: give a string, or None where it has none"
        )
    return load_source(value, sampling_rate, load_audio)


def sounds_of(sounds: Any) -> Iterable[Any]:
    """Return one sound or several as something to iterate over.

    Raises:
        ValueError: a file object, which would give its lines.
    """
    if callable(getattr(sounds, "read", None)):
        raise ValueError(f"a {type(sounds).__name__} is no sound: give the file's path, or its content, file.read()")
    return [sounds] if is_source(sounds) else sounds


def clip_name(audio: Any, index: int | str) -> str:
    """Return the name of a row in messages: its file, or `index`."""
    path = audio.get("path") if isinstance(audio, dict) else audio
    return os.fspath(path) if path and isinstance(path, str | os.PathLike) else f"row {index}"
