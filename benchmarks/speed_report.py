"""speed.py's figures as the tables of a record."""

import numpy as np
import records

PEER, BASE, BF16, PLAIN = "CLAP", "WavLink Base", "WavLink Base, bf16", "WavLink Base, torch's kernels"
POOLED = "WavLink Base, pooled by 2 after layers 1 and 3"
LIBRARIES = {"openvino": "OpenVINO", "onnx": "onnxruntime"}


def compiled_name(base: str, backend: str, precision: str) -> str:
    """The row of a model in another backend."""
    return f"{base}, {LIBRARIES[backend]} {precision}"


WAYS = ("stream", "file", "features")


def per_clip(figures: dict) -> dict[tuple[str, int, str], np.ndarray]:
    """By (row, seconds, way): milliseconds a clip `[repeats]`, in the batch size with the smallest median."""
    found = {}
    for case in figures["times"]:
        key = case["row"], case["seconds"], case["way"]
        times = 1000 * np.array(case["times"]) / case["clips"]
        if key not in found or np.median(times) < np.median(found[key]):
            found[key] = times
    return found


def as_values(figures: dict) -> dict:
    """Ratios to CLAP at a glance, all times of each way, and what else was measured."""
    times = per_clip(figures)
    tables = {"summary": summary(times), **{way: table(times, way) for way in WAYS}}
    if figures["cold"]:
        tables["start"] = start(figures["cold"])
    cosines = [[name, records.number(value, 6)] for name, value in figures["cosines"].items()]
    tables["cosines"] = records.table(["model", "smallest cosine to fp32"], cosines)
    tables["peak"] = peak(figures, times)
    return tables


def summary(times: dict) -> dict:
    """A row a length that CLAP encodes completely: how many times as fast the WavLinks are, of wav files."""
    lengths = [seconds for row, seconds, way in times if (row, way) == (PEER, "stream") and seconds <= 10]
    names = [name for name in (BASE, POOLED, BF16) if (name, lengths[0], "stream") in times]
    rows = [
        [f"{length} s", spread(times[PEER, length, "stream"], 0, "ms")]
        + [ratio(times, name, length, "stream") for name in names]
        for length in lengths
    ]
    return records.table(["clip", PEER, *names], rows)


def table(times: dict, way: str) -> dict:
    """Milliseconds a clip of every model and length, ratios to CLAP, and seconds of sound encoded in a second."""
    rows = []
    for name, seconds, known in times:
        if known == way:
            own = times[name, seconds, way]
            encoded = min(seconds, 10) if name.startswith(PEER) else seconds
            faster = None if name == PEER else ratio(times, name, seconds, way)
            rate = records.number(1000 * encoded / np.median(own), 0)
            rows.append([name, f"{seconds} s", spread(own, 1, "ms"), faster, rate])
    return records.table(["model", "clip", "a clip takes", "times as fast as CLAP", "seconds of sound a second"], rows)


def start(cold: dict[str, list[dict]]) -> dict:
    """A row a model: from the start of a process to its first vector."""
    rows = []
    for name, kind in ((PEER, "clap"), (BASE, "wavlink")):
        run = {key: np.array([one[key] for one in cold[kind]]) for key in cold[kind][0]}
        load, first = run["loaded"] - run["imported"], run["first"] - run["loaded"]
        row = [spread(run["imported"], 1, "s"), spread(load, 1, "s"), spread(first, 2, "s")]
        rows.append([name, *row, spread(run["memory"], 0, "MiB")])
    return records.table(["model", "import", "load", "first vector", "peak memory"], rows)


def ratio(times: dict, name: str, seconds: int, way: str) -> dict:
    """CLAP's time over a model's: of the medians, with the range over the repeats, which took turns."""
    own, clap = times[name, seconds, way], times[PEER, seconds, way]
    each = clap / own
    middle = float(np.median(clap) / np.median(own))
    bounds = [min(middle, float(each.min())), max(middle, float(each.max()))]
    return {"value": middle, "range": bounds, "digits": 2, "unit": "x"}


def spread(values: np.ndarray, digits: int, unit: str) -> dict:
    """A median with its range."""
    bounds = [float(values.min()), float(values.max())]
    return {"value": float(np.median(values)), "range": bounds, "digits": digits, "unit": unit}


def peak(figures: dict, times: dict) -> dict:
    """The model's operations a second, as a share of those of the fastest matrix product."""
    best = 1e9 * max(product["gflops"] for product in figures["products"])
    rows = []
    for seconds, own in figures["operations"][BASE].items():
        spent = np.median(times[BASE, int(seconds), "features"]) / 1000
        shares = [own / spent / best, figures["operations"][PLAIN][seconds] / spent / best]
        rows.append([f"{seconds} s", *(records.number(100 * share, 0, "%") for share in shares)])
    return records.table(["clip", "operations run", "operations with torch's kernels"], rows)
