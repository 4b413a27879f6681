"""How fast sounds become vectors, beside transformers' CLAP: one run, in turn, with the same threads and dtype.

    python benchmarks/speed.py [--threads 2] [--repeats 3] [--dtype float32|bfloat16] [--model A_WAVLINK] [--quick]
        [--record]

The baseline is `ClapModel` at the size of laion/clap-htsat-unfused with its own feature extractor, in torch and in
OpenVINO; the WavLinks are Base as in the paper and with `frame_pooling` by 2 after layers 1 and 3, in each backend and
precision that is installed. Weights are random, which changes no time, unless `--model` names some: then the cosines
to fp32 are of trained weights. int8 is calibrated on noise, without a gate: that changes no time, and its cosines mean
something with `--model` alone. Sounds are wav files of 48 kHz, CLAP's own rate, so that only WavLink has to resample.
Prints the tables of the record. About 10 minutes on two quiet cores, with `--quick` two.

- goals: what this project wants to reach, beside what this run measured.
- stream: per file, of several, CLAP's in the better of two batch sizes, ours as `Embedder` cuts them.
- file: from one wav file to its vector.
- features: the model alone on log-mels that are ready, per clip in the best of a few batches.
- stages: the share of decoding with resampling, of the log-mel, and of the model alone, one after another.
- peak: the model's operations per second in its best batch, as a share of the fastest of the machine's own matrix
  products at Base's shapes. Matrix products and convolutions are counted, as model FLOPs utilization (MFU) has it.

With one thread times are the processor's, of all threads of this process: other work on the machine changes them
little. With several they are the clock's, since threads that wait use the processor too: run nothing beside. Ratios of
medians are the result, with their range over the repeats. CLAP encodes 10 s of a longer clip, WavLink all of it.
"""

import argparse
import itertools
import os
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
import tables
import torch
from speed_report import BASE, BF16, LIBRARIES, PEER, PLAIN, compiled_name
from speed_systems import System, build, build_compiled
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from processing.audio import load_audio
from wavlink.backends.choice import HAS, installed
from wavlink.backends.torch_cpu import PackedLinear, packing_pays
from wavlink.backends.torch_model import DTYPES

FILE_RATE = 48000
BATCHES = {1: (1, 8), 5: (1, 4), 10: (1, 2), 30: (1,)}  # clips, by their seconds
STREAM = {1: 96, 5: 32, 10: 16, 30: 8}  # files, as many as an index has at once: their decoding runs beside the model
RUNS = [(backend, precision) for backend in LIBRARIES for precision in HAS[backend]]
PEERS_STREAM, PEERS_BATCHES = 8, (4, 8)  # files, whatever their length: CLAP computes 10 s for each
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
    """By (row, seconds, way, batch size, clips): what is timed.

    Ways are "file", "stream" and "features", and of what comes before the model "decode" and "log-mel", of a stream's
    files one after another, and "decode, alone" and "log-mel, alone", of the first file after other work.
    """
    found = {}
    for (name, row), (seconds, paths) in itertools.product(rows.items(), sounds.items()):
        sizes = BATCHES[seconds]
        most = min(len(paths), PEERS_STREAM) if quick or name.startswith(PEER) else len(paths)
        if name in (PEER, BASE):
            clips = [load_audio(path, row.rate) for path in paths]
            for ending, count in ((", alone", 1), ("", len(paths))):  # in this order: the first run is slower
                found[name, seconds, f"decode{ending}", 1, count] = partial(decode, paths[:count], row.rate)
                found[name, seconds, f"log-mel{ending}", 1, count] = partial(log_mels, row, clips[:count])
        for size in sizes:
            features = row.features([load_audio(path, row.rate) for path in paths[:size]])
            found[name, seconds, "features", size, size] = partial(row.embed, features)
        if row.embed_files:
            found[name, seconds, "file", 1, 1] = partial(row.embed_files, paths[:1], 1)
            for size in PEERS_BATCHES if name.startswith(PEER) else sizes[-1:]:
                found[name, seconds, "stream", size, most] = partial(row.embed_files, paths[:most], size)
    return found


def decode(paths: list[Path], rate: int) -> None:
    for path in paths:
        load_audio(path, rate)


