"""Draw the pictures of docs/ from the records of speed.py, storage.py and claims.py.

    python benchmarks/pictures.py [--out docs/images]      # or, with the tables: make tables

Each picture has the name of its record in `benchmarks/results`; one without a record is left out.
"""

import argparse
from pathlib import Path

import numpy as np
import records
import speed_report
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from speed_report import BASE, BF16, PEER, POOLED

from wavlink.evaluation.retrieval import DIRECTIONS


def draw_speed(record: dict) -> Figure:
    """How many times as fast as CLAP wav files and ready log-mels become vectors, by a clip's length."""
    times = speed_report.per_clip(record["raw"])
    picture, both = _two_axes()
    for axes, way, title in zip(both, ("stream", "features"), ("wav files", "log-mels"), strict=True):
        for name in (PEER, BASE, POOLED, BF16):
            lengths = sorted(seconds for row, seconds, known in times if (row, known) == (name, way))
            ratios = [np.median(times[PEER, s, way]) / np.median(times[name, s, way]) for s in lengths]
            axes.plot(lengths, ratios, marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel="seconds of a clip", title=f"from {title} to vectors")
        _ticks(axes.xaxis, lengths)
        _ticks(axes.yaxis, [0.25, 0.5, 1, 2, 5, 10, 20])
    both[0].set_ylabel("times as fast as CLAP")
    return _with_legend(picture, both[0])


def draw_storage(record: dict) -> Figure:
    """Bytes a clip against R@10 with its interval, a line a storage."""
    recall = record["raw"]["recall"]
    picture, both = _two_axes()
    for axes, (way, words) in zip(both, DIRECTIONS.items(), strict=True):
        for line, storage in enumerate(dict.fromkeys(row["storage"] for row in recall)):
            rows = sorted((row for row in recall if row["storage"] == storage), key=lambda row: row["bytes"])
            sizes = [row["bytes"] for row in rows]
            figures = [row[way]["R@10"] for row in rows]
            values, low, high = 100 * np.array([[figure["value"], *figure["interval"]] for figure in figures]).T
            bars = np.maximum([values - low, high - values], 0)
            axes.errorbar(sizes, values, bars, fmt="o-", capsize=3, label=storage)
            for row, value in zip(rows, values, strict=True):
                beside = (3, -10 + 14 * line)  # below the first line, above the second
                axes.annotate(row["dim"], (row["bytes"], value), beside, textcoords="offset points", fontsize=7)
        axes.set(xscale="log", xlabel="bytes a clip (beside the dots: dims)", title=words)
        _ticks(axes.xaxis, sorted({row["bytes"] for row in recall}))
    both[0].set_ylabel("R@10 (%)")
    return _with_legend(picture, both[0])


def draw_claims(record: dict) -> Figure:
    """How far each choice is ahead of its alternative in R@10: intervals over clips, and a dot a seed."""
    pairs = record["raw"]["pairs"]
    picture = Figure(figsize=(9, 1.8 + 0.42 * len(pairs)), layout="constrained")
    axes = picture.subplots()
    rows = np.arange(len(pairs))
    for (name, words), offset, color in zip(
        {"R@10": "all dims", "R@10 small": "the first eighth of the dims"}.items(),
        (-0.15, 0.15),
        ("tab:blue", "tab:orange"),
        strict=True,
    ):
        gaps = [pair[name] for pair in pairs.values()]
        values, low, high = 100 * np.array([[gap["value"], *gap["interval"]] for gap in gaps]).T
        bars = np.maximum([values - low, high - values], 0)
        axes.errorbar(values, rows + offset, xerr=bars, fmt="o", color=color, capsize=3, label=words)
        dots = [(100 * seed, row + offset) for row, gap in enumerate(gaps) for seed in gap["seeds"]]
        axes.plot(*zip(*dots, strict=True), "|", color="black", markersize=5, label="" if offset > 0 else "a seed")
    axes.axvline(0, color="tab:gray", linewidth=1)
    axes.set_yticks(rows, list(pairs))
    axes.invert_yaxis()
    axes.set(xlabel="points of R@10 ahead, the mean of both directions")
    return _with_legend(picture, axes)


def _two_axes() -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    return figure, figure.subplots(1, 2)


def _ticks(axis, values) -> None:
    axis.set_ticks(values, [f"{value:g}" for value in values])
    axis.set_minor_locator(NullLocator())


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    """The legend lies below both plots, where it covers no curve."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return figure


PICTURES = {"speed": draw_speed, "storage": draw_storage, "claims": draw_claims}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=records.RESULTS.parents[1] / "docs/images")
    options = parser.parse_args()
    for name, draw in PICTURES.items():
        path = records.RESULTS / f"{name}.json"
        if path.exists():
            draw(records.read(path)).savefig(options.out / f"{name}.png", dpi=120)


if __name__ == "__main__":
    main()
