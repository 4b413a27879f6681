"""A stream of windows is the clip itself, cut: the same samples, times and errors, whatever the header says."""

import io
import itertools
import math
import tracemalloc

import numpy as np
import pytest
import soundfile

from processing import windows
from processing.audio import load_audio
from processing.windows import stream_windows
from tests.conftest import RATE, tone
from tests.sound_bytes import BAD_FILES, FORMATS, encoded, repeated_flac


def stereo(seconds: float, rate: int = 44100) -> np.ndarray:
    """float32 `[samples, 2]` of noise."""
    return np.random.default_rng(0).normal(scale=0.1, size=(round(seconds * rate), 2)).astype(np.float32)


def cut(clip: np.ndarray, part) -> np.ndarray:
    return clip[round(part.start * RATE) : round(part.end * RATE)]


def times(parts) -> list[tuple[float, float]]:
    return [(part.start, part.end) for part in parts]


@pytest.mark.parametrize(("container", "codec", "error"), FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("seconds", [0.3, 2.0])
def test_a_clip_of_one_window_is_what_load_audio_gives(container, codec, error, seconds):
    content = encoded(tone(seconds=seconds), container, codec)
    (only,) = stream_windows(content, 2.0, 1.0)
    np.testing.assert_array_equal(only.samples, load_audio(content))
    assert only.samples.dtype == np.float32 and (only.start, only.end) == (0, seconds)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_a_resampled_clip_of_one_window_is_what_load_audio_gives(rate):
    for seconds in (0.7, 3.0):
        content = encoded(stereo(seconds, rate), rate=rate)
        (only,) = stream_windows(content, 3.0, 1.0)
        np.testing.assert_array_equal(only.samples, load_audio(content))


@pytest.mark.parametrize(("container", "codec", "error"), FORMATS.values(), ids=FORMATS)
def test_the_windows_of_a_longer_clip_are_its_slices(container, codec, error, tmp_path):
    path = tmp_path / "long"
    path.write_bytes(encoded(tone(seconds=7.3), container, codec))
    parts = list(stream_windows(path, 2.0, 1.0))
    assert times(parts) == [(0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7), (5.3, 7.3)]
    for part in parts:
        np.testing.assert_array_equal(part.samples, cut(load_audio(path), part))


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_resampling_a_stream_is_resampling_the_clip(rate):
    content = encoded(stereo(9.4, rate), "WAV", "PCM_16", rate)
    clip, parts = load_audio(content), list(stream_windows(content, 2.5, 1.0))
    assert parts[-1].end == len(clip) / RATE and {len(part.samples) for part in parts} == {round(2.5 * RATE)}
    for part in parts:
        np.testing.assert_allclose(part.samples, cut(clip, part), rtol=0, atol=1e-7)


def test_another_rate_on_demand():
    content = encoded(tone(seconds=3.0))
    parts = list(stream_windows(content, 1.0, 1.0, sampling_rate=48000))
    assert [len(part.samples) for part in parts] == [48000] * 3
    whole = np.concatenate([part.samples for part in parts])
    np.testing.assert_allclose(whole, load_audio(content, 48000), rtol=0, atol=1e-7)


def test_no_window_is_added_where_the_last_one_ends_with_the_clip():
    content = encoded(tone(seconds=4.0))
    assert times(stream_windows(content, 2.0, 1.0)) == [(0, 2), (1, 3), (2, 4)]
    assert times(stream_windows(content, 2.0, 2.0)) == [(0, 2), (2, 4)]


@pytest.mark.parametrize("more", [1, 2, 3, 16001])
def test_one_sample_over_a_window_makes_two(more):
    content = encoded(tone(seconds=2 + more / RATE))
    parts = list(stream_windows(content, 2.0, 2.0))
    assert times(parts) == [(0, 2), (more / RATE, (2 * RATE + more) / RATE)]
    for part in parts:
        np.testing.assert_array_equal(part.samples, cut(load_audio(content), part))


def test_a_hop_that_is_no_number_of_samples_does_not_drift():
    parts = list(stream_windows(encoded(tone(seconds=40.0)), 0.5, 1 / 3))
    assert len(parts) == 120 and parts[-1].end == 40
    for number, part in enumerate(parts[:-1]):
        assert abs(part.start - number / 3) <= 0.5 / RATE


def test_the_windows_are_copies():
    parts = list(stream_windows(encoded(tone(seconds=3.0)), 2.0, 1.0))
    parts[0].samples[:] = 0
    assert np.abs(parts[1].samples[:RATE]).max() > 0.4


def test_two_readings_are_alike():
    content = encoded(stereo(7.0), rate=44100)
    for one, other in zip(stream_windows(content, 2.0, 1.0), stream_windows(content, 2.0, 1.0), strict=True):
        assert (one.start, one.end) == (other.start, other.end)
        np.testing.assert_array_equal(one.samples, other.samples)


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_as_load_audio_names_them(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(BAD_FILES[name][0])
    errors = []
    for read in (load_audio, lambda path: list(stream_windows(path, 0.5, 0.25))):
        with pytest.raises(ValueError, match=name) as caught:
            read(path)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_missing_files_and_what_is_no_sound_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere.wav does not exist"):
        next(stream_windows(tmp_path / "nowhere.wav", 1, 1))
    with pytest.raises(ValueError, match="path or its bytes, not"):
        next(stream_windows(None, 1, 1))
    with pytest.raises(ValueError, match="cannot read dog.wav"):
        next(stream_windows(b"woof", 1, 1, name="dog.wav"))


def test_what_is_wrong_late_in_a_file_is_said_when_it_is_reached():
    clip = tone(seconds=20.0)
    clip[-1] = np.nan
    parts = stream_windows(encoded(clip), 2.0, 1.0)
    assert len(list(itertools.islice(parts, 15))) == 15
    with pytest.raises(ValueError, match="NaN or infinite"):
        list(parts)


@pytest.mark.parametrize(
    ("window", "hop", "message"),
    [
        (0, 0, "window over 0 s"),
        (-1, 1, "window over 0 s"),
        (1, 0, "hop over 0 s"),
        (1, 1.5, "up to it"),
        (math.inf, 1, "window of inf s"),
        (math.nan, 1, "window of nan s"),
        (1, math.nan, "every nan s"),
        (1, 1e-5, r"no sample at 16000 Hz: give 6.25e-05 s"),
    ],
)
def test_windows_that_are_none_are_refused_at_once(window, hop, message):
    with pytest.raises(ValueError, match=message):
        stream_windows(b"", window, hop)


def flac_that_claims(samples: int, rate: int = RATE, seconds: float = 5.0) -> bytes:
    """A FLAC of `tone` with another length in its header (36 bits; 0: unknown, as encoders write to a pipe)."""
    content = bytearray(encoded(tone(seconds=seconds), "FLAC", "PCM_16", rate))
    fields = int.from_bytes(content[18:26], "big") >> 36 << 36
    content[18:26] = (fields | samples).to_bytes(8, "big")
    return bytes(content)


@pytest.mark.parametrize("claimed", [0, 36000 * RATE, 2**36 - 1])
def test_a_header_that_lies_of_the_length_changes_nothing(claimed):
    true, lying = flac_that_claims(5 * RATE), flac_that_claims(claimed)
    assert soundfile.info(io.BytesIO(lying)).frames != 5 * RATE
    np.testing.assert_array_equal(load_audio(lying), load_audio(true))
    for window in (2.0, 10.0):
        for one, other in zip(stream_windows(lying, window, 1), stream_windows(true, window, 1), strict=True):
            assert (one.start, one.end) == (other.start, other.end)
            np.testing.assert_array_equal(one.samples, other.samples)


@pytest.mark.parametrize("claimed", [0, 36000 * RATE, 2**36 - 1])
def test_a_piece_of_a_file_that_claims_hours_is_named_and_takes_no_memory(claimed, tmp_path):
    path = tmp_path / "piece.flac"
    path.write_bytes(flac_that_claims(claimed)[:9000])
    tracemalloc.start()
    for read in (load_audio, lambda path: list(stream_windows(path, 10, 5))):
        with pytest.raises(ValueError, match="cannot read .*piece.flac as sound"):
            read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20


def test_a_recording_without_end_is_refused_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(windows, "MAX_HOURS", 60 / 3600)
    assert len(list(stream_windows(repeated_flac(59), 10, 10))) == 6
    endless, windows_read = stream_windows(repeated_flac(3600), 10, 10, name="endless.flac"), 0
    with pytest.raises(ValueError, match="endless.flac lasts over .* hours: cut it"):
        for _ in endless:
            windows_read += 1
    assert windows_read in (5, 6)


def test_an_hour_of_silence_in_a_small_file_takes_the_memory_of_two_windows():
    content = repeated_flac(3600)
    tracemalloc.start()
    assert sum(1 for _ in stream_windows(content, 10, 10)) in (360, 361)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 4 * 10 * RATE + 2**20


@pytest.mark.parametrize("rate", [1, 2**31 - 1])
def test_rates_that_no_sound_has_are_refused(rate):
    with pytest.raises(ValueError, match=f"has a sampling rate of {rate} Hz"):
        next(stream_windows(encoded(tone(), rate=rate), 1, 1))
