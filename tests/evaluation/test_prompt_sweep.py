"""Prompts that a model brings: the search for them, and the doors that use them."""

import json

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional as F

import wavlink
from modeling_wavlink import WavLinkModel
from processing.prompt_templates import TEMPLATES
from processing.prompts import PROMPT, checked_prompt
from tests.conftest import RATE, tone
from wavlink import cli
from wavlink.config_file import write_field
from wavlink.embedder import Embedder
from wavlink.evaluation import prompt_sweep
from wavlink.evaluation.prompt_sweep import sweep

PROMPTS = ["the sound of a {}", "{}."]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled")
    for number, name in enumerate(["dog", "cat", "bell"] * 3):
        folder = root / "validation" / name
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{number}.wav", tone(200 + 300 * (number % 3), 0.3, number), RATE)
    return root


@pytest.fixture
def folder(sharp_model, processor, tmp_path):
    sharp_model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_templates_are_thirty_different_prompts():
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 30 and TEMPLATES[0] == PROMPT
    assert [checked_prompt(template) for template in TEMPLATES] == list(TEMPLATES)


def test_the_greedy_set_grows_while_accuracy_does():
    """Labels on axes; each prompt adds noise of its own, which the mean of several cancels."""
    rng = np.random.default_rng(0)
    labels = [str(n % 20) for n in range(400)]
    axes = np.eye(20)
    audio = torch.from_numpy(axes[[n % 20 for n in range(400)]] + 0.3 * rng.normal(size=(400, 20)))
    noise = {str(n): 0.5 * rng.normal(size=(8, 20)) for n in range(20)}

    def embed(texts):
        rows = [text.split() for text in texts]
        return torch.from_numpy(np.stack([axes[int(label)] + noise[label][int(prompt)] for prompt, label in rows]))

    result = sweep(audio, labels, embed, [f"{n} {{}}" for n in range(8)], most=5)
    assert (result["clips"], result["labels"], len(result["single"])) == (400, 20, 8)
    singles, selected = ([row["value"] for row in result[name]] for name in ("single", "selected"))
    assert singles == sorted(singles, reverse=True) and selected[0] == singles[0]
    assert all(a < b for a, b in zip(selected, selected[1:], strict=False)) and 2 <= len(selected) <= 5
    assert len({row["prompt"] for row in result["selected"]}) == len(selected)
    texts = torch.stack([embed([row["prompt"].format(n) for n in range(20)]) for row in result["selected"]], 1)
    vectors = F.normalize(F.normalize(texts.float(), dim=-1).mean(1), dim=-1)
    hits = (audio.float() @ vectors.T).argmax(1).numpy() == np.arange(400) % 20
    assert selected[-1] == pytest.approx(hits.mean())
    assert [row["prompt"] for row in sweep(audio, labels, embed, ["3 {}", "1 {}"], most=1)["selected"]] in (
        [["3 {}"], ["1 {}"]]
    )


@pytest.mark.parametrize(
    ("prompts", "labels", "most", "why"),
    [
        (["a", "b {}"], ["x", "y"], 1, "where the label goes"),
        (["{}", "{}"], ["x", "y"], 1, "each prompt once"),
        (["{}"], ["x", "x"], 1, "two labels or more"),
        (["{}"], ["x", "y"], 0, "most must be 1 prompt"),
        ([], ["x", "y"], 1, "at least one prompt"),
    ],
)
def test_what_cannot_be_swept_is_refused(prompts, labels, most, why):
    with pytest.raises(ValueError, match=why):
        sweep(torch.eye(2), labels, lambda texts: torch.ones(len(texts), 2), prompts, most)


def test_the_command_stores_the_best_only_when_asked(folder, data, capsys, monkeypatch):
    before = (folder / "config.json").read_bytes()
    given = ["prompts", str(folder), "--data", str(data), "--json", "--prompt", *PROMPTS, "the {} barks"]
    assert cli.main(given) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)["results"]
    assert (folder / "config.json").read_bytes() == before and not found["stored"] and found["clips"] == 9
    assert "zero-shot accuracy on 9 clips of 3 labels" in captured.err and captured.err.count("[") >= 4
    assert cli.main([*given, "--store"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    stored = json.loads((folder / "config.json").read_text())["label_prompts"]
    assert stored == [row["prompt"] for row in found["selected"]] and found["stored"]
    assert WavLinkModel.from_pretrained(folder).config.label_prompts == stored
    for words, why in (
        (["--split", "test"], "test"),
        (["--prompt", "no place"], "where the label goes"),
        (["--most", "0"], "1 prompt or more"),
    ):
        assert cli.main(["prompts", str(folder), "--data", str(data), *words]) == 2
        assert why in capsys.readouterr().err.splitlines()[-1]
    with monkeypatch.context() as patch:
        patch.setattr(prompt_sweep, "embed_audio", lambda *args: pytest.fail("the sounds were embedded"))
        for words in (["--most", "0"], ["--prompt", "{}", "{}"]):
            assert cli.main(["prompts", str(folder), "--data", str(data), *words]) == 2
    assert cli.main(["prompts", "owner/name", "--data", str(data), "--store"]) == 2
    assert "is no folder here" in capsys.readouterr().err


def test_classify_and_eval_use_and_record_the_models_prompts(folder, data, capsys):
    files, labels = [data / "validation" / "dog" / "0.wav"], ["dog", "cat", "bell"]
    default, explicit = (wavlink.classify(folder, files, labels, **x) for x in ({}, {"prompts": PROMPTS}))
    write_field(folder, "label_prompts", PROMPTS)
    assert wavlink.classify(folder, files, labels) == explicit != default
    assert wavlink.classify(folder, files, labels, prompts=PROMPT) == default
    with pytest.raises(ValueError, match="at least one prompt"):
        wavlink.classify(folder, files, labels, prompts=[])
    assert cli.main(["classify", str(files[0]), "--labels", *labels, "--model", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["prompts"] == PROMPTS
    scores = wavlink.evaluate(folder, data, split="validation", choices=0)
    assert scores["protocol"]["prompts"] == tuple(PROMPTS) and scores["zero_shot"]["prompts"] == PROMPTS
    scores = wavlink.evaluate(Embedder(str(folder)), data, split="validation", choices=0, prompts=PROMPT)
    assert scores["zero_shot"]["prompt"] == PROMPT
    with pytest.raises(ValueError, match="at least one prompt"):
        wavlink.evaluate(folder, data, split="validation", prompts=[])
