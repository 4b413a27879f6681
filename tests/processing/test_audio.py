"""Files of the common formats decode to what was written, and what cannot be decoded is named."""

import io
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch

from processing import audio
from processing.audio import load_audio, load_column
from processing.audio_inputs_wavlink import read_file
from tests.conftest import RATE, tone
from tests.sound_bytes import BAD_FILES, FORMATS, encoded, pure, repeated_flac, spoilt


def pitch(clip: np.ndarray) -> float:
    """Hz of the strongest partial of a clip at 16 kHz."""
    power = np.abs(np.fft.rfft(clip * np.hanning(len(clip))))
    return np.fft.rfftfreq(len(clip), 1 / RATE)[power.argmax()]


@pytest.mark.parametrize(("name", "container", "codec", "error"), [(name, *form) for name, form in FORMATS.items()])
def test_every_format_comes_back_as_it_was_written(name, container, codec, error, tmp_path):
    path = tmp_path / name
    path.write_bytes(encoded(pure(440), container, codec))
    clip = load_audio(path)
    assert clip.dtype == np.float32 and clip.shape == (RATE,)
    assert np.sqrt(np.mean((clip - pure(440)) ** 2)) <= error
    assert pitch(clip) == 440
    for same in (load_audio(str(path)), load_audio(path.read_bytes())):
        np.testing.assert_array_equal(same, clip)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("container", ["WAV", "WAVEX", "AIFF", "FLAC", "CAF", "W64", "AU", "RF64", "NIST"])
def test_samples_of_16_bits_are_libsndfiles_floats(container, channels):
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (5000, channels)).astype(np.int16)
    samples[:2] = [[-(2**15)] * channels, [2**15 - 1] * channels]
    content = encoded(samples, container, "PCM_16")
    expected, _ = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    assert expected.min() == -1
    for read in (load_audio, lambda file: read_file(file, RATE)):
        np.testing.assert_array_equal(read(content), expected.mean(axis=1))


@pytest.mark.parametrize("size", [0xFCDB0B5AF0790F72, 2**63, 2**64 - 1, 2**64 - 200, 0])
@pytest.mark.parametrize("read", [load_audio, read_file])
def test_a_header_that_points_before_the_file_gives_the_same_of_a_path_and_of_bytes(size, read, tmp_path, capfd):
    """Such a place is an error of a file, and the beginning of `io.BytesIO`."""
    content = encoded(pure(440), "W64", "PCM_16")
    place = content.index(b"data\xf3\xac") + 16
    content = content[:place] + size.to_bytes(8, "little") + content[place + 8 :]
    (tmp_path / "a.w64").write_bytes(content)
    found = []
    for source in (str(tmp_path / "a.w64"), content):
        try:
            found.append(read(source, RATE, "a").tolist())
        except ValueError as error:
            found.append(str(error))
    assert found[0] == found[1] and capfd.readouterr().err == ""


def test_channels_are_averaged():
    left, right = np.array([0.5, -0.25, 0.75], np.float32), np.array([0.25, 0.25, -0.75], np.float32)
    np.testing.assert_array_equal(load_audio(encoded(np.stack([left, right], axis=1))), [0.375, 0, 0])


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_resampling_keeps_pitch_level_and_length(rate):
    clip = load_audio(encoded(pure(1000, rate, 2.0), rate=rate))
    assert clip.dtype == np.float32 and clip.shape == (2 * RATE,)
    assert pitch(clip) == 1000
    middle = slice(RATE // 2, -RATE // 2)
    np.testing.assert_allclose(clip[middle], pure(1000, RATE, 2.0)[middle], atol=1e-4)


def test_what_the_lower_rate_cannot_hold_does_not_fold_back():
    clip = load_audio(encoded(pure(12000, 44100), rate=44100))
    assert np.abs(clip[RATE // 4 : -RATE // 4]).max() < 1e-4


def test_another_rate_on_demand():
    clip = load_audio(encoded(pure(440)), sampling_rate=8000)
    assert clip.shape == (8000,)


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(name, tmp_path):
    content, message = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    for load in (load_audio, load_column):
        with pytest.raises(ValueError, match=f"{name}.*{message}|{message}.*{name}"):
            load(path)
    with pytest.raises(ValueError, match=f"{name}.*{message}|{message}.*{name}"):
        load_column({"bytes": None, "path": str(path)})


@pytest.mark.parametrize("name", ["text.wav", "nothing.wav", "silent.wav", "nan.wav"])
def test_bad_bytes_are_named_by_their_path_where_they_have_one(name):
    content, message = BAD_FILES[name]
    with pytest.raises(ValueError, match=f"{name}.*{message}|{message}.*{name}"):
        load_column({"bytes": content, "path": name})
    with pytest.raises(ValueError, match=f"clip of {len(content)} bytes"):
        load_column({"bytes": content, "path": None})


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "nowhere.wav", tmp_path):
        with pytest.raises(ValueError, match=f"{path} does not exist or is not a file"):
            load_audio(path)


@pytest.mark.parametrize("value", [None, 3, ["dog.wav"], {}, {"bytes": None, "path": None}])
def test_what_is_no_sound_at_all_is_refused(value):
    with pytest.raises(ValueError, match="path or its bytes, not"):
        load_column(value)


def test_a_column_may_hold_paths_bytes_or_arrays(tmp_path):
    path = tmp_path / "dog.wav"
    path.write_bytes(encoded(tone()))
    forms = [
        str(path),
        path,
        path.read_bytes(),
        {"bytes": None, "path": str(path)},
        {"path": str(path)},
        {"bytes": path.read_bytes(), "path": "a name inside an archive.wav"},
        {"bytes": path.read_bytes(), "path": None},
        {"array": tone(), "sampling_rate": RATE},
        {"array": tone().astype(np.float64), "sampling_rate": RATE, "path": str(path)},
        {"array": tone().tolist(), "sampling_rate": RATE},
        {"array": torch.from_numpy(tone()), "sampling_rate": torch.tensor(RATE)},  # as with_format("torch") gives it
        {"array": tone(), "sampling_rate": np.array(RATE)},
    ]
    for form in forms:
        clip = load_column(form)
        assert clip.dtype == np.float32
        np.testing.assert_array_equal(clip, tone())


def test_arrays_of_another_rate_are_resampled_as_files_are():
    clip = pure(1000, 44100)
    resampled = load_column({"array": clip.astype(np.float64), "sampling_rate": 44100})
    np.testing.assert_array_equal(resampled, load_audio(encoded(clip, rate=44100)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"array": tone()}, "has no sampling_rate"),
        ({"array": (tone() * 32767).astype(np.int16), "sampling_rate": RATE}, "int16.*divide 16-bit samples by 32768"),
        ({"array": np.stack([tone(), tone()]), "sampling_rate": RATE}, r"\[2, 16000\].*average the channels"),
        ({"array": np.stack([tone(), tone()]), "sampling_rate": 44100}, r"\[2, 16000\].*average the channels"),
        ({"array": tone()[:0], "sampling_rate": 44100}, "no samples"),
        ({"array": spoilt(np.nan), "sampling_rate": RATE, "path": "dog.wav"}, "dog.wav holds NaN"),
    ],
)
def test_bad_arrays_are_refused_with_what_to_do(value, message):
    with pytest.raises(ValueError, match=message):
        load_column(value)


