"""One command for every score of the paper, of any models side by side.

    python -m modeling_wavlink.evaluation --model M [M ...] --output SCORES.json \\
        --benchmark audiocaps|clotho|esc50|us8k|vggsound|airbench|synthetic|FOLDER

A model is a WavLink or a CLAP, a folder or a Hub id, or `random:M`, M's architecture with new weights. FOLDER is any
audiofolder or Hub data set with captions, labels or both. Killed, the same command goes on where it was.
"""

import argparse
import dataclasses
import difflib
import json
import platform
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import datasets
import torch

from hub_cards.foreign_text import printable
from processing.benchmark_data import BENCHMARKS, load_benchmark
from processing.data import SYNTHETIC, caption_columns, load_split, named_like_captions
from processing.paper_data import load_paper_data
from wavlink import options as of
from wavlink.console import run_command, stdout_for

from .atomic_files import only_writer, write_text
from .destinations import file_destination
from .embedding import fingerprint, open_store, remove_store
from .metrics import multiple_choice_accuracy as multiple_choice_accuracy
from .metrics import percent
from .metrics import recall_at_k as recall_at_k
from .metrics import zero_shot_accuracy as zero_shot_accuracy
from .peers import describe, load_for_evaluation
from .pictures import draw_confusion, draw_dims
from .retrieval import DIRECTIONS
from .retrieval import compute_metrics as compute_metrics
from .scoring import Protocol, evaluate_dataset, refuse_unscorable, table

PACKAGES = ("torch", "transformers", "datasets", "numpy", "soundfile", "soxr")
_OF_CAPTIONS = ("audiocaps", "clotho")
_NAMES = (*_OF_CAPTIONS, *BENCHMARKS, SYNTHETIC)


def load(benchmark: str, split: str = "", data: str = "") -> tuple[datasets.Dataset, dict]:
    """A split, and what to record of it.

    Args:
        benchmark: a name, a folder or a Hub id.
        split: default: what the benchmark is scored on; of a folder, `test`.
        data: of a benchmark by name, the copy to read (see `load_benchmark` and `load_paper_data`).
    """
    if benchmark in BENCHMARKS:
        dataset, report = load_benchmark(benchmark, split, data)
    elif benchmark in _OF_CAPTIONS:
        dataset, report = load_paper_data(benchmark, split or "test", data, max_seconds=None)
    elif data:
        raise ValueError(f"--data is the copy of a benchmark by name ({', '.join(_NAMES)}), not of {benchmark}")
    elif benchmark == SYNTHETIC or Path(benchmark).is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", benchmark):
        dataset, report = load_split(benchmark, split or "test"), None
    else:
        near = difflib.get_close_matches(benchmark, _NAMES, n=1)
        raise ValueError(
            f"no benchmark {benchmark!r}" + (f"; did you mean {near[0]}?" if near else "") + f" There are "
            f"{', '.join(_NAMES)}, any audiofolder, and any Hub id such as owner/name"
        )
    about = {"source": data or benchmark, "split": getattr(report, "split", split or "test"), "rows": len(dataset)}
    about |= {"fingerprint": fingerprint(dataset), "revision": _commit(dataset)}
    if report is not None:
        _say(str(report))
        about["report"] = {name: x for name, x in vars(report).items() if isinstance(x, int) or name == "examples"}
        about["labels"] = getattr(report, "labels", ())
    return dataset, about


def _commit(dataset: datasets.Dataset) -> str | None:
    """Of a data set from the Hub the commit: `datasets` keeps each in a folder of that name."""
    names = [Path(file["filename"]).parent.name for file in dataset.cache_files]
    return next((name for name in names if re.fullmatch("[0-9a-f]{40}", name)), None)


def score(name: str, dataset, columns: Sequence[str], protocol: Protocol, batch_size: int, store=None) -> dict:
    """What is on record of one model: who it is, what it scored, and what that depends on.

    Args:
        store: a folder for parts of the work and what tells the data apart from other data, if parts are to be kept.
    """
    model, processor = load_for_evaluation(name, "cuda" if torch.cuda.is_available() else "cpu")
    if store:
        folder, data = store
        key = {"revision": describe(model, processor)["revision"], "data": data, "batch_size": batch_size}
        store = open_store(folder, key)
    scores = evaluate_dataset(model, processor, dataset, columns, protocol, batch_size=batch_size, store=store)
    versions = {package: version(package) for package in PACKAGES}
    return {
        "about": describe(model, processor),
        "protocol": dataclasses.asdict(protocol),
        "versions": {"python": platform.python_version(), **versions},
        **scores,
    }


