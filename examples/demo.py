"""Try the bundled model on real sounds, then teach it sounds that it does not know.

    python examples/demo.py --out runs/demo

It names and finds twelve real clips (examples/sounds) and draws them as a map. Then it fine-tunes the model with LoRA
on sounds made by code, measures the zero-shot accuracy on unseen clips before and after, and loads the result in a new
process through AutoModel and transformers' own pipeline. `--model` takes another WavLink.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import finetune_lora
import numpy as np

from wavlink import Embedder, Index, bundled, classify

KINDS = (
    "morse code, telephone keypad, dial tone, busy tone, rising chirp, falling chirp, white noise, brown noise, "
    "geiger counter, heartbeat, rising scale, falling scale"
).split(", ")
QUERIES = ("an animal calls", "running water", "a loud bang", "people sing", "a string instrument plays")
PROMPT = "This is a sound of {}."  # one, since AutoModel averages none
RELOAD = """
import json, sys
import soundfile, torch
from transformers import AutoModel, AutoProcessor, pipeline

folder, clip, prompt, *labels = sys.argv[1:]
trusted = {"trust_remote_code": True}
model, processor = (auto.from_pretrained(folder, **trusted) for auto in (AutoModel, AutoProcessor))
samples, rate = soundfile.read(clip, dtype="float32")
texts = [prompt.replace("{}", label) for label in labels]
with torch.no_grad():
    outputs = model.eval()(**processor(audio=samples, text=texts, sampling_rate=rate, return_tensors="pt"))
name = pipeline("zero-shot-audio-classification", model=folder, **trusted)
named = name(samples, candidate_labels=labels, hypothesis_template=prompt)
assert "wavlink" not in sys.modules
model = dict(zip(labels, outputs.logits_per_audio[0].softmax(-1).tolist()))
scores = {label["label"]: label["score"] for label in named}
print(json.dumps({"model": model, "pipeline": scores, "vector": outputs.audio_embeds[0].tolist()}))
"""


class Table:
    """Steps with their results, printed at the end, and the time that each took."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self._start = self._last = time.monotonic()

    def add(self, step: str, *results: str) -> None:
        """Add a step that ends now; a second result and further ones have rows of their own."""
        now = time.monotonic()
        self.rows.append((step, results[0], f"{now - self._last:.1f} s"))
        self.rows += [("", result, "") for result in results[1:]]
        self._last = now

    def __str__(self) -> str:
        rows = [*self.rows, ("together", "", f"{self._last - self._start:.1f} s")]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>8}" for a, b, c in rows)


def wavlink(*words: str) -> None:
    """Run a command of `wavlink` in this Python."""
    subprocess.run([sys.executable, "-m", "wavlink", *words], check=True)


def read_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metadata.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def name_sounds(embedder: Embedder, folder: Path) -> str:
    """Name the real clips, with the labels of all of them to choose from."""
    rows = read_rows(folder)
    results = classify(embedder, [folder / row["file_name"] for row in rows], [row["label"] for row in rows], top_k=3)
    print(f"\n{'clip':18} named as")
    right = [0, 0]
    for row, result in zip(rows, results, strict=True):
        names = [answer["label"] for answer in result["labels"]]
        right = [right[0] + (row["label"] == names[0]), right[1] + (row["label"] in names)]
        shares = ", ".join(f"{answer['label']} {100 * answer['score']:.0f} %" for answer in result["labels"])
        print(f"{row['file_name']:18} {shares}")
    return f"{right[0]} of {len(rows)} right, {right[1]} among the first three"


def find_sounds(embedder: Embedder, folder: Path, index: Path) -> str:
    """Index the real clips, and search them by sentences."""
    opened = Index.build(folder, index, embedder, progress=False)
    print()
    for query in QUERIES:
        hits = ", ".join(f"{hit.path} {hit.score:.2f}" for hit in opened.query(query, top_k=3))
        print(f"{query!r:28} {hits}")
    return f"{len(opened)} sounds, {len(QUERIES)} sentences"


def fine_tune(model: str, sounds: Path, out: Path, steps: int) -> list[str]:
    """Fine-tune with LoRA; return the accuracies on unseen clips before and after, with 95 % intervals."""
    words = ["--steps", str(steps), "--batch_size", "36", "--max_seconds", "2"]
    scores = finetune_lora.main([model, str(sounds), "--out", str(out), *words])
    rows = []
    for name, score in scores.items():
        low, high = score["interval"]
        rows.append(f"  {name:11}{100 * score['value']:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
    return rows


def reload(folder: Path, clip: Path, labels: list[str]) -> str:
    """Load the fine-tuned model in a new process without this package, and compare what it says of a clip."""
    embedder = Embedder(folder)
    (vector,) = embedder.embed_files([clip])
    (here,) = classify(embedder, clip, labels, prompts=PROMPT, top_k=len(labels))
    words = [sys.executable, "-c", RELOAD, str(folder.resolve()), str(clip.resolve()), PROMPT, *labels]
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=folder)
    there = json.loads(done.stdout.splitlines()[-1])
    scores = {label["label"]: label["score"] for label in here["labels"]}
    off = max(abs(scores[label] - there[door][label]) for door in ("model", "pipeline") for label in labels)
    difference = float(np.abs(vector - there["vector"]).max())
    if off > 1e-3 or difference > 1e-4:
        raise SystemExit(f"a new process answers otherwise: scores differ by {off:.1e}, vectors by {difference:.1e}")
    return f"AutoModel and pipeline say {here['labels'][0]['label']!r} too, vectors within {difference:.0e}"


def main(argv: list[str] | None = None) -> Table:
    """Run all steps, and print and return their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a WavLink's folder (default: the bundled wavlink-tiny)")
    parser.add_argument("--out", default="runs/demo", help="folder for sounds, map and models, written anew")
    parser.add_argument("--steps", type=int, default=40, help="of the fine-tuning")
    parser.add_argument("--clips_per_kind", type=int, default=12, help="made by code, to train on and to score")
    options = parser.parse_args(argv)

    out, table = Path(options.out), Table()
    real, made = out / "sounds", out / "made"
    for folder in (real, made, out / "index", out / "tuned"):
        shutil.rmtree(folder, ignore_errors=True)
    wavlink("samples", str(real), "--real")
    wavlink("samples", str(made), "--clips_per_kind", str(options.clips_per_kind), "--kinds", *KINDS)
    model = options.model or bundled()
    embedder = Embedder(model)
    table.add("load", f"{embedder.name}, {embedder.parameters / 1e6:.1f}M parameters")
    table.add("name real sounds", name_sounds(embedder, real))
    table.add("find real sounds", find_sounds(embedder, real, out / "index"))
    metadata = str(real / "metadata.csv")
    wavlink("map", str(out / "index"), "--out", str(out / "map.html"), "--labels", metadata, "--embed_audio")
    table.add("draw the map", str(out / "map.html"))
    accuracies = fine_tune(model, made, out / "tuned", options.steps)
    unseen = read_rows(made / "test")
    table.add(f"learn {len(KINDS)} new kinds, LoRA", f"zero-shot on {len(unseen)} unseen clips:", *accuracies)
    clip = made / "test" / unseen[0]["file_name"]
    table.add("load it in a new process", reload(out / "tuned", clip, list(KINDS)))
    print(f"\n{table}")
    return table


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # names that a console cannot write
    main()
