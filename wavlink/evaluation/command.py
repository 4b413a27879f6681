"""The command `wavlink eval`: every score of the paper, for one model or several side by side.

    wavlink eval --model M [M ...] --output SCORES.json \\
        --benchmark audiocaps|clotho|esc50|us8k|vggsound|airbench|clotho-moment|castella|synthetic|FOLDER

A model is a folder or a Hub id of any that `Embedder` takes, or `random:M`, M's architecture with new weights. FOLDER
is any audiofolder or Hub data set with captions, labels or both. After a kill, the same command goes on where it was.
"""

import argparse
import dataclasses
import difflib
import json
import os
import platform
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import datasets
import torch

from processing.datasets.benchmarks import BENCHMARKS, load_benchmark
from processing.datasets.load import SYNTHETIC, caption_columns, load_split, named_like_captions
from processing.datasets.moments import MOMENTS, load_moments
from processing.datasets.paper import load_paper_data
from wavlink.atomic_files import only_writer, write_text
from wavlink.backends.choice import PACKAGES as BACKEND_PACKAGES
from wavlink.backends.choice import choose, precision_of
from wavlink.bundled_models import DEFAULT, name_of, resolve
from wavlink.console import stdout_for
from wavlink.destinations import file_destination
from wavlink.embedder import Embedder
from wavlink.loading import describe, load_for_evaluation
from wavlink.options import models as of
from wavlink.parsing import main_of
from wavlink.plots import draw_confusion, draw_dims
from wavlink.sanitize import printable

from .embed_split import fingerprint, open_store, remove_store
from .metrics import multiple_choice_accuracy as multiple_choice_accuracy
from .metrics import recall_at_k as recall_at_k
from .metrics import zero_shot_accuracy as zero_shot_accuracy
from .protocol import Protocol, evaluate_dataset, refuse_unscorable
from .report import comparison, evaluation_report
from .retrieval import compute_metrics as compute_metrics

PACKAGES = ("torch", "transformers", "datasets", "numpy", "soundfile", "soxr")
_OF_CAPTIONS = ("audiocaps", "clotho")
_NAMES = (*_OF_CAPTIONS, *BENCHMARKS, *MOMENTS, SYNTHETIC)


def load(
    benchmark: str, split: str = "", data: str = "", say: Callable[[str], None] | None = None
) -> tuple[datasets.Dataset, dict]:
    """Load a split, and describe it for the scores file.

    Args:
        benchmark: a name, a folder or a Hub id.
        split: default: the one that the benchmark is scored on; of a folder, `test`.
        data: of a benchmark by name, the copy to read (see `load_benchmark`, `load_paper_data`, `load_moments`).
        say: called with a report of the rows left out (default: print it).
    """
    if benchmark in BENCHMARKS:
        dataset, report = load_benchmark(benchmark, split, data)
    elif benchmark in MOMENTS:
        dataset, report = load_moments(benchmark, split, data)
    elif benchmark in _OF_CAPTIONS:
        dataset, report = load_paper_data(benchmark, split or "test", data, max_seconds=None)
    elif data:
        raise ValueError(f"--data is the copy of a benchmark by name ({', '.join(_NAMES)}), not of {benchmark}")
    elif benchmark == SYNTHETIC or Path(benchmark).is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", benchmark):
        dataset, report = load_split(benchmark, split or "test"), None
    else:
        near = difflib.get_close_matches(benchmark, _NAMES, n=1)
        raise ValueError(
            f"no benchmark {benchmark!r}" + (f"; did you mean {near[0]}?" if near else ".") + " There are "
            f"{', '.join(_NAMES)}, any audiofolder, and any Hub id such as owner/name"
        )
    about = {"source": data or benchmark, "split": getattr(report, "split", split or "test"), "rows": len(dataset)}
    about |= {"fingerprint": fingerprint(dataset), "revision": _commit(dataset)}
    if report is not None:
        (say or _say)(str(report))
        about["report"] = {name: x for name, x in vars(report).items() if isinstance(x, int) or name == "examples"}
        about["labels"] = getattr(report, "labels", ())
    return dataset, about


def _commit(dataset: datasets.Dataset) -> str | None:
    """Return the commit of a data set from the Hub: `datasets` names the cached folder after it."""
    names = [Path(file["filename"]).parent.name for file in dataset.cache_files]
    return next((name for name in names if re.fullmatch("[0-9a-f]{40}", name)), None)


def score(
    name: str | Embedder,
    dataset: datasets.Dataset,
    columns: Sequence[str],
    protocol: Protocol,
    batch_size: int,
    store: tuple[Path, str] | None = None,
    backend: str | None = None,
    precision: str | None = None,
) -> dict:
    """Score one model; return its description, protocol, versions and scores.

    Args:
        name: as `load_for_evaluation` takes it, or an embedder, whose model and processor are scored as they are.
        store: a folder for finished parts of the work, and the data's fingerprint; None keeps no parts.
        backend, precision: of a model by name, see `Embedder`.
    """
    known, device = {}, "cuda" if torch.cuda.is_available() and backend in (None, "torch") else "cpu"
    if isinstance(name, str):
        name = resolve(name)
        backend, precision = choose(backend, precision, Path(name), device)
        if (backend, precision) != ("torch", "fp32"):
            name = Embedder(name, backend=backend, precision=precision, device=device)
    if isinstance(name, Embedder):
        model, processor = name.model, name.processor
        known = {"parameters": name.parameters, "revision": name.revision}  # those before its weights were packed
    else:
        model, processor = load_for_evaluation(name, device)
    used = getattr(model, "backend", "torch")
    if store:
        folder, data = store
        revision = (describe(model, processor) | known)["revision"]
        key = {"revision": revision, "data": data, "batch_size": batch_size}
        if (dtype := getattr(model, "dtype", torch.float32)) != torch.float32:
            key["dtype"] = str(dtype)
        if used != "torch":
            key |= {"backend": used, "precision": precision_of(model)}
        store = open_store(folder, key)
    protocol = protocol.with_prompts_of(model)
    scores = evaluate_dataset(model, processor, dataset, columns, protocol, batch_size=batch_size, store=store)
    versions = {package: version(package) for package in (*PACKAGES, *filter(None, [BACKEND_PACKAGES.get(used)]))}
    return {
        "about": describe(model, processor) | known,
        "protocol": dataclasses.asdict(protocol),
        "versions": {"python": platform.python_version(), **versions},
        **scores,
    }


