"""Plain wav files of 16 bits are read without libsndfile, and come out as with it."""

import io
import logging
import struct

import numpy as np
import pytest

from processing import audio
from processing.audio import load_audio
from processing.plain_wav import plain_wav
from tests.conftest import RATE
from tests.sound_bytes import encoded

HEADER = 44  # bytes
RNG = np.random.default_rng(0)


def noise(samples: int, channels: int = 1, rate: int = RATE, container: str = "WAV", codec: str = "PCM_16") -> bytes:
    integers = RNG.integers(-(2**15), 2**15, (samples, channels)).astype(np.int16)
    return encoded(integers, container, codec, rate)


def both(content: bytes, monkeypatch, caplog) -> list[tuple]:
    """Samples, errors and warnings of a file as it is read, and as libsndfile reads it."""
    found = []
    for recognise in (plain_wav, lambda file: None):
        monkeypatch.setattr(audio, "plain_wav", recognise)
        caplog.clear()
        try:
            samples, error = load_audio(content).tobytes(), None
        except ValueError as raised:
            samples, error = None, str(raised)
        found.append((samples, error, caplog.messages.copy()))
    return found


def is_plain(content: bytes) -> bool:
    return plain_wav(io.BytesIO(content)) is not None


@pytest.mark.parametrize("rate", [1000, RATE, 44100, 48000, 2**20])
@pytest.mark.parametrize("samples", [1, 2, 3, 999, 48000, 70001])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_are_libsndfiles(channels, samples, rate, monkeypatch, caplog):
    content = noise(samples, channels, rate)
    assert is_plain(content)
    own, libsndfiles = both(content, monkeypatch, caplog)
    assert own == libsndfiles


def test_libsndfile_is_not_needed(monkeypatch):
    content = noise(RATE)
    monkeypatch.setattr(audio.soundfile, "SoundFile", None)
    assert load_audio(content).shape == (RATE,)


@pytest.mark.parametrize("position", range(HEADER))
def test_a_changed_header_is_libsndfiles(position, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    content = noise(3000, 2)
    for value in (0, 1, 2, 0x7F, 0xFF):
        changed = bytearray(content)
        if changed[position] == value:
            continue
        changed[position] = value
        assert not is_plain(bytes(changed))
        own, libsndfiles = both(bytes(changed), monkeypatch, caplog)
        assert own == libsndfiles


OTHERS = {
    "no sound": noise(0),
    "half a sample more": noise(3000) + b"\x07",
    "cut": noise(3000)[:-100],
    "nothing but a header": noise(3000)[:HEADER],
    "half a header": noise(3000)[:20],
    "a tag behind": noise(3000) + b"LIST\4\0\0\0INFO",
    "another sound behind": noise(3000) + noise(3000),
    "3 channels": noise(3000, 3),
    "low rate": noise(3000, 1, 999),
    "high rate": noise(3000, 1, 2**20 + 1),
    "8 bits": noise(3000, codec="PCM_U8"),
    "24 bits": noise(3000, codec="PCM_24"),
    "big-endian": encoded(np.zeros(3000, np.int16), "WAV", "PCM_16").replace(b"RIFF", b"RIFX"),
    "WAVEX": noise(3000, container="WAVEX"),
    "RF64": noise(3000, container="RF64"),
    "FLAC": noise(3000, container="FLAC"),
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_all_others_are_libsndfiles(content):
    assert not is_plain(content)


def test_an_odd_size_is_libsndfiles(monkeypatch, caplog):
    """Its header is as long as its sound, which ends within a sample."""
    content = bytearray(noise(3000) + b"\x07")
    content[4:8], content[40:44] = struct.pack("<I", len(content) - 8), struct.pack("<I", len(content) - HEADER)
    assert not is_plain(bytes(content))
    own, libsndfiles = both(bytes(content), monkeypatch, caplog)
    assert own == libsndfiles and own[0]