def log_mels(row: System, clips: list[np.ndarray]) -> None:
    for clip in clips:
        row.features([clip])


def interleaved(actions: dict, repeats: int, clock: Callable[[], float]) -> dict[tuple, list[float]]:
    """Seconds of each action by a clock, each time all in turn, after one round that is thrown away."""
    times = {case: [] for case in actions}
    for turn in range(repeats + 1):
        for case, action in actions.items():
            began = clock()
            action()
            if turn:
                times[case].append(clock() - began)
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
    """Floating-point operations of the matrix products and convolutions that torch's kernels run for `features`."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mapping = {attention: lambda q, k, v, *others, **named: sdpa_flop_count(q, k, v)}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        row.embed(features)
    return counter.get_total_flops()


def cosines(rows: dict[str, System], paths: list[Path]) -> dict[str, float]:
    """The smallest cosine to fp32 of any clip's vector."""
    reference = rows[PLAIN]
    clips = [load_audio(path, reference.rate) for path in paths]
    expected = torch.from_numpy(reference.embed(reference.features(clips)))
    compiled = [compiled_name(BASE, backend, precision) for backend, precision in RUNS]
    names = [name for name in (BASE, BF16, *compiled) if name in rows]
    found = {name: rows[name].embed(rows[name].features(clips)) for name in names}
    return {name: F.cosine_similarity(torch.from_numpy(own), expected).min().item() for name, own in found.items()}


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """All figures, as `speed_report` takes them and as JSON holds them."""
    sounds = write_sounds(folder)
    if options.quick:
        sounds = {seconds: sounds[seconds] for seconds in (1, 5)}
    repeats = 2 if options.quick else options.repeats
    rows = build(options.dtype, options.model) | build_compiled(options.backends, folder, options.model)
    products = matmul_actions(DTYPES[options.dtype])
    clock = time.process_time if options.threads == 1 else time.perf_counter
    times = interleaved({**products, **cases(rows, sounds, options.quick)}, repeats, clock)
    rates = [
        {
            "library": case[0],
            "shape": case[1:],
            "gflops": _rate(PRODUCTS_A_TURN * 2 * np.prod(case[1:]), times.pop(case)),
        }
        for case in products
    ]
    clip = {seconds: load_audio(paths[0], rows[PLAIN].rate) for seconds, paths in sounds.items()}
    counted = {str(s): operations(rows[PLAIN], rows[PLAIN].features([clip[s]])) for s in sounds}
    return {
        "times": [
            dict(zip(("row", "seconds", "way", "batch", "clips", "times"), (*case, spent), strict=True))
            for case, spent in times.items()
        ],
        "products": rates,
        "operations": counted,
        "cosines": cosines(rows, sounds[5][:8]),
    }


def _rate(operations: float, times: list[float]) -> float:
    return float(operations / statistics.median(times) / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--model", help="a folder or Hub id of a WavLink, for trained weights")
    parser.add_argument(
        "--backends",
        nargs="*",
        default=[name for name in LIBRARIES if installed(name)],
        choices=tuple(LIBRARIES),
        help="rows in these as well, in each of their precisions (default: those that are installed)",
    )
    parser.add_argument("--threads", type=int, default=1, help="of each library (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement, in turn (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="clips of 1 and 5 s, 2 repeats")
    records.add_option(parser, "speed")
    options = parser.parse_args()
    torch.manual_seed(0)
    if os.environ.get("OMP_NUM_THREADS") != str(options.threads):  # numpy's library read it when it was imported
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder))
    values = speed_report.as_values(figures)
    for name, table in values.items():
        print(f"{name}\n\n{tables.markdown(table)}\n")
    records.write(
        options.record,
        title="Wav files and log-mels to vectors, beside CLAP",
        seed=0,
        note=f"{torch.backends.cpu.get_cpu_capability()}, {options.threads} threads, {options.dtype}. "
        f"{'Processor time' if options.threads == 1 else 'Time by the clock'}: medians of "
        f"{2 if options.quick else options.repeats} repeats, with their range.",
        values=values,
        raw=figures,
    )


if __name__ == "__main__":
    main()
