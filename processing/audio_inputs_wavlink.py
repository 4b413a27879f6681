"""Audio inputs: samples, files, bytes, cells of a data set and decoders. Nothing is downloaded."""

import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Real

import numpy as np

try:
    import soundfile
except (ImportError, OSError):  # OSError: the package is installed, but libsndfile is missing
    soundfile = None
try:
    import soxr
except ImportError:
    soxr = None

from .downmix_wavlink import block_length, mono_blocks

RATES = 1000, 2**20  # Hz, lowest and highest: no sound has less, and FLAC's header cannot hold more
LOUDEST = 32.0  # 30 dB over full scale; only integers mistaken for floats are louder
MAX_SAMPLES = 3600 * 48000  # of a clip in memory, 691 MB: an hour at 48 kHz, three at 16 kHz
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
reader = None  # `processing.auto_classes` sets its package's `load_audio`, which reads more than `read_file`
_TAGS = b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3", b"\0"  # what may follow the last frame of an MP3 or Ogg


def as_list(audio: object) -> list:
    """Return clips as a list. A 2-D array becomes one item: it may be a batch, but also stereo.

    Args:
        audio: one clip, or a list, tuple or column of clips.

    Raises:
        ValueError: an empty list.
    """
    if is_source(audio):
        return [audio]
    if isinstance(audio, np.ndarray) and audio.dtype.kind in "OU" and audio.ndim == 1:
        audio = audio.tolist()  # a column of paths, bytes or dicts
    if isinstance(audio, Sequence):  # a list, a tuple, or the column of a data set
        if not len(audio):
            raise ValueError("no clips: give one clip, or a list of at least one")
        return [audio] if isinstance(audio[0], Real) else list(audio)
    return [audio]


def is_source(value: object) -> bool:
    """Whether `value` holds its sampling rate, as files, bytes, dicts and decoders do and bare arrays do not."""
    return isinstance(value, str | os.PathLike | bytes | bytearray | memoryview | dict) or is_decoder(value)


def is_decoder(value: object) -> bool:
    """Whether `value` has the interface of torchcodec's `AudioDecoder`, as the `Audio` columns of `datasets` hold."""
    return callable(getattr(value, "get_all_samples", None))


def load_source(value: object, sampling_rate: int, load: Callable[..., np.ndarray] | None = None) -> np.ndarray:
    """Return the samples of one sound, float32 mono `[samples]` at `sampling_rate` Hz.

    Args:
        value: a file's path or content (bytes), `{"path", "bytes"}`, `{"array", "sampling_rate"}` with a mono array of
            floats, or a decoder (see `is_decoder`), whose channels are mixed like those of a file.
        load: reads a file, called as `load(path_or_bytes, sampling_rate, name)`; default: `reader` or `read_file`.

    Raises:
        ValueError: a sound that cannot be read, or samples that `check_samples` refuses; it names the sound.
    """
    load = load or reader or read_file
    if is_decoder(value):
        return _decoded(value, sampling_rate)
    if not isinstance(value, dict):
        if not is_source(value):
            raise ValueError(
                f"a sound is a file's path or its bytes, not {type(value).__name__}: give samples as {{'array': clip, "
                "'sampling_rate': rate}"
            )
        return load(local_source(value), sampling_rate, "")
    array, path, content = (value.get(key) for key in ("array", "path", "bytes"))
    if array is not None:
        return _checked_array(array, value.get("sampling_rate"), sampling_rate, path or "")
    if content is None and path is None:
        raise ValueError(
            f"a sound is a file's path or its bytes, not a dict of {', '.join(map(repr, value)) or 'nothing'} that "
            "holds none: give {'array', 'sampling_rate'}, or {'path', 'bytes'} with one of the two"
        )
    return load(local_source(path if content is None else content), sampling_rate, os.fspath(path or ""))


