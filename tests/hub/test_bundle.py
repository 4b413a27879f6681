"""A bundled model, as it is made of a training run."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import wavlink
from hub_cards import bundle as making
from hub_cards.bundle import bundle
from hub_cards.scores import fingerprint
from modeling_wavlink import WavLinkModel
from tests.bundled_folders import write_bundle
from tests.conftest import RATE, tone
from wavlink import bundled_models
from wavlink.defaults import FRAME_HEAD
from wavlink.frame_head import Fitted, FrameHead, step_states, write_frame_head
from wavlink.probability import Logistic


@pytest.fixture
def sounds(tmp_path) -> Path:
    """A data set of two packages."""
    for split in ("train", "test"):
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        rows = [("low", 200, "bells", "CC0-1.0"), ("high", 2000, "dogs | cats", "GPL-2+; MIT")]
        for name, hertz, *_ in rows:
            soundfile.write(folder / f"{name}.ogg", tone(hertz, 0.4), RATE, format="OGG", subtype="OPUS")
        with open(folder / "metadata.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("file_name", "caption", "source_package", "licence"))
            table.writerows((f"{name}.ogg", f"a {name} sound", *about) for name, _, *about in rows)
    return tmp_path / "data"


def scores_json(path: Path, model) -> str:
    """Scores of a model's weights, as far as the card reads them."""
    about = {"revision": fingerprint(model)}
    zero_shot = {"labels": 3, "chance": 1 / 3, "confusion": {"labels": ["dog", "tractor", "rain"], "counts": []}}
    score = {"model": "m", "about": about, "benchmark": "my_sounds", "split": "test", "clips": 3, "captions": 3}
    path.write_text(json.dumps(score | {"zero_shot": zero_shot}))
    return str(path)


