"""Use a trained WavLink: name an unseen sound, find sounds for a sentence, and draw the audio-text similarity matrix.

wavlink samples sounds
python examples/demo.py runs/quickstart/best sounds/test
"""

import csv
import sys
from pathlib import Path

import matplotlib
import numpy as np

from wavlink import Embedder, classify

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

QUERIES = ("a quiet low church bell", "a loud police siren", "heavy rain")


def name_a_sound(embedder: Embedder, clip: dict, labels: list[str]) -> None:
    (named,) = classify(embedder, clip["path"], labels, top_k=3)
    print(f"\nan unseen sound, in truth {clip['label']!r} ({clip['caption']}):")
    for answer in named["labels"]:
        print(f"  {100 * answer['score']:5.1f} %  {answer['label']}")


def find_sounds(similarities: np.ndarray, clips: list[dict]) -> None:
    for query, row in zip(QUERIES, similarities, strict=True):
        print(f"\nsounds for {query!r}:")
        for index in np.argsort(-row)[:3]:
            print(f"  {row[index]:.3f}  {clips[index]['caption']}")


def draw(similarities: np.ndarray, labels: list[str], path: Path) -> None:
    """Draw one clip of each kind against the names of the kinds: after training the diagonal is bright."""
    figure, axes = pyplot.subplots(figsize=(10, 9), layout="constrained")
    image = axes.imshow(similarities, cmap="magma")
    axes.set(title="cosine of sounds (rows) and texts (columns)", xlabel="text", ylabel="sound")
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6)
    axes.set_yticks(range(len(labels)), labels, fontsize=6)
    figure.colorbar(image, shrink=0.8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(f"\nsimilarity matrix: {path}")


def main(model: str, sounds: str) -> None:
    with open(Path(sounds) / "metadata.csv", newline="", encoding="utf-8") as file:
        clips = [{**row, "path": str(Path(sounds) / row["file_name"])} for row in csv.DictReader(file)]
    first = {clip["label"]: number for number, clip in reversed([*enumerate(clips)])}
    labels = sorted(first)
    embedder = Embedder(model)
    vectors = np.stack(list(embedder.embed_files([clip["path"] for clip in clips])))  # [clips, dims], L2-normalised
    name_a_sound(embedder, clips[len(clips) // 2], labels)
    find_sounds(embedder.embed_text(QUERIES) @ vectors.T, clips)
    names = embedder.embed_text([f"This is a sound of {label}." for label in labels])
    draw(vectors[[first[label] for label in labels]] @ names.T, labels, Path(model).parent / "similarity.png")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # names that a console cannot write
    main(*sys.argv[1:])
