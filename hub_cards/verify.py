"""Check that a folder gives the same vectors as the model in memory, in a clean environment."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import ProcessorMixin

from wavlink.temporary_paths import temporary_folder

from .exports import export_files

TEXTS = ("a dog barks", "rain falls on a roof")
CLEAN_ENVIRONMENT = Path(__file__).with_name("clean_environment.py")
TOLERANCE = 1e-5  # of a number in a unit vector: merging LoRA rounds
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack")


def probe() -> np.ndarray:
    """Return the clip of the check, float32 `[samples]`: 16000 samples of noise."""
    return np.random.default_rng(0).normal(scale=0.1, size=16000).astype(np.float32)


@torch.no_grad()
def vectors(model: torch.nn.Module, processor: ProcessorMixin) -> dict[str, np.ndarray]:
    """Return `audio` `[1, projection_dim]` of the probe and `text` `[2, projection_dim]` of `TEXTS`."""
    rate = processor.feature_extractor.sampling_rate
    inputs = processor(text=list(TEXTS), audio=probe(), sampling_rate=rate, return_tensors="pt")
    output = model(**inputs)
    return {"audio": output.audio_embeds.float().numpy(), "text": output.text_embeds.float().numpy()}


def verify(folder: Path, expected: dict[str, np.ndarray]) -> None:
    """Load a folder in a clean process through AutoModel, AutoProcessor and pipeline, and compare its vectors.

    Args:
        expected: the result of `vectors`.

    Raises:
        ValueError: the folder holds a pickle, does not load, or gives other vectors.
    """
    if names := pickled(folder):
        raise ValueError(
            f"{', '.join(names)} in {folder} could run code where it is loaded: only safetensors are pushed"
        )
    with temporary_folder("wavlink-push-") as workplace:
        np.save(workplace / "clip.npy", probe())
        command = [sys.executable, str(CLEAN_ENVIRONMENT), str(folder.resolve()), str(workplace), *TEXTS]
        done = subprocess.run(
            command,
            cwd=workplace,
            env=_environment(workplace),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            raise ValueError(f"{folder} does not load with transformers and torch alone: {_error_in(done.stderr)}")
        loaded = np.load(workplace / "vectors.npz")
        for name, vector in expected.items():
            difference = np.abs(loaded[name] - vector).max()
            if not difference < TOLERANCE:  # also false for NaN
                raise ValueError(f"loaded from {folder}, the {name} vectors differ by {difference:.2g}")


def _error_in(traceback: str) -> str:
    """Return the last exception of a traceback, which may have several lines."""
    lines = traceback.strip().splitlines()
    starts = [number for number, line in enumerate(lines) if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return "\n".join(lines[starts[-1] :]) if starts else "it was killed: is there memory for the model?"


def pickled(folder: Path) -> list[str]:
    """Return the names of files that are pickles by their name or by their first bytes (torch.save writes a zip).

    The graphs of exports are none: OpenVINO names raw numbers `.bin`.
    """
    names, graphs = [], export_files(folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.relative_to(folder).as_posix() in graphs:
            continue
        with open(path, "rb") as file:
            head = file.read(2)
        if path.suffix in _PICKLED or head == b"PK" or (head[:1] == b"\x80" and head[1:] <= b"\x05"):
            names.append(path.relative_to(folder).as_posix())
    return names


def _environment(workplace: Path) -> dict[str, str]:
    """Return an environment without caches and without the Hub's token."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return kept | {"PYTHONPATH": "", "HF_HOME": str(workplace), "HF_HUB_OFFLINE": "1"}
