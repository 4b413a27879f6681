"""Use a trained WavLink with transformers' own classes: classify a new sound, find sounds for a sentence, and draw the
audio-text similarity matrix. Importing `processing` registers WavLink with them.

    python examples/demo.py runs/quickstart/best
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from transformers import AutoModel, AutoProcessor, pipeline

from processing.audio import load_column
from processing.datasets.synthetic import KINDS, synthetic_dataset

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

QUERIES = ("a quiet low church bell", "a loud police siren", "heavy rain")


def name_a_sound(folder: str, clips: list[dict]) -> None:
    """Print the three best labels of a sound that was not in the training data."""
    classify = pipeline("zero-shot-audio-classification", model=folder)
    clip = clips[len(clips) // 2]
    answers = classify(load_column(clip["audio"]), candidate_labels=list(KINDS))[:3]
    print(f"\na new sound, labelled {clip['label']!r} ({clip['caption']}):")
    for answer in answers:
        print(f"  {100 * answer['score']:5.1f} %  {answer['label']}")


def find_sounds(similarities: np.ndarray, clips: list[dict]) -> None:
    """Print the three nearest sounds of each query, from similarities `[queries, clips]`."""
    for query, row in zip(QUERIES, similarities, strict=True):
        print(f"\nsounds for {query!r}:")
        for index in np.argsort(-row)[:3]:
            print(f"  {row[index]:.3f}  {clips[index]['caption']}")


def draw(similarities: np.ndarray, labels: list[str], path: Path) -> None:
    """Plot the similarities of one clip of each kind and the kinds' names; a trained model has a bright diagonal."""
    figure, axes = pyplot.subplots(figsize=(10, 9), layout="constrained")
    image = axes.imshow(similarities, cmap="magma")
    axes.set(title="cosine of sounds (rows) and texts (columns)", xlabel="text", ylabel="sound")
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6)
    axes.set_yticks(range(len(labels)), labels, fontsize=6)
    figure.colorbar(image, shrink=0.8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(f"\nsimilarity matrix: {path}")


@torch.inference_mode()
def main(folder: str) -> None:
    """Run the three parts with the model in `folder`."""
    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    clips = list(synthetic_dataset("test", clips_per_kind=3))

    def embed_text(texts: list[str]) -> torch.Tensor:
        return model.get_text_features(**processor(text=texts, return_tensors="pt")).pooler_output

    arrays = [load_column(clip["audio"]) for clip in clips]
    inputs = processor(audio=arrays, sampling_rate=16000, return_tensors="pt")
    audio_embeds = model.get_audio_features(**inputs).pooler_output
    name_a_sound(folder, clips)
    find_sounds((embed_text(list(QUERIES)) @ audio_embeds.T).numpy(), clips)
    labels = list(KINDS)
    first = [next(index for index, clip in enumerate(clips) if clip["label"] == label) for label in labels]
    similarities = audio_embeds[first] @ embed_text([f"This is a sound of {label}." for label in labels]).T
    draw(similarities.numpy(), labels, Path(folder).parent / "similarity.png")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # names that a console cannot write
    main(sys.argv[1])
