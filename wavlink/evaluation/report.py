"""Reports of scores: lines and tables of figures in percent, with chance levels."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .metrics import KS, percent
from .moment_metrics import FIGURES
from .questions import AIR_BENCH_TASKS
from .retrieval import DIRECTIONS, RANKED

_TITLES = {"accuracy": "top-1", "top-5": "top-5", "macro": "mean of classes"}
CALIBRATION_TITLES = {
    "auroc": "AUROC, sound present",
    "pairs_auroc": "AUROC of pairs",
    "ece": "calibration error",
    "false_alarm_rate": "false alarms",
    "detection_rate": "detected",
}
_DATA_COUNTS = ("rows", "questions", "clips")  # which stand elsewhere


@dataclass(frozen=True)
class Table:
    """A table of texts; `str(table)` is plain text.

    Args:
        columns: titles; the first one is of the labels.
        rows: a label and its cells; a label alone is a heading.
        label_width: least characters of the labels, in plain text.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    label_width: int = 0

    def __str__(self) -> str:
        rows = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in itertools.zip_longest(*rows, fillvalue="")]
        label_width = max(widths[0], self.label_width)
        lines = []
        for label, *cells in rows:
            padded = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=False)]
            lines.append("  ".join([f"{label:{label_width}}", *padded]).rstrip())
        return "\n".join(lines)

    def markdown(self) -> str:
        """Return the table as Markdown, without a newline at the end."""
        lines = ["| " + " | ".join(row) + " |" for row in (self.columns, *self.rows)]
        return "\n".join([lines[0], "|" + "---|" * len(self.columns), *lines[1:]])


def evaluation_report(scores: Mapping) -> str:
    """Render the scores of `evaluate_dataset`."""
    lines = [f"{scores['clips']} clips, {scores['captions']} captions"]
    if scores["unreadable"]["count"]:
        names = list(scores["unreadable"]["clips"])
        lines.append(f"{len(names)} clips cannot be read and are not scored: {', '.join(names[:3])}")
    if scores["windowed"]:
        lines.append(f"{scores['windowed']} clips are over the model's window: the mean of their windows is scored")
    if "text_to_audio" in scores:
        lines.append(retrieval_report(scores))
    reports = {
        "by_language": language_report,
        "calibration": calibration_report,
        "zero_shot": zero_shot_report,
        "multiple_choice": multiple_choice_report,
        "robustness": robustness_report,
        "moments": moment_report,
    }
    lines += [report(scores[name]) for name, report in reports.items() if name in scores]
    return "\n".join(lines)


def comparison(models: Sequence[Mapping]) -> str:
    """Render the scores of several models: a row each, at its full width."""
    figures = [_main_figures(scores) for scores in models]
    labels = [f"{row['model']} ({row['about']['kind']}, {row['about']['parameters'] / 1e6:.1f}M)" for row in models]
    rows = [[label, *map(percent, row.values())] for label, row in zip(labels, figures, strict=True)]
    return str(Table(["", *figures[0]], rows))


def _main_figures(scores: Mapping) -> dict[str, dict]:
    dim = str(scores["about"]["dims"])
    figures = {
        f"{DIRECTIONS[way]} R@{k}": scores[way][dim][f"R@{k}"] for way in DIRECTIONS if way in scores for k in (1, 10)
    }
    if "zero_shot" in scores:
        figures["zero-shot"] = scores["zero_shot"][dim]["accuracy"]
    if "multiple_choice" in scores:
        figures["multiple choice"] = scores["multiple_choice"][dim]["total"]
    if "moments" in scores:
        figures |= scores["moments"][dim]
    return figures


def retrieval_report(scores: Mapping) -> str:
    """Render the scores of `retrieval_scores`."""
    rows = []
    for way, words in DIRECTIONS.items():
        rows += [[f"{words:15}{dim:>6} dims", *_retrieval_cells(row)] for dim, row in scores[way].items()]
        rows.append(["chance level", *(f"{100 * scores['chance'][way][f'R@{k}']:.1f}" for k in KS)])
        if difference := scores.get("difference"):
            small, large = difference["dims"]
            cells = [percent(difference[way][name], signed=True) for name in RANKED]
            rows.append([f"{small} minus {large} dims", *cells])
        rows += [[group, *_retrieval_cells(ways[way])] for group, ways in scores.get("groups", {}).items()]
    return str(Table(["", *RANKED, "median rank"], rows))


