"""From a sound file to float32 mono samples, by libsndfile and soxr."""

import io
import os

import numpy as np
import soundfile
import soxr


def load_audio(path_or_bytes: str | os.PathLike | bytes, sampling_rate: int = 16000) -> np.ndarray:
    """Decodes any format libsndfile reads (wav, flac, ogg, opus, mp3, ...).

    Args:
        path_or_bytes: a file's path, or its content.
        sampling_rate: wanted, in Hz; other rates are resampled at soxr's high quality.

    Returns:
        float32 `[samples]` in [-1, 1], the mean of the channels.

    Raises:
        ValueError: the file cannot be read, is empty, or holds NaN or infinite samples; it names the file.
    """
    is_bytes = isinstance(path_or_bytes, bytes)
    name = f"{len(path_or_bytes)} bytes of audio" if is_bytes else os.fspath(path_or_bytes)
    try:
        samples, rate = soundfile.read(
            io.BytesIO(path_or_bytes) if is_bytes else name, dtype="float32", always_2d=True
        )  # (samples, channels)
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise ValueError(f"cannot read {name} as sound: {error}") from error
    if not len(samples):
        raise ValueError(f"{name} holds no samples")
    if not np.isfinite(samples).all():
        raise ValueError(f"{name} holds NaN or infinite samples")
    mono = samples.mean(axis=1)
    return mono if rate == sampling_rate else soxr.resample(mono, rate, sampling_rate).astype(np.float32, copy=False)


def load_column(value, sampling_rate: int = 16000) -> np.ndarray:
    """What an `audio` column holds, as `load_audio` gives it: a path, `{"bytes", "path"}` or `{"array",
    "sampling_rate"}`."""
    if isinstance(value, dict) and value.get("array") is not None:
        array = np.asarray(value["array"], dtype=np.float32)
        rate = value["sampling_rate"]
        return array if rate == sampling_rate else soxr.resample(array, rate, sampling_rate)
    if isinstance(value, dict):
        try:
            return load_audio(value.get("bytes") or value["path"], sampling_rate)
        except ValueError as error:
            raise ValueError(f"{value.get('path') or 'a clip without a name'}: {error}") from error
    return load_audio(value, sampling_rate)
