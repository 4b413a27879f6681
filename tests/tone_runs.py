"""A folder of captioned tones, and a short training recipe on it."""

import pytest
import soundfile

import train
from wavlink.training.recipes import Recipe

from .conftest import RATE, tone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An audiofolder of 14 tones, two of which share each caption."""
    root = tmp_path_factory.mktemp("tones")
    for split in ("train", "validation"):
        (root / split).mkdir()
        lines = ["file_name,duration,label,caption,caption_2"]
        for i in range(14):
            seconds = 0.2 + 0.05 * i
            soundfile.write(root / split / f"{i}.wav", tone(150 * (1 + i // 2), seconds, i), RATE)
            lines.append(f"{i}.wav,{seconds},tone {i // 2},tone number {i // 2},number {i // 2}")
        (root / split / "metadata.csv").write_text("\n".join(lines))
    return root


def recipe(folder, output, *options) -> Recipe:
    small = ["--batch_size", "4", "--epochs", "2", "--num_workers", "0", "--mixed_precision", "no"]
    return train.parse_recipe(["quickstart", "--data", str(folder), "--output_dir", str(output), *small, *options])


TEXT_CONFIG = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
