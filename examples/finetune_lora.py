"""Fine-tune a WavLink with LoRA on labelled sounds, such as ESC-50, and measure the change in zero-shot accuracy.

    python examples/finetune_lora.py runs/sounds/best FOLDER --out runs/labels --steps 100

FOLDER is an audiofolder with `train` and `test` and a `label` for each clip (`FOLDER/train/LABEL/*.wav` will do). Both
accuracies are of the test split, among the labels of both splits. `runs/labels` is then a WavLink that AutoModel
loads, and `runs/labels/adapter` the LoRA alone.
"""

import argparse

import numpy as np
from datasets import Dataset
from transformers import TrainingArguments

from modeling_wavlink import WavLinkModel
from processing import WavLinkProcessor
from processing.collator import AudioTextCollator, CaptionedAudio
from processing.datasets.load import add_label_captions, label_names, load_split, with_captions
from wavlink.console import escape_unwritable
from wavlink.evaluation.embed_split import embed_dataset, embed_text
from wavlink.evaluation.metrics import figure, percent, ranks
from wavlink.evaluation.zero_shot import PROMPT
from wavlink.training.finetuning import describe, set_trainable
from wavlink.training.trainer import WavLinkTrainer


def zero_shot_hits(model: WavLinkModel, processor: WavLinkProcessor, clips: Dataset, labels: list[str]) -> np.ndarray:
    """Return bool `[clips]`: whether a clip's label is the nearest."""
    embedded = embed_dataset(model, processor, clips, [])
    text_embeds = embed_text(model.eval(), processor, [PROMPT.format(label.replace("_", " ")) for label in labels])
    names = np.array(label_names(clips))[embedded.rows]
    return ranks((embedded.audio @ text_embeds.T).numpy(), names[:, None] == np.array(labels)) == 1


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Fine-tune, print the accuracies and return them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a WavLink: folder or Hub id")
    parser.add_argument("folder", help="an audiofolder with labels")
    parser.add_argument("--out", default="runs/labels")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--max_seconds", type=float, default=4.0, help="longer training clips are cropped at random")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    model = WavLinkModel.from_pretrained(options.model)
    processor = WavLinkProcessor.from_pretrained(options.model)
    splits = {name: add_label_captions(load_split(options.folder, name), PROMPT)[0] for name in ("train", "test")}
    splits = {name: with_captions(clips, ["label_caption"]) for name, clips in splits.items()}
    labels = sorted({*label_names(splits["train"]), *label_names(splits["test"])})
    before = zero_shot_hits(model, processor, splits["test"], labels)

    print(describe(set_trainable(model, "lora")))
    trainer = WavLinkTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.out,
            per_device_train_batch_size=options.batch_size,
            max_steps=options.steps,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            train_sampling_strategy="group_by_length",
            remove_unused_columns=False,  # the collator needs the columns
            save_strategy="no",
            report_to="none",
            seed=options.seed,
        ),
        train_dataset=CaptionedAudio(
            splits["train"], ["label_caption"], options.max_seconds, seed=options.seed, shuffle=True
        ),
        data_collator=AudioTextCollator(processor),  # clips of one label are no negatives of each other
    )
    trainer.train()
    trainer.save_model(options.out)  # merged, and adapter/

    after = zero_shot_hits(model, processor, splits["test"], labels)
    scores = {"before": figure(before), "after": figure(after), "difference": figure(after.astype(float) - before)}
    print(f"zero-shot, {len(before)} clips, {len(labels)} labels, chance {100 / len(labels):.1f}:")
    print(*(f"  {name:11}{percent(x, signed=name == 'difference')}" for name, x in scores.items()), sep="\n")
    return scores


if __name__ == "__main__":
    escape_unwritable()
    main()