def side_by_side(models: Sequence[dict]) -> str:
    """A line a model, at its full width."""
    figures = [_headline(scores) for scores in models]
    names = [f"{row['model']} ({row['about']['kind']}, {row['about']['parameters'] / 1e6:.1f}M)" for row in models]
    width = max(map(len, names))
    lines = [" " * width + "".join(f"{title:>24}" for title in figures[0])]
    for name, row in zip(names, figures, strict=True):
        lines.append(f"{name:{width}}" + "".join(f"{percent(x):>24}" for x in row.values()))
    return "\n".join(lines)


def _headline(scores: dict) -> dict[str, dict]:
    dim = str(scores["about"]["dims"])
    figures = {
        f"{DIRECTIONS[way]} R@{k}": scores[way][dim][f"R@{k}"] for way in DIRECTIONS if way in scores for k in (1, 10)
    }
    if "zero_shot" in scores:
        figures["zero-shot"] = scores["zero_shot"][dim]["accuracy"]
    if "multiple_choice" in scores:
        figures["multiple choice"] = scores["multiple_choice"][dim]["total"]
    return figures


def draw(models: Sequence[dict], output: Path) -> None:
    """Pictures beside `output`: recall by dims, and of each model the confusions of its labels."""
    if "text_to_audio" in models[0]:
        draw_dims({scores["model"]: scores for scores in models}, output.with_suffix(".recall.png"))
    for number, scores in enumerate(models):
        if "zero_shot" in scores:
            suffix = f".confusion{number or ''}.png"
            draw_confusion(scores["zero_shot"]["confusion"], output.with_suffix(suffix))


def main(argv: Sequence[str] | None = None) -> None:
    run(_parser().parse_args(argv))


def run(options: argparse.Namespace) -> None:
    with stdout_for(options.as_json) as print_json:
        print_json(_score(options))


def _score(options: argparse.Namespace) -> dict:
    """The scores, which are printed and written as they come."""
    if not options.output:
        return _score_models(options)
    file_destination(options.output)  # before the work, not after it
    parts = Path(f"{options.output}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    with only_writer(parts):
        scores = _score_models(options, parts)
        write_text(options.output, json.dumps(scores, indent=2) + "\n")
        draw(scores.get("models", [scores]), Path(options.output))
        for number in range(len(options.model)):
            remove_store(parts / str(number))
    with suppress(OSError):  # where others have put something into it
        parts.rmdir()
    return scores


def _score_models(options: argparse.Namespace, parts: Path | None = None) -> dict:
    dataset, about = load(options.benchmark, options.split, options.data)
    protocol = _protocol(options, about.pop("labels", ()))
    columns = _columns(dataset, options.caption_columns)
    refuse_unscorable(dataset, columns, protocol)  # before a model is loaded
    head = {"benchmark": options.benchmark, "split": about.pop("split"), "data": about}
    models = []
    for number, name in enumerate(options.model):
        store = (parts / str(number), about["fingerprint"]) if parts else None
        models.append({"model": name, **head, **score(name, dataset, columns, protocol, options.batch_size, store)})
        _say(f"{name}\n{table(models[-1])}")
    if len(models) > 1:
        _say(side_by_side(models))
    return models[0] if len(models) == 1 else {**head, "models": models}


def _columns(dataset, wanted: Sequence[str]) -> list[str]:
    """Captions are needed only where there is nothing else to score by."""
    others = {"label", "question"} & set(dataset.column_names)
    if wanted or named_like_captions(dataset) or not others:
        return caption_columns(dataset, wanted)
    return []


def _protocol(options: argparse.Namespace, labels: Sequence[str]) -> Protocol:
    renames = json.loads(Path(options.renames).read_text(encoding="utf-8")) if options.renames else {}
    if not isinstance(renames, dict):
        raise ValueError(f"{options.renames} must hold one object, label to words, as {{'dog': 'a dog'}}")
    return Protocol(
        prompts=tuple(options.prompt),
        clean_up=options.clean_up,
        renames=renames,
        candidates=tuple(options.candidates or labels),
        share_captions=options.benchmark not in _OF_CAPTIONS,
        group_column=options.group_column,
        choices=options.choices,
        question=options.question,
        choice_text=options.choice_text,
        seed=options.seed,
    )


def _parser() -> argparse.ArgumentParser:
    return of.parser_of(of.evaluate, "python -m modeling_wavlink.evaluation", __doc__)


def _say(lines: str) -> None:
    """Labels and names in them are the data set's."""
    print("\n".join(map(printable, lines.split("\n"))), flush=True)


if __name__ == "__main__":
    sys.exit(run_command("modeling_wavlink.evaluation", main))
