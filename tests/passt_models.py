"""Tiny PaSSTs with the names of the reference implementation, and vectors and log-mels recorded from it."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from modeling_wavlink import WavLinkPasstConfig
from processing import WavLinkPasstFeatureExtractor

RATE = 32000
RECORD = Path(__file__).parent / "model" / "passt_reference.npz"
LENGTHS = (16, 57, 98, 100)  # frames

# A window of 1 s; two layers.
AUDIO = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_mel_bins": 128,
    "window_frames": 100,
    "initializer_range": 0.2,
}


def tone(hertz: float = 440.0, seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(scale=0.01, size=len(t))
    return (0.5 * np.sin(2 * np.pi * hertz * t) + noise).astype(np.float32)


def features(frames: int, clips: int = 2) -> torch.Tensor:
    """Random features `[clips, 128, frames]` by a generator that does not change between versions."""
    return torch.from_numpy(np.random.default_rng(frames).normal(size=(clips, 128, frames)).astype(np.float32))


def weights(shapes: dict[str, list[int]] | None = None) -> dict[str, torch.Tensor]:
    """Weights of a PaSST of `AUDIO`'s sizes by the reference's names; by default those that it has."""
    shapes = shapes or json.loads(str(np.load(RECORD)["shapes"]))
    generator = np.random.default_rng(1)
    drawn = {name: generator.normal(scale=0.4, size=shape) for name, shape in sorted(shapes.items())}
    return {name: torch.from_numpy(weight.astype(np.float32)) for name, weight in drawn.items()}


def save_passt(folder: Path, prefix: str = "", **config) -> Path:
    """A folder of the reference's weights, by its names, with our config and feature extractor."""
    config = WavLinkPasstConfig(**{**AUDIO, **config})
    config.save_pretrained(folder)
    saved = {prefix + name: weight for name, weight in weights().items()}
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    WavLinkPasstFeatureExtractor.from_passt(config, chunk_length=5).save_pretrained(folder)
    return folder
