"""Draw plots of a run (loss, recall, similarities, confusions), of the design sweep, and of a long recording."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from wavlink.evaluation.retrieval import DIRECTIONS

from .atomic_files import atomic_file

COLORS = ("tab:blue", "tab:orange")


@contextmanager
def _axes(path: Path, size: tuple[float, float], columns: int = 1, rows: int = 1) -> Iterator:
    """Yield `rows` x `columns` axes, those of a column with a common x, and write the figure to `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure.subplots(rows, columns, sharex="col")
    with atomic_file(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format=path.suffix[1:])


def draw_loss(records: Sequence[dict], path: Path) -> None:
    """Draw loss and scale of every step, from the lines of `metrics.jsonl`."""
    steps = [record for record in records if "loss" in record]
    with _axes(path, (9, 3.6), columns=2) as columns:
        for axes, name in zip(columns, ("loss", "scale"), strict=True):
            axes.plot([record["step"] for record in steps], [record[name] for record in steps], linewidth=1)
            axes.set(xlabel="step", ylabel=name)


def draw_recall(records: Sequence[dict], path: Path) -> None:
    """Draw R@1, 5 and 10 of every validation at full width (lines) and at the smallest nested dim (dots)."""
    validations = [record for record in records if "validation" in record]
    steps = [record["step"] for record in validations]
    with _axes(path, (9, 3.6), columns=2) as columns:
        for axes, (direction, words) in zip(columns, DIRECTIONS.items(), strict=True):
            dims = sorted(validations[0]["validation"][direction], key=int)
            for k in (1, 5, 10):
                full, small = (
                    [100 * record["validation"][direction][dim][f"R@{k}"]["value"] for record in validations]
                    for dim in (dims[-1], dims[0])
                )
                line = axes.plot(steps, full, marker="_", label=f"R@{k}")[0]
                axes.plot(steps, small, ".", color=line.get_color())
            axes.set(xlabel="step", ylabel="%", ylim=(0, 100), title=f"{words}, {dims[-1]} dims (dots: {dims[0]})")
            axes.legend()


def draw_dims(models: dict[str, dict], path: Path) -> None:
    """Draw R@1 (lines) and R@10 (dashed) over the nested dims, with their intervals, in one colour per model.

    Args:
        models: name -> scores of `retrieval_scores`.
    """
    with _axes(path, (9, 4.2), columns=2) as columns:
        for axes, (direction, words) in zip(columns, DIRECTIONS.items(), strict=True):
            for number, (name, scores) in enumerate(models.items()):
                dims = sorted(map(int, scores[direction]))
                for k, style in ((1, "-"), (10, "--")):
                    figures = [scores[direction][str(dim)][f"R@{k}"] for dim in dims]
                    values, low, high = 100 * np.array([[x["value"], *x["interval"]] for x in figures]).T
                    label = name if k == 1 and axes is columns[0] else None
                    bars = np.maximum([values - low, high - values], 0)
                    axes.errorbar(dims, values, bars, fmt=f"C{number}o{style}", capsize=3, label=label)
            axes.set_xscale("log", base=2)
            axes.set_xticks(dims, dims)
            axes.set(xlabel="dims", ylabel="%", ylim=(0, 100), title=f"{words}: R@1 and, dashed, R@10")
        columns[0].figure.legend(loc="outside lower center", fontsize=8)


def draw_similarities(similarities: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw the cosines `[n, n]` of n clips (rows) and their captions (columns), which are `names`."""
    size = 3 + 0.3 * len(names)
    with _axes(path, (1.3 * size, size)) as axes:
        image = axes.imshow(similarities, cmap="viridis")
        _name_rows_and_columns(axes, names, fontsize=6)
        axes.set(xlabel="caption", ylabel="clip")
        axes.figure.colorbar(image, label="cosine")


def _name_rows_and_columns(axes, names: Sequence[str], fontsize: int) -> None:
    short = [_shortened(name) for name in names]
    plain = {"fontsize": fontsize, "parse_math": False}  # a $ in a name does not begin a formula
    axes.set_xticks(range(len(names)), short, rotation=90, **plain)
    axes.set_yticks(range(len(names)), short, **plain)


def _shortened(name: str) -> str:
    return name if len(name) <= 40 else name[:39] + "…"


def draw_confusion(confusion: dict, path: Path, most: int = 50) -> None:
    """Draw how often each label (rows) was predicted as another (columns), in percent of the clips of the row's label.

    Of more than `most` labels only those with the largest confusions are drawn. A label without clips has
    a blank row.

    Args:
        confusion: `{"labels": names, "counts": [[label, predicted label, clips], ...]}` of `zero_shot_scores`.
    """
    labels, clips = confusion["labels"], np.zeros((len(confusion["labels"]),) * 2)
    for label, predicted, count in confusion["counts"]:
        clips[label, predicted] = count
    totals = clips.sum(1, keepdims=True)
    percents = np.divide(100 * clips, totals, where=totals > 0, out=np.full_like(clips, np.nan))  # blank without clips
    shown = _most_confused(clips, most)
    percents = percents[np.ix_(shown, shown)]
    size = 3 + 0.3 * len(shown)
    with _axes(path, (1.2 * size, size)) as axes:
        image = axes.imshow(percents, cmap="viridis", vmin=0, vmax=100)
        _name_rows_and_columns(axes, [labels[index] for index in shown], fontsize=8)
        for row, column in np.argwhere(percents >= 0.5):
            value = percents[row, column]
            color = "black" if value > 60 else "white"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
        title = f"the {len(shown)} of {len(labels)} labels confused most" if len(shown) < len(labels) else ""
        axes.set(xlabel="predicted label", ylabel="label", title=title)
        axes.figure.colorbar(image, label="% of the label's clips", shrink=0.8)


def _most_confused(clips: np.ndarray, most: int) -> np.ndarray:
    """Return the sorted indices of the `most` labels with the largest confusions, counted in clips."""
    errors = clips * (1 - np.eye(len(clips)))
    labels = np.stack(np.unravel_index(np.argsort(-errors, axis=None, kind="stable"), errors.shape), axis=1)
    return np.sort(list(dict.fromkeys(labels.flatten().tolist()))[:most])


def draw_sweep(recalls: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draw R@1 (%) of every configuration in both directions, with a dot per seed (as the paper's Figure 1).

    Args:
        recalls: name -> direction -> the R@1 of each seed.
    """
    with _axes(path, (9, 1.2 + 0.3 * len(recalls))) as axes:
        for offset, (direction, words), color in zip((-0.2, 0.2), DIRECTIONS.items(), COLORS, strict=True):
            for row, seeds in enumerate(recalls.values()):
                label = words if row == 0 else None
                axes.barh(row + offset, np.mean(seeds[direction]), height=0.38, color=color, label=label)
                if len(seeds[direction]) > 1:
                    axes.plot(seeds[direction], [row + offset] * len(seeds[direction]), "k.", markersize=4)
        axes.set_yticks(range(len(recalls)), list(recalls))
        axes.invert_yaxis()
        axes.set(xlabel="R@1 (%)", title="Design sweep")
        axes.legend()


def draw_timeline(
    peaks: np.ndarray,
    duration: float,
    curves: Mapping[str, tuple],
    path: Path,
    size: tuple[float, float] = (12, 4.5),
    min_score: float | None = None,
) -> None:
    """Draw a recording's loudness over time, and below it the score of each query over time, with its spans shaded.

    The axis of the scores reaches from 0 or less to 1, so that small differences look small.

    Args:
        peaks: `[points]`, the largest absolute sample of each of equal parts of the recording.
        duration: in seconds.
        curves: query -> `edges [S + 1]` in seconds, `scores [S]`, spans `[(start, end), ...]`.
        size: width and height in inches, at 120 dots per inch.
        min_score: the score from which a step stands out, drawn as a dashed line.
    """
    unit, seconds = ("hours", 3600) if duration > 7200 else ("minutes", 60) if duration > 120 else ("seconds", 1)
    with _axes(path, size, rows=2) as (loudness, similarity):
        times = np.linspace(0, duration / seconds, len(peaks) + 1)
        loudness.stairs(peaks, times, baseline=-peaks, fill=True, color="tab:gray")
        loudness.set(ylabel="sample values", xlim=(0, duration / seconds))
        for number, (name, (edges, scores, spans)) in enumerate(curves.items()):
            similarity.stairs(scores, edges / seconds, baseline=None, color=f"C{number}", label=_shortened(name))
            for rank, (start, end) in enumerate(spans, 1):
                for axes in (loudness, similarity):
                    axes.axvspan(start / seconds, end / seconds, color=f"C{number}", alpha=0.15, linewidth=0)
                position = (start + end) / 2 / seconds, 0.02 + 0.08 * number  # the ranks of each query in one line
                similarity.annotate(str(rank), position, xycoords=("data", "axes fraction"), color=f"C{number}")
        lowest = min((float(np.min(scores)) for _, scores, _ in curves.values()), default=0.0)
        similarity.set(xlabel=unit, ylabel="cosine", ylim=(min(0.0, 1.05 * lowest), 1.0))
        if min_score is not None:
            label = f"stands out from {min_score:.2f}"
            similarity.axhline(min_score, color="tab:gray", linestyle="--", linewidth=1, label=label)
        columns = max(1, int(size[0] / 3))
        for text in similarity.figure.legend(fontsize=8, loc="outside lower center", ncols=columns).get_texts():
            text.set_parse_math(False)
