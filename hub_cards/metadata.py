"""A card's metadata and its results in the Hub's two forms: `model-index` in the card, and `.eval_results/*.yaml`.

Values are percent of 0 to 100. `.eval_results` belong to data sets on the Hub, so a score on local data is in
`model-index` alone, under the name of its folder. A task id says what was measured; the Hub puts an entry on a data
set's leaderboard only if that data set declares the task.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from wavlink.evaluation.metrics import percent
from wavlink.evaluation.retrieval import DIRECTIONS
from wavlink.sanitize import clean, last_part

from .published_facts import BENCHMARK_IDS, ENGLISH, towers_of
from .training import Stage, base_models, data_ids

TAGS = ["audio", "audio-text-retrieval", "feature-extraction", "matryoshka", "wavlink", "custom_code"]


def card_data(
    repo_id: str,
    scores: Sequence[dict],
    stages: list[Stage],
    licence: str | None,
    untrained: str | None,
    origin_models: Sequence[str] = (),
) -> ModelCardData:
    """Return the YAML block of a card, without what is not known.

    Args:
        origin_models: Hub ids that a bundled model started from, which the first stage started from.
    """
    sources = {source for stage in stages for source in stage.data()}
    results = [result for score in scores for result in model_index(score)]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-audio-classification",
        tags=TAGS,
        license=licence,
        language="en" if sources and sources <= set(ENGLISH) else None,
        base_model=(list(towers_of(untrained)) if untrained else base_models(stages) or list(origin_models)) or None,
        datasets=data_ids(stages) or None,
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )


def hub_data(score: dict) -> str | None:
    """Return the Hub id of the data that a score was measured on; None for a folder.

    A benchmark by name comes from the Hub unless it was a local copy. `owner/name` is a Hub id if the score holds a
    commit.
    """
    source = score.get("data", {}).get("source", score["benchmark"])
    if source in BENCHMARK_IDS:
        return BENCHMARK_IDS[source]
    from_hub = re.fullmatch("[0-9a-f]{40}", str(score.get("data", {}).get("revision")))
    return source if from_hub and re.fullmatch(r"[\w.-]+/[\w.-]+", source) else None


def data_name(score: dict) -> str:
    """Return the name of the data on a card: its Hub id, or the last name of its folder."""
    if known := hub_data(score):
        return known
    benchmark = score["benchmark"]
    return f"{benchmark} (a local copy)" if benchmark in BENCHMARK_IDS else clean(last_part(benchmark))


def headlines(score: dict) -> Iterator[tuple[str, str, str, int, dict]]:
    """Yield `(task, metric, words, dims, figure)` of the metadata, at the largest and the smallest dim."""
    for way, words in DIRECTIONS.items():
        for dim in ends(score.get(way, {})):
            for name in ("R@1", "R@5", "R@10"):
                metric = f"{way}_recall_at_{name.removeprefix('R@')}"
                yield "audio-text-retrieval", metric, f"{words} {name}", dim, score[way][str(dim)][name]
    tasks = (
        ("zero_shot", "zero-shot-audio-classification", "accuracy"),
        ("multiple_choice", "multiple-choice", "total"),
    )
    for part, task, name in tasks:
        for dim in ends(score.get(part, {})):
            words = f"{part.replace('_', '-').replace('multiple-', 'multiple ')} accuracy"
            yield task, f"{part}_accuracy", words, dim, score[part][str(dim)][name]


def ends(part: dict) -> list[int]:
    """Return the largest and the smallest of the dims that were measured."""
    dims = sorted((int(dim) for dim in part if dim.isdigit()), reverse=True)
    return list(dict.fromkeys([*dims[:1], *dims[-1:]]))


def model_index(score: dict) -> list[EvalResult]:
    """Return the results of one evaluation. Local data has the type `audiofolder`, and its name as configuration."""
    known, name = hub_data(score), data_name(score)
    data = {"dataset_type": known or "audiofolder", "dataset_name": name, "dataset_split": clean(score["split"])}
    data |= {"dataset_revision": score.get("data", {}).get("revision") if known else None}
    if not known:
        data["dataset_config"] = name  # the Hub distinguishes results by type, configuration and split, not by name
    return [
        EvalResult(
            task_type=task,
            metric_type=metric,
            metric_name=f"{words}, {dim} dims (%)",
            metric_value=round(100 * figure["value"], 1),
            metric_args={"dims": dim, "interval_95": [round(100 * x, 1) for x in figure["interval"]]},
            **data,
        )
        for task, metric, words, dim, figure in headlines(score)
    ]


def write_eval_results(folder: Path, scores: Sequence[dict], files: Sequence[str], repo_id: str) -> list[Path]:
    """Write `.eval_results/DATA.yaml`, a file for each data set of the Hub, with all dims.

    Of two scores of one task the first is kept. Files of an earlier card are removed.

    Returns:
        The paths of the files.
    """
    target = folder / ".eval_results"
    for old in target.glob("*.yaml"):
        old.unlink()
    entries: dict[str, dict[str, EvalResultEntry]] = {}
    for score, file in zip(scores, files, strict=True):
        if known := hub_data(score):
            for entry in _entries(score, known, file, repo_id):
                entries.setdefault(known, {}).setdefault(entry.task_id, entry)
    written = []
    for known, tasks in entries.items():
        target.mkdir(parents=True, exist_ok=True)
        written.append(target / f"{known.replace('/', '--')}.yaml")
        written[-1].write_text(yaml_dump(eval_result_entries_to_yaml(list(tasks.values()))), encoding="utf-8")
    return written


def _entries(score: dict, known: str, file: str, repo_id: str) -> list[EvalResultEntry]:
    seen, entries = set(), []
    for _, metric, words, dim, figure in headlines(score):
        if metric in seen:  # the smallest dim comes second
            continue
        seen.add(metric)
        entries.append(
            EvalResultEntry(
                dataset_id=known,
                task_id=f"{metric}_{clean(score['split'])}",
                value=round(100 * figure["value"], 1),
                dataset_revision=score.get("data", {}).get("revision"),
                source_url=f"https://huggingface.co/{repo_id}/blob/main/{file}",
                source_name="Scores with intervals and protocol",
                notes=f"{words} in percent with its 95 % interval, {percent(figure)}, at {dim} dims; self-measured",
            )
        )
    return entries
