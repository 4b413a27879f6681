"""Damaged and hostile sound files of each format, for fuzz.py: load_audio, stream_windows and what reads headers."""

import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import numpy as np
import soundfile

from processing.audio import LOUDEST, MAX_SAMPLES, load_audio
from processing.collator import UnreadableClip
from processing.datasets.youtube_ids import seconds_of
from processing.sound_files import is_sound
from processing.windows import stream_windows

WINDOW, HOP = 0.5, 0.25
FORMATS = {  # target: of (container, codec)
    "wav": [("WAV", codec) for codec in ("PCM_16", "PCM_U8", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM", "GSM610")],
    "flac": [("FLAC", codec) for codec in ("PCM_16", "PCM_24", "PCM_S8")],
    "ogg": [("OGG", "VORBIS")],
    "opus": [("OGG", "OPUS")],
    "mp3": [("MP3", "MPEG_LAYER_III")],
    "other": [
        *(("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("CAF", "ALAC_16"), ("W64", "PCM_16")),
        *(("RF64", "PCM_16"), ("VOC", "PCM_16"), ("NIST", "PCM_16"), ("PAF", "PCM_16"), ("SVX", "PCM_16")),
        *(("IRCAM", "PCM_16"), ("MAT4", "PCM_16"), ("MAT5", "PCM_16"), ("PVF", "PCM_16"), ("XI", "DPCM_16")),
        *(("HTK", "PCM_16"), ("SDS", "PCM_16"), ("AVR", "PCM_16"), ("MPC2K", "PCM_16"), ("AIFF", "IMA_ADPCM")),
    ],
}
PACKED = {  # of those that PyAV reads: (container, codec)
    "m4a": (
        *(("ipod", "aac"), ("ipod", "alac"), ("mp4", "aac"), ("mp4", "libopus"), ("3gp", "libopencore_amrnb")),
        *(("mov", "pcm_s16le"), ("mov", "adpcm_ima_qt")),
    ),
    "webm": (
        *(("webm", "libopus"), ("webm", "vorbis"), ("matroska", "flac"), ("matroska", "pcm_s16le")),
        *(("matroska", "ac3"), ("matroska", "alac")),
    ),
    "wma": (("asf", "wmav2"), ("asf", "wmav1")),
    "video": (
        *(("adts", "aac"), ("avi", "libmp3lame"), ("avi", "pcm_s16le"), ("avi", "adpcm_ms"), ("flv", "libmp3lame")),
        *(("flv", "aac"), ("flv", "nellymoser"), ("mpegts", "aac"), ("mpegts", "mp2"), ("mpeg", "mp2")),
        *(("amr", "libopencore_amrnb"), ("ac3", "ac3"), ("eac3", "eac3"), ("ogg", "flac"), ("caf", "alac")),
    ),
}
_REAL = 6  # files of a folder of sounds, of the smallest
_INTERESTING = (0, 1, 2, 7, 8, 15, 16, 24, 32, 63, 64, 127, 128, 255, 256, 1023, 1024, 4096, 32767, 32768, 65535)
_HUGE = (2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**36 - 1, 2**63 - 1, 2**64 - 1)
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def made(container: str, codec: str, sounds: str = "") -> list[bytes]:
    """Files of a tone in noise, of silence and of a few real sounds, of one or two channels and several rates.

    Not every format has every rate and number of channels; what it lacks is left out."""
    files = []
    for clip, rate in [*_tones(), *_real_clips(sounds)]:
        file = io.BytesIO()
        try:
            soundfile.write(file, clip, rate, format=container, subtype=codec)
        except soundfile.SoundFileError:
            continue
        files.append(file.getvalue())
    if not files:
        raise ValueError(f"libsndfile writes no {container} of {codec}")
    return files


def _tones() -> Iterator[tuple[np.ndarray, int]]:
    """`[samples, channels]` and the rate."""
    for rate, seconds, channels, level in ((16000, 0.6, 1, 0.4), (44100, 0.15, 2, 0.4), (8000, 0.6, 1, 0.0)):
        time, noise = np.arange(round(rate * seconds)) / rate, np.random.default_rng(rate)
        clip = level * (np.sin(2 * np.pi * 440 * time) + 0.05 * noise.standard_normal(len(time)))
        yield np.repeat(clip[:, None], channels, axis=1), rate


def _real_clips(sounds: str) -> Iterator[tuple[np.ndarray, int]]:
    """Half a second each of the smallest files of an audiofolder, if it is there."""
    for path in _smallest(sounds):
        with soundfile.SoundFile(path) as sound:
            yield sound.read(sound.samplerate // 2, always_2d=True), sound.samplerate


@cache
def _smallest(sounds: str) -> list[Path]:
    files = [path for path in Path(sounds).rglob("*") if is_sound(path.name)] if sounds else []
    return sorted(files, key=lambda path: (path.stat().st_size, path))[: _REAL * 20 : 20]


def real(sounds: str, name: str) -> list[bytes]:
    """Those of them that are of this format, as they are."""
    kinds = {"wav": "WAV", "flac": "FLAC", "mp3": "MPEG_LAYER_III", "ogg": "VORBIS", "opus": "OPUS"}
    about = [(path, soundfile.info(path)) for path in _smallest(sounds)]
    return [path.read_bytes() for path, info in about if kinds.get(name) in (info.format, info.subtype)]


def mutate(rng: np.random.Generator, seeds: list[bytes]) -> bytes:
    """One of the seeds, with one to six changes, most of them near its beginning."""
    content = bytearray(seeds[rng.integers(len(seeds))])
    for _ in range(rng.integers(1, 7)):
        place = int(len(content) * rng.random() ** 3)
        _CHANGES[rng.integers(len(_CHANGES))](rng, content, place, seeds)
    return bytes(content[: 1 << 20])


def _flip(rng, content, place, seeds):
    if content:
        content[place] ^= 1 << rng.integers(8)


def _set(rng, content, place, seeds):
    if content:
        content[place] = rng.choice([0, 1, 127, 128, 254, 255, rng.integers(256)])


def _number(rng, content, place, seeds):
    """A field of 2, 4 or 8 bytes gets a number that often is a limit."""
    size = int(rng.choice([2, 4, 8]))
    value = int(rng.choice(_INTERESTING)) if rng.random() < 0.6 else _HUGE[rng.integers(len(_HUGE))]
    order = "little" if rng.random() < 0.5 else "big"
    content[place : place + size] = (value % (1 << 8 * size)).to_bytes(size, order)


def _cut(rng, content, place, seeds):
    del content[place : place + int(rng.integers(1, 200))]


def _end(rng, content, place, seeds):
    del content[int(len(content) * rng.random()) :]


def _repeat(rng, content, place, seeds):
    content[place:place] = content[place : place + int(rng.integers(1, 2000))] * int(rng.integers(1, 9))


def _insert(rng, content, place, seeds):
    content[place:place] = rng.bytes(int(rng.integers(1, 100)))


def _zero(rng, content, place, seeds):
    size = len(content[place : place + int(rng.integers(1, 300))])
    content[place : place + size] = bytes(size)


def _splice(rng, content, place, seeds):
    other = seeds[rng.integers(len(seeds))]
    content[place:] = other[int(len(other) * rng.random()) :]


_CHANGES = [_flip, _flip, _set, _set, _number, _number, _number, _cut, _end, _repeat, _insert, _zero, _splice]


def with_checksums(content: bytes) -> bytes:
    """Every page of an Ogg file with the checksum of what it holds now, so that it gets past libogg to the codec."""
    content, place = bytearray(content), 0
    while (place := content.find(b"OggS", place)) >= 0 and place + 27 <= len(content):
        table = content[place + 27 : place + 27 + content[place + 26]]
        end = place + 27 + len(table) + sum(table)
        content[place + 22 : place + 26] = bytes(4)
        content[place + 22 : place + 26] = _ogg_checksum(content[place:end])
        place += 4
    return bytes(content)


def _ogg_checksum(page: bytes) -> bytes:
    """CRC-32 of polynomial 0x04c11db7 from the highest bit on, beginning with 0; zlib's begins with the lowest."""
    mirrored = zlib.crc32(bytes(page).translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2).to_bytes(4, "little")


def make(folder: Path, sounds: str, name: str) -> tuple[Callable, Callable]:
    """`draw` and `read` of one format, see fuzz.py."""
    seeds = [file for container, codec in FORMATS[name] for file in made(container, codec, sounds)] + real(
        sounds, name
    )
    path = folder / f"fuzzed.{name}"

    def draw(rng) -> bytes:
        content = mutate(rng, seeds)
        return with_checksums(content) if name in ("ogg", "opus") and rng.random() < 0.7 else content

    def read(content: bytes) -> bool:
        path.write_bytes(content)
        clip, error = attempt(lambda: load_audio(path), path.name)
        parts, other = attempt(lambda: list(stream_windows(content, WINDOW, HOP, name=str(path))), path.name)
        seconds_of([str(path)], workers=1)
        if "too many to be held" in error:
            return False
        assert error == other, f"load_audio says {error!r}, stream_windows {other!r}"
        if clip is not None:
            check(clip, parts)
        return clip is not None

    return draw, read


def attempt(work: Callable, name: str):
    """What `work` gives, and `""`; or None and the text of the ValueError, or of transformers' OSError for a file that
    is no JSON, which must name the file."""
    try:
        return work(), ""
    except (ValueError, OSError) as error:
        kind = type(error) in (ValueError, OSError, UnreadableClip)  # not JSONDecodeError, UnicodeDecodeError ...
        assert kind and name in str(error), f"{type(error).__name__} without a name: {error}"
        return None, str(error)


def check(clip: np.ndarray, parts: list) -> None:
    """A clip is mono, finite and in range, and the windows are its slices."""
    assert clip.dtype == np.float32 and clip.ndim == 1 and 0 < len(clip) <= MAX_SAMPLES
    assert np.isfinite(clip).all() and abs(clip).max() <= 1.5 * LOUDEST  # resampling overshoots
    assert parts[0].start == 0 and round(parts[-1].end * 16000) == len(clip), f"{parts[-1].end} s, {len(clip)} samples"
    for part in parts:
        expected = clip[round(part.start * 16000) : round(part.end * 16000)]
        np.testing.assert_allclose(part.samples, expected, rtol=0, atol=1e-5 * max(1, abs(clip).max()))


def make_packed(folder: Path, sounds: str, name: str) -> tuple[Callable, Callable]:
    """The same of what PyAV reads; FFmpeg may end a damaged file at another sample each time, so one door is tried."""
    seeds = packed_files(name, sounds)
    path = folder / f"fuzzed.{name}"

    def read(content: bytes) -> bool:
        path.write_bytes(content)
        clip, _ = attempt(lambda: load_audio(path), path.name)
        if clip is not None:
            assert clip.dtype == np.float32 and 0 < len(clip) <= MAX_SAMPLES and np.isfinite(clip).all()
        return clip is not None

    return lambda rng: mutate(rng, seeds), read


def packed_files(name: str, sounds: str = "") -> list[bytes]:
    """Files of one of `PACKED`. Codecs and rates that a build of FFmpeg does not write are left out."""
    import av

    files = []
    for container, codec in PACKED[name]:
        for clip, rate in [*_tones(), *_real_clips(sounds)]:
            with suppress(av.error.FFmpegError, ValueError):  # the latter also of an unknown codec
                files.append(packed(container, codec, clip.T, rate))
    if not files:
        raise ValueError(f"FFmpeg writes no {name}")
    return files


def packed(container: str, codec: str, clip: np.ndarray, rate: int) -> bytes:
    """A file of a clip `[channels, samples]`, by PyAV."""
    import av

    file, layout = io.BytesIO(), "mono" if len(clip) == 1 else "stereo"
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout, options={"strict": "experimental"})
        if codec.startswith("wma"):
            stream.bit_rate = 64000
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(clip, np.float32), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


TARGETS = {name: partial(make, name=name) for name in FORMATS}
TARGETS |= {name: partial(make_packed, name=name) for name in PACKED}
INPUTS = 20_000  # of each
