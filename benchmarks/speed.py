"""How fast sounds become vectors, beside transformers' CLAP: one run, in turn, same threads and dtype.

    python benchmarks/speed.py [--out runs/speed] [--dtype float32|bfloat16] [--model A_WAVLINK] [--quick]

The peer is `ClapModel` at the size of laion/clap-htsat-unfused with its own feature extractor; the WavLinks are Base
as in the paper and with `frame_pooling` (`--pooled FRAMES LAYER ...`: as many become one after each of the layers;
default 2 1 3). Weights are random, which changes no time, unless `--model` names some: then the cosines of bf16 and
int8 to fp32 are of trained weights. Sounds are wav files of 48 kHz, CLAP's own rate, so that only WavLink has to
resample. Prints a table, and writes it, a picture and all figures (`speed.md`, `speed.png`, `speed.json`). About 15
minutes on 2 quiet cores; `--quick` only shows that it works.

- file: from one wav file to its vector. stream: per file, of several, CLAP's in the better of two batch sizes, ours as
  `Embedder` cuts them.
- features: the model alone on log-mels that are ready, one clip (alone) and per clip in the best of a few batches.
- heard: seconds of sound per second in a stream; CLAP encodes 10 s of a longer clip, WavLink every second.
- of peak: the model's operations per second in its best batch, as a share of the fastest of the machine's own matrix
  products at Base's shapes. Matrix products and convolutions that are run are counted; in brackets those that the
  model runs with torch's kernels, as model FLOPs utilization (MFU) has it: our kernels get by with fewer.

Ratios of medians are the result; the seconds are those of this machine today.
"""

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import records
import soundfile
import speed_report
import torch
import transformers
from speed_systems import BASE, PEER, PLAIN, System, build, new_clap, new_wavlink
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from processing.audio import load_audio
from wavlink.backends.torch_cpu import PackedLinear, packing_pays
from wavlink.embedder import DTYPES

FILE_RATE = 48000
BATCHES = {1: (1, 4, 16), 5: (1, 4, 8), 10: (1, 2, 4), 30: (1, 2)}  # clips, by their seconds
STREAM = {1: 64, 5: 32, 10: 16, 30: 6}  # files
PRODUCTS_A_TURN = 5


def write_sounds(folder: Path) -> dict[int, list[Path]]:
    """Noise that swells and fades, by seconds."""
    generator, paths = np.random.default_rng(0), {}
    for seconds, count in STREAM.items():
        swell = np.sin(np.arange(seconds * FILE_RATE) / FILE_RATE) ** 2
        paths[seconds] = [folder / f"{seconds}_{number}.wav" for number in range(count)]
        for path in paths[seconds]:
            soundfile.write(path, generator.normal(scale=0.1, size=len(swell)) * swell, FILE_RATE)
    return paths


def cases(rows: dict[str, System], sounds: dict[int, list[Path]], quick: bool) -> dict[tuple, Callable]:
    """By (row, seconds, "file", "stream" or "features", batch size, clips): what is timed."""
    found = {}
    for (name, row), (seconds, paths) in itertools.product(rows.items(), sounds.items()):
        sizes = BATCHES[seconds][: 1 if row.options else 2 if quick else None]  # 30 s each gain nothing from company
        most = 4 if quick else len(paths)
        for size in sizes:
            features = row.features([load_audio(path, row.rate) for path in paths[:size]])
            found[name, seconds, "features", size, size] = partial(row.embed, features)
        if row.embed_files:
            found[name, seconds, "file", 1, 1] = partial(row.embed_files, paths[:1], 1)
            for size in (sizes[0], sizes[-1]) if name == PEER else sizes[-1:]:
                found[name, seconds, "stream", size, most] = partial(row.embed_files, paths[:most], size)
    return found


def interleaved(actions: dict, repeats: int) -> dict[tuple, list[float]]:
    """Seconds of each action, each time all in turn, after one round that is thrown away."""
    times = {case: [] for case in actions}
    for turn in range(repeats + 1):
        for case, action in actions.items():
            began = time.perf_counter()
            action()
            if turn:
                times[case].append(time.perf_counter() - began)
    return times


@torch.inference_mode()
def matmul_actions(dtype: torch.dtype) -> dict[tuple, Callable]:
    """Matrix products of Base's layers, by (library, clips' frames, in, out), by torch's own and by packed layers."""
    actions = {}
    for frames, (wide, out) in itertools.product((500, 2000), ((512, 512), (512, 2048), (2048, 512))):
        linear, states = torch.nn.Linear(wide, out, bias=False, dtype=dtype), torch.randn(1, frames, wide, dtype=dtype)
        ways = {"torch": linear, **({"oneDNN, packed": PackedLinear(linear)} if packing_pays(dtype) else {})}
        for library, layer in ways.items():
            actions[library, frames, wide, out] = partial(_multiply, layer, states)
    return actions


@torch.inference_mode()
def _multiply(layer, states) -> None:
    for _ in range(PRODUCTS_A_TURN):
        layer(states)


