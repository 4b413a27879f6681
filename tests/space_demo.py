"""A tiny WavLink on disk with an index of tones, for the tests of the demo."""

from pathlib import Path

import numpy as np
import soundfile
import torch

from hub_cards.space.answers import Demo, Limits
from modeling_wavlink import WavLinkModel
from processing import WavLinkProcessor
from wavlink.embedder import Embedder
from wavlink.search.build import index_sounds

from .conftest import RATE, tone


def write_model(folder: Path, whisper: Path, bert: Path) -> Path:
    """Three nested dims: 8, 16 and 32."""
    torch.manual_seed(0)
    dims = {"projection_dim": 32, "matryoshka_dims": [32, 16, 8]}
    model = WavLinkModel.from_audio_text_pretrained(str(whisper), str(bert), text_pooling="mean", **dims)
    with torch.no_grad():
        for name, weight in model.audio_model.encoder.named_parameters():
            if weight.dim() > 1 and "embed_positions" not in name:
                weight.mul_(10)  # or all clips would lie together
    model.save_pretrained(folder)
    WavLinkProcessor.from_audio_text_pretrained(str(whisper), str(bert)).save_pretrained(folder)
    return folder


def write_sounds(folder: Path) -> Path:
    """Seven tones to find, below `folder`; beside it what a visitor drops, some of it broken."""
    folder.mkdir()
    for hertz in range(200, 900, 100):
        soundfile.write(folder / f"{hertz} hertz.wav", tone(hertz, 1.5), RATE)
    soundfile.write(folder.parent / "dropped.wav", tone(500, 2), RATE)
    soundfile.write(folder.parent / "silent.wav", np.zeros(RATE, np.float32), RATE)
    soundfile.write(folder.parent / "long.flac", np.concatenate([tone(300, 6), tone(700, 6), tone(300, 6)]), RATE)
    (folder.parent / "broken.wav").write_bytes(b"RIFF, and then nothing of a sound")
    return folder


def write_index(folder: Path, model: Path, sounds: Path) -> Path:
    index_sounds(str(sounds), folder, str(model), dim=16, progress=False)
    return folder


def write_all(folder: Path, whisper: Path, bert: Path) -> Path:
    """`model`, `sounds` and `index` in `folder`."""
    write_model(folder / "model", whisper, bert)
    write_index(folder / "index", folder / "model", write_sounds(folder / "sounds"))
    return folder


def demo_in(folder: Path, limits: Limits | None = None) -> Demo:
    embedder = Embedder(str(folder / "model"))
    return Demo(embedder, str(folder / "index"), limits=limits or Limits(), trained="tones")
