"""Each change of sounds does what its name says, measured on the samples."""

import io

import numpy as np
import pytest
import soundfile

from tests.conftest import RATE, tone
from wavlink.evaluation.robust_sounds import (
    SOUND_CHANGES,
    ChangedSounds,
    at_speed,
    cut,
    gain,
    impulse_response,
    mp3,
    noisy,
    pink_noise,
    reverberant,
    through_rate,
)

SIXTEEN_BITS = 32768
WRITE = soundfile.write


def rms(clip: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(clip, dtype=np.float64))))


def decibels(ratio: float) -> float:
    return 20 * np.log10(ratio)


def pitch(clip: np.ndarray) -> float:
    """The frequency of most power, in Hz."""
    return np.abs(np.fft.rfft(clip * np.hanning(len(clip)))).argmax() * RATE / len(clip)


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return (0.2 * tone(500.0, 1.0) / np.abs(tone(500.0, 1.0)).max()).astype(np.float32)


@pytest.mark.parametrize("amount", [-40, -20, 6])
def test_gain_is_the_stated_one_and_its_samples_are_of_16_bits(clip, amount):
    louder = gain(clip, amount)
    assert decibels(rms(louder) / rms(clip)) == pytest.approx(amount, abs=0.05)
    assert np.array_equal(louder * SIXTEEN_BITS, np.round(louder * SIXTEEN_BITS))


def test_gain_over_full_scale_is_clipped(clip):
    louder = gain(clip, 20)
    over = np.abs(clip) > 0.1001
    assert over.mean() > 0.3 and np.all(np.abs(louder[over]) >= 1 - 1 / SIXTEEN_BITS) and np.abs(louder).max() <= 1
    assert louder[~over] == pytest.approx(10 * clip[~over], abs=2e-3)


def test_a_lower_rate_takes_all_above_half_of_it_and_nothing_below():
    low, high = tone(1000.0, 0.5), tone(6000.0, 0.5)
    spectrum = np.abs(np.fft.rfft(through_rate((low + high) / 2, RATE, 8000)))
    before = np.abs(np.fft.rfft((low + high) / 2))
    hertz = np.arange(len(spectrum)) * RATE / len(low)
    assert spectrum[np.abs(hertz - 1000) < 5].max() == pytest.approx(before[np.abs(hertz - 1000) < 5].max(), rel=0.02)
    assert spectrum[hertz > 4500].max() < 0.01 * before[hertz > 4500].max()


@pytest.mark.parametrize("samples", [1, 79, 1001])
def test_a_lower_rate_keeps_the_length(samples):
    assert through_rate(np.full(samples, 0.1, np.float32), RATE, 8000).shape == (samples,)


def test_mp3_has_the_stated_bit_rate_and_keeps_the_sound(clip, monkeypatch):
    written = []
    monkeypatch.setattr(soundfile, "write", lambda file, *a, **k: written.append(file) or WRITE(file, *a, **k))
    long = np.tile(clip, 8)
    decoded = mp3(long, RATE, 32)
    assert 8 * len(written[0].getvalue()) / 8.0 == pytest.approx(32_000, rel=0.03)
    assert len(long) <= len(decoded) < len(long) + RATE // 5  # with the silence that the format adds
    assert decibels(rms(decoded) / rms(long)) == pytest.approx(-0.5, abs=0.1)  # LAME scales by 0.95
    assert pitch(decoded) == pytest.approx(500, abs=2)
    assert not np.array_equal(decoded[: len(long)], long)


def test_mp3_of_a_rate_that_it_has_not_is_refused(clip):
    with pytest.raises(ValueError, match="MP3 at 4000 Hz"):
        mp3(clip, 4000, 32)