def operations(row: System, features: dict) -> int:
    """Floating-point operations of the matrix products and convolutions that are run for `features`."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mapping = {attention: lambda q, k, v, *others, **named: sdpa_flop_count(q, k, v)}
    if packing_pays(row.model.dtype):  # states (..., in), weight (out, in)
        mapping[torch.ops.mkldnn._linear_pointwise] = lambda x, w, *others, **named: 2 * math.prod(x) * w[0]
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        row.embed(features)
    return counter.get_total_flops()


def cosines(rows: dict[str, System], paths: list[Path]) -> dict[str, float]:
    """The smallest cosine to fp32 of any clip's vector."""
    reference = rows[PLAIN]
    clips = [load_audio(path, reference.rate) for path in paths]
    expected = torch.from_numpy(reference.embed(reference.features(clips)))
    names = [name for name in (BASE, f"{BASE}, bf16", f"{BASE}, int8") if name in rows]
    found = {name: rows[name].embed(rows[name].features(clips)) for name in names}
    return {name: F.cosine_similarity(torch.from_numpy(own), expected).min().item() for name, own in found.items()}


def profiled(row: System, features: dict, top: int = 8) -> dict[str, float]:
    """The share of the time that each operation takes itself, largest first."""
    row.embed(features)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(3):
            row.embed(features)
    times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    total = sum(times.values())
    return {name: times[name] / total for name in sorted(times, key=times.get, reverse=True)[:top]}


def cold_starts(folder: Path, paths: list[Path], dtype: str, quick: bool, repeats: int) -> dict[str, dict]:
    """The medians of speed_cold.py's figures in turn, with `seconds` from the process's start to its end."""
    layers = 1 if quick else 12  # of the text towers, which are loaded too
    for kind, (model, processor) in (("clap", new_clap(layers)), ("wavlink", new_wavlink(text_layers=layers))):
        model.save_pretrained(folder / kind)
        processor.save_pretrained(folder / kind)
    del model
    script, found = Path(__file__).with_name("speed_cold.py"), {"clap": [], "wavlink": []}
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    for turn, kind in itertools.product(range(repeats + 1), found):
        command = [sys.executable, script, kind, folder / kind, dtype, *paths]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        if turn or quick:
            found[kind].append(json.loads(output.splitlines()[-1]))
    return {
        kind: {name: statistics.median(run[name] for run in runs) for name in runs[0]} for kind, runs in found.items()
    }


def machine(dtype: str) -> dict[str, str]:
    names = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "dtype": dtype}
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names["cpu"] = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    names |= {"capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
    return names | {"torch": torch.__version__, "transformers": transformers.__version__}


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """All figures, as `speed_report` takes them and as JSON holds them."""
    sounds = write_sounds(folder)
    if options.quick:
        sounds = {seconds: sounds[seconds] for seconds in (1, 5)}
    repeats = 2 if options.quick else options.repeats
    cold = cold_starts(folder, sounds[5], options.dtype, options.quick, 0 if options.quick else 3)
    rows, products = build(options.dtype, options.model, options.pooled), matmul_actions(DTYPES[options.dtype])
    times = interleaved({**products, **cases(rows, sounds, options.quick)}, repeats)
    rates = [
        {
            "library": case[0],
            "shape": case[1:],
            "gflops": _rate(PRODUCTS_A_TURN * 2 * np.prod(case[1:]), times.pop(case)),
        }
        for case in products
    ]
    clip = {seconds: load_audio(paths[0], rows[PLAIN].rate) for seconds, paths in sounds.items()}
    counted = {
        name: {str(s): operations(rows[name], rows[name].features([clip[s]])) for s in sounds}
        for name in (BASE, PLAIN)
    }
    longest = max(seconds for seconds in sounds if seconds <= 10)
    features = rows[BASE].features([load_audio(path, rows[BASE].rate) for path in sounds[longest][:4]])
    return {
        "machine": machine(options.dtype),
        "rows": [*rows],
        "times": [
            dict(zip(("row", "seconds", "way", "batch", "clips", "times"), (*case, spent), strict=True))
            for case, spent in times.items()
        ],
        "products": rates,
        "operations": counted,
        "cosines": cosines(rows, sounds[5][:8]),
        "profile": profiled(rows[BASE], features),
        "cold": cold,
    }


def _rate(operations: float, times: list[float]) -> float:
    return float(operations / statistics.median(times) / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--model", help="a folder or Hub id of a WavLink, for trained weights")
    parser.add_argument("--pooled", type=int, nargs="+", default=(2, 1, 3), metavar=("FRAMES", "LAYER"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="clips of 1 and 5 s, 2 repeats")
    records.add_option(parser, "speed")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "speed.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    table = speed_report.table(figures)
    (options.out / "speed.md").write_text(table, encoding="utf-8")
    speed_report.draw(figures, options.out / "speed.png")
    print(table)
    names = figures["machine"]
    about = f"{names['cpu']}, {names['capability']}, {names['threads']} threads, {names['dtype']}."
    records.write(
        options.record,
        title="Wav files and log-mels to vectors, beside CLAP",
        seed=0,
        note=f"{about} Milliseconds a clip, and times as fast as CLAP, by medians.",
        values=speed_report.as_values(figures),
        raw=figures,
    )


if __name__ == "__main__":
    main()
