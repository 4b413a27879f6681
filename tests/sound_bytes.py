"""Encoded sounds in many containers, sound and broken."""

import io

import numpy as np
import soundfile

from .conftest import RATE, tone

FORMATS = {  # file name: (container, codec, largest RMS error of what comes back)
    "sound.wav": ("WAV", "PCM_16", 2e-5),
    "24 bits.wav": ("WAV", "PCM_24", 1e-7),
    "floats.wav": ("WAV", "FLOAT", 0),
    "sound.flac": ("FLAC", "PCM_16", 2e-5),
    "vorbis.ogg": ("OGG", "VORBIS", 0.01),
    "opus.ogg": ("OGG", "OPUS", 0.05),
    "sound.opus": ("OGG", "OPUS", 0.05),
    "sound.mp3": ("MP3", "MPEG_LAYER_III", 0.01),
}


def pure(hertz: float, rate: int = RATE, seconds: float = 1.0) -> np.ndarray:
    """float32 `[samples]`: a sine of amplitude 0.5."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(clip: np.ndarray, container: str = "WAV", codec: str = "FLOAT", rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, clip, rate, format=container, subtype=codec)
    return file.getvalue()


def spoilt(value: float) -> np.ndarray:
    clip = tone()
    clip[99] = value
    return clip


BAD_FILES = {
    "text.wav": (b"Not a sound, but a page of text. " * 100, "cannot read"),
    "text.mp3": (b"Not a sound, but a page of text. " * 100, "cannot read"),
    "nothing.wav": (b"", "cannot read"),
    "header.wav": (encoded(tone())[:20], "cannot read"),
    "header.flac": (encoded(tone(), "FLAC", "PCM_16")[:30], "cannot read"),
    "header.ogg": (encoded(tone(), "OGG", "OPUS")[:40], "cannot read"),
    "half.flac": (encoded(tone(), "FLAC", "PCM_16")[:9000], "cannot read"),
    "unknown.raw": (bytes(400), "cannot read"),
    "silent.wav": (encoded(tone()[:0]), "no samples"),
    "blip.wav": (encoded(tone()[:1], rate=44100), "no samples at 16000 Hz"),
    "nan.wav": (encoded(spoilt(np.nan)), "NaN or infinite"),
    "inf.wav": (encoded(spoilt(np.inf)), "NaN or infinite"),
    "inf 44.wav": (encoded(spoilt(-np.inf), rate=44100), "NaN or infinite"),
}


def repeated_flac(seconds: float, rate: int = RATE) -> bytes:
    """Digital silence: a header, and the same frame of 4096 samples in 12 bytes again and again."""
    one, two = (encoded(np.zeros(4096 * frames), "FLAC", "PCM_16", rate) for frames in (1, 2))
    start = one.rindex(b"\xff\xf8")
    assert len(two) - len(one) == len(one) - start <= 14
    told = (int.from_bytes(one[18:26], "big") >> 36 << 36).to_bytes(8, "big")  # of its length: nothing
    return one[:18] + told + one[26:start] + one[start:] * (round(seconds * rate) // 4096)
