"""The folder of a run: models and checkpoints written atomically, metrics, and records of where it ran."""

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
from typing import Any

import torch
from accelerate.tracking import get_available_trackers

from wavlink.atomic_files import could_not_write, only_writer, replaced_folder, write_text
from wavlink.atomic_files import remove as remove
from wavlink.system_errors import explained

from .recipe_fields import Recipe

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "numpy", "soundfile", "soxr")
SOURCES = ("data", "validation_data", "init", "audio_model", "text_model")  # fields of a recipe: Hub ids or folders


@contextmanager
def whole(
    folder: Path,
    process_index: int = 0,
    barrier: Callable[[], None] = lambda: None,
    broadcast: Callable[[str], str] = lambda token: token,
    stale: Sequence[str] = ("*",),
) -> Iterator[Path]:
    """Yield a folder to write into, which replaces `folder` once all is on the disk; see `replaced_folder`.

    Args:
        process_index, barrier: where several processes write into it together.
        broadcast: gives all of them the first one's text.
        stale: patterns of names in the older folder that are not kept.

    Raises:
        OSError: it could not be written, whatever error a full disk is to torch, safetensors or the system.
    """
    try:
        token = broadcast(secrets.token_hex(6))
        options = {"token": token, "process_index": process_index, "barrier": barrier}
        with replaced_folder(folder, stale, **options) as unfinished:
            yield unfinished
    except Exception as error:
        if worker_died(error):
            raise
        raise could_not_write(folder, error) from error


def alone_in_its_folder(train: Callable[[Recipe], Path]) -> Callable[[Recipe], Path]:
    """Decorate a function that trains a recipe, so that its run alone writes to the output folder.

    Raises:
        ValueError: another process trains there, or the folder holds a model that no run has written.
    """

    @functools.wraps(train)
    def train_alone(recipe: Recipe) -> Path:
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


def holds_run(folder: Path) -> bool:
    """Return whether a run has left a model or a checkpoint in a folder; a finished one may have no checkpoints."""
    if not (folder / "recipe.json").is_file():
        return False
    return any((folder / name).is_dir() for name in ("best", "last")) or any((folder / "checkpoints").glob("step-*"))


class Metrics:
    """`metrics.jsonl`: a line a step and a line a validation. Lines after the checkpoint resumed from are removed.

    Nothing in it depends on the clock, so a resumed run ends with the same file as an uninterrupted one.
    """

    def __init__(self, folder: Path, step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_text(self.path, "".join(kept))

    def write(self, **record: Any) -> None:
        """Add a line."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            what, advice = explained(error)
            line = f"could not write {self.path}: {what}; {advice}, and start the same command again when it can"
            raise OSError(line) from error

    def read(self) -> list[dict]:
        """Return all lines."""
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]


def environment(**facts: Any) -> dict:
    """Describe the machine, versions and command of this process, and add `facts`."""
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
    """Return the commit of the checkout that a file belongs to.

    None without git, and for an installed file, whose virtual environment may be inside another repository.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    options = {"cwd": file.parent, "env": variables, "capture_output": True, "text": True, "errors": "replace"}
    for question in (["ls-files", "--error-unmatch", file.name], ["describe", "--always", "--dirty"]):
        try:
            answer = subprocess.run(["git", *question], check=True, timeout=60, **options).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None
    return answer


def note_environment(folder: Path, **facts: Any) -> None:
    """Add the environment to `environment.jsonl`, at each start and resumption of a run."""
    _add_line(folder / "environment.jsonl", environment(**facts))


def note_seconds(folder: Path, step: int, seconds: float, **facts: Any) -> None:
    """Add to `environment.jsonl` how long this process has trained, and `facts`; a killed process has no such line."""
    _add_line(folder / "environment.jsonl", {"step": step, "seconds": round(seconds, 1), **facts})


def _add_line(path: Path, record: dict) -> None:
    """Add a line to a short file, and remove incomplete lines, which earlier versions left on a full disk."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    write_text(path, "".join(line for line in [*lines, json.dumps(record) + "\n"] if line.endswith("\n")))


def worker_died(error: BaseException | None) -> bool:
    """Return whether an error, or its cause, is torch's RuntimeError for a dead worker of a DataLoader."""
    died = isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error)
    return died or bool(error and worker_died(error.__cause__))


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Turn the error of a dead worker into an OSError that says what to do."""
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
    """Return those of a recipe's sources that are local files or folders; `owner/name` can be a folder or a Hub id."""
    sources = {recipe[name] for name in SOURCES} | set(recipe["mixture"])
    return sorted(source for source in sources if source and Path(source).exists())


def refuse_unknown_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose package is missing, which Accelerate would silently drop."""
    available = sorted(str(tracker) for tracker in get_available_trackers())
    missing = [name for name in names if name not in available]
    if missing:
        raise ValueError(
            f"no tracker {', '.join(missing)} here (installed: {', '.join(available) or 'none'}): pip install it"
        )
