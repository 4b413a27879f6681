"""The captions of synthetic sounds are true: what they claim is measured in the waveform."""

import doctest
import io
import re
import string

import numpy as np
import pytest
import soundfile

from processing.datasets import synthetic
from processing.datasets.synthetic import KINDS, NUMBERS, SAMPLING_RATE, Draw, plucked, render, synthetic_dataset

COLUMNS = ["audio", "duration", "group", "label", "caption", "caption_2", "caption_3"]
KEYPAD_HZ = {  # typed by hand from ITU-T Q.23, not taken from the code under test
    "one": (697, 1209), "two": (697, 1336), "three": (697, 1477), "four": (770, 1209), "five": (770, 1336),
    "six": (770, 1477), "seven": (852, 1209), "eight": (852, 1336), "nine": (852, 1477), "zero": (941, 1336),
}  # fmt: skip
MORSE_LETTERS = dict(zip("... --- -.- -.-. --.- .... . .-.. .--.".split(), "SOKCQHELP", strict=True))


def clips(kind, count=8):
    return [render(kind, np.random.default_rng(seed)) for seed in range(count)]


def spectrum(wave, size=1 << 16):
    """Frequencies (Hz) and power, both `[size / 2 + 1]`."""
    return np.fft.rfftfreq(size, 1 / SAMPLING_RATE), np.abs(np.fft.rfft(wave * np.hanning(wave.size), size)) ** 2


def dominant(wave, low=20, high=8000):
    hertz, power = spectrum(wave)
    inside = (hertz >= low) & (hertz < high)
    return hertz[inside][power[inside].argmax()]


def level(wave, seconds=0.01):
    """RMS of consecutive frames, in proportion to the loudest one."""
    size = int(seconds * SAMPLING_RATE)
    frames = wave[: wave.size // size * size].reshape(-1, size)
    rms = np.sqrt((frames**2).mean(axis=1))
    return rms / rms.max()


def events(wave, gap=0.05):
    """How often the level comes up after at least gap (s) of quiet."""
    loud = np.flatnonzero(level(wave) > 0.15)
    return 1 + int((np.diff(loud) > gap / 0.01).sum())


def moment(wave, low, high):
    """The mean time (s) of the energy between low and high (Hz)."""
    hertz, spread = np.fft.rfftfreq(wave.size, 1 / SAMPLING_RATE), np.fft.rfft(wave)
    energy = np.fft.irfft(spread * ((hertz >= low) & (hertz < high)), wave.size) ** 2
    return np.arange(wave.size) @ energy / energy.sum() / SAMPLING_RATE


def fields(template):
    return {field for _, field, _, _ in string.Formatter().parse(template) if field}


@pytest.fixture(scope="module")
def test_split():
    return synthetic_dataset("test", clips_per_kind=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_keeps_its_contract(kind):
    for wave, captions in clips(kind, 3):
        assert wave.dtype == np.float32 and wave.ndim == 1
        assert np.isfinite(wave).all() and np.abs(wave).max() <= 1
        assert 0.5 <= wave.size / SAMPLING_RATE <= 4
        assert len(set(captions)) == len(captions) == 3
        assert not any("{" in caption or caption[0].islower() for caption in captions)
        quietest, loudest = (0.02, 0.1) if "quiet" in captions[0].lower() else (0.4, 1)
        assert quietest < np.abs(wave).max() < loudest


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_caption_names_everything_that_was_drawn(kind):
    draw = Draw(np.random.default_rng(0))
    KINDS[kind].synthesise(draw)
    first, *others = map(fields, KINDS[kind].captions)
    assert first == {*draw.words, "loud"}
    assert all(other <= first for other in others)


def test_there_are_enough_kinds_in_every_group():
    assert len(KINDS) >= 44
    assert {kind.group for kind in KINDS.values()} == {"sound", "music", "speech"}


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("steady tone", (220, 286), (572, 748)),
        ("flute", (300, 390), (780, 1020)),
        ("sonar ping", (700, 910), (1540, 1960)),
    ],
)
def test_low_and_high_are_where_the_caption_puts_them(kind, low, high):
    for wave, captions in clips(kind):
        lowest, highest = low if " low " in captions[0] else high
        assert 0.98 * lowest <= dominant(wave) <= 1.02 * highest


@pytest.mark.parametrize(
    ("kind", "direction"), [("rising chirp", 1), ("falling chirp", -1), ("rising scale", 1), ("falling scale", -1)]
)
def test_rising_rises_and_falling_falls(kind, direction):
    for wave, _ in clips(kind, 4):
        path = np.log([dominant(part, 100, 5000) for part in np.array_split(wave, 6)])
        assert (np.diff(path) * direction > -0.01).all()  # the last note of a scale rings on
        assert (path[-1] - path[0]) * direction > np.log(1.7)


