"""The metrics as modules of the `evaluate` library, loaded from this repository with a separate cache."""

import doctest
import os
import re
import sys
import threading
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from processing.collator import AudioTextCollator
from tests.conftest import RATE, tone
from tests.processes import run_process
from wavlink.evaluation import command as evaluation
from wavlink.evaluation import metrics

ROOT = Path(__file__).parents[2]
NAMES = ["retrieval_recall", "zero_shot_accuracy", "multiple_choice_accuracy"]
WAYS = ["text_to_audio", "audio_to_text"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """`evaluate` copies a module to a folder that it puts on sys.path: all of that is undone."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        for name in ("HF_MODULES_CACHE", "HF_METRICS_CACHE", "HF_EVALUATE_CACHE"):
            patch.setattr(evaluate.config, name, folder / name)
        yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
        del sys.modules[name]


def load(name: str, *args, **kwargs) -> evaluate.Metric:
    return evaluate.load(str(ROOT / "evaluate_modules" / name), *args, **kwargs)


def embeddings(rows: int = 30, dims: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """fp32 `[rows, dims]` of clips and of texts near them, not normalised."""
    rng = np.random.default_rng(seed)
    audio = rng.normal(size=(rows, dims)) * rng.uniform(0.5, 2, size=(rows, 1))
    return audio.astype(np.float32), (audio + rng.normal(size=(rows, dims))).astype(np.float32)


def cosines(audio, text, dim: int | None = None) -> np.ndarray:
    audio, text = (F.normalize(torch.tensor(rows[:, :dim]), dim=-1) for rows in (audio, text))
    return (audio @ text.T).numpy()


def expected(similarities: np.ndarray, correspondence: np.ndarray) -> dict[str, float]:
    """Of `[clips, texts]`."""
    scores = {}
    for way, rows, relevant in zip(
        WAYS, (similarities.T, similarities), (correspondence.T, correspondence), strict=True
    ):
        scores |= {f"{way}_R@{k}": metrics.recall_at_k(rows, relevant, k) for k in metrics.KS}
        scores[f"{way}_mAP@10"] = metrics.mean_average_precision(rows, relevant, 10)
        scores[f"{way}_median_rank"] = float(np.median(metrics.ranks(rows, relevant)))
    return scores


@pytest.mark.parametrize("name", NAMES)
def test_a_module_has_a_description_and_a_citation(name):
    module = load(name)
    assert module.name == name and module.module_type == "metric"
    for text in (module.description, module.citation, module.inputs_description):
        assert text.strip()
    assert set(module.features) == {"predictions", "references"}
    assert "2601.15118" in module.citation


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["inputs_description", "README.md"])
def test_examples_in_docstrings_and_cards_are_true(name, where, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = load(name).inputs_description
    if where == "README.md":
        text = "\n".join(
            re.findall(r"```python\n(.*?)```", (ROOT / "evaluate_modules" / name / where).read_text(), re.S)
        )
    test = doctest.DocTestParser().get_doctest(text, {"evaluate": evaluate}, name, where, 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_folder_is_no_package():
    """`evaluate` calls its own package of cached modules `evaluate_modules`; ours must not hide it."""
    assert not list((ROOT / "evaluate_modules").rglob("__init__.py"))


@pytest.mark.slow
def test_from_a_clone_offline_in_a_clean_process(tmp_path):
    code = """
        import evaluate
        recall = evaluate.load("evaluate_modules/retrieval_recall")
        print(recall.compute(predictions=[[1.0, 0.0], [0.0, 1.0]], references=[[1.0, 0.1], [0.1, 1.0]], ks=[1]))
    """
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = run_process(
        [sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines())],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "'text_to_audio_R@1': 1.0" in done.stdout and "'audio_to_text_median_rank': 1.0" in done.stdout


def test_retrieval_by_hand():
    """Unit vectors at 0, 40 and 100 degrees against texts at 10, 80 and 60."""

    def at(*degrees):
        return [[np.cos(np.radians(angle)), np.sin(np.radians(angle))] for angle in degrees]

    scores = load("retrieval_recall").compute(predictions=at(0, 40, 100), references=at(10, 80, 60), ks=[1, 2, 3])
    # clip 0: texts in order 10, 60, 80, the right one first; clip 40: 60, 10, 80, third; clip 100: 80, 60, 10, second
    # text 10: clips in order 0, 40, 100, first; text 80: 100, 40, 0, second; text 60: 40, 100, 0, second
    assert scores == pytest.approx(
        {
            "audio_to_text_R@1": 1 / 3,
            "audio_to_text_R@2": 2 / 3,
            "audio_to_text_R@3": 1,
            "audio_to_text_mAP@10": (1 + 1 / 3 + 1 / 2) / 3,
            "audio_to_text_median_rank": 2,
            "text_to_audio_R@1": 1 / 3,
            "text_to_audio_R@2": 1,
            "text_to_audio_R@3": 1,
            "text_to_audio_mAP@10": (1 + 1 / 2 + 1 / 2) / 3,
            "text_to_audio_median_rank": 2,
        },
        abs=1e-12,
    )


@pytest.mark.parametrize("dim", [None, 3])
def test_retrieval_agrees_with_the_package(dim):
    audio, text = embeddings()
    scores = load("retrieval_recall").compute(predictions=audio, references=text, dim=dim)
    assert scores == pytest.approx(expected(cosines(audio, text, dim), np.eye(30, dtype=bool)), abs=1e-12)
    assert 0 < scores["text_to_audio_R@1"] < 1
    assert all(type(value) is float for value in scores.values())


@pytest.mark.parametrize("way", WAYS)
def test_retrieval_agrees_with_torchmetrics(way):
    retrieval = pytest.importorskip("torchmetrics.retrieval")
    audio, text = embeddings(seed=1)
    scores = load("retrieval_recall").compute(predictions=audio, references=text)
    rows = torch.tensor(cosines(audio, text) + 1)  # positive: torchmetrics takes other similarities for irrelevant
    rows = rows.T if way == "text_to_audio" else rows
    indexes = torch.arange(30)[:, None].expand(30, 30)
    for k in metrics.KS:
        recall = retrieval.RetrievalRecall(top_k=k)(rows, torch.eye(30, dtype=bool), indexes=indexes)
        assert scores[f"{way}_R@{k}"] == pytest.approx(float(recall), abs=1e-6)
    precision = retrieval.RetrievalMAP(top_k=10)(rows, torch.eye(30, dtype=bool), indexes=indexes)
    assert scores[f"{way}_mAP@10"] == pytest.approx(float(precision), abs=1e-6)


def test_batches_tensors_and_single_rows_add_up():
    audio, text = embeddings()
    module = load("retrieval_recall")
    at_once = module.compute(predictions=audio, references=text)
    for start in range(0, 28, 7):
        part = slice(start, start + 7)
        module.add_batch(predictions=torch.tensor(audio[part]), references=text[part].tolist())
    for row in (28, 29):
        module.add(prediction=audio[row], reference=text[row])
    assert module.compute() == at_once
    assert load("retrieval_recall", keep_in_memory=True).compute(predictions=audio, references=text) == at_once


def test_two_processes_are_one(tmp_path):
    """As in the library's own tests, threads stand for the processes: what they share is the files."""
    audio, text = embeddings()
    results = {}

    def work(number: int):
        results[number] = modules[number].compute(predictions=audio[number::2], references=text[number::2])

    modules = [
        load("retrieval_recall", num_process=2, process_id=number, experiment_id="two", cache_dir=str(tmp_path))
        for number in range(2)
    ]
    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[1] is None
    assert results[0] == load("retrieval_recall").compute(predictions=audio, references=text)


def test_clips_that_share_a_caption_answer_for_each_other():
    audio, text = embeddings(6)
    ids = np.array([[0, 1], [2, -100], [1, -100], [3, 2], [4, -100], [0, -100]])
    correspondence = np.eye(6, dtype=bool)
    correspondence[0, 2] = True  # clip 0 has caption 1, the text of row 2
    correspondence[3, 1] = True
    correspondence[0, 5] = correspondence[5, 0] = True
    scores = load("retrieval_recall").compute(predictions=audio, references=text, caption_ids=ids)
    assert scores == pytest.approx(expected(cosines(audio, text), correspondence), abs=1e-12)
    assert scores != load("retrieval_recall").compute(predictions=audio, references=text)
    one = load("retrieval_recall").compute(predictions=audio, references=text, caption_ids=[0, 2, 1, 3, 4, 0])
    correspondence[0, 2] = correspondence[3, 1] = False
    assert one == pytest.approx(expected(cosines(audio, text), correspondence), abs=1e-12)


def test_a_clip_with_several_captions_is_one_candidate():
    audio, text = embeddings(12)
    clip_ids = np.repeat([7, 3, 9, 5], 3)
    rows = np.repeat(audio[::3], 3, axis=0)
    scores = load("retrieval_recall").compute(predictions=rows, references=text, clip_ids=clip_ids)
    correspondence = np.repeat(np.eye(4, dtype=bool), 3, axis=1)
    assert scores == pytest.approx(expected(cosines(audio[::3], text), correspondence), abs=1e-12)
    assert scores["text_to_audio_R@5"] == 1  # four candidates


@pytest.mark.parametrize("several", [True, False])
def test_ids_come_in_batches_too(several):
    audio, text = embeddings(6)
    caption_ids = [[0, 1], [2], [1], [3, 2], [4], [0]] if several else [0, 2, 1, 3, 4, 0]
    clip_ids = [0, 1, 2, 3, 4, 0]
    module = load("retrieval_recall", "ids")
    for part in (slice(0, 4), slice(4, 6)):
        module.add_batch(
            predictions=audio[part], references=text[part], caption_ids=caption_ids[part], clip_ids=clip_ids[part]
        )
    at_once = load("retrieval_recall").compute(
        predictions=audio, references=text, caption_ids=caption_ids, clip_ids=clip_ids
    )
    assert module.compute() == at_once


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": np.ones((4, 3))}, r"\[4, 2\] and references \[4, 3\] must be alike"),
        ({"predictions": [[1.0], [1.0, 2.0], [1.0], [1.0]]}, r"one width, .* got widths \[1, 2\]"),
        ({"predictions": np.full((4, 2), np.nan)}, "NaN or infinite values, first in row 0"),
        ({"references": np.ones((3, 2))}, "Mismatch in the number"),
        ({"dim": 3}, "dim must be between 1 and 2"),
        ({"dim": 0}, "dim must be between 1 and 2"),
        ({"ks": [0]}, "ks must be a list of whole numbers"),
        ({"ks": 5}, "ks must be a list of whole numbers"),
        ({"caption_ids": [0, 1, 2]}, "caption_ids must be .* 4 rows"),
        ({"caption_ids": [0, 1, 2, -1]}, "negative numbers only as padding"),
        ({"clip_ids": [0, 1, 2]}, "clip_ids must be one number a row"),
    ],
)
def test_bad_inputs_of_retrieval(change, message):
    given = {"predictions": np.eye(4, 2) + 1, "references": np.eye(4, 2) + 1, **change}
    with pytest.raises(ValueError, match=message):
        load("retrieval_recall", keep_in_memory=True).compute(**given)


