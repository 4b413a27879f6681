"""What a plan predicts for this machine's CPU, beside real training steps.

    python benchmarks/plan.py [--repeats 3] [--record [FILE]]

A plan measures a few clips at once through at most four layers of each tower and predicts a step of another batch
size, with cached gradients, or of a deeper model. The real steps are `Run.learn`'s: forward and backward passes,
clipping and AdamW, on batches that are ready. Towers have the sizes of Whisper-tiny or Whisper-base and of MiniLM,
with random weights. Predictions and real steps take turns on one thread; the shortest of the repeats counts. Times are
the processor's, which other work on the machine changes less than the clock's.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from wavlink.planning.model import count_flops, parameters, planned_config, shapes_of
from wavlink.planning.speed import measure
from wavlink.planning.towers import TOWERS
from wavlink.training.loop import Run
from wavlink.training.recipes import Recipe

try:
    from benchmarks import records, tables
except ModuleNotFoundError:  # run as a script
    import records
    import tables

_RATE = 16_000
_TOKENS = 16
CASES = {  # a Whisper, clips of a step and at once, their seconds, frames merged into one
    "tiny, 16 clips of 3 s": ("tiny", 16, 0, 3.0, 1),
    "tiny, 16 clips of 6 s in pieces of 4, frames pooled": ("tiny", 16, 4, 6.0, 2),
    "base, 8 clips of 3 s": ("base", 8, 0, 3.0, 1),
}


def audiofolder(folder: Path) -> Path:
    """Write a data set of two clips a split, which a run needs beside the batches it is given."""
    for split in ("train", "validation"):
        (folder / split).mkdir(parents=True)
        for name in ("a", "b"):
            noise = np.random.default_rng(0).normal(scale=0.1, size=_RATE).astype(np.float32)
            soundfile.write(folder / split / f"{name}.wav", noise, _RATE)
        (folder / split / "metadata.csv").write_text("file_name,caption\na.wav,noise\nb.wav,more noise\n")
    return folder


def recipe_of(case: str, folder: Path) -> Recipe:
    """Return a recipe of one of `CASES`."""
    whisper, clips, piece, _, pooling = CASES[case]
    return Recipe(
        case,
        data=str(audiofolder(folder / "data")),
        audio_config=TOWERS[f"openai/whisper-{whisper}"],
        text_config=TOWERS["sentence-transformers/all-MiniLM-L6-v2"],
        frame_pooling=pooling,
        batch_size=clips,
        micro_batch_size=piece,
        mixed_precision="no",
        num_workers=0,
        output_dir=str(folder / "run"),
    )


def compare(case: str, repeats: int) -> dict[str, list[float]]:
    """Return the processor's seconds of a step in each repeat, `planned` and `measured`."""
    seconds = CASES[case][3]
    found = {"planned": [], "measured": []}
    with tempfile.TemporaryDirectory() as root:
        recipe = recipe_of(case, Path(root))
        run = Run(dataclasses.replace(recipe, batch_size=2))  # of two clips; the batches are made here
        run.recipe = recipe
        run.model.train()
        config = planned_config(recipe)
        config.text_config.vocab_size = run.model.config.text_config.vocab_size
        shapes = shapes_of(config, recipe, seconds, _TOKENS)
        flops = count_flops(config, recipe, shapes)
        trained = parameters(config, recipe)["trained"]
        operations = flops.step(recipe.batch_size, recipe.micro_batch_size or recipe.batch_size)
        batch = shapes.batch(recipe.batch_size, "cpu")
        run.learn(batch)  # warms up
        for _ in range(repeats):
            speed = measure(config, recipe, shapes, "cpu", time.process_time)
            found["planned"].append(operations / speed.flops_per_second + speed.update * trained)
            began = time.process_time()
            run.learn(batch)
            found["measured"].append(time.process_time() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    records.add_option(parser, "plan")
    options = parser.parse_args()
    torch.set_num_threads(1)
    raw = {case: compare(case, options.repeats) for case in CASES}
    rows = []
    for case, times in raw.items():
        planned, measured = min(times["planned"]), min(times["measured"])
        seconds = [records.number(value, 2, "s") for value in (planned, measured)]
        rows.append([case, *seconds, records.number(planned / measured, 2)])
    values = {"steps": records.table(["step", "planned", "measured", "ratio"], rows)}
    print(tables.markdown(values["steps"]))
    records.write(
        options.record,
        title="A plan for this CPU beside real steps",
        seed=0,
        note=f"Processor time, one thread, fp32, the shortest of {options.repeats} repeats.",
        values=values,
        raw=raw,
    )


if __name__ == "__main__":
    main()
