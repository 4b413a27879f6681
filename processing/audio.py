"""From a sound file to float32 mono samples, by libsndfile and soxr."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import soundfile

from .audio_inputs_wavlink import LOUDEST as LOUDEST
from .audio_inputs_wavlink import MAX_SAMPLES, at_rate, check_rate, load_source
from .audio_inputs_wavlink import RATES as RATES
from .audio_inputs_wavlink import check_samples as check_samples

_BLOCK = 2**16, 2**20  # samples read at once: of a channel, of all channels


def load_audio(path_or_bytes: str | os.PathLike | bytes, sampling_rate: int = 16000, name: str = "") -> np.ndarray:
    """Decodes any format libsndfile reads (wav, flac, ogg, opus, mp3, ...); the content says which, not the name.

    Args:
        path_or_bytes: a file's path, or its content.
        sampling_rate: wanted, in Hz; other rates are resampled at soxr's high quality.
        name: what errors call the file (default: its path).

    Returns:
        float32 `[samples]` in [-1, 1], the mean of the channels.

    Raises:
        ValueError: the file cannot be read, is empty, has more than `MAX_SAMPLES` at its own or the wanted rate, a
            rate outside `RATES`, or samples that are NaN, infinite or beyond `LOUDEST`; it names the file.
    """
    with opened(path_or_bytes, name) as (sound, name):
        blocks, room = [np.empty(0, np.float32)], MAX_SAMPLES * min(1, sound.samplerate / sampling_rate)
        for block in mono_blocks(sound):
            room -= len(block)
            if room < 0:  # a few kB can claim to be hours of silence, and be that
                raise ValueError(
                    f"{name} has more than {MAX_SAMPLES} samples, too many to be held at once: hear it in windows "
                    "(processing.windows.stream_windows, as the index and modeling_wavlink.long do), or cut it"
                )
            blocks.append(block)
        mono = np.concatenate(blocks)
    return at_rate(mono, sound.samplerate, sampling_rate, name)


@contextmanager
def opened(path_or_bytes: str | os.PathLike | bytes, name: str = "") -> Iterator[tuple[soundfile.SoundFile, str]]:
    """The open file and what errors call it; what goes wrong with the file is a ValueError with that name."""
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
        with file, soundfile.SoundFile(file) as sound:
            check_rate(sound.samplerate, name)
            if sound.format == "SDS":  # libsndfile prints a line for each damaged word of one
                raise ValueError(f"{name} is a MIDI sample dump: convert it to wav")
            yield sound, name
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise ValueError(f"cannot read {name} as sound: {getattr(error, 'error_string', error)}") from error


def mono_blocks(sound: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """The mean of the channels, float32 `[samples]` at the file's own rate, at most a second at a time.

    The file is read until nothing comes. What its header says of its length is not believed: a FLAC that was written
    as a stream tells none, and memory is not taken for samples that are not there.
    """
    sound.seekable = lambda: False  # else every read is cut to the header's length, and followed by a seek
    frames = min(sound.samplerate, _BLOCK[0], _BLOCK[1] // sound.channels)
    while len(block := sound.read(frames, dtype="float32", always_2d=True)):
        yield block.mean(axis=1) if sound.channels > 1 else block[:, 0]  # (samples, channels) -> (samples)


def load_column(value, sampling_rate: int = 16000) -> np.ndarray:
    """What an `audio` column holds, as `load_audio` gives it: a path, bytes, `{"bytes", "path"}`, `{"array",
    "sampling_rate"}`, whose array must be mono floats, or a decoder of `datasets`."""
    return load_source(value, sampling_rate, load_audio)