PAGE = b"<html>Not a sound, but a page of text.</html> " * 100


@pytest.mark.parametrize("name", ["page.au", "page.snd", "page.vox", "page.gsm", "page.mp3"])
def test_the_content_says_what_a_file_is_and_not_its_name(name, tmp_path):
    """libsndfile takes whatever is named so for samples without a header."""
    (tmp_path / name).write_bytes(PAGE)
    with pytest.raises(ValueError, match=f"cannot read .*{name}"):
        load_audio(tmp_path / name)
    (tmp_path / name).write_bytes(encoded(tone()))
    np.testing.assert_array_equal(load_audio(tmp_path / name), tone())


def test_a_small_file_that_is_hours_of_silence_is_refused_before_it_is_all_in_memory(tmp_path, monkeypatch):
    path = tmp_path / "silence.flac"
    path.write_bytes(repeated_flac(4 * 3600, rate=1000))  # at 16 kHz it would be an hour too long
    assert path.stat().st_size < 50_000
    with pytest.raises(ValueError, match=r"silence.flac has more than 172800000 samples.* read it in windows"):
        load_audio(path)
    monkeypatch.setattr(audio, "MAX_SAMPLES", 16 * RATE)
    tracemalloc.start()
    with pytest.raises(ValueError, match="silence.flac has more than 256000 samples"):
        load_audio(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * RATE + 2**20


def test_what_resampling_makes_of_a_clip_counts_too(monkeypatch):
    monkeypatch.setattr(audio, "MAX_SAMPLES", 2 * RATE)
    assert load_audio(encoded(pure(100, 1000, 2.0), rate=1000)).shape == (2 * RATE,)
    with pytest.raises(ValueError, match="more than 32000 samples"):
        load_audio(encoded(pure(100, 1000, 2.001), rate=1000))


@pytest.mark.parametrize("rate", [1, 999, 2**20 + 1, 2**31 - 1])
def test_rates_that_no_sound_has_are_refused(rate):
    with pytest.raises(ValueError, match=f"clip of .* bytes has a sampling rate of {rate} Hz, not one of 1000 to"):
        load_audio(encoded(tone(), rate=rate))
    with pytest.raises(ValueError, match=f"x.wav has a sampling rate of {rate} Hz"):
        load_column({"array": tone(), "sampling_rate": rate, "path": "x.wav"})


@pytest.mark.parametrize("rate", ["16000", np.nan, 0, -16000, [16000]])
def test_rates_that_are_none_are_refused(rate):
    with pytest.raises(ValueError, match="has a sampling rate of"):
        load_column({"array": tone(), "sampling_rate": rate})


@pytest.mark.parametrize("wanted", [None, "16000", 0, -1, 999, np.nan, np.inf, 2**20 + 1])
def test_a_wanted_rate_that_is_none_is_refused(wanted):
    with pytest.raises(ValueError, match=f"sampling_rate={wanted!r} is not one of 1000 to 1048576 Hz"):
        load_audio(encoded(tone()), wanted)


def test_a_thousand_channels_take_no_more_memory_than_two():
    wide = encoded(np.tile(tone(seconds=0.5)[:, None], 1000), "WAV", "PCM_U8", 48000)
    tracemalloc.start()
    clip = load_audio(wide)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(clip) == len(load_audio(encoded(tone(seconds=0.5), rate=48000))) and peak < 16 * 2**20


def test_integers_taken_for_floats_are_refused():
    loud = tone() * 32767
    for wrong in (encoded(loud), encoded(loud, rate=44100)):
        with pytest.raises(ValueError, match=r"samples beyond 32, .* divide 16-bit samples by 32768"):
            load_audio(wrong)
    with pytest.raises(ValueError, match="x.wav holds samples beyond 32"):
        load_column({"array": -np.abs(loud), "sampling_rate": RATE, "path": "x.wav"})
    assert abs(load_audio(encoded(3 * tone()))).max() > 1.4  # codecs overshoot, mixes clip


def test_a_midi_sample_dump_is_refused():
    with pytest.raises(ValueError, match="is a MIDI sample dump: convert it to wav"):
        load_audio(encoded(tone(), "SDS", "PCM_16"))