def test_the_bundle_is_complete_small_and_equal(no_bundle, sharp_model, processor, sounds, tmp_path, monkeypatch):
    monkeypatch.setattr("hub_cards.card.draw_confusion", lambda _, path, **options: path.touch())
    run = tmp_path / "run/best"
    sharp_model.save_pretrained(run)
    processor.save_pretrained(run)
    scores = scores_json(tmp_path / "scores.json", making.in_half_precision(sharp_model))
    options = {"sounds": [str(sounds)], "scores": [scores], "licence": "apache-2.0"}
    made = bundle(str(run), "wavlink-tiny", models=no_bundle, **options)
    folder = no_bundle / "wavlink-tiny"
    assert made["folder"] == str(folder) == wavlink.bundled()  # by its hashes
    weights = load_file(folder / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert made["bytes"] < 0.6 * (run / "model.safetensors").stat().st_size
    texts = ["a dog barks", "rain"]
    one, other = (wavlink.Embedder(source).embed_text(texts) for source in (run, None))
    assert 0 < made["cosine_distance"] < 1e-3 and np.abs(1 - (one * other).sum(-1)).max() < 1e-3
    assert wavlink.WavLinkModel.from_pretrained(folder).dtype == torch.float32
    with open(folder / "sources.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [["bells", "CC0-1.0", "2"], ["dogs | cats", "GPL-2+; MIT", "2"]]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "4 clips of 2 packages" in card and "fp16" in card and f"{made['cosine_distance']:.1e}" in card
    assert "Of the 3 labels of my\\_sounds, 1 hold words that it lacks: tractor." in card.replace("my_s", "my\\_s")
    assert {"config.json", "processor_config.json", "modeling_wavlink.py", "scores/scores.json"} <= set(
        bundled_models.sums_of(folder)
    )
    with pytest.raises(ValueError, match="--replace"):
        bundle(str(run), "wavlink-tiny", models=no_bundle)
    assert "4 clips" in (folder / "README.md").read_text(encoding="utf-8")
    bundled_models._verify.cache_clear()
    bundle(str(run), "wavlink-tiny", models=no_bundle, replace=True)
    assert wavlink.bundled() == str(folder) and not (folder / "sources.csv").exists()


def test_what_cannot_be_bundled_leaves_nothing(no_bundle, wavlink_folder, sharp_model, sounds, tmp_path, monkeypatch):
    other = scores_json(tmp_path / "other.json", sharp_model)
    exact = scores_json(tmp_path / "exact.json", WavLinkModel.from_pretrained(wavlink_folder))  # not in fp16
    (sounds / "test/metadata.csv").write_text("file_name,caption\na.ogg,b\n")
    cases = {
        "measured on other weights": {"scores": [other]},
        "wavlink eval --model wavlink-tiny": {"scores": [exact]},
        "lacks the columns licence, source_package": {"sounds": [str(sounds)]},
        "holds no SPLIT/metadata.csv": {"sounds": [str(tmp_path)]},
    }
    for message, options in cases.items():
        with pytest.raises(ValueError, match=message):
            bundle(str(wavlink_folder), "wavlink-tiny", models=no_bundle, **options)
    for name in ("", "..", "../models", "a/b", "-a", "a b"):
        with pytest.raises(ValueError, match="name must be of letters"):
            bundle(str(wavlink_folder), name, models=no_bundle)
    monkeypatch.setattr(making, "LARGEST", 1000)
    with pytest.raises(ValueError, match="MB in fp16, over 0.001"):
        bundle(str(wavlink_folder), "wavlink-tiny", models=no_bundle)
    assert list(no_bundle.iterdir()) == []


def test_a_weight_that_fp16_cannot_hold_is_refused(model):
    import copy

    large = copy.deepcopy(model)
    with torch.no_grad():
        large.audio_projection.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match="audio_projection.weight holds a number"):
        making.in_half_precision(large)


def test_a_frame_head_is_added_to_a_bundled_model(no_bundle, wavlink_folder, tmp_path):
    folder = write_bundle(no_bundle, wavlink_folder)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with pytest.raises(ValueError, match=r"no frame_head.safetensors: `wavlink train-frames"):
        making.add_frame_head(str(copy), "wavlink-tiny", no_bundle)
    embedder = wavlink.Embedder(str(copy))
    head = FrameHead(step_states(embedder, [tone(440, 1.0)]).shape[-1], embedder.dims, hidden=8)
    fitted = Fitted(head, Logistic(10.0, -3.0, 0.01))
    write_frame_head(copy, fitted, "sha256:0123456789abcdef")
    with pytest.raises(ValueError, match="belongs to other weights"):
        making.main(["--frame_head", str(copy), "--models", str(no_bundle)])
    assert not (folder / FRAME_HEAD).exists()
    write_frame_head(copy, fitted, embedder.revision)
    assert making.main(["--frame_head", str(copy), "--models", str(no_bundle)]) == 0
    assert (folder / FRAME_HEAD).read_bytes() == (copy / FRAME_HEAD).read_bytes()
    assert wavlink.bundled() == str(folder)  # by its hashes
    with pytest.raises(ValueError, match="bundle it first"):
        making.add_frame_head(str(copy), "other", no_bundle)


def test_a_bundled_model_gets_the_code_that_ships_now(no_bundle, wavlink_folder):
    folder = write_bundle(no_bundle, wavlink_folder)
    current, config = (folder / "losses_wavlink.py").read_bytes(), (folder / "config.json").read_bytes()
    (folder / "losses_wavlink.py").write_text("old = True\n")
    (folder / "removed_wavlink.py").write_text("older = True\n")
    assert making.main(["--code", "--models", str(no_bundle)]) == 0
    assert (folder / "losses_wavlink.py").read_bytes() == current
    assert not (folder / "removed_wavlink.py").exists()
    assert (folder / "config.json").read_bytes() == config
    assert wavlink.bundled() == str(folder)  # by its hashes
    with pytest.raises(ValueError, match="bundle it first"):
        making.refresh_code("other", no_bundle)