def test_no_rows_and_unknown_configs_are_refused():
    with pytest.raises(ValueError, match=r"got widths \[\]"):
        load("retrieval_recall").compute(predictions=[], references=[])
    with pytest.raises(ValueError, match='config "ids"'):
        load("retrieval_recall", "id")


def test_zero_shot_by_hand_and_by_the_package():
    module = load("zero_shot_accuracy")
    rows = [[0.9, 0.5, 0.1], [0.2, 0.3, 0.1], [0.5, 0.5, 0.1], [0.0, 0.1, 0.2]]
    assert module.compute(predictions=rows, references=[0, 0, 0, 2]) == {"accuracy": 0.5, "top_5_accuracy": 1.0}
    similarities = np.random.default_rng(0).normal(size=(40, 12))
    targets = np.arange(40) % 12
    for part in (slice(0, 25), slice(25, 40)):
        module.add_batch(predictions=similarities[part], references=targets[part])
    scores = module.compute()
    assert scores == {
        "accuracy": float((similarities.argmax(1) == targets).mean()),
        "top_5_accuracy": metrics.zero_shot_accuracy(similarities, targets, k=5),
    }
    assert scores["accuracy"] < scores["top_5_accuracy"] < 1


def test_zero_shot_agrees_with_torchmetrics():
    classification = pytest.importorskip("torchmetrics.classification")
    similarities, targets = np.random.default_rng(1).normal(size=(40, 12)), np.arange(40) % 12
    scores = load("zero_shot_accuracy").compute(predictions=similarities, references=targets)
    for name, k in (("accuracy", 1), ("top_5_accuracy", 5)):
        metric = classification.MulticlassAccuracy(num_classes=12, top_k=k, average="micro")
        assert scores[name] == pytest.approx(
            float(metric(torch.tensor(similarities), torch.tensor(targets))), abs=1e-6
        )


