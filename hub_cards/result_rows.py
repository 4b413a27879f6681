"""Rows of the card's tables of a benchmark's scores."""

from wavlink.evaluation.metrics import KS, percent
from wavlink.evaluation.report import CALIBRATION_TITLES
from wavlink.evaluation.retrieval import DIRECTIONS, RANKED
from wavlink.sanitize import escape

from .metadata import ends


def widths(part: dict) -> list[str]:
    """Return the nested dims of a part of the scores, as its keys."""
    return [dim for dim in part if dim.isdigit()]


def retrieval_rows(score: dict) -> list[list[str]]:
    """Return the rows of retrieval: the largest and the smallest nested dim, and the chance level."""
    rows = []
    for way, words in DIRECTIONS.items():
        for dim in map(str, ends(score.get(way, {}))):
            figures = score[way][dim]
            rank = f"{figures['median_rank']['value']:g}"
            rows.append([words, dim, *(percent(figures[name]) for name in RANKED), rank])
        if chance := score.get("chance", {}).get(way):
            rows.append([words, "chance", *(f"{100 * chance[f'R@{k}']:.1f}" for k in KS), "", ""])
    return rows


def other_rows(score: dict) -> list[list[str]]:
    """Return the rows of zero-shot accuracy and multiple choice, at the largest and the smallest nested dim."""
    rows = []
    tasks = (
        ("zero_shot", "zero-shot", "labels", "accuracy"),
        ("multiple_choice", "multiple choice", "questions", "total"),
    )
    for key, words, counted, name in tasks:
        part = score.get(key, {})
        for dim in map(str, ends(part)):
            title = f"{words}, {part[counted]:d} {counted}"
            rows.append([title, dim, percent(part[dim][name]), f"{100 * part['chance']:.1f}"])
    return rows


def calibration_rows(score: dict) -> list[list[str]]:
    """Return the rows of the probabilities of matches, at the largest and the smallest nested dim."""
    part = score.get("calibration", {})
    return [
        [dim, *(percent(part[dim][name]) if name in part[dim] else "" for name in CALIBRATION_TITLES)]
        for dim in map(str, ends(part))
    ]


def robustness_rows(score: dict) -> list[list[str]]:
    """Return the rows of changed sounds and queries: R@10 and its difference, in both directions."""
    rows = []
    for name, row in score.get("robustness", {}).get("changes", {}).items():
        ways = [(f"{100 * row[way]['changed']['value']:.1f}", row[way]["difference"]) for way in DIRECTIONS]
        rows.append([escape(name), *(x for value, points in ways for x in (value, percent(points, signed=True)))])
    return rows


def group_rows(score: dict) -> list[list[str]]:
    """Return the rows of groups of clips: R@10 in both directions and zero-shot accuracy, with all dims."""
    groups, zero_shot = score.get("groups", {}), score.get("zero_shot", {})
    widest = max(widths(zero_shot), key=int, default="")
    labelled = zero_shot.get(widest, {}).get("groups", {})
    rows = []
    for name in dict.fromkeys([*groups, *labelled]):
        recalls = [groups.get(name, {}).get(way, {}).get("R@10") for way in DIRECTIONS]
        rows.append([escape(name), *(percent(x) if x else "" for x in (*recalls, labelled.get(name)))])
    return rows