def test_slow_takes_longer_than_quick():
    seconds = {"quickly": [], "slowly": []}
    for wave, captions in clips("rising chirp"):
        seconds[captions[0].split()[-1]].append(wave.size)
    assert min(seconds["slowly"]) > 1.5 * max(seconds["quickly"])


@pytest.mark.parametrize("kind", ["door knock", "hand claps", "clock ticking", "footsteps", "snare drum"])
def test_the_number_in_the_caption_is_the_number_of_events(kind):
    for wave, captions in clips(kind):
        assert NUMBERS[events(wave)].capitalize() == captions[0].split()[0]


def test_keypad_digits_are_their_two_tones():
    for wave, captions in clips("telephone keypad", 12):
        digit, number = re.search(r"digit (\w+) dialled (\w+)", captions[0]).groups()
        assert abs(dominant(wave, 600, 1050) - KEYPAD_HZ[digit][0]) < 12
        assert abs(dominant(wave, 1100, 1600) - KEYPAD_HZ[digit][1]) < 12
        assert NUMBERS[events(wave)] == number


@pytest.mark.parametrize(
    ("kind", "pitches", "share_on"),
    [("dial tone", (350, 440), 1), ("busy tone", (480, 620), 0.55), ("ringing tone", (440, 480), 0.85)],
)
def test_telephone_tones_have_the_real_pitches(kind, pitches, share_on):
    for wave, _ in clips(kind, 4):
        middle = sum(pitches) / 2
        assert dominant(wave, 200, middle) == pytest.approx(pitches[0], rel=0.01)
        assert dominant(wave, middle, 1000) == pytest.approx(pitches[1], rel=0.01)
        assert (level(wave, 0.05) > 0.2).mean() == pytest.approx(share_on, abs=0.16)


def test_morse_code_spells_its_message():
    for wave, captions in clips("morse code"):
        on = level(wave, 0.005) > 0.3
        edges = np.flatnonzero(np.diff(on.astype(int))) + 1
        runs = [run for run in np.split(on, edges)][1:-1]
        dot = min(run.size for run in runs)
        text = "".join((".-" if run[0] else "| ")[run.size > 2 * dot] for run in runs)
        letters = text.replace("|", "").split()
        assert "".join(MORSE_LETTERS[letter] for letter in letters) == captions[0].split(": ")[1]


@pytest.mark.parametrize(
    ("kind", "slope"), [("white noise", 0), ("pink noise", -1), ("brown noise", -2), ("blue noise", 1)]
)
def test_noise_has_the_slope_of_its_colour(kind, slope):
    for wave, _ in clips(kind, 3):
        wave = wave / np.abs(wave).max()
        hertz, power = spectrum(wave)
        bands = np.geomspace(100, 3200, 6)
        means = [power[(hertz >= low) & (hertz < 2 * low)].mean() for low in bands]
        assert np.polyfit(np.log(bands), np.log(means), 1)[0] == pytest.approx(slope, abs=0.3)


@pytest.mark.parametrize(
    ("kind", "semitones"), [("major chord", (0, 4, 7)), ("minor chord", (0, 3, 7)), ("diminished chord", (0, 3, 6))]
)
def test_chords_are_made_of_their_intervals(kind, semitones):
    def match(wave, steps):
        hertz, power = spectrum(wave)
        roots = np.geomspace(100, 600, 2000)
        return max(np.interp(np.outer(roots, 2 ** (np.array(steps) / 12)), hertz, np.sqrt(power)).prod(axis=1))

    for wave, _ in clips(kind, 4):
        assert max([(0, 4, 7), (0, 3, 7), (0, 3, 6)], key=lambda steps: match(wave, steps)) == semitones


@pytest.mark.parametrize("kind", ["bell then drum", "drum then bell"])
def test_bell_and_drum_come_in_the_order_of_the_caption(kind):
    for wave, captions in clips(kind):
        drum, bell = moment(wave, 20, 150), moment(wave, 600, 4000)
        assert (drum < bell) == (captions[0].index("drum") < captions[0].index("bell"))


@pytest.mark.parametrize("kind", ["low then high beep", "high then low beep"])
def test_beeps_come_in_the_order_of_the_caption(kind):
    for wave, captions in clips(kind):
        first, second = dominant(wave[:4000]), dominant(wave[-6400:])
        assert (first < second) == (captions[0].index("low") < captions[0].index("high"))