def language_report(scores: Mapping) -> str:
    """Render the scores of `language_scores`: a row for each language and direction."""
    rows = [
        [f"{words:15}{language}", str(row["captions"]), f"{100 * row['chance'][way]['R@10']:.1f}"]
        + _retrieval_cells(row[way])
        for way, words in DIRECTIONS.items()
        for language, row in scores.items()
    ]
    return str(Table(["by language", "captions", "chance R@10", *RANKED, "median rank"], rows))


def _retrieval_cells(row: Mapping[str, dict]) -> list[str]:
    rank, (low, high) = row["median_rank"]["value"], row["median_rank"]["interval"]
    return [*(percent(row[name]) for name in RANKED), f"{rank:g} [{low:.0f}, {high:.0f}]"]


def calibration_report(scores: Mapping) -> str:
    """Render the scores of `calibration_scores`."""
    by = {"model": "the model's calibration", "index": "the text's own cosines, as the model has no calibration"}
    head = f"probabilities by {by[scores['calibration']]}, of {scores['texts']} texts"
    titles = {name: title for name, title in CALIBRATION_TITLES.items() if name in scores[_dims(scores)[0]]}
    rows = [[f"{dim} dims", *(percent(scores[dim][name]) for name in titles)] for dim in _dims(scores)]
    return f"{head}\n{Table(['', *titles.values()], rows)}"


def zero_shot_report(scores: Mapping) -> str:
    """Render the scores of `zero_shot_scores`: a line for each dim, then classes and confusions."""
    chance = 100 * scores["chance"]
    lines = [f"zero-shot: {scores['clips']} clips, {scores['labels']} labels, chance {chance:.1f}"]
    left_out = {"without a label": scores["unlabelled"], "whose label is no candidate": scores["absent"]["clips"]}
    if any(left_out.values()):
        lines.append("left out: " + ", ".join(f"{clips} clips {words}" for words, clips in left_out.items() if clips))
    for dim in _dims(scores):
        row = scores[dim]
        figures = {title: row[name] for name, title in _TITLES.items() if name in row} | row.get("groups", {})
        named = ", ".join(f"{title} {percent(value)}" for title, value in figures.items())
        lines.append(f"{'zero-shot':15}{dim:>6} dims  {named}")
    ordered = sorted(scores["per_class"].items(), key=lambda item: item[1]["value"])
    classes = [f"{label} {percent(row)} of {row['clips']}" for label, row in ordered]
    shown = {"classes": classes}
    if len(classes) > 6:
        shown = {"worst classes": classes[:3], "best classes": classes[:-4:-1]}
    lines += [f"{title}: {', '.join(words)}" for title, words in shown.items()]
    labels, counts = scores["confusion"]["labels"], scores["confusion"]["counts"]
    if wrong := sorted((cell for cell in counts if cell[0] != cell[1]), key=lambda cell: -cell[2])[:3]:
        lines.append("confusions: " + ", ".join(f"{labels[a]} as {labels[b]} {clips}" for a, b, clips in wrong))
    return "\n".join(lines)


