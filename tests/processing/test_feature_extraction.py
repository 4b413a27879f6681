"""Whisper's log-mel to the last bit at 30 s, its first frames at native length, and nothing wrong silently taken."""

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, WhisperFeatureExtractor

from processing import WavLinkFeatureExtractor, WavLinkProcessor
from tests.conftest import RATE, tone

LIMIT = 30 * RATE  # samples
FRAMES = {1: 1, 159: 1, 160: 1, 161: 2, 400: 3, RATE: 100, LIMIT - 1: 3000, LIMIT: 3000}  # of 160 samples, by samples


def click(samples: int) -> np.ndarray:
    """Silence whose only sound is its last sample, so that the maximum may be in a frame after the clip's own."""
    clip = np.zeros(samples, np.float32)
    clip[-1] = 0.9
    return clip


CLIPS = {
    "1 sample": np.array([0.3], np.float32),
    "400 samples": tone(1000, 400 / RATE),
    "silence": np.zeros(5000, np.float32),
    "odd length": tone(440, 12347 / RATE),
    "click at the end of a frame": click(8000),
    "click at the start of a frame": click(8001),
    "click before half a frame": click(8040),
    "29.99 s": tone(300, 29.99),
    "30 s": tone(300, 30),
    "30 s with a click at the end": click(LIMIT),
}


@pytest.fixture(scope="module")
def extractor() -> WavLinkFeatureExtractor:
    return WavLinkFeatureExtractor()


def whisper(clip: np.ndarray, mel_bins: int = 80) -> np.ndarray:
    """`[F, 3000]`, transformers' own."""
    features = WhisperFeatureExtractor(feature_size=mel_bins)(clip, sampling_rate=RATE, return_tensors="np")
    return features["input_features"][0]


@pytest.mark.parametrize("mel_bins", [80, 128])
@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_max_length_is_whisper_to_the_last_bit(clip, mel_bins):
    extractor = WavLinkFeatureExtractor(mel_bins)
    inputs = extractor(clip, sampling_rate=RATE, padding="max_length", return_tensors="np")
    assert list(inputs) == ["input_features"]
    np.testing.assert_array_equal(inputs["input_features"], whisper(clip, mel_bins)[None])


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_native_length_is_whispers_first_frames(extractor, clip):
    features = extractor(clip, sampling_rate=RATE, padding="longest", return_tensors="np")["input_features"][0]
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, whisper(clip)[:, : features.shape[1]], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("samples", "frames"), FRAMES.items())
def test_frames_of_native_length(extractor, samples, frames):
    inputs = extractor(tone(440, samples / RATE), sampling_rate=RATE, return_tensors="pt")
    assert inputs["input_features"].shape == (1, 80, frames)
    assert torch.equal(inputs["input_features_mask"], torch.ones(1, frames, dtype=torch.int64))


@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_a_clips_features_do_not_depend_on_its_batch_mates(extractor, padding):
    clips = [tone(440, 0.7), 0.001 * tone(200, 1.003), tone(900, 2.0), click(4001)]
    alone = [extractor(clip, sampling_rate=RATE, padding=padding)["input_features"][0] for clip in clips]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 2]):
        batch = extractor([clips[i] for i in order], sampling_rate=RATE, padding=padding, return_tensors="np")
        for features, i in zip(batch["input_features"], order, strict=True):
            np.testing.assert_array_equal(features[:, : alone[i].shape[1]], alone[i])


def test_padded_features_are_not_the_callers_memory(extractor):
    given = extractor(tone(440, 0.7), sampling_rate=RATE)["input_features"]
    features = extractor.pad({"input_features": given})["input_features"]
    np.testing.assert_array_equal(features, given)
    assert not np.shares_memory(features, given)


