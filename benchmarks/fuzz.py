"""What is hard to read is refused, whatever it is: many damaged and hostile files, each in a bounded child process.

    python benchmarks/fuzz.py [--inputs 20000] [--seed 0] [--targets wav flac ...] [--sounds FOLDER] [--failures DIR]

An input is drawn from (seed, target, number) alone. A child process reads one after the other, with at most
`--memory` MB more than before the first and `--seconds` of processor time for each. What it reads is either right or
refused by a ValueError that names the file; all else is a failure, kept in DIR with its seed: another exception, a
crash, a hang, memory over the bound, and what a target itself calls wrong. Exits with 1 if there is one.
Linux alone: it limits memory and reads its peak as Linux tells them.
"""

import argparse
import importlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import records

_STATE = struct.Struct("<qqqdd")  # the input's number; refused, decoded; slowest in s, peak in MB
_WALL = 20  # times the processor's seconds: what sleeps is hanging too


@dataclass
class Tally:
    """What became of a target's inputs."""

    refused: int = 0
    decoded: int = 0
    slowest: float = 0.0  # seconds of processor time
    peak: float = 0.0  # MB over what the process had before
    failures: list[str] = field(default_factory=list)


def load_targets(modules: list[str]) -> dict:
    """By name, of modules that have `TARGETS`: `make(folder, sounds)` gives `draw(rng) -> bytes` and
    `read(bytes) -> bool`, true where the input was not refused."""
    return {name: make for module in modules for name, make in importlib.import_module(module).TARGETS.items()}


def generator(seed: int, target: str, number: int) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32(target.encode()), number))


def read_all(options: argparse.Namespace) -> None:
    """The child: reads inputs from `first` on, and notes where it is before each."""
    target = options.targets[0]
    report = os.fdopen(os.dup(1), "w")  # what libraries print is nobody's
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    with tempfile.TemporaryDirectory() as folder, open(options.state, "r+b", buffering=0) as state:
        draw, read = load_targets(options.modules)[target](Path(folder), options.sounds)
        tally = Tally()
        read_one(read, draw(generator(options.seed, target, 0)), tally)  # what is loaded at the first counts for none
        tally = Tally()
        before = _resident()
        resource.setrlimit(resource.RLIMIT_AS, (_virtual() + (options.memory << 20),) * 2)
        for number in range(options.first, options.inputs):
            content = draw(generator(options.seed, target, number))
            note = number, tally.refused, tally.decoded, tally.slowest, max(0, tally.peak - before)
            os.pwrite(state.fileno(), _STATE.pack(*note), 0)
            signal.setitimer(signal.ITIMER_PROF, options.seconds)  # their signals end the process
            signal.setitimer(signal.ITIMER_REAL, options.seconds * _WALL)
            error = read_one(read, content, tally)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if error:
                print(json.dumps([number, error]), file=report, flush=True)
        note = options.inputs, tally.refused, tally.decoded, tally.slowest, max(0, tally.peak - before)
        os.pwrite(state.fileno(), _STATE.pack(*note), 0)


def read_one(read, content: bytes, tally: Tally) -> str:
    """What is wrong with how an input is read, `""` if nothing is."""
    _forget_peak()
    begun = time.process_time()
    try:
        decoded, error = read(content), ""
    except Exception as caught:  # any at all is a failure
        decoded, error = False, f"{type(caught).__name__}: {caught}"
    tally.slowest = max(tally.slowest, time.process_time() - begun)
    tally.peak = max(tally.peak, _peak())
    if not error:
        tally.decoded += decoded
        tally.refused += not decoded
    return error


def fuzz(target: str, options: argparse.Namespace) -> Tally:
    """The parent: one child after another, each going on behind the input that ended the one before."""
    total, first = Tally(), 0
    while first < options.inputs:
        with tempfile.NamedTemporaryFile() as state:
            state.write(_STATE.pack(first, 0, 0, 0, 0))
            state.flush()
            words = ["--first", str(first), "--state", state.name, "--targets", target]
            offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
            options_of_run = {"capture_output": True, "text": True, "errors": "replace", "env": offline}
            done = subprocess.run([*_command(options), *words], **options_of_run)
            first, refused, decoded, slowest, peak = _STATE.unpack(Path(state.name).read_bytes())
        total.refused, total.decoded = total.refused + refused, total.decoded + decoded
        total.slowest, total.peak = max(total.slowest, slowest), max(total.peak, peak)
        for line in done.stdout.splitlines():
            if line.startswith("["):
                keep(target, options, total, *json.loads(line))
        if done.returncode:
            keep(target, options, total, first, _ended(done))
            first += 1
    return total