def local_source(source: object) -> object:
    """Return a source unchanged, bytearrays and memoryviews as bytes.

    Raises:
        ValueError: it is a URL.
    """
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str) and _URL.match(source):
        raise ValueError(f"{source[:300]} is a URL, and nothing is fetched here: download the file and give its path")
    return source


def _checked_array(array, rate, wanted: int, name: str) -> np.ndarray:
    array = to_numpy(array)
    name = name or f"an array of shape {list(array.shape)}"
    if getattr(rate, "ndim", None) == 0:  # a tensor, of `with_format("torch")`
        rate = to_numpy(rate).item()
    if rate is None:
        raise ValueError(f"{name} has no sampling_rate: give {{'array': clip, 'sampling_rate': rate}}")
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"{name} holds {array.dtype}, a clip is [samples] of floats in [-1, 1]: average the channels of stereo, "
            "and divide 16-bit samples by 32768"
        )
    return at_rate(array.astype(np.float32, copy=False), rate, wanted, name)


def _decoded(decoder, wanted: int) -> np.ndarray:
    try:
        samples = decoder.get_all_samples()
        data, rate = to_numpy(samples.data), samples.sample_rate
    except (RuntimeError, OSError, AttributeError) as error:
        raise ValueError(
            f"an audio decoder gives no samples: {str(error)[:300]}. If the sound is a row of a data set, "
            'cast_column("audio", Audio(decode=False)) has it read without the decoder'
        ) from error
    data = np.atleast_2d(data).T.astype(np.float32)  # (channels, samples) -> (samples, channels)
    check_rate(rate, "the sound of an audio decoder")
    mono = np.concatenate([np.empty(0, np.float32), *mono_blocks([data], rate)])
    return at_rate(mono, rate, wanted, "the sound of an audio decoder")


def to_numpy(clip: object) -> np.ndarray:
    """Return a tensor, array or list as an array in memory."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(clip, torch.Tensor):
        clip = clip.detach().cpu()
        clip = clip.float() if clip.dtype == torch.bfloat16 else clip  # numpy has no bfloat16
    return np.asarray(clip)


def read_file(path_or_bytes: str | os.PathLike | bytes, sampling_rate: int, name: str = "") -> np.ndarray:
    """Decode a sound file with libsndfile to float32 mono `[samples]` at `sampling_rate` Hz.

    This reader is shipped with a checkpoint. The package's `processing.audio.load_audio` returns the same samples and
    reads more formats. Files that hold several sounds one after another are refused here.

    Raises:
        ImportError: soundfile is not installed.
        ValueError: the file cannot be read, or has more than `MAX_SAMPLES`; it names the file.
    """
    if soundfile is None:
        raise ImportError("reading sound files needs soundfile: pip install soundfile soxr, or give samples instead")
    if not isinstance(path_or_bytes, str | os.PathLike | bytes):
        raise ValueError(f"a sound is a file's path or its bytes, not {type(path_or_bytes).__name__}")
    content = isinstance(path_or_bytes, bytes)
    name = name or (f"a clip of {len(path_or_bytes)} bytes" if content else os.fspath(path_or_bytes))
    if not content and not os.path.isfile(path_or_bytes):
        raise ValueError(f"{name} does not exist or is not a file")
    try:
        # Not by its path: libsndfile trusts the suffix of an unknown file, and would read a web page named x.au.
        file = io.BytesIO(path_or_bytes) if content else LocalFile(path_or_bytes)
        with file, soundfile.SoundFile(file) as sound:
            rate = sound.samplerate
            check_rate(rate, name)
            mono = np.concatenate([np.empty(0, np.float32), *mono_blocks(_blocks(sound, sampling_rate, name), rate)])
            rest = file.read(16)  # libsndfile stops at the end of an Ogg's or MP3's first stream
            if sound.format in ("OGG", "MP3", "MPEG", "FLAC") and rest and not rest.startswith(_TAGS):
                raise ValueError(f"{name} goes on after its first sound: save it as one, for example as wav or flac")
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise ValueError(f"cannot read {name} as sound: {getattr(error, 'error_string', error)}") from error
    return at_rate(mono, rate, sampling_rate, name)


class LocalFile(io.BufferedReader):
    """A file that is read like its content in an `io.BytesIO`, where a damaged header points before the beginning."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(io.FileIO(path))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, at the least to the beginning."""
        if whence != io.SEEK_SET:
            start = self.tell() if whence == io.SEEK_CUR else os.fstat(self.fileno()).st_size
            offset = max(0, start + offset)
        return super().seek(offset)


