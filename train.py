"""The one training loop.

    python train.py RECIPE [--option value ...]
    accelerate launch train.py RECIPE [--option value ...]

Writes into the output folder: `best/` and `last/`, which AutoModel loads, `checkpoints/`, from which the same command
goes on, `metrics.jsonl`, `recipe.json`, `environment.jsonl` and pictures.
"""

import argparse
import dataclasses
import gc
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from transformers import get_cosine_schedule_with_warmup

from modeling_wavlink import WavLinkAudioModel, sharding
from modeling_wavlink.atomic_files import remove_leftovers, write_text
from modeling_wavlink.building import build, refuse_bad_start
from modeling_wavlink.checkpoints import load_state, save_state
from modeling_wavlink.embedding import Embedded, embed_dataset
from modeling_wavlink.grad_cache import backward
from modeling_wavlink.memory import (
    limit_kept_memory,
    peak_memory,
    recompute_attention,
    recompute_long_texts,
    return_freed_memory,
)
from modeling_wavlink.pictures import draw_loss, draw_recall, draw_similarities
from modeling_wavlink.progress import Bar
from modeling_wavlink.recipes import Recipe, load_recipe, refuse_another_run
from modeling_wavlink.regimes import (
    clamp_scale,
    describe,
    has_lora,
    merged_state_dict,
    parameter_groups,
    save_adapter,
)
from modeling_wavlink.retrieval import DIRECTIONS
from modeling_wavlink.run_folder import (
    Metrics,
    alone_in_its_folder,
    naming_dead_workers,
    note_environment,
    note_seconds,
    on_disk,
    refuse_unknown_trackers,
    remove,
    whole,
)
from modeling_wavlink.scoring import Protocol, refuse_unsearchable, scores_of
from modeling_wavlink.sweep import sweep, sweep_parser
from processing.data import caption_columns, with_captions
from processing.feeds import Epochs, Stream, load_source
from processing.fingerprints import rows_digest, vocabulary_digest
from wavlink.console import run_command, stdout_for
from wavlink.parsing import Parser
from wavlink.train_options import (
    json_option,
    parse,
    recipe_argument,
    recipe_options,
    refuse_sweep_options,
    sweep_of,
)

MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*_wavlink.py")  # whose names change from run to run


def recipe_parser(description: str = __doc__) -> argparse.ArgumentParser:
    """An option for each field of a recipe; `--json` is the one that is none (see `main`)."""
    parser = Parser(prog="train.py", description=description, allow_abbrev=False)
    json_option(parser)
    recipe_options(parser)
    return parser


def parse_recipe(argv: Sequence[str]) -> Recipe:
    """RECIPE and its options as one recipe."""
    parser = recipe_parser()
    recipe_argument(parser)
    try:
        return _recipe(parse(parser, argv))
    except ValueError as error:
        parser.error(str(error))


def _recipe(options: dict) -> Recipe:
    return load_recipe(options.pop("recipe"), **options)