def keep(target: str, options: argparse.Namespace, total: Tally, number: int, error: str) -> None:
    """Notes a failure, and writes its input and its error down."""
    total.failures.append(f"{target} {number}: {error}")
    folder = Path(options.failures)
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{target.replace(' ', '-')}-{options.seed}-{number}"
    place.with_suffix(".txt").write_text(error + "\n", encoding="utf-8", errors="replace")
    with tempfile.TemporaryDirectory() as scratch:
        draw, _ = load_targets(options.modules)[target](Path(scratch), options.sounds)
        place.with_suffix(".bin").write_bytes(draw(generator(options.seed, target, number)))


def table(tallies: dict[str, Tally], options: argparse.Namespace) -> str:
    rows = [["", "inputs", "refused", "decoded", "slowest, s", "peak, MB", "failures"]]
    rows.append(["---"] * 7)
    for name, tally in tallies.items():
        peaks = f"{tally.slowest:.2f}", f"{tally.peak:.0f}"
        rows.append([name, options.inputs, tally.refused, tally.decoded, *peaks, len(tally.failures)])
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _command(options: argparse.Namespace) -> list[str]:
    words = [sys.executable, __file__, "--modules", *options.modules]
    for name in ("inputs", "seed", "memory", "seconds", "sounds"):
        words += [f"--{name}", str(getattr(options, name))]
    return words


def _ended(done: subprocess.CompletedProcess) -> str:
    if done.returncode >= 0:
        return f"the process ended with {done.returncode}: {done.stderr.strip()[-500:]}"
    name = signal.Signals(-done.returncode).name
    hang = name in ("SIGPROF", "SIGALRM")
    return f"{'hang' if hang else 'crash'}: {name} {done.stderr.strip()[-500:]}"


def _status(name: str) -> int:
    """MB, of the kernel's account of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))


def _resident() -> float:
    return _status("VmRSS:")


def _peak() -> float:
    return _status("VmHWM:")


def _virtual() -> int:
    """Bytes."""
    return int(_status("VmSize:") * 2**20)


def _forget_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--inputs", type=int, default=20000, help="of each target (%(default)s)")
    add("--seed", type=int, default=0)
    add("--targets", nargs="+", help="default: all")
    add("--modules", nargs="+", default=["fuzz_audio", "fuzz_files"], help=argparse.SUPPRESS)
    add("--sounds", default="", help="an audiofolder, of which some real files are damaged too")
    add("--failures", default="fuzz_failures", help="a folder for what is found (%(default)s)")
    add("--memory", type=int, default=2048, help="MB (%(default)s)")
    add("--seconds", type=float, default=10, help="of processor time for an input (%(default)s)")
    add("--first", type=int, default=0, help=argparse.SUPPRESS)
    add("--state", help=argparse.SUPPRESS)
    records.add_option(parser, "fuzz")
    options = parser.parse_args(arguments)
    if options.state:
        read_all(options)
        return 0
    tallies = {}
    for target in options.targets or load_targets(options.modules):
        begun = time.time()
        tallies[target] = fuzz(target, options)
        print(
            f"{target}: {options.inputs} in {time.time() - begun:.0f} s",
            *tallies[target].failures,
            sep="\n  ",
            flush=True,
        )
    print(table(tallies, options))
    rows = [
        [
            *(name, options.inputs, tally.refused, tally.decoded),
            *(records.number(tally.slowest, 2, "s"), records.number(tally.peak, 0, "MB"), len(tally.failures)),
        ]
        for name, tally in tallies.items()
    ]
    records.write(
        options.record,
        title="Damaged and hostile files",
        seed=options.seed,
        values={
            "targets": records.table(["target", "inputs", "refused", "read", "slowest", "peak", "failures"], rows)
        },
        raw={name: tally.failures for name, tally in tallies.items()},
    )
    return any(tally.failures for tally in tallies.values())


if __name__ == "__main__":
    sys.exit(main())
