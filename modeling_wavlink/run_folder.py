"""What a run leaves behind: folders that are whole or absent, metrics, and where it ran."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate.tracking import get_available_trackers

from .whole_files import write_whole

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "numpy", "soundfile", "soxr")
SOURCES = ("data", "validation_data", "init", "audio_model", "text_model")  # fields of a recipe: Hub ids or folders


@contextmanager
def whole(folder: Path, process_index: int = 0, barrier=lambda: None) -> Iterator[Path]:
    """A folder to write into, which takes its name, and the place of an older one, only once all is on the disk.

    Args:
        process_index, barrier: where several processes write into it together.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    if process_index == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    barrier()
    try:
        yield unfinished
    except Exception as error:  # safetensors, torch and the system each have their own for a full disk
        shutil.rmtree(unfinished, ignore_errors=True)
        if worker_died(error):
            raise
        raise OSError(
            f"could not write {folder}: {error}; what was there before is untouched: free space on its disk, and "
            "start the same command again"
        ) from error
    barrier()
    if process_index == 0:
        for path in unfinished.rglob("*"):
            _to_disk(path)
        older = _without_name(folder)
        os.replace(unfinished, folder)
        shutil.rmtree(older, ignore_errors=True)
    barrier()


def remove(folder: Path) -> None:
    """A folder, which loses its name before its files: killed on the way, nothing is left that looks whole."""
    shutil.rmtree(_without_name(folder), ignore_errors=True)


def _without_name(folder: Path) -> Path:
    """Where the folder, if there is one, is now."""
    hidden = folder.with_name(f".{folder.name}.older.unfinished")
    shutil.rmtree(hidden, ignore_errors=True)
    with suppress(FileNotFoundError):
        os.replace(folder, hidden)
    return hidden


def remove_unfinished(folder: Path) -> None:
    """What a killed process was writing here: its name may be that of a step that does not come again."""
    for path in folder.glob(".*.unfinished"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Metrics:
    """`metrics.jsonl`: a line a step and a line a validation, and nothing from beyond the checkpoint resumed from.

    It holds nothing that depends on the clock, so that a resumed run ends with the file of an unbroken one.
    """

    def __init__(self, folder: Path, step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_whole(self.path, "".join(kept))

    def write(self, **record) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OSError(f"could not write {self.path}: {error}; start the same command again when it can") from error

    def read(self) -> list[dict]:
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]


def environment(**facts) -> dict:
    """Where and with what a run was started, and `facts`."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        **facts,
    }


def note_environment(folder: Path, **facts) -> None:
    """One more line in `environment.jsonl`: every start and resumption of the run (its end: `note_seconds`)."""
    _add_line(folder / "environment.jsonl", environment(**facts))


def note_seconds(folder: Path, step: int, seconds: float, **facts) -> None:
    """A short line in `environment.jsonl` where a start ends: how long it took by the clock, and `facts`. A killed one
    has none."""
    _add_line(folder / "environment.jsonl", {"step": step, "seconds": round(seconds, 1), **facts})


def _add_line(path: Path, record: dict) -> None:
    """To a short file; half a line, which an older version wrote where the disk was full, does not stay."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    write_whole(path, "".join(line for line in [*lines, json.dumps(record) + "\n"] if line.endswith("\n")))


def worker_died(error: BaseException | None) -> bool:
    """torch says so by an error of no type of its own, out of whatever the main process is doing."""
    told = isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error)
    return told or bool(error and worker_died(error.__cause__))


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not worker_died(error):
            raise
        raise OSError(
            f"a process that decodes sounds has died, often for want of memory ({error}): the same command goes on "
            "from the last checkpoint; --num_workers 0 needs no such process"
        ) from error


def on_disk(recipe: dict) -> list[str]:
    """Which of a recipe's sources are files or folders here: `owner/name` can be a folder or a Hub id."""
    sources = {recipe[name] for name in SOURCES} | set(recipe["mixture"])
    return sorted(source for source in sources if source and Path(source).exists())


def refuse_unknown_trackers(names: Sequence[str]) -> None:
    """Accelerate drops a tracker whose package is missing without a word."""
    available = sorted(str(tracker) for tracker in get_available_trackers())
    missing = [name for name in names if name not in available]
    if missing:
        raise ValueError(
            f"no tracker {', '.join(missing)} here (installed: {', '.join(available) or 'none'}): pip install it"
        )
