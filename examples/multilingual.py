"""A WavLink for six languages: Whisper beside an XLM-R, trained by `wavlink train` and scored in each language.

    python examples/multilingual.py FOLDER --audio_model openai/whisper-tiny.en --out runs/multilingual

FOLDER holds train, validation and test, each with a `metadata.csv`: file_name, label and an English caption. Captions
in other languages are made here: the labels of multilingual_labels.csv in six languages, and, for speech, the
transcript (the quotation that ends an English caption), in its language. The XLM-R starts from random weights and a
tokenizer made from these texts, so it knows the words of its training data alone; a pretrained one is `--text_model
FacebookAI/xlm-roberta-base`. Other options are those of `wavlink train`. `wavlink distill --translations` makes a
trained WavLink multilingual instead, without sounds.
"""

import argparse
import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer

import wavlink
from wavlink import Embedder

PROMPTS = {
    "en": "This is a sound of {}.",
    "de": "Ein Geräusch: {}.",
    "fr": "Un son : {}.",
    "es": "Un sonido: {}.",
    "ru": "Звук: {}.",
    "zh": "这是{}的声音。",
}
with open(Path(__file__).with_name("multilingual_labels.csv"), newline="", encoding="utf-8") as table:
    WORDS = {row["en"]: row for row in csv.DictReader(table)}
SAID = "caption_said"


def texts_of(row: dict) -> dict[str, str]:
    """Return the new columns of a row with English captions; "" where there is no text."""
    words = WORDS.get(row["label"])
    quotation = re.search(r': "(.+)"$', row["caption"] or "")
    labels = {f"caption_{name}": PROMPTS[name].format(words[name]) if words else "" for name in PROMPTS}
    return {**labels, SAID: quotation[1] if quotation else ""}


def write_split(source: Path, out: Path) -> list[dict]:
    """Write links to a split's sounds and its new columns to `out`; return the rows, with the sound's path."""
    out.mkdir(parents=True, exist_ok=True)
    with open(source / "metadata.csv", newline="", encoding="utf-8") as file:
        rows = [{**row, **texts_of(row)} for row in csv.DictReader(file)]
    for number, row in enumerate(rows):
        sound = (source / row["file_name"]).resolve()
        link = out / f"{number:06d}{sound.suffix}"  # metadata may name no file outside its folder
        link.unlink(missing_ok=True)
        link.symlink_to(sound)
        row["file_name"] = link.name
    with open(out / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return [{**row, "file": str(out / row["file_name"])} for row in rows]


def new_xlm_r(captions: list[str], folder: Path, width: int = 256, seed: int = 0) -> None:
    """Save a small XLM-R with random weights, and a tokenizer of its kind made from `captions`."""
    tokenizer = XLMRobertaTokenizer().train_new_from_iterator(captions, vocab_size=8000, show_progress=False)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=130,  # 128 tokens: positions begin after pad_token_id
        initializer_range=width**-0.5,  # the default 0.02 is for wide towers; this one would learn slowly
    )
    torch.manual_seed(seed)
    XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "1_Pooling").mkdir(exist_ok=True)  # sentence-transformers' way to say how a tower is pooled
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))


def mean(values: np.ndarray) -> dict:
    """Return the mean over clips and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    means = [rng.choice(values, len(values)).mean() for _ in range(1000)]
    return {"value": float(values.mean()), "interval": np.percentile(means, [2.5, 97.5]).tolist()}


def zero_shot(embedder: Embedder, rows: list[dict]) -> dict:
    """Return the accuracy in each language, of the labels in that language, over the clips that can be read."""
    embedded = zip(rows, embedder.embed_files([row["file"] for row in rows]), strict=True)
    clips = [(row["label"], x) for row, x in embedded if row["label"] in WORDS and not isinstance(x, ValueError)]
    named, sounds = np.array([label for label, _ in clips]), np.stack([vector for _, vector in clips])  # (clips, dims)
    labels = sorted({*named.tolist()})
    scores = {"clips": len(named), "chance": 1 / len(labels), "zero_shot": {}}
    for language, prompt in PROMPTS.items():
        texts = embedder.embed_text([prompt.format(WORDS[label][language]) for label in labels])
        scores["zero_shot"][language] = mean(np.array(labels)[(sounds @ texts.T).argmax(1)] == named)
    return scores


def show(scores: dict) -> None:
    """Print the scores."""
    print(f"zero-shot, {scores['clips']} clips, chance level {100 * scores['chance']:.1f}:")
    rows = dict(scores["zero_shot"])
    if said := scores.get("said"):
        dim = str(said["about"]["dims"])
        rows |= {"transcript -> its clip, R@10": said["text_to_audio"][dim]["R@10"]}
        rows |= {f"  in {name}": row["text_to_audio"]["R@10"] for name, row in said.get("groups", {}).items()}
    for name, figure in rows.items():
        value, low, high = (f"{100 * x:.1f}" for x in (figure["value"], *figure["interval"]))
        print(f"  {name}  {value} [{low}, {high}]")


def main(argv: list[str] | None = None) -> dict:
    """Write the data, train, and return the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="with train, validation and test, each with a metadata.csv")
    parser.add_argument("--audio_model", required=True)
    parser.add_argument("--text_model", help="default: a small new one")
    parser.add_argument("--out", type=Path, default=Path("runs/multilingual"))
    options, training = parser.parse_known_args(argv)
    data, run = options.out / "data", options.out / "run"
    splits = {name: write_split(Path(options.folder) / name, data / name) for name in ("train", "validation", "test")}
    columns = [name for name in splits["train"][0] if name.startswith("caption")]
    text_model = options.text_model or str(options.out / "xlm-r")
    if not Path(text_model).exists() and not options.text_model:
        new_xlm_r([row[name] for row in splits["train"] for name in columns if row[name]], Path(text_model))
    command = [sys.executable, "-m", "wavlink", "train", "sounds", "--output_dir", run, "--data", data]
    command += ["--audio_model", options.audio_model, "--text_model", text_model]
    command += ["--caption_columns", ",".join(columns), *training]
    if code := subprocess.run([str(word) for word in command]).returncode:
        raise SystemExit(code)
    scores = zero_shot(Embedder(run / "best"), splits["test"])
    if len({row[SAID] for row in splits["test"]} - {""}) > 1:  # one phrase cannot be searched
        transcripts = {"caption_columns": [SAID], "group_column": "language", "choices": 0}
        scores["said"] = wavlink.evaluate(run / "best", data, **transcripts)
    (options.out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    show(scores)
    return scores


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack characters of these languages
    main()
