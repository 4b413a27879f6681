"""What a run leaves behind: folders written atomically, metrics, and where it ran."""

import functools
import json
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate.tracking import get_available_trackers

from wavlink.atomic_files import only_writer, replaced_folder, write_text
from wavlink.atomic_files import remove as remove

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "numpy", "soundfile", "soxr")
SOURCES = ("data", "validation_data", "init", "audio_model", "text_model")  # fields of a recipe: Hub ids or folders


@contextmanager
def whole(
    folder: Path,
    process_index: int = 0,
    barrier=lambda: None,
    broadcast=lambda token: token,
    stale: Sequence[str] = ("*",),
) -> Iterator[Path]:
    """Yield a folder to write into, which replaces `folder` once all is on the disk (see `replaced_folder`).

    Args:
        process_index, barrier, broadcast: where several processes write into it together; `broadcast` gives all of
            them the first one's text.
        stale: patterns of names in the older folder that are not kept.
    """
    try:
        token = broadcast(secrets.token_hex(6))
        options = {"token": token, "process_index": process_index, "barrier": barrier}
        with replaced_folder(folder, stale, **options) as unfinished:
            yield unfinished
    except Exception as error:  # safetensors, torch and the system each have their own for a full disk
        if worker_died(error):
            raise
        raise OSError(
            f"could not write {folder}: {error}; what was there before is untouched: free space on its disk, and "
            "start the same command again"
        ) from error


def alone_in_its_folder(train: Callable) -> Callable:
    """Decorate what trains a recipe: in its output folder no other process trains, and nothing of others is replaced.

    Raises:
        ValueError: another process trains there, or it holds a model that no run has written.
    """

    @functools.wraps(train)
    def train_alone(recipe):
        folder = Path(recipe.output_dir)
        _refuse_other_models(folder)
        if int(os.environ.get("RANK", 0)):  # of several processes the first holds it
            return train(recipe)
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with only_writer(folder):
                return train(recipe)
        finally:
            if new and not any(folder.iterdir()):
                folder.rmdir()

    return train_alone


def _refuse_other_models(folder: Path) -> None:
    if (folder / "recipe.json").is_file():
        return
    for name in ("best", "last", "checkpoints"):
        if (folder / name).is_dir() and any(not path.name.startswith(".") for path in (folder / name).iterdir()):
            raise ValueError(f"{folder} holds {name}/, but no run has written it: give another --output_dir")


class Metrics:
    """`metrics.jsonl`: a line a step and a line a validation, and nothing from beyond the checkpoint resumed from.

    It holds nothing that depends on the clock, so that a resumed run ends with the file of an unbroken one.
    """

    def __init__(self, folder: Path, step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_text(self.path, "".join(kept))

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
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "commit": commit_of(Path(__file__)),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        **facts,
    }


def commit_of(file: Path) -> str | None:
    """The commit of the checkout that a file belongs to.

    None without git, and of an installed file, which may lie in a virtual environment in somebody else's repository.
    """
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    options = {"cwd": file.parent, "env": surroundings, "capture_output": True, "text": True, "errors": "replace"}
    for question in (["ls-files", "--error-unmatch", file.name], ["describe", "--always", "--dirty"]):
        try:
            answer = subprocess.run(["git", *question], check=True, timeout=60, **options).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None
    return answer


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
    write_text(path, "".join(line for line in [*lines, json.dumps(record) + "\n"] if line.endswith("\n")))


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