def test_a_room_decays_by_60_db_in_its_time_and_has_the_stated_direct_sound():
    response = impulse_response(RATE, draws(), 0.5, direct=3)
    tail = response[1:]
    assert response[0] == 1 and len(tail) == RATE // 2
    assert decibels(1 / np.linalg.norm(tail)) == pytest.approx(3)
    first, last = rms(tail[:800]), rms(tail[-800:])
    assert decibels(last / first) == pytest.approx(-60 * (1 - 800 / len(tail)), abs=1.5)


def test_reverberation_is_the_convolution_at_the_same_peak(clip):
    wet = reverberant(clip[:4000], RATE, draws(), 0.1, direct=0)
    expected = np.convolve(clip[:4000].astype(np.float64), impulse_response(RATE, draws(), 0.1, 0))
    assert wet == pytest.approx(expected * (np.abs(clip[:4000]).max() / np.abs(expected).max()), abs=1e-6)


@pytest.mark.parametrize("ratio", [20, 10, 0])
def test_noise_has_the_stated_ratio_to_the_signal(clip, ratio):
    noise = noisy(clip, draws(), ratio).astype(np.float64) - clip
    assert decibels(rms(clip) / rms(noise)) == pytest.approx(ratio, abs=0.01)


def test_noise_is_pink():
    power = np.abs(np.fft.rfft(pink_noise(1 << 16, draws()))) ** 2
    octaves = [power[1 << n : 1 << (n + 1)].sum() for n in range(8, 15)]
    assert np.std(np.log2(octaves)) < 0.1


@pytest.mark.parametrize("start", [True, False])
def test_a_cut_takes_its_share_off_one_side(start):
    kept = cut(np.arange(1000, dtype=np.float32), 0.25, start)
    assert (len(kept), kept[0]) == ((750, 250.0) if start else (750, 0.0))
    assert len(cut(np.zeros(1, np.float32), 0.25, start)) == 1


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_changes_duration_and_pitch_alike(clip, factor):
    other = at_speed(clip, RATE, factor)
    assert len(other) == pytest.approx(len(clip) / factor, abs=1)
    assert pitch(other) == pytest.approx(500 * factor, abs=2)


@pytest.mark.parametrize("name", SOUND_CHANGES)
def test_every_change_is_deterministic_finite_and_takes_short_clips_and_silence(name):
    change = SOUND_CHANGES[name]
    for clip in (tone(300.0, 0.3), np.zeros(2000, np.float32), np.full(3, 0.5, np.float32)):
        before = clip.copy()
        once, again = (change(clip, RATE, draws(3)) for _ in range(2))
        assert once.dtype == np.float32 and once.ndim == 1 and len(once) and np.isfinite(once).all()
        assert np.array_equal(once, again) and np.array_equal(clip, before)
    assert not np.array_equal(change(tone(300.0, 0.3), RATE, draws(3)), tone(300.0, 0.3))


def test_rows_are_changed_when_read_by_seed_and_row():
    file = io.BytesIO()
    soundfile.write(file, tone(300.0, 0.2), RATE, format="WAV", subtype="FLOAT")
    rows = [{"audio": {"bytes": file.getvalue(), "path": "x.wav"}}] * 2

    def clips(numbers, seed):
        changed = ChangedSounds(rows, numbers, "noise at 10 dB", RATE, seed)
        return [changed[index]["audio"]["array"] for index in range(len(changed))]

    first, second = clips([4, 7], 0)
    assert np.array_equal(clips([7, 4], 0)[0], second) and not np.array_equal(first, second)
    assert not np.array_equal(clips([4, 7], 1)[0], first)
    assert decibels(rms(tone(300.0, 0.2)) / rms(first - tone(300.0, 0.2))) == pytest.approx(10, abs=0.01)


def test_a_clip_shorter_than_the_model_takes_gets_silence():
    rows = [{"audio": {"array": tone(300.0, 0.1), "sampling_rate": RATE}}]
    changed = ChangedSounds(rows, [0], "first quarter cut off", RATE, 0, least=1500)[0]["audio"]["array"]
    assert len(changed) == 1500 and not changed[1200:].any() and changed[1190:1200].any()