class Run:
    """One recipe's model, data, optimizer and folder."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.folder = Path(recipe.output_dir)
        refuse_unknown_trackers(recipe.trackers)
        self.accelerator = sharding.start(recipe.mixed_precision, recipe.trackers, recipe.output_dir)
        self.on_cpu = self.accelerator.device.type == "cpu"
        if self.on_cpu:
            limit_kept_memory()
        if recipe.batch_size < self.accelerator.num_processes:
            raise ValueError(
                f"batch_size={recipe.batch_size} is over all {self.accelerator.num_processes} processes and leaves "
                "nothing for some: raise it, or use fewer"
            )
        sharding.refuse_unequal_chunks(self.accelerator, recipe.batch_size, recipe.micro_batch_size)
        refuse_bad_start(recipe)
        set_seed(recipe.seed)
        share = self.accelerator.process_index, self.accelerator.num_processes
        self.feed = Stream(recipe, *share) if recipe.streaming else Epochs(recipe, *share)
        self.steps = self.feed.steps
        self.validation_set = load_source(recipe, recipe.validation_data or recipe.data, recipe.validation_split)
        if not len(self.validation_set):
            raise ValueError(f"the split {recipe.validation_split!r} to validate on is empty: give --validation_split")
        shared = [name for name in recipe.caption_columns if name in self.validation_set.column_names]
        self.columns = caption_columns(self.validation_set, shared)
        self.validation_set = with_captions(self.validation_set, self.columns)
        refuse_unsearchable(self.validation_set, self.columns, recipe.validation_split)
        model, self.processor = build(recipe, self.feed.captions)
        if recipe.token_start == "mean_frame" and not recipe.init and isinstance(model.audio_model, WavLinkAudioModel):
            model.audio_model.start_token(**self.feed.first_sounds(self.processor))
        self.accelerator.print(describe(model))
        if self.on_cpu and not (recipe.compile or recipe.gradient_checkpointing):
            recompute_long_texts(model.text_model)
            if recipe.attn_implementation == "eager":
                recompute_attention(model.audio_model)
        optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate)
        warmup = math.ceil(recipe.warmup_ratio * self.steps)
        self.schedule = get_cosine_schedule_with_warmup(optimizer, warmup, self.steps)
        if recipe.compile:
            for tower in (model.audio_model, model.text_model):
                tower.compile(dynamic=True)  # in place: the names of weights stay
        self.model, self.optimizer = sharding.prepare(self.accelerator, model, optimizer)
        self.facts = self._facts()
        self.step = 0
        self.best = -1.0

    def _facts(self) -> dict:
        """What must be the same for the run to go on; the main process looks, since all have the same data."""
        facts = {}
        if self.accelerator.is_main_process:
            facts = {
                "processes": self.accelerator.num_processes,
                **self.feed.facts(),
                "validation clips": len(self.validation_set),
                "validation captions and sounds": rows_digest(self.validation_set, self.columns),
                "vocabulary": vocabulary_digest(self.processor.tokenizer),
            }
        return broadcast_object_list([facts])[0]

    def state_dict(self) -> dict:
        """Every process's place in the data goes along, since only the main process's state is written."""
        feeds = gather_object([self.feed.state_dict()])
        schedule = self.schedule.state_dict()
        return {"step": self.step, "best": self.best, "schedule": schedule, "feeds": feeds, "facts": self.facts}

    def load_state_dict(self, state: dict) -> None:
        self.step, self.best = state["step"], state["best"]
        self.schedule.load_state_dict(state["schedule"])
        self.feed.load_state_dict(state["feeds"][self.accelerator.process_index])

    def learn(self, batch: dict[str, torch.Tensor], stop: bool = False) -> tuple[float, bool]:
        """One optimizer step; the loss as a mean over processes, and whether one of them was told to stop."""
        batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}
        loss = backward(self.accelerator, self.model, batch, self.recipe.micro_batch_size)
        value, stops = self.accelerator.reduce(torch.stack([loss, torch.full_like(loss, bool(stop))]), "mean").tolist()
        if not math.isfinite(value):
            raise ValueError(
                f"the loss is {value} at step {self.step}; its clips: {', '.join(self.feed.names(self.step))}"
            )
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        self.optimizer.step()
        clamp_scale(self.accelerator.unwrap_model(self.model))
        self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        return value, stops > 0

    def score(self) -> tuple[dict, Embedded]:
        """Validation scores at every nested dim; `best/` is the model with the best mean R@10 of both directions."""
        model = self.accelerator.unwrap_model(self.model)
        with sharding.gathering_features(model, self.accelerator.autocast):
            split = self.validation_set, self.columns
            embedded = embed_dataset(model, self.processor, *split, progress=False, shared=True)
            protocol = Protocol(choices=0, group_column="")
            scores = scores_of(embedded, model, self.processor, self.validation_set, protocol)
        scores = broadcast_object_list([scores])[0]
        full = str(model.config.projection_dim)
        quality = sum(scores[way][full]["R@10"]["value"] for way in ("text_to_audio", "audio_to_text")) / 2
        if quality > self.best:
            self.best = quality
            self.save_model("best")
        return scores, embedded

    def save_model(self, name: str) -> None:
        """`name/` with the merged weights, and with LoRA `name/adapter/` beside them; all processes must call it."""
        model, weights = sharding.savable(self.accelerator, self.model)
        if not self.accelerator.is_main_process:
            return
        learned = self.accelerator.unwrap_model(self.model)
        with whole(self.folder / name, stale=MODEL_FILES) as folder:
            model.save_pretrained(folder, state_dict=merged_state_dict(learned, weights))
            self.processor.save_pretrained(folder)
            if has_lora(learned):
                save_adapter(learned, folder / "adapter", base=self.recipe.init, state=weights)

    def save_checkpoint(self) -> None:
        folder = self.folder / "checkpoints"
        broadcast = lambda token: broadcast_object_list([token])[0]  # noqa: E731
        share = self.accelerator.process_index, self.accelerator.wait_for_everyone, broadcast
        with whole(folder / f"step-{self.step:08d}", *share) as unfinished:
            save_state(self.accelerator, unfinished, self.state_dict())
        if self.accelerator.is_main_process:
            for old in sorted(folder.glob("step-*"))[: -self.recipe.checkpoints_kept]:
                remove(old)

    def resume(self) -> None:
        if self.accelerator.is_main_process:
            for folder in (self.folder, self.folder / "checkpoints"):
                remove_leftovers(folder)
        checkpoints = sorted((self.folder / "checkpoints").glob("step-*"))
        if checkpoints:
            self.load_state_dict(load_state(self.accelerator, checkpoints[-1], self.facts))


class StopSignal:
    """True from the moment SIGTERM arrives, which schedulers send before they kill."""

    def __init__(self):
        self.received = False

    def __bool__(self) -> bool:
        return self.received

    def __enter__(self) -> "StopSignal":
        self.before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *error) -> None:
        signal.signal(signal.SIGTERM, self.before)

    def _receive(self, *_) -> None:
        self.received = True


def distinct_pairs(embedded: Embedded) -> list[int]:
    """At most 24 clips from all over the split whose first captions differ."""
    first = {row[0]: index for index, row in reversed(list(enumerate(embedded.captions)))}
    rows = sorted(first.values())
    return rows[:: -(-len(rows) // 24)]


def without_details(scores: dict) -> dict:
    """Without what is said of each class, which would fill `metrics.jsonl`."""
    zero_shot = scores.get("zero_shot", {})
    short = {name: value for name, value in zero_shot.items() if name not in ("per_class", "confusion", "label_text")}
    return {**scores, "zero_shot": short} if short else scores


def recall_line(scores: dict) -> str:
    """R@10 of both directions at the largest and the smallest dim; all else is in `metrics.jsonl`."""
    dims = sorted(scores["text_to_audio"], key=int)
    ends = list(dict.fromkeys([dims[-1], dims[0]]))
    parts = [
        f"{words} " + " / ".join(f"{100 * scores[way][dim]['R@10']['value']:.1f}" for dim in ends)
        for way, words in DIRECTIONS.items()
    ]
    return f"R@10 in % at {' / '.join(ends)} dims: {', '.join(parts)}"


class Log:
    """A run's progress bar, `metrics.jsonl`, trackers and pictures; all of it on the main process alone."""

    def __init__(self, run: Run):
        self.run = run
        self.active = run.accelerator.is_main_process
        self.metrics = Metrics(run.folder, run.step) if self.active else None
        self.bar = Bar(total=run.steps, initial=run.step, desc=run.recipe.name, disable=not self.active, unit="step")
        self.began, self.first = time.perf_counter(), run.step
        recipe = dataclasses.asdict(run.recipe)
        if self.active:
            write_text(run.folder / "recipe.json", json.dumps(recipe, indent=2) + "\n")
            facts = {"processes": run.accelerator.num_processes, "on_disk": on_disk(recipe)}
            note_environment(run.folder, step=run.step, **facts)
        if run.recipe.trackers:
            run.accelerator.init_trackers("wavlink", {name: str(value) for name, value in recipe.items()})

    def step(self, loss: float, scale: float, learning_rate: float) -> None:
        run = self.run
        clips = (run.step - self.first) * run.recipe.batch_size / (time.perf_counter() - self.began)
        self.bar.update()
        self.bar.set_postfix(
            loss=f"{loss:.3f}", scale=f"{scale:.1f}", lr=f"{learning_rate:.1e}", clips_s=f"{clips:.0f}"
        )
        values = {"loss": loss, "scale": scale, "learning_rate": learning_rate}
        run.accelerator.log({**values, "clips_per_second": clips}, step=run.step)
        if self.active:
            self.metrics.write(step=run.step, **values)

    def validation(self, scores: dict, embedded: Embedded) -> None:
        if not self.active:
            return
        Bar.write(f"step {self.run.step} of {self.run.steps}, validation: {recall_line(scores)}")
        self.metrics.write(step=self.run.step, validation=without_details(scores))
        flat = {
            f"{way}/{dim}/{name}": figure["value"]
            for way in ("text_to_audio", "audio_to_text")
            for dim, row in scores[way].items()
            for name, figure in row.items()
        }
        self.run.accelerator.log(flat, step=self.run.step)
        records = self.metrics.read()
        draw_loss(records, self.run.folder / "loss.png")
        draw_recall(records, self.run.folder / "recall.png")
        pairs = distinct_pairs(embedded)
        texts = [embedded.texts.index(embedded.captions[row][0]) for row in pairs]
        similarities = embedded.audio[pairs] @ embedded.text[texts].T
        draw_similarities(similarities.numpy(), [embedded.texts[i] for i in texts], self.run.folder / "similarity.png")
        gc.collect()  # figures are cycles that hold their pixels, and Python by itself looks for such seldom

    def note_seconds(self) -> None:
        if self.active:
            seconds = time.perf_counter() - self.began
            note_seconds(self.run.folder, self.run.step, seconds, peak_memory_mib=peak_memory())

    def end(self) -> None:
        self.note_seconds()
        self.bar.close()
        self.run.accelerator.end_training()