def test_multiple_choice_by_hand_and_by_the_package():
    module = load("multiple_choice_accuracy")
    rows = [[0.1, 0.9], [0.2, 0.3, 0.1, 0.0], [0.4, 0.4], [0.3, 0.1, 0.2]]
    assert module.compute(predictions=rows, references=[1, 0, 0, 0]) == {"accuracy": 0.5}
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=2 + question % 4) for question in range(30)]
    targets = [int(rng.integers(len(row))) for row in rows]
    for part in (slice(0, 11), slice(11, 30)):
        module.add_batch(predictions=rows[part], references=targets[part])
    right = [int(np.argmax(row)) == target for row, target in zip(rows, targets, strict=True)]
    assert (
        module.compute()
        == {"accuracy": np.mean(right)}
        == {"accuracy": metrics.multiple_choice_accuracy(rows, targets)}
    )


@pytest.mark.parametrize(
    ("name", "predictions", "references", "message"),
    [
        ("zero_shot_accuracy", [[0.1, 0.2], [0.3]], [0, 0], "take multiple_choice_accuracy"),
        ("zero_shot_accuracy", [[0.1, 0.2]], [2], "targets must be between 0 and 1"),
        ("zero_shot_accuracy", [[0.1, 0.2], [0.1, 0.2]], [1, -1], "0 and 1, the last of the labels, got -1"),
        ("zero_shot_accuracy", [[0.1, np.nan]], [0], "NaN"),
        ("zero_shot_accuracy", [], [], r"got widths \[\]"),
        ("multiple_choice_accuracy", [[0.1, 0.2], [0.3]], [0, 1], "question 1 has 1 choices"),
        ("multiple_choice_accuracy", [[0.1, 0.2]], [-1], "between 0 and 1, got -1"),
        ("multiple_choice_accuracy", [[0.1, np.inf]], [0], "infinite"),
        ("multiple_choice_accuracy", [], [], "at least one"),
    ],
)
def test_bad_inputs_of_accuracies(name, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        load(name, keep_in_memory=True).compute(predictions=predictions, references=references)


@pytest.mark.parametrize("label_names", [None, ["caption_ids"]])
def test_trainer_evaluates_with_the_module(model, processor, tmp_path, label_names):
    """As the card shows it; the numbers are those of `wavlink.evaluation.command.compute_metrics`."""
    captions = ["a dog barks", "the cat meows", "a dog barks", "rain falls", "the bell rings", "a low sound"]
    rows = [
        {"audio": {"array": tone(200 * (i + 1), 0.2 + 0.1 * i, i), "sampling_rate": RATE}, "caption": caption}
        for i, caption in enumerate(captions)
    ]
    recall = load("retrieval_recall")
    seen = {}

    def compute_metrics(prediction):
        seen.update(evaluation.compute_metrics(prediction))
        audio, text = prediction.predictions[:2]
        return recall.compute(predictions=audio, references=text, caption_ids=prediction.label_ids)

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            per_device_eval_batch_size=4,
            remove_unused_columns=False,
            label_names=label_names,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        data_collator=AudioTextCollator(processor, ["caption"]),
        eval_dataset=rows,
        compute_metrics=compute_metrics,
    )
    trainer.can_return_loss = True  # what Trainer asks where there are no labels
    scores = trainer.evaluate()
    assert len(seen) == 6
    for name, value in seen.items():
        assert scores[f"eval_{name}"] == pytest.approx(value, abs=1e-12)
    assert 1 <= scores["eval_text_to_audio_median_rank"] <= 6
