"""Cached log-mels: the same batches where no clip is cropped, crops in frames, and files that are found or remade."""

import pickle

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import train
from processing import WavLinkFeatureExtractor, WavLinkProcessor
from processing.collator import CaptionedAudio
from processing.datasets import kept_features
from processing.datasets.kept_features import KeptFeatures
from processing.datasets.load import load_split
from processing.datasets.loaders import Epochs
from tests import tone_runs
from tests.conftest import RATE, tone
from tests.tone_runs import recipe
from wavlink.training.recipe_fields import Recipe

folder = tone_runs.folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home/wavlink/features"


def feed(folder, processor, cached: bool, **fields) -> Epochs:
    defaults = {"init": "any", "data": str(folder), "batch_size": 4, "num_workers": 0, "mixed_precision": "no"}
    epochs = Epochs(Recipe("mine", **{**defaults, "cache_features": cached, **fields}), 0, 1)
    if cached:
        epochs.cache_features(processor)
    return epochs


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_whole_clips_are_bit_equal(folder, processor, workers):
    plain, cached = (
        list(feed(folder, processor, on, num_workers=workers).batches(processor, 0)) for on in (False, True)
    )
    assert len(plain) == len(cached) == 9
    for one, other in zip(plain, cached, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_crops_are_frames_of_the_whole_clip(folder, processor):
    data = feed(folder, processor, True, max_seconds=0.3).data
    starts = set()
    for epoch in range(20):
        crop = data[epoch, 13]["input_features"]
        whole = data.features[13]
        assert crop.shape == (processor.feature_extractor.feature_size, 30) and whole.shape[1] == 85
        starts |= {start for start in range(56) if np.array_equal(whole[:, start : start + 30], crop)}
    assert len(starts) > 10
    np.testing.assert_array_equal(data[7, 13]["input_features"], data[7, 13]["input_features"])
    assert data[0, 0]["input_features"].shape[1] == 20  # a clip of 0.2 s


def test_a_second_run_reads_the_file_and_another_extractor_or_sound_does_not(folder, processor, cache, monkeypatch):
    rows = load_split(str(folder), "train")
    first = KeptFeatures(rows, ["caption"], processor.feature_extractor)
    files = sorted(path.name for path in cache.iterdir())
    assert len(files) == 3 and pickle.loads(pickle.dumps(first))[3].tolist() == first[3].tolist()
    computed = []
    write = KeptFeatures._write
    monkeypatch.setattr(KeptFeatures, "_write", lambda *arguments: computed.append(1) or write(*arguments))
    again = KeptFeatures(rows, ["caption"], processor.feature_extractor)
    assert not computed and all(np.array_equal(first[row], again[row]) for row in range(14))
    KeptFeatures(rows, ["caption"], WavLinkFeatureExtractor(40))
    KeptFeatures(rows.select(range(13)), ["caption"], processor.feature_extractor)
    assert len(computed) == 2


@pytest.mark.parametrize("suffix", [".frames", ".npy"])
def test_a_cut_or_missing_file_is_written_again(folder, processor, cache, suffix):
    rows = load_split(str(folder), "train")
    expected = np.array(KeptFeatures(rows, ["caption"], processor.feature_extractor)[13])
    (file,) = cache.glob(f"*{suffix}")
    for content in (file.read_bytes()[:-7], b"", None):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        np.testing.assert_array_equal(KeptFeatures(rows, ["caption"], processor.feature_extractor)[13], expected)


def test_a_failed_write_leaves_no_file(folder, processor, cache, monkeypatch):
    rows = load_split(str(folder), "train")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(kept_features, "_log_mel", fail)
    with pytest.raises(OSError, match="no space"):
        KeptFeatures(rows, ["caption"], processor.feature_extractor)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_clips_over_30_seconds_are_decoded_and_cropped(processor, tmp_path):
    (tmp_path / "train").mkdir()
    lines = ["file_name,caption"]
    for number, seconds in enumerate((31.0, 0.5, 0.4)):
        soundfile.write(tmp_path / f"train/{number}.wav", tone(220, seconds), RATE)
        lines.append(f"{number}.wav,tone {number}")
    (tmp_path / "train/metadata.csv").write_text("\n".join(lines))
    epochs = feed(tmp_path, processor, True, batch_size=3, max_seconds=1.0)
    assert len(epochs.data[0, 0]["audio"]["array"]) == RATE and "input_features" in epochs.data[0, 1]
    batch = next(iter(epochs.batches(processor, 0)))
    assert sorted(batch["input_features_mask"].sum(-1).tolist()) == [40, 50, 100]


def test_without_shuffling_a_data_set_is_decoded(folder, processor):
    data = CaptionedAudio(load_split(str(folder), "train"), ["caption"])
    data.features = KeptFeatures(data.dataset, ["caption"], processor.feature_extractor)
    assert "audio" in data[0]


def test_killed_run_with_cached_features_resumes_bit_equal(folder, tmp_path, monkeypatch):
    options = ["--cache_features", "true", "--max_seconds", "0.4", "--save_steps", "2"]
    whole = train.train(recipe(folder, tmp_path / "whole", *options))
    learn = train.Run.learn

    def die(self, *arguments):
        if self.step == 3:
            raise KeyboardInterrupt
        return learn(self, *arguments)

    monkeypatch.setattr(train.Run, "learn", die)
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe(folder, tmp_path / "killed", *options))
    monkeypatch.setattr(train.Run, "learn", learn)
    resumed = train.train(recipe(folder, tmp_path / "killed", *options))
    expected, got = (load_file(run / "last/model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert (whole / "metrics.jsonl").read_text() == (resumed / "metrics.jsonl").read_text()


@pytest.mark.parametrize("fields", [{"padding": "max_length"}, {"streaming": True, "max_steps": 2}])
def test_a_cache_that_cannot_work_is_refused(fields):
    with pytest.raises(ValueError, match="cache_features needs"):
        Recipe("mine", init="any", cache_features=True, **fields)


def test_features_of_another_tower_are_refused(folder):
    with pytest.raises(ValueError, match="leave it out with HTS-AT or PaSST"):
        KeptFeatures(load_split(str(folder), "train"), ["caption"], WavLinkProcessor)