def _blocks(sound, wanted: int, name: str) -> Iterator[np.ndarray]:
    """Yield float32 `[samples, channels]` until the end of the sound; the length in the header is not trusted."""
    sound.seekable = lambda: False  # else each read stops at the header's length, and is followed by a seek
    remaining, frames = MAX_SAMPLES * min(1, sound.samplerate / wanted), block_length(sound.samplerate, sound.channels)
    while len(block := read_block(sound, frames)):
        remaining -= len(block)
        if remaining < 0:
            raise ValueError(f"{name} has more than {MAX_SAMPLES} samples, too many to be held at once: cut it")
        yield block


def read_block(sound, frames: int) -> np.ndarray:
    """Read up to so many frames of an open `soundfile.SoundFile`, float32 `[frames, channels]`.

    Samples of 16 bits are converted here, which takes a quarter of libsndfile's time.
    """
    if sound.subtype != "PCM_16":
        return sound.read(frames, dtype="float32", always_2d=True)
    return from_int16(sound.read(frames, dtype="int16", always_2d=True))


def from_int16(samples: np.ndarray) -> np.ndarray:
    """Return samples of 16 bits as float32 in [-1, 1], exactly as libsndfile does."""
    return np.multiply(samples, np.float32(2**-15), dtype=np.float32)


def resample_blocks(blocks: Iterable[np.ndarray], rate: int, wanted: int) -> Iterator[np.ndarray]:
    """Resample mono blocks `[samples]` from `rate` to `wanted` Hz at soxr's high quality, a few blocks at a time.

    Raises:
        ImportError: soxr is not installed.
    """
    if soxr is None:
        raise ImportError(f"a sound has {rate} Hz, the model takes {wanted} Hz: pip install soxr to have it resampled")
    resampler = soxr.ResampleStream(rate, wanted, num_channels=1, dtype="float32")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def at_rate(mono: np.ndarray, rate: int, wanted: int, name: str) -> np.ndarray:
    """Check a clip `[samples]` and resample it at soxr's high quality.

    Raises:
        ValueError: `check_rate` or `check_samples` refuses it, or it is empty; it holds `name`.
    """
    check_rate(rate, name)
    check_samples(mono, name)
    if rate != wanted:
        mono = np.concatenate(list(resample_blocks([mono], rate, wanted)))
    if not len(mono):
        raise ValueError(f"{name} holds no samples at {wanted} Hz")
    return mono


def check_rate(rate: int, name: str) -> None:
    """Check that a sampling rate is within `RATES`.

    Raises:
        ValueError: it is not; it holds `name`.
    """
    if not isinstance(rate, Real) or not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"{name} has a sampling rate of {rate!r} Hz, not one of {RATES[0]} to {RATES[1]} Hz")


def check_samples(mono: np.ndarray, name: str) -> None:
    """Check samples `[n]`.

    Raises:
        ValueError: NaN, infinite or beyond `LOUDEST`; it holds `name`.
    """
    if not len(mono) or max(-mono.min(), mono.max()) <= LOUDEST:  # not true of NaN, which both return
        return
    if not np.isfinite(mono).all():
        raise ValueError(f"{name} holds NaN or infinite samples")
    raise ValueError(
        f"{name} holds samples beyond {LOUDEST:g}, a clip's are in [-1, 1]: divide 16-bit samples by 32768"
    )
