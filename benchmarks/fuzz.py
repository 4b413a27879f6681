"""What is hard to read is refused, whatever it is: many damaged and hostile inputs, in bounded child processes.

    python benchmarks/fuzz.py [--inputs 20000] [--seed 0] [--targets wav flac ...] [--sounds FOLDER] [--failures DIR]
    python benchmarks/fuzz.py --kept runs/fuzz [--minutes 60] [--shard 1/2] [--record]

An input is drawn from (seed, target, number) alone. A child process reads one after the other, with at most
`--memory` MB more than before the first and `--seconds` of processor time for each. What it reads is either right or
refused by a ValueError that names the file; all else is a failure, kept in DIR with its seed: another exception, a
crash, a hang, memory over the bound, and what a target itself calls wrong. Exits with 1 if there is one.
Linux alone: it limits memory and reads its peak as Linux tells them.

With `--kept` the counts of each block of inputs are written into a folder, and a further run reads only blocks that
are not there; several may share the blocks, each its shard. The table is that of all blocks in the folder, also of
those that were read by earlier commits, which the record names.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import records

from wavlink.atomic_files import write_text

_STATE = struct.Struct("<qqqdd")  # the input's number; refused, decoded; slowest in s, peak in MB
_WALL = 20  # times the processor's seconds: what sleeps is hanging too
_BLOCK = 2500  # inputs that are kept together
MODULES = ["fuzz_audio", "fuzz_files", "fuzz_folders", "fuzz_requests"]


@dataclass
class Tally:
    """What became of a target's inputs."""

    inputs: int = 0
    refused: int = 0
    decoded: int = 0
    slowest: float = 0.0  # seconds of processor time
    peak: float = 0.0  # MB over what the process had before
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        for name in ("inputs", "refused", "decoded", "failures"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.slowest, self.peak = max(self.slowest, other.slowest), max(self.peak, other.peak)


def load_targets(modules: list[str]) -> dict:
    """By name, of modules that have `TARGETS`: `make(folder, sounds)` gives `draw(rng) -> bytes` and
    `read(bytes) -> bool`, true where the input was not refused."""
    return {name: make for module in modules for name, make in importlib.import_module(module).TARGETS.items()}


def inputs_of(modules: list[str]) -> dict[str, tuple[str, int]]:
    """The module of each target, and how many inputs of it are read unless one says so."""
    loaded = {module: importlib.import_module(module) for module in modules}
    return {name: (module, loaded[module].INPUTS) for module in modules for name in loaded[module].TARGETS}


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
        _forget_peak()
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


def fuzz(target: str, first: int, last: int, options: argparse.Namespace) -> Tally:
    """The parent: one child after another, each going on behind the input that ended the one before."""
    total = Tally(inputs=last - first)
    while first < last:
        with tempfile.NamedTemporaryFile() as state:
            state.write(_STATE.pack(first, 0, 0, 0, 0))
            state.flush()
            words = ["--first", str(first), "--inputs", str(last), "--state", state.name, "--targets", target]
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MALLOC_ARENA_MAX": "2"}  # arenas reserve memory
            options_of_run = {"capture_output": True, "text": True, "errors": "replace", "env": environment}
            done = subprocess.run([*_command(options), *words], **options_of_run)
            first, refused, decoded, slowest, peak = _STATE.unpack(Path(state.name).read_bytes())
        total.add(Tally(0, refused, decoded, slowest, peak))
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


def table(tallies: dict[str, Tally]) -> str:
    rows = [["", "inputs", "refused", "decoded", "slowest, s", "peak, MB", "failures"]]
    rows.append(["---"] * 7)
    for name, tally in tallies.items():
        peaks = f"{tally.slowest:.2f}", f"{tally.peak:.0f}"
        rows.append([name, tally.inputs, tally.refused, tally.decoded, *peaks, len(tally.failures)])
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _command(options: argparse.Namespace) -> list[str]:
    words = [sys.executable, __file__, "--modules", *options.modules]
    for name in ("seed", "memory", "seconds", "sounds"):
        words += [f"--{name}", str(getattr(options, name))]
    return words


def _ended(done: subprocess.CompletedProcess) -> str:
    if done.returncode >= 0:
        return f"the process ended with {done.returncode}: {done.stderr.strip()[-500:]}"
    name = signal.Signals(-done.returncode).name
    hang = name in ("SIGPROF", "SIGALRM")
    return f"{'hang' if hang else 'crash'}: {name} {done.stderr.strip()[-500:]}"


def _commit() -> str:
    from wavlink.training.run_folder import environment

    return environment()["commit"]


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


def run(options: argparse.Namespace, kept: Path) -> dict[str, tuple[Tally, dict[str, int]]]:
    """Read the blocks that are not kept yet, and return the counts of each target, and of its inputs by commit."""
    begun, targets = time.time(), inputs_of(options.modules)
    kept.mkdir(parents=True, exist_ok=True)
    number, shards = map(int, options.shard.split("/"))
    for place, (first, last, target) in enumerate(_blocks(targets, options)):
        path = kept / f"{target.replace(' ', '-')}-{options.seed}-{first}.json"
        if place % shards != number - 1 or (path.exists() and _read(path)[2].inputs >= last - first):
            continue
        if options.minutes is not None and time.time() - begun >= 60 * options.minutes:
            break
        start, own = time.time(), argparse.Namespace(**{**vars(options), "modules": [targets[target][0]]})
        tally = fuzz(target, first, last, own)
        write_text(path, json.dumps({"target": target, "commit": _commit(), **asdict(tally)}))
        print(f"{target}: {first} to {last} in {time.time() - start:.0f} s", *tally.failures, sep="\n  ", flush=True)
    found: dict[str, tuple[Tally, dict[str, int]]] = {name: (Tally(), {}) for name in targets}
    for path in sorted(kept.glob(f"*-{options.seed}-*.json")):
        target, commit, tally = _read(path)
        found[target][0].add(tally)
        found[target][1][commit] = found[target][1].get(commit, 0) + tally.inputs
    return {name: each for name, each in found.items() if each[0].inputs}


def _blocks(targets: dict[str, tuple[str, int]], options: argparse.Namespace) -> list[tuple[int, int, str]]:
    """First, last and target, so that all targets have been read to about the same share at any time."""
    wanted = {name: options.inputs or targets[name][1] for name in options.targets or targets}
    blocks = [(a, min(a + _BLOCK, most), name) for name, most in wanted.items() for a in range(0, most, _BLOCK)]
    return sorted(blocks, key=lambda block: block[0] / wanted[block[2]])


def _read(path: Path) -> tuple[str, Tally, str]:
    fields = json.loads(path.read_text(encoding="utf-8"))
    return fields.pop("target"), fields.pop("commit"), Tally(**fields)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--inputs", type=int, help="of each target (default: 20,000 of a kind of sound file, 2,000 of others)")
    add("--seed", type=int, default=0)
    add("--targets", nargs="+", help="default: all")
    add("--modules", nargs="+", default=MODULES, help=argparse.SUPPRESS)
    add("--sounds", default="", help="an audiofolder, of which some real files are damaged too")
    add("--failures", default="fuzz_failures", help="a folder for what is found (%(default)s)")
    add("--memory", type=int, default=2048, help="MB (%(default)s)")
    add("--seconds", type=float, default=10, help="of processor time for an input (%(default)s)")
    add("--kept", default="", metavar="DIR", help="a folder for the counts of each block, with which a run goes on")
    add("--minutes", type=float, help="begin no further block after so long (default: read all)")
    add("--shard", default="1/1", metavar="I/N", help="of every N blocks, read the I-th (%(default)s)")
    add("--first", type=int, default=0, help=argparse.SUPPRESS)
    add("--state", help=argparse.SUPPRESS)
    records.add_option(parser, "fuzz")
    options = parser.parse_args(arguments)
    if options.sounds and not Path(options.sounds).is_dir():
        parser.error(f"--sounds {options.sounds} is no folder")
    if options.state:
        read_all(options)
        return 0
    with tempfile.TemporaryDirectory() as unkept:
        found = run(options, Path(options.kept or unkept))
    tallies = {name: tally for name, (tally, _) in found.items()}
    print(table(tallies))
    by: dict[str, int] = {}
    for _, commits in found.values():
        by |= {commit: by.get(commit, 0) + number for commit, number in commits.items()}
    rows = [
        [
            *(name, tally.inputs, tally.refused, tally.decoded),
            *(records.number(tally.slowest, 2, "s"), records.number(tally.peak, 0, "MB"), len(tally.failures)),
        ]
        for name, tally in tallies.items()
    ]
    records.write(
        options.record,
        title="Damaged and hostile inputs",
        seed=options.seed,
        note=f"Inputs by the commit that read them: {', '.join(f'{name} {number:,}' for name, number in by.items())}.",
        values={
            "targets": records.table(["target", "inputs", "refused", "read", "slowest", "peak", "failures"], rows)
        },
        raw={name: {"failures": tally.failures, "commits": found[name][1]} for name, tally in tallies.items()},
    )
    return any(tally.failures for tally in tallies.values())


if __name__ == "__main__":
    # A thread of a target's own server would keep a child from its end.
    code = main()
    sys.stdout.flush()
    os._exit(code)
