"""Fine-tune a WavLink with LoRA on labelled sounds, such as ESC-50, and measure the change in zero-shot accuracy.

    python examples/finetune_lora.py runs/sounds/best FOLDER --out runs/labels --steps 100

FOLDER holds `train` and `test`, each with a `metadata.csv` (columns `file_name` and `label`) or a folder of sounds for
each label (`FOLDER/train/LABEL/*.wav`). Both accuracies are of the test split, among the labels of both splits.
`runs/labels` is then a WavLink that AutoModel loads, and `runs/labels/adapter` the LoRA and the projections alone.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

from wavlink import WavLinkModel, WavLinkProcessor, WavLinkTrainer, classify, load_audio

RATE = 16000  # Hz
SUFFIXES = {".wav", ".flac", ".ogg", ".mp3"}
LORA = LoraConfig(
    r=8,
    lora_alpha=16,
    target_modules=r"(audio_model|text_model)\..*layers?\..*\b(q_proj|v_proj|query|value|Wqkv|fc1|fc2|dense|W[io])",
    modules_to_save=["audio_projection", "text_projection"],  # trained as they are
)


def load_split(folder: str, split: str) -> tuple[list[str], list[str]]:
    """Return the files of a split and their labels."""
    root = Path(folder) / split
    if (root / "metadata.csv").is_file():
        with open(root / "metadata.csv", newline="", encoding="utf-8") as file:
            rows = [(str(root / row["file_name"]), row["label"]) for row in csv.DictReader(file) if row["label"]]
    else:
        files = [path for path in sorted(root.glob("*/**/*")) if path.suffix.lower() in SUFFIXES]
        rows = [(str(path), path.relative_to(root).parts[0]) for path in files]
    if not rows:
        raise SystemExit(f"{root} holds no labelled sounds: give it a metadata.csv, or a folder for each label")
    files, labels = zip(*rows, strict=True)
    return list(files), list(labels)


def training_set(files: list[str], labels: list[str], max_seconds: float, seed: int) -> Dataset:
    """Return rows of `audio`, decoded when used and cropped at random, and `caption`."""
    rng = np.random.default_rng(seed)

    def crop(file: str) -> dict:
        samples = load_audio(file, RATE)
        start = rng.integers(max(len(samples) - int(max_seconds * RATE), 0) + 1)
        return {"array": samples[start : start + int(max_seconds * RATE)], "sampling_rate": RATE}

    captions = [f"This is a sound of {label.replace('_', ' ')}." for label in labels]
    rows = Dataset.from_dict({"audio": files, "caption": captions})
    return rows.with_transform(lambda batch: {**batch, "audio": [crop(file) for file in batch["audio"]]})


def zero_shot_hits(model: str, files: list[str], labels: list[str], names: list[str]) -> np.ndarray:
    """Return bool `[files]`: whether a file's label is the nearest; a file that cannot be read counts as a miss."""
    results = classify(model, files, names, top_k=1)
    return np.array(
        [
            "labels" in result and result["labels"][0]["label"] == label
            for result, label in zip(results, labels, strict=True)
        ]
    )


def mean(values: np.ndarray) -> dict:
    """Return the mean over clips and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    means = [rng.choice(values, len(values)).mean() for _ in range(1000)]
    return {"value": float(values.mean()), "interval": np.percentile(means, [2.5, 97.5]).tolist()}


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Fine-tune, print the accuracies and return them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a WavLink: folder or Hub id")
    parser.add_argument("folder", help="with labelled sounds")
    parser.add_argument("--out", default="runs/labels")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--max_seconds", type=float, default=4.0, help="longer training clips are cropped at random")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    train_files, train_labels = load_split(options.folder, "train")
    files, labels = load_split(options.folder, "test")
    names = sorted({*train_labels, *labels})
    before = zero_shot_hits(options.model, files, labels, names)

    model = get_peft_model(WavLinkModel.from_pretrained(options.model), LORA)
    model.print_trainable_parameters()
    processor = WavLinkProcessor.from_pretrained(options.model)
    trainer = WavLinkTrainer(
        model=model,
        processing_class=processor,
        args=TrainingArguments(
            output_dir=options.out,
            per_device_train_batch_size=options.batch_size,
            max_steps=options.steps,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            remove_unused_columns=False,  # the batches need the columns; clips of one label are no negatives
            save_strategy="no",
            report_to="none",
            seed=options.seed,
        ),
        train_dataset=training_set(train_files, train_labels, options.max_seconds, options.seed),
    )
    trainer.train()
    model.save_pretrained(f"{options.out}/adapter")
    model.merge_and_unload().save_pretrained(options.out)
    processor.save_pretrained(options.out)

    after = zero_shot_hits(options.out, files, labels, names)
    scores = {"before": mean(before), "after": mean(after), "difference": mean(after.astype(float) - before)}
    print(f"zero-shot, {len(files)} clips, {len(names)} labels, chance level {100 / len(names):.1f} %:")
    for name, score in scores.items():
        low, high = score["interval"]
        print(f"  {name:11}{100 * score['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
    return scores


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a label may hold what the terminal cannot show
    main()
