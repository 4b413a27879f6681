"""The one training loop.

    python train.py RECIPE [--option value ...]
    accelerate launch train.py RECIPE [--option value ...]

Writes into the output folder: `best/` and `last/`, which AutoModel loads, `checkpoints/`, from which the same command
goes on, `metrics.jsonl`, `recipe.json` and `loss.png`.
"""

import argparse
import dataclasses
import difflib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from modeling_wavlink import sharding
from modeling_wavlink.building import build
from modeling_wavlink.evaluation import evaluate_dataset, table
from modeling_wavlink.grad_cache import backward
from modeling_wavlink.recipes import RECIPES, Recipe, get_recipe
from processing.data import (
    AudioTextCollator,
    BatchPlan,
    CaptionedAudio,
    add_label_captions,
    caption_columns,
    durations,
    load_split,
)

CHECKPOINTS_KEPT = 2
MAY_CHANGE = ("output_dir", "num_workers", "save_steps")  # without any effect on a resumed run's weights


def parse_recipe(argv: Sequence[str]) -> Recipe:
    """RECIPE and options, one for each of its fields; an unknown option is refused with the nearest name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", metavar="RECIPE", help=", ".join(RECIPES))
    for field in dataclasses.fields(Recipe):
        if field.name != "name":
            parser.add_argument(f"--{field.name}", default=argparse.SUPPRESS, **_argument(field))
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].split("=")[0].lstrip("-")
        near = difflib.get_close_matches(name, [field.name for field in dataclasses.fields(Recipe)], n=1)
        parser.error(f"unknown option {unknown[0]}" + (f"; did you mean --{near[0]}?" if near else ""))
    changes = {name: value for name, value in vars(options).items() if name != "recipe"}
    try:
        recipe = dataclasses.replace(get_recipe(options.recipe), **changes)
    except ValueError as error:
        parser.error(str(error))
    return recipe if recipe.output_dir else dataclasses.replace(recipe, output_dir=f"runs/{recipe.name}")


def _argument(field: dataclasses.Field) -> dict:
    if field.type is bool:
        return {"type": _boolean, "metavar": "true|false"}
    if field.type is dict:
        return {"type": json.loads, "metavar": "JSON"}
    if field.type == tuple[str, ...]:
        return {"type": lambda text: tuple(text.split(",")), "metavar": "A,B"}
    if field.type == tuple[int, ...]:
        return {"type": lambda text: tuple(map(int, text.split(","))), "metavar": "N,N"}
    return {"type": field.type}


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false, not {text!r}")
    return text.lower() == "true"


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on matrices and convolutions; none on biases, norms, the global token, scale and bias.

    Scale and bias (0-dim) are a group apart: FSDP2 leaves them whole, and AdamW steps through a group in one call
    that takes no mixture of whole and sharded tensors.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = {name for name, p in named if p.ndim >= 2 and not name.endswith("global_token")}
    return [
        {"params": [p for name, p in named if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name not in decayed and p.ndim], "weight_decay": 0.0},
        {"params": [p for name, p in named if not p.ndim], "weight_decay": 0.0},
    ]


class Run:
    """One recipe's model, data, optimizer and folder."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.folder = Path(recipe.output_dir)
        self.accelerator = sharding.start(recipe.mixed_precision)
        set_seed(recipe.seed)
        train_set = load_split(recipe.data, recipe.train_split)
        self.columns = caption_columns(train_set, recipe.caption_columns)
        learned = list(self.columns)
        if recipe.label_prompt:
            train_set, name = add_label_captions(train_set, recipe.label_prompt)
            learned.append(name)
        self.validation_set = load_split(recipe.data, recipe.validation_split)
        model, self.processor = build(recipe, train_set, learned)
        self.data = CaptionedAudio(train_set, learned, recipe.max_seconds, recipe.seed, shuffle=True)
        self.plan = self._plan(durations(train_set))
        sharding.refuse_unequal_chunks(self.accelerator, self.plan.batch_size, recipe.micro_batch_size)
        self.steps = recipe.max_steps or len(self.plan)
        optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate)
        warmup = math.ceil(recipe.warmup_ratio * self.steps)
        self.schedule = get_cosine_schedule_with_warmup(optimizer, warmup, self.steps)
        if recipe.compile:
            for tower in (model.audio_model, model.text_model):
                tower.compile(dynamic=True)  # in place: the names of weights stay
        self.model, self.optimizer = sharding.prepare(self.accelerator, model, optimizer)
        self.step = 0
        self.best = -1.0
        self.accelerator.register_for_checkpointing(self.schedule, self)

    def _plan(self, lengths: Sequence[float]) -> BatchPlan:
        recipe = self.recipe
        lengths = [min(seconds, recipe.max_seconds) for seconds in lengths]
        share = {"rank": self.accelerator.process_index, "world_size": self.accelerator.num_processes}
        plan = BatchPlan(lengths, recipe.batch_size, recipe.epochs, recipe.seed, **share)
        if recipe.max_steps:
            plan.epochs = math.ceil(recipe.max_steps / plan.batches_per_epoch)
        return plan

    def state_dict(self) -> dict:
        return {"step": self.step, "best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.step, self.best = state["step"], state["best"]

    def batches(self) -> DataLoader:
        self.plan.start = self.step
        masked = self.recipe.mask_false_negatives
        return DataLoader(
            self.data,
            batch_sampler=self.plan,
            collate_fn=AudioTextCollator(self.processor, padding=self.recipe.padding, with_caption_ids=masked),
            num_workers=self.recipe.num_workers,
            generator=torch.Generator(),  # its own, so that a resumed run does not draw from the model's chance again
            pin_memory=torch.cuda.is_available(),
        )

    def learn(self, batch: dict[str, torch.Tensor]) -> float:
        """One optimizer step; the loss, as a mean over processes."""
        batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}
        loss = backward(self.accelerator, self.model, batch, self.recipe.micro_batch_size)
        value = self.accelerator.reduce(loss, "mean").item()
        if not math.isfinite(value):
            raise ValueError(f"the loss is {value} at step {self.step}; its clips: {', '.join(self._names())}")
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        return value

    def _names(self) -> list[str]:
        epoch, position = divmod(self.step, self.plan.batches_per_epoch)
        return [self.data.name(index) for index in self.plan.epoch(epoch)[position]]

    def evaluate(self) -> dict:
        model = self.accelerator.unwrap_model(self.model)
        with sharding.gathering_features(model):
            scores = evaluate_dataset(
                model, self.processor, self.validation_set, self.columns, progress=False, shared=True
            )
        return broadcast_object_list([scores])[0]

    def save_model(self, name: str) -> None:
        """Writes `name/` whole or not at all; all processes must call it."""
        unfinished = self.folder / f".{name}"
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        sharding.save_pretrained(self.accelerator, self.model, unfinished)
        if self.accelerator.is_main_process:
            self.processor.save_pretrained(unfinished)
            shutil.rmtree(self.folder / name, ignore_errors=True)
            os.replace(unfinished, self.folder / name)

    def save_checkpoint(self) -> None:
        folder = self.folder / "checkpoints"
        unfinished = folder / "unfinished"
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            os.replace(unfinished, folder / f"step-{self.step:08d}")
            for old in sorted(folder.glob("step-*"))[:-CHECKPOINTS_KEPT]:
                shutil.rmtree(old)

    def resume(self) -> None:
        checkpoints = sorted((self.folder / "checkpoints").glob("step-*"))
        if checkpoints:
            self.accelerator.load_state(str(checkpoints[-1]))

    def is_epoch_end(self) -> bool:
        return self.step % self.plan.batches_per_epoch == 0 or self.step == self.steps