def test_the_mask_marks_each_clips_own_frames(extractor):
    inputs = extractor([tone(440, 0.05), tone(440, 0.021)], sampling_rate=RATE, return_tensors="np")
    np.testing.assert_array_equal(inputs["input_features_mask"], [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert inputs["input_features_mask"].dtype == np.int64
    assert not inputs["input_features"][1, :, 3:].any()


def test_the_batch_is_padded_to_a_multiple_of_frames_up_to_30_s(extractor):
    clips = [tone(440, 0.21), tone(440, 0.1)]
    inputs = extractor(clips, sampling_rate=RATE, pad_to_multiple_of=8, return_tensors="np")
    assert inputs["input_features"].shape == (2, 80, 24) and inputs["input_features_mask"].sum(1).tolist() == [21, 10]
    longest = extractor(tone(440, 29.95), sampling_rate=RATE, pad_to_multiple_of=64, return_tensors="np")
    assert longest["input_features"].shape == (1, 80, 3000)


@pytest.mark.parametrize("padding", [False, "do_not_pad"])
def test_without_padding_each_clip_keeps_its_frames(extractor, padding):
    inputs = extractor([tone(440, 0.05), tone(440, 0.021)], sampling_rate=RATE, padding=padding)
    assert list(inputs) == ["input_features"]
    assert [features.shape for features in inputs["input_features"]] == [(80, 5), (80, 3)]


@pytest.mark.parametrize("padding", [None, True])
@pytest.mark.parametrize(("default", "frames"), [("longest", 100), ("max_length", 3000)])
def test_calls_that_do_not_say_get_the_saved_padding(default, frames, padding, tmp_path):
    WavLinkFeatureExtractor(padding=default).save_pretrained(tmp_path)
    reloaded = WavLinkFeatureExtractor.from_pretrained(tmp_path)
    inputs = reloaded(tone(), sampling_rate=RATE, padding=padding, return_tensors="pt")
    assert inputs["input_features"].shape == (1, 80, frames)
    assert ("input_features_mask" in inputs) == (default == "longest")


@pytest.mark.parametrize(("default", "frames"), [("longest", 100), ("max_length", 3000)])
def test_auto_feature_extractor_finds_it_in_the_processors_file(default, frames, processor, tmp_path):
    WavLinkProcessor(WavLinkFeatureExtractor(padding=default), processor.tokenizer).save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    reloaded = AutoFeatureExtractor.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(reloaded).__name__ == "WavLinkFeatureExtractor"
    assert reloaded(tone(), sampling_rate=RATE, return_tensors="pt")["input_features"].shape == (1, 80, frames)


SAME_CLIP = {
    "list": lambda clip: clip.tolist(),
    "tuple": lambda clip: tuple(clip.tolist()),
    "list of numpy floats": list,
    "float64": lambda clip: clip.astype(np.float64),
    "not contiguous": lambda clip: np.repeat(clip, 2)[::2],
    "read-only": lambda clip: np.frombuffer(clip.tobytes(), np.float32),
    "torch": torch.from_numpy,
    "torch with gradients": lambda clip: torch.tensor(clip, requires_grad=True),
    "torch float64": lambda clip: torch.tensor(clip, dtype=torch.float64),
}


@pytest.mark.parametrize("form", SAME_CLIP.values(), ids=SAME_CLIP)
def test_every_form_of_a_clip_gives_the_same_features(extractor, form):
    clip = tone(440, 0.3)
    expected = extractor(clip, sampling_rate=RATE, return_tensors="np")["input_features"]
    kept = clip.copy()
    for given in (form(clip), [form(clip)]):
        np.testing.assert_array_equal(
            extractor(given, sampling_rate=RATE, return_tensors="np")["input_features"], expected
        )
    np.testing.assert_array_equal(clip, kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_clips_give_the_features_of_their_values(extractor, dtype):
    clip = torch.from_numpy(tone(440, 0.3)).to(dtype)
    given = extractor(clip, sampling_rate=RATE)["input_features"]
    np.testing.assert_array_equal(given, extractor(clip.float(), sampling_rate=RATE)["input_features"])


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (None, "sampling_rate is missing.*sampling_rate=16000"),
        (44100, r"44100 Hz.*16000 Hz.*resample"),
        (8000, "8000"),
    ],
)
def test_the_sampling_rate_must_be_given_and_right(extractor, rate, message):
    with pytest.raises(ValueError, match=message):
        extractor(tone(), sampling_rate=rate)


def spoilt(value: float) -> np.ndarray:
    clip = tone()
    clip[7000] = value
    return clip


STEREO = np.stack([tone(), tone(220)])  # (channels, samples)
BAD_CLIPS = {
    "no clips": ([], "at least one"),
    "empty": (np.zeros(0, np.float32), "clip 0 is empty"),
    "empty among others": ([tone(), np.zeros(0, np.float32)], "clip 1 is empty"),
    "NaN": (spoilt(np.nan), "clip 0 holds NaN"),
    "too loud": ([tone(), tone() * 32767], "clip 1 holds samples beyond 32.*divide 16-bit samples by 32768"),
    "inf": ([tone(), spoilt(np.inf)], "clip 1 holds NaN or infinite"),
    "stereo, channels first": (STEREO, r"\[2, 16000\].*average the channels"),
    "stereo, channels last": (STEREO.T, r"\[16000, 2\].*average the channels"),
    "stereo in a list": ([tone(), STEREO], r"clip 1 has shape \[2, 16000\]"),
    "stereo in torch": (torch.from_numpy(STEREO), "average the channels"),
    "one clip as a 2-D array": (tone()[None], r"\[1, 16000\].*several clips as a list"),
    "one number": (np.float32(0.5), r"shape \[\].*mono clip is \[samples\]"),
    "a path of no file": ("dog.wav", "dog.wav does not exist"),
    "int16": ((tone() * 32767).astype(np.int16), "int16.*divide 16-bit samples by 32768"),
    "torch int16": ([torch.ones(400, dtype=torch.int16)], "int16.*divide"),
    "list of integers": ([0, 1, 2], "int64.*floats in"),
    "over 30 s": (
        np.zeros(LIMIT + 1, np.float32),
        "clip 0 has 480001 samples, 30.00 s, the limit is 480000, 30 s.*windows",
    ),
    "far over 30 s": ([tone(), np.zeros(LIMIT * 2, np.float32)], "clip 1 has 960000 samples, 60.00 s"),
}


@pytest.mark.parametrize("padding", ["longest", "max_length"])
@pytest.mark.parametrize(("clips", "message"), BAD_CLIPS.values(), ids=BAD_CLIPS)
def test_bad_clips_are_refused_with_what_to_do(extractor, clips, message, padding):
    with pytest.raises(ValueError, match=message):
        extractor(clips, sampling_rate=RATE, padding=padding)


def test_truncation_is_no_way_around_the_limit(extractor):
    with pytest.raises(ValueError, match="limit is 480000, 30 s"):
        extractor(np.zeros(LIMIT + 1, np.float32), sampling_rate=RATE, truncation=True)


def test_unknown_paddings_are_refused(extractor):
    with pytest.raises(ValueError, match="longest, max_length, True or False, got 'shortest'"):
        extractor(tone(), sampling_rate=RATE, padding="shortest")
    with pytest.raises(ValueError, match="longest, max_length, got 'do_not_pad'"):
        WavLinkFeatureExtractor(padding="do_not_pad")