def draw(models: Sequence[dict], output: Path) -> None:
    """Draw plots beside `output`: recall by dims, and the confusions of each model's labels."""
    if "text_to_audio" in models[0]:
        draw_dims({scores["model"]: scores for scores in models}, output.with_suffix(".recall.png"))
    for number, scores in enumerate(models):
        if "zero_shot" in scores:
            suffix = f".confusion{number or ''}.png"
            draw_confusion(scores["zero_shot"]["confusion"], output.with_suffix(suffix))


def run(options: argparse.Namespace) -> None:
    """Run the command with parsed options."""
    with stdout_for(options.as_json) as print_json:
        print_json(_score(options))


def _score(options: argparse.Namespace) -> dict:
    """Evaluate; scores are printed and written as they come."""
    return evaluate_models(
        options.model or [""],
        options.benchmark,
        _protocol(options),
        output=options.output,
        split=options.split,
        data=options.data,
        caption_columns=options.caption_columns,
        batch_size=options.batch_size,
        backend=options.backend,
        precision=options.precision,
        say=_say,
    )


def evaluate_models(
    models: Sequence[str | Embedder],
    benchmark: str,
    protocol: Protocol,
    *,
    output: str | os.PathLike | None = None,
    **options,
) -> dict:
    """Score models on one benchmark.

    Args:
        models: as `score` takes them.
        protocol: without `candidates`, the benchmark's own labels are the candidates.
        output: a JSON file to write; after a kill, the same call goes on where it stopped.
        options: of `_score_models`.

    Returns:
        The scores of one model; of several, their common keys and `models`.
    """
    if not output:
        return _score_models(models, benchmark, protocol, **options)
    file_destination(output)  # before the work, not after it
    parts = Path(f"{os.fspath(output)}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    with only_writer(parts):
        scores = _score_models(models, benchmark, protocol, parts=parts, **options)
        write_text(output, json.dumps(scores, indent=2) + "\n")
        draw(scores.get("models", [scores]), Path(output))
        for number in range(len(models)):
            remove_store(parts / str(number))
    with suppress(OSError):  # it holds other files
        parts.rmdir()
    return scores


def _score_models(
    models: Sequence[str | Embedder],
    benchmark: str,
    protocol: Protocol,
    *,
    split: str = "",
    data: str = "",
    caption_columns: Sequence[str] = (),
    batch_size: int = 32,
    backend: str | None = None,
    precision: str | None = None,
    say: Callable[[str], None],
    parts: Path | None = None,
) -> dict:
    for model in models:
        if isinstance(model, str):
            resolve(model)  # a name that stands for nothing is refused before the data are read
    dataset, about = load(benchmark, split, data, say)
    labels = tuple(about.pop("labels", ()))
    protocol = dataclasses.replace(
        protocol, candidates=protocol.candidates or labels, share_captions=benchmark not in _OF_CAPTIONS
    )
    columns = _columns(dataset, caption_columns)
    refuse_unscorable(dataset, columns, protocol)  # before a model is loaded
    head = {"benchmark": benchmark, "split": about.pop("split"), "data": about}
    scored, run = [], {"backend": backend, "precision": precision}
    for number, model in enumerate(models):
        name = model.name if isinstance(model, Embedder) else name_of(model) or DEFAULT
        store = (parts / str(number), about["fingerprint"]) if parts else None
        scored.append({"model": name, **head, **score(model, dataset, columns, protocol, batch_size, store, **run)})
        say(f"{name}\n{evaluation_report(scored[-1])}")
    if len(scored) > 1:
        say(comparison(scored))
    return scored[0] if len(scored) == 1 else {**head, "models": scored}


def _columns(dataset, wanted: Sequence[str]) -> list[str]:
    """Return the columns with captions; there may be none if the split has other columns to score by."""
    others = {"label", "question", "moments"} & set(dataset.column_names)
    if wanted or named_like_captions(dataset) or not others:
        return caption_columns(dataset, wanted)
    return []


def _protocol(options: argparse.Namespace) -> Protocol:
    try:
        renames = json.loads(Path(options.renames).read_text(encoding="utf-8-sig")) if options.renames else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {options.renames}: {error}") from error
    if not isinstance(renames, dict):
        raise ValueError(f"{options.renames} must hold one object, label to words, as {{'dog': 'a dog'}}")
    return Protocol(
        prompts=tuple(options.prompt),  # without any, each model's own
        clean_up=options.clean_up,
        renames=renames,
        candidates=tuple(options.candidates or ()),
        group_column=options.group_column,
        choices=options.choices,
        question=options.question,
        choice_text=options.choice_text,
        seed=options.seed,
        robustness=options.robustness,
    )


def _say(lines: str) -> None:
    """Print lines, whose labels and names may hold control characters."""
    print("\n".join(map(printable, lines.split("\n"))), flush=True)


main = main_of("wavlink eval", of.evaluate, run)