def test_vowels_have_their_formants():
    def share(wave, low, high):
        hertz, power = spectrum(wave)
        return power[(hertz >= low) & (hertz < high)].sum() / power[(hertz > 100) & (hertz < 4000)].sum()

    def mean_share(kind, low, high):
        return np.mean([share(wave, low, high) for wave, _ in clips(kind, 4)])

    assert mean_share("vowel ah", 600, 1400) > 5 * mean_share("vowel ee", 600, 1400)
    assert mean_share("vowel ee", 1900, 3800) > 5 * mean_share("vowel oo", 1900, 3800)


def test_a_plucked_string_keeps_its_pitch_and_loses_its_brightness():
    wave = plucked(Draw(np.random.default_rng(0)), 2, 200)
    start, end = wave[:8000], wave[-8000:]
    assert dominant(end, 150, 250) == pytest.approx(200, rel=0.01)
    bright = [power[hertz > 1500].sum() / power.sum() for hertz, power in map(spectrum, (start, end))]
    assert bright[1] < 0.1 * bright[0]


def test_kinds_are_distinguishable_on_an_unseen_split(test_split):
    """The nearest training clip in spectrum and rhythm is of the same kind, far above chance level, 1 in 56."""

    def features(row):
        wave, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        frames = np.lib.stride_tricks.sliding_window_view(wave / np.abs(wave).max(), 400)[::160] * np.hanning(400)
        power = np.abs(np.fft.rfft(frames)[:, np.unique(np.geomspace(1, 200, 60).astype(int))]) ** 2
        bands = np.log10(power + 1e-3)
        loudness = np.sqrt(power.sum(axis=1))
        rhythm = np.fft.irfft(np.abs(np.fft.rfft(loudness - loudness.mean(), 1024)) ** 2)[1:100]
        early, late = np.array_split(bands, 2)
        parts = [bands.mean(axis=0), bands.std(axis=0), bands.max(axis=0), early.mean(axis=0), late.mean(axis=0)]
        return np.concatenate([*parts, rhythm / np.abs(rhythm).max()])

    train = synthetic_dataset("train", clips_per_kind=8)
    known = np.stack([features(row) for row in train])
    found = [train[int(np.abs(known - features(row)).sum(axis=1).argmin())]["label"] for row in test_split]
    assert np.mean(np.array(found) == test_split["label"]) > 0.8


def test_dataset_has_the_columns_of_real_data(test_split):
    assert test_split.column_names == COLUMNS
    assert len(test_split) == 2 * len(KINDS)
    feature = test_split.features["audio"]
    assert (feature.sampling_rate, feature.decode) == (SAMPLING_RATE, False)
    row = test_split[2 * list(KINDS).index("church bell") + 1]
    assert (row["label"], row["group"]) == ("church bell", "music")
    assert row["audio"]["path"] == "test_church_bell_0001.flac"


def test_audio_is_16_bit_flac_of_the_stated_duration(test_split):
    for row in test_split.select(range(0, len(test_split), 10)):
        with soundfile.SoundFile(io.BytesIO(row["audio"]["bytes"])) as file:
            assert (file.format, file.subtype) == ("FLAC", "PCM_16")
            assert (file.samplerate, file.channels) == (SAMPLING_RATE, 1)
            assert file.frames / SAMPLING_RATE == row["duration"]


def test_clips_are_short_so_that_training_is_cheap(test_split):
    assert np.mean(test_split["duration"]) < 2.2


def test_the_same_call_gives_the_same_bytes(test_split):
    assert synthetic_dataset("test", clips_per_kind=2).to_list() == test_split.to_list()


def test_a_clip_depends_neither_on_how_many_there_are_nor_on_other_kinds(test_split, monkeypatch):
    monkeypatch.setattr(synthetic, "KINDS", dict(list(KINDS.items())[1:]))
    assert synthetic_dataset("test", clips_per_kind=1).to_list() == test_split.to_list()[2::2]


def test_no_clip_is_in_two_splits_or_seeds(test_split):
    others = [synthetic_dataset("train", 2), synthetic_dataset("validation", 2), synthetic_dataset("test", 2, seed=1)]
    every = [audio["bytes"] for dataset in (test_split, *others) for audio in dataset["audio"]]
    assert len(set(every)) == len(every) == 4 * len(test_split)


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(ValueError, match="church bell"):
        render("curch bel", np.random.default_rng(0))


def test_an_unknown_split_names_the_splits():
    with pytest.raises(ValueError, match="train, validation, test"):
        synthetic_dataset("dev")


@pytest.mark.parametrize("clips_per_kind", [0, -1])
def test_at_least_one_clip_per_kind(clips_per_kind):
    with pytest.raises(ValueError, match="at least 1"):
        synthetic_dataset("test", clips_per_kind=clips_per_kind)


def test_the_examples_in_the_docstrings_are_true():
    results = doctest.testmod(synthetic)
    assert results.attempted >= 2 and not results.failed