def refuse_another_run(recipe: Recipe) -> None:
    """A folder with checkpoints goes on only as the run it is."""
    folder = Path(recipe.output_dir)
    if not any((folder / "checkpoints").glob("step-*")):
        return
    begun = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    asked = json.loads(json.dumps(dataclasses.asdict(recipe)))
    changed = [name for name in asked if asked[name] != begun.get(name) and name not in MAY_CHANGE]
    if changed:
        changes = ", ".join(f"{name} was {begun.get(name)!r} and is now {asked[name]!r}" for name in changed)
        raise ValueError(f"{folder} holds another run: {changes}; give another --output_dir, or delete it")


def train(recipe: Recipe) -> Path:
    """Runs a recipe to its end, from its last checkpoint if there is one, and returns its folder."""
    refuse_another_run(recipe)
    run = Run(recipe)
    run.resume()
    main_process = run.accelerator.is_main_process
    metrics = Metrics(run.folder, run.step) if main_process else None
    if main_process:
        text = json.dumps(dataclasses.asdict(recipe), indent=2) + "\n"
        (run.folder / "recipe.json").write_text(text, encoding="utf-8")
    bar = tqdm(total=run.steps, initial=run.step, desc=recipe.name, disable=not main_process, unit="step")
    run.model.train()
    began, first = time.perf_counter(), run.step
    for batch in run.batches():
        if run.step == run.steps:
            break
        learning_rate = run.schedule.get_last_lr()[0]
        loss = run.learn(batch)
        scale = run.accelerator.unwrap_model(run.model).scale.item()
        clips = (run.step - first) * run.plan.batch_size / (time.perf_counter() - began)
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", scale=f"{scale:.1f}", lr=f"{learning_rate:.1e}", clips_s=f"{clips:.0f}")
        if main_process:
            metrics.write(step=run.step, loss=loss, scale=scale, learning_rate=learning_rate)
        if run.is_epoch_end():
            score(run, metrics)
        if run.is_epoch_end() or (recipe.save_steps and run.step % recipe.save_steps == 0):
            run.save_checkpoint()
    bar.close()
    run.save_model("last")
    if main_process:
        metrics.draw()
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    return run.folder


def score(run: Run, metrics: "Metrics | None") -> None:
    """Validation scores at every nested dim; the model with the best mean R@10 of both directions is kept.

    All processes embed their share of the clips; the main one alone has `metrics` to write to.
    """
    scores = run.evaluate()
    full = str(run.accelerator.unwrap_model(run.model).config.projection_dim)
    quality = sum(scores[way][full]["R@10"]["value"] for way in ("text_to_audio", "audio_to_text")) / 2
    if metrics:
        tqdm.write(f"step {run.step}, validation: {table(scores)}")
        metrics.write(step=run.step, validation=scores)
    if quality > run.best:
        run.best = quality
        run.save_model("best")


class Metrics:
    """`metrics.jsonl`: a line a step and a line a validation, and nothing from beyond the checkpoint resumed from."""

    def __init__(self, folder: Path, step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        self.path.write_text("".join(kept))

    def write(self, **record) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def draw(self) -> None:
        """The loss curve, as `loss.png` beside the metrics."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        records = [json.loads(line) for line in self.path.read_text().splitlines()]
        losses = [(record["step"], record["loss"]) for record in records if "loss" in record]
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        axes.plot(*zip(*losses, strict=True), linewidth=1)
        axes.set(xlabel="step", ylabel="loss", title=self.path.parent.name)
        figure.savefig(self.path.parent / "loss.png", dpi=120)
        pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    recipe = parse_recipe(sys.argv[1:] if argv is None else argv)
    try:
        folder = train(recipe)
    except ValueError as error:
        sys.exit(f"train.py: {error}")
    print(f"done: {folder}/best and {folder}/last")


if __name__ == "__main__":
    main()
