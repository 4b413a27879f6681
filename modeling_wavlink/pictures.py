"""Pictures of a run: its loss, its recall over time, the similarities of a few pairs, and the sweep's Figure 1."""

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

DIRECTIONS = {"text_to_audio": "text → audio", "audio_to_text": "audio → text"}
COLORS = ("tab:blue", "tab:orange")


@contextmanager
def _axes(path: Path, size: tuple[float, float], columns: int = 1):
    """One figure with `columns` axes, written to `path` without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure.subplots(1, columns)
    figure.savefig(path, dpi=120)


def draw_loss(records: Sequence[dict], path: Path) -> None:
    """Loss and scale of every step, from the lines of `metrics.jsonl`."""
    steps = [record for record in records if "loss" in record]
    with _axes(path, (9, 3.6), columns=2) as axes:
        for place, name in zip(axes, ("loss", "scale"), strict=True):
            place.plot([record["step"] for record in steps], [record[name] for record in steps], linewidth=1)
            place.set(xlabel="step", ylabel=name)


def draw_recall(records: Sequence[dict], path: Path) -> None:
    """R@1, 5 and 10 of every validation at full width (lines) and at the smallest nested dim (dots)."""
    validations = [record for record in records if "validation" in record]
    steps = [record["step"] for record in validations]
    with _axes(path, (9, 3.6), columns=2) as axes:
        for place, (direction, words) in zip(axes, DIRECTIONS.items(), strict=True):
            dims = sorted(validations[0]["validation"][direction], key=int)
            for k in (1, 5, 10):
                full, small = (
                    [100 * record["validation"][direction][dim][f"R@{k}"]["value"] for record in validations]
                    for dim in (dims[-1], dims[0])
                )
                line = place.plot(steps, full, marker="_", label=f"R@{k}")[0]
                place.plot(steps, small, ".", color=line.get_color())
            place.set(xlabel="step", ylabel="%", ylim=(0, 100), title=f"{words}, {dims[-1]} dims (dots: {dims[0]})")
            place.legend()


def draw_similarities(similarities: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Cosines `[n, n]` of n clips (rows) and their captions (columns), which are `names`."""
    size = 3 + 0.3 * len(names)
    with _axes(path, (1.3 * size, size)) as axes:
        picture = axes.imshow(similarities, cmap="viridis")
        short = [name if len(name) <= 40 else name[:39] + "…" for name in names]
        plain = {"fontsize": 6, "parse_math": False}  # a $ in a caption begins no formula
        axes.set_xticks(range(len(names)), short, rotation=90, **plain)
        axes.set_yticks(range(len(names)), short, **plain)
        axes.set(xlabel="caption", ylabel="clip")
        axes.figure.colorbar(picture, label="cosine")


def draw_sweep(recalls: dict[str, dict[str, list[float]]], path: Path) -> None:
    """R@1 (%) of every configuration in both directions, a dot a seed (as the paper's Figure 1).

    Args:
        recalls: name -> direction -> the R@1 of each seed.
    """
    with _axes(path, (9, 1.2 + 0.3 * len(recalls))) as axes:
        for offset, (direction, words), color in zip((-0.2, 0.2), DIRECTIONS.items(), COLORS, strict=True):
            for place, seeds in enumerate(recalls.values()):
                label = words if place == 0 else None
                axes.barh(place + offset, np.mean(seeds[direction]), height=0.38, color=color, label=label)
                if len(seeds[direction]) > 1:
                    axes.plot(seeds[direction], [place + offset] * len(seeds[direction]), "k.", markersize=4)
        axes.set_yticks(range(len(recalls)), list(recalls))
        axes.invert_yaxis()
        axes.set(xlabel="R@1 (%)", title="Design sweep")
        axes.legend()
