"""speed.py's figures as a table and a picture."""

import statistics
from pathlib import Path

import records
from speed_systems import BASE, PEER, PLAIN, POOLED

WAYS = ("file", "stream", "alone", "features")


def per_clip(figures: dict) -> dict[tuple[str, int, str], tuple[float, float]]:
    """By (row, seconds, way): median seconds per clip in the best batch, and the spread: (most - least) / median."""
    found = {}
    for case in figures["times"]:
        median = statistics.median(case["times"])
        spent = median / case["clips"], (max(case["times"]) - min(case["times"])) / median
        ways = [case["way"]]
        if case["way"] == "features" and case["batch"] == 1:
            ways.append("alone")
        for way in ways:
            key = case["row"], case["seconds"], way
            found[key] = min(found.get(key, spent), spent)
    return found


def peak(figures: dict) -> float:
    """Operations per second of the fastest matrix product."""
    return 1e9 * max(product["gflops"] for product in figures["products"])


def table(figures: dict) -> str:
    """Markdown: times per clip with their ratios to CLAP, and below what else was measured."""
    times = per_clip(figures)
    head = ["row", "clip", "file", "stream", "features, alone", "features, best", "heard", "of peak"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name in figures["rows"]:
        for seconds in dict.fromkeys(case["seconds"] for case in figures["times"]):
            cells = [_cell(times, name, seconds, way) for way in WAYS]
            lines.append(
                [name, f"{seconds} s", *cells, _heard(times, name, seconds), _share(figures, times, name, seconds)]
            )
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([_machine(figures), rows, *_others(figures, times)]) + "\n"


def as_values(figures: dict) -> dict:
    """The tables of a record: milliseconds a clip of a stream of files and of one file, and ratios to CLAP."""
    times, tables = per_clip(figures), {}
    for way in ("stream", "file", "features"):
        rows = []
        for name in figures["rows"]:
            lengths = [seconds for row, seconds, known in times if (row, known) == (name, way)]
            for seconds in sorted(lengths):
                spent, clap = times[name, seconds, way][0], times[PEER, seconds, way][0]
                ratio = None if name == PEER else records.number(clap / spent, 2, "x")
                rows.append([name, f"{seconds} s", records.number(1000 * spent, 1, "ms"), ratio])
        tables[way] = records.table(["model", "clip", "a clip takes", "as fast as CLAP"], rows)
    return tables


def _cell(times: dict, name: str, seconds: int, way: str) -> str:
    """Milliseconds, and in brackets how many times as fast as CLAP."""
    if (name, seconds, way) not in times:
        return ""
    spent, peer = times[name, seconds, way][0], times[PEER, seconds, way][0]
    ratio = "" if name == PEER else f" ({peer / spent:.2f} x)"
    return f"{1000 * spent:.1f} ms{ratio}"


def _heard(times: dict, name: str, seconds: int) -> str:
    if (name, seconds, "stream") not in times:
        return ""
    heard = min(seconds, 10) if name.startswith(PEER) else seconds
    return f"{heard / times[name, seconds, 'stream'][0]:.0f}"


def _share(figures: dict, times: dict, name: str, seconds: int) -> str:
    def share(counted):
        return figures["operations"][counted][str(seconds)] / times[name, seconds, "features"][0] / peak(figures)

    if name not in figures["operations"]:
        return ""
    return f"{share(name):.0%}" + (f" ({share(PLAIN):.0%})" if name == BASE else "")


def _machine(figures: dict) -> str:
    names = figures["machine"]
    return (
        f"{names['cpu']}, {names['threads']} threads on {names['cores']} cores, {names['capability']}, "
        f"torch {names['torch']}, transformers {names['transformers']}, {names['dtype']}. Medians per clip of "
        f"{len(figures['times'][0]['times'])} repeats in turn; in brackets: times as fast as CLAP."
    )


def _others(figures: dict, times: dict) -> list[str]:
    cold, products = figures["cold"], figures["products"]
    best = {}
    for product in products:
        best[product["library"]] = max(product["gflops"], best.get(product["library"], 0))
    starts = [
        f"{name}: {run['imported']:.1f} s import, {run['loaded'] - run['imported']:.1f} s load, "
        f"{run['first'] - run['loaded']:.2f} s first vector, {run['first']:.1f} s in all; "
        f"up to {run['memory']:.0f} MiB"
        for name, run in ((PEER, cold["clap"]), (BASE, cold["wavlink"]))
    ]
    spreads = sorted(spread for _, spread in times.values())
    return [
        "Cold start and peak memory. " + ". ".join(starts) + ".",
        "Matrix products at Base's shapes: "
        + ", ".join(f"{name} {rate:.0f} GFLOPS" for name, rate in best.items())
        + ".",
        "Smallest cosine to fp32: "
        + ", ".join(f"{name} {value:.6f}" for name, value in figures["cosines"].items())
        + ".",
        f"{BASE} spends: " + ", ".join(f"{share:.0%} {name}" for name, share in figures["profile"].items()) + ".",
        f"Spread of the repeats, (most - least) / median: {statistics.median(spreads):.0%} in the middle, "
        f"{spreads[-1]:.0%} at most.",
    ]


def draw(figures: dict, path: Path) -> None:
    """How many times as fast as CLAP a stream of files and ready log-mels are, by the clips' length."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    times, figure = per_clip(figures), Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, way, title in zip(figure.subplots(1, 2), ("stream", "features"), ("wav files", "log-mels"), strict=True):
        for name in figures["rows"]:
            width = 2 if name == BASE or name.startswith(POOLED) else 1
            lengths = [seconds for row, seconds, known in times if row == name and known == way]
            ratios = [times[PEER, length, way][0] / times[name, length, way][0] for length in lengths]
            axes.plot(lengths, ratios, marker="o", label=name, linewidth=width)
        axes.set(xscale="log", yscale="log", xlabel="seconds of a clip", title=f"{title} to vectors")
        ticks = sorted({seconds for _, seconds, _ in times})
        axes.set_xticks(ticks, [str(seconds) for seconds in ticks])
    figure.axes[0].set_ylabel("times as fast as CLAP")
    figure.axes[1].legend(fontsize="x-small")
    figure.savefig(path, dpi=120)
