"""Whether a folder gives, with transformers and torch alone, what the model in memory gives."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from .workplace import temporary

TEXTS = ("a dog barks", "rain falls on a roof")
CLEAN_ENVIRONMENT = Path(__file__).with_name("clean_environment.py")
TOLERANCE = 1e-5  # of a number in a unit vector: merging LoRA rounds
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack")


def probe() -> np.ndarray:
    """float32 `[samples]`: a second of noise, or less where the rate is higher."""
    return np.random.default_rng(0).normal(scale=0.1, size=16000).astype(np.float32)


@torch.no_grad()
def vectors(model: torch.nn.Module, processor) -> dict[str, np.ndarray]:
    """`audio` `[1, projection_dim]` of the probe and `text` `[2, projection_dim]` of TEXTS."""
    rate = processor.feature_extractor.sampling_rate
    inputs = processor(text=list(TEXTS), audio=probe(), sampling_rate=rate, return_tensors="pt")
    output = model(**inputs)
    return {"audio": output.audio_embeds.float().numpy(), "text": output.text_embeds.float().numpy()}


def verify(folder: Path, expected: dict[str, np.ndarray]) -> None:
    """Refuses a folder that holds anything pickled, does not load in a clean process through AutoModel, AutoProcessor
    and pipeline, or gives the probe other vectors than `expected`, which `vectors` gave."""
    if found := pickled(folder):
        raise ValueError(
            f"{', '.join(found)} in {folder} could run code where it is loaded: only safetensors are pushed"
        )
    with temporary() as workplace:
        np.save(f"{workplace}/clip.npy", probe())
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
        found = np.load(f"{workplace}/vectors.npz")
        for name, vector in expected.items():
            difference = np.abs(found[name] - vector).max()
            if not difference < TOLERANCE:  # nor NaN
                raise ValueError(f"loaded from {folder}, the {name} vectors differ by {difference:.2g}")


def _error_in(traceback: str) -> str:
    """Its last exception, whose words may be several lines."""
    lines = traceback.strip().splitlines()
    starts = [number for number, line in enumerate(lines) if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return "\n".join(lines[starts[-1] :]) if starts else "it was killed: is there memory for the model?"


def pickled(folder: Path) -> list[str]:
    """Names of files that are pickles by their name or by their first bytes (torch.save writes a zip)."""
    names = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            head = file.read(2)
        if path.suffix in _PICKLED or head == b"PK" or (head[:1] == b"\x80" and head[1:] <= b"\x05"):
            names.append(path.relative_to(folder).as_posix())
    return names


def _environment(workplace: Path) -> dict[str, str]:
    """Without caches and without the Hub's token, which is nothing to the code that is tried."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return kept | {"PYTHONPATH": "", "HF_HOME": str(workplace), "HF_HUB_OFFLINE": "1"}
