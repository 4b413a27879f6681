"""A record of scores that runs have already: of models side by side, and of a model's seeds.

    python benchmarks/scores.py --record benchmarks/results/sounds.json --title "sounds" \\
        --note "wavlink train sounds --data FOLDER ..." \\
        "sounds=runs/sounds-0/scores.json" "sounds=runs/sounds-1/scores.json" "random=random.json"

A file is what `wavlink eval --output` has written of one model, or a run's `metrics.jsonl`, of which the last
validation is taken. Files of the same name are seeds of one row: their mean and range. One file alone keeps its 95 %
intervals. Of the first file there are tables of changed sounds and queries too, if `--robustness` was given. Prints
the tables; `--note` should hold the command that trained the models. `--text` takes the `distillation.json` of the
text tower, if `wavlink distill` made it.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import records
import tables

from wavlink.evaluation.retrieval import DIRECTIONS, RANKED


def load(path: Path) -> dict:
    """The scores of one model.

    Raises:
        ValueError: the file holds several models, or no scores of retrieval, which all tables begin with.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        found = [row["validation"] for row in map(json.loads, text.splitlines()) if "validation" in row]
        if not found:
            raise ValueError(f"{path} has no validation")
        return found[-1]
    try:
        scores = json.loads(text)
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(scores, dict) or "text_to_audio" not in scores:
        raise ValueError(
            f"{path} does not hold the retrieval scores of one model: name what `wavlink eval` has written"
        )
    return scores


def dims(scores: dict) -> list[str]:
    """The nested dims, the largest first."""
    return sorted(scores["text_to_audio"], key=int, reverse=True)


def cell(seeds: Sequence[dict], *keys: str) -> dict:
    """The figure below `keys` in percent, with its interval, or of several seeds with their range."""
    figures = [functools.reduce(dict.__getitem__, keys, scores) for scores in seeds]
    if len(figures) == 1:
        return records.percent(figures[0])
    values = [100 * figure["value"] for figure in figures]
    return {"value": float(np.mean(values)), "range": [min(values), max(values)], "digits": 1}


def summary(models: dict[str, list[dict]]) -> dict:
    """A row a model, at full width."""
    heads = [f"{words} R@{k}" for words in DIRECTIONS.values() for k in (1, 10)]
    rows = []
    for name, seeds in models.items():
        widest, smallest = dims(seeds[0])[0], dims(seeds[0])[-1]
        row = [name, len(seeds)]
        row += [cell(seeds, way, widest, f"R@{k}") for way in DIRECTIONS for k in (1, 10)]
        row.append(cell(seeds, "text_to_audio", smallest, "R@10"))
        if all("zero_shot" in scores for scores in seeds):
            row.append(cell(seeds, "zero_shot", widest, "accuracy"))
        rows.append([*row, *[None] * (8 - len(row))])
    columns = ["", "seeds", *heads, "text → audio R@10, smallest dim", "zero-shot"]
    return records.table(columns, rows)


def by_dims(seeds: list[dict]) -> dict:
    """All retrieval figures of one model."""
    rows = [
        [words, int(dim), *(cell(seeds, way, dim, name) for name in RANKED)]
        for way, words in DIRECTIONS.items()
        for dim in dims(seeds[0])
    ]
    return records.table(["", "dims", *RANKED], rows)


def calibrations(models: dict[str, list[dict]]) -> dict:
    """The scores of the probabilities of matches at full width, of the models that have them."""
    names = {
        "AUROC, present or absent": "auroc",
        "AUROC of all pairs": "pairs_auroc",
        "calibration error": "ece",
        "false alarms": "false_alarm_rate",
        "detections": "detection_rate",
    }
    rows = [
        [name, *(cell(seeds, "calibration", dims(seeds[0])[0], key) for key in names.values())]
        for name, seeds in models.items()
        if all("ece" in scores.get("calibration", {}).get(dims(scores)[0], {}) for scores in seeds)
    ]
    return records.table(["", *names], rows)


def robustness(scores: dict) -> dict[str, dict]:
    """What changed sounds and queries cost, and where excluded sounds are ranked; no tables if that was not scored."""
    found = scores.get("robustness", {"changes": {}})
    rows = {kind: [] for kind in ("sounds", "queries", "excluded")}
    for name, row in found["changes"].items():
        rows[row["kind"]].append(
            [name, row["text_to_audio"]["queries"], *_changed_cells(row, found["falls"].get(name, ()))]
        )
        if "excluded" in row:
            top = row["excluded"]["top"]
            figures = top["unchanged"], top["changed"], row["excluded"]["lower"]
            rows["excluded"].append([name, *map(records.percent, figures)])
    words = [f"{way}{part}" for way in DIRECTIONS.values() for part in (", unchanged", ", changed", ", difference")]
    limit = 100 * found.get("limit", 0)
    columns = {kind: ["", "texts", *words, f"falls by more than {limit:g} points"] for kind in ("sounds", "queries")}
    columns["excluded"] = ["", "a Y in the first 10 of X alone", "a Y in the first 10", "the best Y is lower"]
    return {kind: records.table(columns[kind], lines) for kind, lines in rows.items() if lines}


def _changed_cells(row: dict, fallen: Sequence[str]) -> list:
    cells = []
    for way in DIRECTIONS:
        cells += [records.number(100 * row[way][name]["value"], 1) for name in ("unchanged", "changed")]
        cells.append(records.percent(row[way]["difference"], signed=True))
    return [*cells, ", ".join(DIRECTIONS[way] for way in fallen)]


def text_tower(distillation: dict) -> dict:
    """The cosines of a smaller text tower with its teacher."""
    kinds = {"captions": "held-out captions", "sentences": "sentences with words of the teacher's vocabulary"}
    rows = [
        [words, part["texts"], *({**part[name], "digits": 3} for name in ("mean", "quantile_5"))]
        for kind, words in kinds.items()
        if (part := distillation["similarity"].get(kind))
    ]
    return records.table(["", "texts", "mean cosine", "5 % quantile"], rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--title", default="Scores")
    parser.add_argument("--note", default="", help="the command that trained the models, and their data")
    parser.add_argument("--seed", type=int, default=0, help="of the first training run (%(default)s)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="distillation.json of the text tower")
    records.add_option(parser, "scores")
    options = parser.parse_args(arguments)
    models: dict[str, list[dict]] = {}
    for word in options.scores:
        name, _, path = word.rpartition("=")
        if not name:
            parser.error(f"{word!r}: give NAME=FILE")
        try:
            models.setdefault(name, []).append(load(Path(path)))
        except (OSError, ValueError) as error:
            parser.error(str(error))
    values = {"summary": summary(models), "dims": by_dims(next(iter(models.values())))}
    if (table := calibrations(models))["rows"]:
        values["calibration"] = table
    values |= robustness(next(iter(models.values()))[0])
    if options.text:
        values["text"] = text_tower(json.loads(options.text.read_text(encoding="utf-8")))
    print("\n\n".join(map(tables.markdown, values.values())))
    about = {
        name: [{key: x.get(key) for key in ("model", "about", "versions")} for x in seeds]
        for name, seeds in models.items()
    }
    records.write(options.record, title=options.title, seed=options.seed, note=options.note, values=values, raw=about)


if __name__ == "__main__":
    main()
