"""Tiny CLAPs with an HTS-AT tower of 48 kHz."""

import numpy as np
import torch
from transformers import (
    ClapConfig,
    ClapModel,
)

RATE = 48000


AUDIO = {  # two shifted-window stages over windows of 2 s: 201 frames on 256 x 16, folded to 64 x 64
    "num_mel_bins": 16,
    "spec_size": 64,
    "window_size": 4,
    "patch_embeds_hidden_size": 16,
    "hidden_size": 32,
    "depths": [2, 2],
    "num_attention_heads": [2, 4],
    "initializer_factor": 5.0,
}


def tone(hertz: float = 440.0, seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(scale=0.01, size=len(t))
    return (0.5 * np.sin(2 * np.pi * hertz * t) + noise).astype(np.float32)


def whole_clap(**audio) -> ClapModel:
    text = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clap = ClapModel(ClapConfig(text_config=text, audio_config={**AUDIO, **audio}, projection_dim=8))
    with torch.no_grad():  # trained ones: neither those of a new ClapAudioModel nor those of a new tower of ours
        batch_norm = clap.audio_model.audio_encoder.batch_norm
        batch_norm.running_mean.copy_(torch.linspace(-60, -20, 16))
        batch_norm.running_var.copy_(torch.linspace(200, 900, 16))
    return clap.eval()