def multiple_choice_report(scores: Mapping) -> str:
    """Render the scores of `multiple_choice_scores`: tasks within their groups, averages and the total."""
    dims = _dims(scores)
    rows, remaining = [], dict(scores["tasks"])
    for group, about in scores["groups"].items():
        rows.append([group.capitalize()])
        tasks = [task for task in remaining if remaining[task]["group"] == group]
        rows += [_choice_row(scores, dims, "tasks", task, remaining.pop(task)) for task in tasks]
        rows.append(_choice_row(scores, dims, "groups", group, about, f"all {group}"))
        rows += _mean_row("  mean of its tasks", [scores[dim]["task_means"]["groups"].get(group) for dim in dims])
    rows += [_choice_row(scores, dims, "tasks", task, about) for task, about in remaining.items()]
    totals = [percent(scores[dim]["total"]) for dim in dims]
    rows.append(["Total", str(scores["questions"]), f"{100 * scores['chance']:.1f}", *totals])
    rows += _mean_row("  mean of the groups' means", [scores[d].get("task_means", {}).get("total") for d in dims])
    lines = [f"{scores['questions']} questions on {scores['clips']} clips, texts of the form {scores['text']!r}"]
    lines.append(str(Table(["", "questions", "chance", *(f"{dim} dims" for dim in dims)], rows, label_width=36)))
    counts = {name: count for name, count in scores["counts"].items() if count and name not in _DATA_COUNTS}
    if counts:
        lines.append("; ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()))
    if scores["unknown_tasks"]:
        lines.append(f"tasks in no group: {', '.join(scores['unknown_tasks'])}")
    return "\n".join(lines)


def robustness_report(scores: Mapping) -> str:
    """Render the scores of `robustness_scores`: R@10 unchanged and changed, the difference, and what falls."""
    columns = [column for words in DIRECTIONS.values() for column in (words, "unchanged", "changed", "difference")]
    rows = [[name, *_robustness_cells(row)] for name, row in scores["changes"].items()]
    lines = [
        f"robustness: R@{scores['k']} at {scores['dims']} dims, queries of each",
        str(Table(["", *columns], rows)),
    ]
    lines += _robustness_of_chance(scores)
    lines += [f"falls by more than {100 * scores['limit']:g} points: {fall}" for fall in robustness_falls(scores)]
    if scores["falls"]:
        lines.append("each is an item for training, or for the limits in the model's card")
    return "\n".join([*lines, *excluded_lines(scores)])


def _robustness_cells(row: Mapping) -> list[str]:
    cells = []
    for way in DIRECTIONS:
        shares = [f"{100 * row[way][name]['value']:.1f}" for name in ("unchanged", "changed")]
        cells += [str(row[way]["queries"]), *shares, percent(row[way]["difference"], signed=True)]
    return cells


def _robustness_of_chance(scores: Mapping) -> list[str]:
    """Name, for each direction, the rows in which random vectors find as much as half: little can fall there."""
    lines = []
    for way, words in DIRECTIONS.items():
        chances = {name: row[way].get("chance", 0.0) for name, row in scores["changes"].items()}
        if easy := [f"{name} {100 * chance:.0f}" for name, chance in chances.items() if chance >= 0.5]:
            lines.append(f"few candidates, so that a fall hardly shows: {words}, chance level in %: {', '.join(easy)}")
    return lines


def robustness_falls(scores: Mapping) -> list[str]:
    """Return what falls by more than the limit, in words, such as `noise at 0 dB (text → audio -20.1)`."""
    return [
        f"{name} ({', '.join(f'{DIRECTIONS[way]} {100 * points:+.1f}' for way, points in fallen.items())})"
        for name, fallen in scores["falls"].items()
    ]


def excluded_lines(scores: Mapping) -> list[str]:
    """Return how often each way of an exclusion ranks the excluded sound lower than the query without it."""
    return [
        f"“{name}” ranks the best Y lower than X alone does for {percent(row['excluded']['lower'])} % of the queries; "
        f"a Y is among the first {scores['k']} of {percent(row['excluded']['top']['changed'])} %, with X alone of "
        f"{percent(row['excluded']['top']['unchanged'])} %"
        for name, row in scores["changes"].items()
        if "excluded" in row
    ]


def moment_report(scores: Mapping) -> str:
    """Render the scores of `moment_scores`: a line for each dim."""
    windows = ", ".join(f"{name} s in {count} recordings" for name, count in scores["windows"].items())
    rows = [[f"{dim} dims", *(percent(scores[dim][name]) for name in FIGURES)] for dim in _dims(scores)]
    frames = ", at full width by frames" if scores["frames"] else ""
    return f"moments by windows of {windows}{frames}\n{Table(['', *FIGURES], rows)}"


def _choice_row(scores: Mapping, dims: Sequence[str], kind: str, name: str, about: dict, title: str = "") -> list[str]:
    title = title or AIR_BENCH_TASKS.get(name, ("", name))[1]
    values = [percent(scores[dim][kind][name]) for dim in dims]
    return [f"  {title}", str(about["questions"]), f"{100 * about['chance']:.1f}", *values]


def _mean_row(title: str, values: Sequence[float | None]) -> list[list[str]]:
    """One row, or none where a dim has no such mean."""
    return [] if None in values else [[title, "", "", *(f"{100 * value:.1f}" for value in values)]]


def _dims(scores: Mapping) -> list[str]:
    return [key for key in scores if key.isdigit()]