@alone_in_its_folder
def train(recipe: Recipe) -> Path:
    """Runs a recipe to its end, from its last checkpoint if there is one, and returns its folder.

    On SIGTERM it finishes its step, writes a checkpoint and exits with 143.
    """
    if any((Path(recipe.output_dir) / "checkpoints").glob("step-*")):
        refuse_another_run(recipe)
    run = Run(recipe)
    run.resume()
    log = Log(run)
    run.model.train()
    with StopSignal() as signal_received, naming_dead_workers():
        for batch in run.feed.batches(run.processor, run.step):
            if run.step == run.steps:
                break
            learning_rate = run.schedule.get_last_lr()[0]
            loss, stop = run.learn(batch, signal_received)
            if run.on_cpu:
                return_freed_memory()
            log.step(loss, run.accelerator.unwrap_model(run.model).scale.item(), learning_rate)
            if run.feed.is_epoch_end(run.step):
                log.validation(*run.score())
            if stop or run.feed.is_epoch_end(run.step) or (recipe.save_steps and run.step % recipe.save_steps == 0):
                run.save_checkpoint()
            if stop:
                log.note_seconds()
                Bar.write(f"stopped by SIGTERM after step {run.step}; the same command goes on")
                sys.exit(128 + signal.SIGTERM)
    run.save_model("last")
    run.accelerator.wait_for_everyone()
    log.end()
    return run.folder


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    given = [option for option in argv if option != "--json"]
    with stdout_for(given != argv) as print_json:
        try:
            if given[:1] == ["sweep"]:
                done = _sweep(parse(sweep_parser(recipe_parser(sweep.__doc__)), given[1:]))
            else:
                done = _train(parse_recipe(given))
        except (ValueError, OSError) as error:
            sys.exit(f"train.py: {error}")
        _report(done, print_json)


def run(options: argparse.Namespace) -> None:
    """Train what `wavlink train` was given, a recipe or the sweep."""
    options = dict(vars(options))
    with stdout_for(options.pop("as_json", False)) as print_json:
        if options["recipe"] == "sweep":
            del options["recipe"]
            done = _sweep(sweep_of(options))
        else:
            refuse_sweep_options(options, options["recipe"])
            done = _train(_recipe(options))
        _report(done, print_json)


def _report(done: dict[str, Path], print_json: Callable) -> None:
    if PartialState().is_main_process:
        print(f"done: {' and '.join(str(done[name]) for name in [*done][-2:])}")
        print_json({name: str(path) for name, path in done.items()})


def _train(recipe: Recipe) -> dict[str, Path]:
    folder = train(recipe)
    return {"metrics": folder / "metrics.jsonl", "best": folder / "best", "last": folder / "last"}


def _sweep(options: dict) -> dict[str, Path]:
    folder = Path(sweep(options, train))
    return {"picture": folder / "figure1.png", "table": folder / "sweep.md"}


if __name__ == "__main__":
    sys.exit(run_command("train.py", main))
