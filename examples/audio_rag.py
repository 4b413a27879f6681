"""A language model with sound as input: it captions a clip from a WavLink's states and captions of similar clips.

    python examples/audio_rag.py runs/sounds/best FOLDER --out runs/rag --steps 500

The WavLink is frozen. For each clip the captions of the nearest clips of the training split are the prompt
(retrieval-augmented generation). Before it the model gets, through a linear projector, the last state of the global
token, one vector, or up to 32 means of neighbouring frames, or nothing. Each way trains a GPT-2 of its own from the
same random weights, on the same batches and for as many steps, and is scored on the test split.
"""

import argparse
import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from sound_captioner import SPECIAL, TOKENS, Captioner, train
from torch.nn import functional as F
from tqdm import tqdm
from transformers import GPT2Tokenizer

from wavlink import WavLinkModel, WavLinkProcessor, load_audio

# The states of the sound that are the input, and whether the prompt holds the retrieved captions.
WAYS = {"nothing": (None, False), "token": ("token", False), "frames": ("frames", False)}
WAYS |= {"text": (None, True), "text + token": ("token", True), "text + frames": ("frames", True)}
DIFFERENCES = (("text + token", "text"), ("text + token", "token"), ("text + frames", "text + token"))
WIDTH, LEARNING_RATE = 128, 1e-3  # of the language model
FRAMES, NEIGHBOURS = TOKENS, 3


class Clips:
    """For each clip its captions, the frozen tower's states, its vector, and the captions of its nearest clips."""

    @torch.no_grad()
    def __init__(self, model: WavLinkModel, processor: WavLinkProcessor, rows: list[dict], known: "Clips | None"):
        self.captions, self.states, vectors = [row["captions"] for row in rows], {"token": [], "frames": []}, []
        for row in tqdm(rows, desc="encoding"):
            inputs = processor(audio=load_audio(row["file"]), sampling_rate=16000, return_tensors="pt")
            output = model.audio_model(**inputs, pooling=model.config.pooling)
            token, frames = output.pooler_output, output.last_hidden_state[0]  # (1, D), (T, D)
            means = [part.mean(0) for part in frames.split(-(-len(frames) // FRAMES))]
            self.states["token"].append(token.half())
            self.states["frames"].append(torch.stack(means).half())
            vectors.append(model.audio_projection(token)[0])
        self.vectors = F.normalize(torch.stack(vectors), dim=-1)
        similarities = self.vectors @ (known or self).vectors.T
        if known is None:
            similarities.fill_diagonal_(-2)  # a training clip is not its own neighbour
        nearest = similarities.topk(min(NEIGHBOURS, similarities.shape[1])).indices
        self.retrieved = [[(known or self).captions[i][0] for i in row] for row in nearest]


def overlap(written: str, captions: list[str]) -> float:
    """Return the F1 of the words, as sets, with the most similar caption."""
    words, others = {*written.lower().split()}, [{*caption.lower().split()} for caption in captions]
    return max(2 * len(words & other) / (len(words) + len(other)) for other in others)


@torch.inference_mode()
def score(captioner: Captioner, clips: Clips) -> dict[str, list]:
    """Return for each clip the loss of its first caption, the generated caption, and how it fits the clip's own."""
    captioner.eval()
    results = {"loss": [], "written": []}
    for chosen in torch.arange(len(clips.captions)).split(64):
        results["loss"] += captioner(clips, chosen, [clips.captions[i][0] for i in chosen]).tolist()
        results["written"] += captioner.write(clips, chosen)
    pairs = list(zip(results["written"], clips.captions, strict=True))
    exact = [float(text in captions) for text, captions in pairs]
    return results | {"exact": exact, "word F1": [overlap(*pair) for pair in pairs]}


def mean(values: list[float]) -> dict:
    """Return the mean over clips and its 95 % bootstrap interval, on the same samples of clips at each call."""
    rng = np.random.default_rng(0)
    means = [rng.choice(values, len(values)).mean() for _ in range(1000)]
    return {"value": float(np.mean(values)), "interval": np.percentile(means, [2.5, 97.5]).tolist()}


def report(scores: dict[str, dict]) -> dict:
    """Print and return each figure's mean and 95 % interval over clips, and those of differences between ways."""
    rows = {name: {key: row[key] for key in row if key != "written"} for name, row in scores.items()}
    for more, less in DIFFERENCES:
        rows[f"{more} - {less}"] = {key: np.subtract(x, rows[less][key]) for key, x in rows[more].items()}
    figures = {name: {key: mean(x) for key, x in row.items()} for name, row in rows.items()}
    for name, row in figures.items():
        cells = [f"{key} {x['value']:.3f} [{x['interval'][0]:.3f}, {x['interval'][1]:.3f}]" for key, x in row.items()]
        print(f"{name:30}" + "  ".join(cells))
    return figures


def load_split(folder: str, split: str) -> list[dict]:
    """Return `file` and `captions` of each row of a split's `metadata.csv`, in all columns named like captions."""
    root = Path(folder).resolve() / split
    with open(root / "metadata.csv", newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    columns = [name for name in rows[0] if re.fullmatch(r"captions?(_?\d+)?|text", name)]
    found = [{"file": root / row["file_name"], "captions": [row[c] for c in columns if row[c]]} for row in rows]
    return [row for row in found if row["captions"]]


def encode(model_name: str, folder: str, clips: int = 0) -> tuple[dict[str, Clips], GPT2Tokenizer]:
    """Encode both splits, of the training split some clips, and train a tokenizer on its captions."""
    model = WavLinkModel.from_pretrained(model_name).eval()
    processor = WavLinkProcessor.from_pretrained(model_name)
    rows = load_split(folder, "train")
    if clips:
        rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:clips]]
    train_split = Clips(model, processor, rows, None)
    test_split = Clips(model, processor, load_split(folder, "test"), train_split)
    tokenizer = GPT2Tokenizer(**SPECIAL).train_new_from_iterator(train_split.captions, 3000, show_progress=False)
    return {"train": train_split, "test": test_split}, tokenizer


def compare(clips: dict[str, Clips], tokenizer: GPT2Tokenizer, steps: int, seed: int) -> dict[str, dict]:
    """Train a language model for each way, and return the scores of its captions of the test split."""
    scores = {}
    for name, way in WAYS.items():
        torch.manual_seed(seed)
        captioner = Captioner(tokenizer, clips["train"].states["token"][0].shape[-1], *way, WIDTH)
        train(captioner, clips["train"], steps, LEARNING_RATE, seed)
        scores[name] = score(captioner, clips["test"])
    return scores


def main(argv: list[str] | None = None) -> dict:
    """Train and score each way; return the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a WavLink: folder or Hub id")
    parser.add_argument("folder", help="with train and test, each with a metadata.csv: file_name, caption")
    parser.add_argument("--out", type=Path, default=Path("runs/rag"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--clips", type=int, default=0, help="of the training split; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    scores = compare(*encode(options.model, options.folder, options.clips), options.steps, options.seed)
    figures, written = report(scores), {name: row["written"][:50] for name, row in scores.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"figures": figures, "written": written}, indent=2)
    (options.out / "scores.json").write_text(text + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a caption may hold what the terminal cannot show
    main()
