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

# Times as fast as CLAP in torch, from wav files: by model, precision and seconds.
RATIOS = {
    (BASE, "fp32", 5): 2.8,
    (BASE, "bf16", 5): 4.5,
    (BASE, "int8", 5): 7.0,
    (BASE, "fp32", 10): 1.35,
    (BASE, "bf16", 10): 2.3,
    (BASE, "int8", 10): 3.5,
    (POOLED, "int8", 1): 60.0,
    (POOLED, "int8", 10): 6.0,
}
RATE = 500  # seconds of sound a second, of 30 s pooled in int8
FRONT_END = 2.5  # ms of decoding, resampling and log-mel for 10 s
COLUMNS = ["goal", "goal's value", "measured", "by", "times as fast as CLAP in OpenVINO"]


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
    goal_rows = goals(times)
    tables = {"goals": records.table(COLUMNS, goal_rows)} if goal_rows else {}
    tables |= {"summary": summary(times)}
    tables |= {way: table(times, way) for way in WAYS}
    if any(way == "decode" for _, _, way in times):
        tables["stages"] = stages(times)
    cosines = [[name, records.number(value, 6)] for name, value in figures["cosines"].items()]
    tables["cosines"] = records.table(["model", "smallest cosine to fp32"], cosines)
    tables["peak"] = peak(figures, times)
    return tables


def summary(times: dict) -> dict:
    """A row a length that CLAP encodes completely: how many times as fast the WavLinks are, of wav files."""
    lengths = [seconds for row, seconds, way in times if (row, way) == (PEER, "stream") and seconds <= 10]
    quantized = [compiled_name(name, "openvino", "int8") for name in (BASE, POOLED)]
    names = [name for name in (BASE, POOLED, BF16, *quantized) if (name, lengths[0], "stream") in times]
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


def ratio(times: dict, name: str, seconds: int, way: str, rival: str = PEER) -> dict:
    """CLAP's time over a model's: of the medians, with the range over the repeats, which took turns."""
    own, clap = times[name, seconds, way], times[rival, seconds, way]
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
    for seconds, counted in figures["operations"].items():
        spent = np.median(times[BASE, int(seconds), "features"]) / 1000
        rows.append([f"{seconds} s", records.number(100 * counted / spent / best, 0, "%")])
    return records.table(["clip", "share"], rows)


def stages(times: dict) -> dict:
    """Milliseconds a clip, in a stream, of decoding with resampling, of the log-mel and of the model, and shares."""
    rows = []
    for name, seconds in sorted({(row, length) for row, length, way in times if way == "features"}, key=_order(times)):
        front = PEER if name.startswith(PEER) else BASE
        parts = [times.get(key) for key in _stages(front, name, seconds)]
        if any(part is None for part in parts):
            continue
        total = sum(np.median(part) for part in parts)
        shares = [records.number(100 * np.median(part) / total, 0, "%") for part in parts]
        rows.append([name, f"{seconds} s", *(spread(part, 2, "ms") for part in parts), *shares])
    columns = ["model", "clip", "decode and resample", "log-mel", "model alone", "share of decode", "of log-mel"]
    return records.table([*columns, "of the model"], rows)


def goals(times: dict) -> list[list]:
    """A row a goal: its value, what this run measured, and which row that was."""
    rows = []
    for (model, precision, seconds), goal in RATIOS.items():
        own = _fastest(times, model, precision, seconds)
        if own and (PEER, seconds, "stream") in times:
            at_least = f"{_short(model)} in {precision}, {seconds} s, at least"
            rival = compiled_name(PEER, "openvino", "fp32")
            beside = ratio(times, own[0], seconds, "stream", rival) if (rival, seconds, "stream") in times else None
            measured = ratio(times, own[0], seconds, "stream")
            rows.append([at_least, records.number(goal, 2, "x"), measured, own[0], beside])
    if longest := _fastest(times, POOLED, "int8", 30):
        rate = records.number(30_000 / np.median(times[longest]), 0, "s/s")
        rows.append(["pooled in int8, 30 s, at least", records.number(RATE, 0, "s/s"), rate, longest[0], None])
    for ending, of_what in (("", "in a stream"), (", alone", "of one file alone")):
        front = [times.get((BASE, 10, f"{way}{ending}")) for way in ("decode", "log-mel")]
        if all(part is not None for part in front):
            goal = records.number(FRONT_END, 2, "ms")
            title = f"decode and log-mel {of_what}, 10 s, at most"
            rows.append([title, goal, spread(sum(front), 2, "ms"), BASE, None])
    return rows


def _stages(front: str, name: str, seconds: int) -> list[tuple]:
    return [(front, seconds, "decode"), (front, seconds, "log-mel"), (name, seconds, "features")]


def _order(times: dict):
    names = list(dict.fromkeys(row for row, _, _ in times))
    return lambda key: (names.index(key[0]), key[1])


def _fastest(times: dict, model: str, precision: str, seconds: int) -> tuple | None:
    """Return the key of a model's fastest row in a precision, in whichever backend."""
    names = [compiled_name(model, backend, precision) for backend in LIBRARIES]
    names += {"fp32": [model], "bf16": [f"{model}, bf16"]}.get(precision, [])
    keys = [key for name in names if (key := (name, seconds, "stream")) in times]
    return min(keys, key=lambda key: np.median(times[key]), default=None)


def _short(model: str) -> str:
    return {BASE: "Base", POOLED: "pooled"}[model]
