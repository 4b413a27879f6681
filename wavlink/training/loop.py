"""The training loop."""

import math
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from transformers import get_cosine_schedule_with_warmup

from modeling_wavlink import WavLinkAudioModel, WavLinkModel
from processing.datasets.fingerprints import rows_digest, vocabulary_digest
from processing.datasets.load import caption_columns, with_captions
from processing.datasets.loaders import Epochs, Stream, load_source
from wavlink.atomic_files import remove_leftovers
from wavlink.console import StopSignal
from wavlink.evaluation.calibrate import fit_to
from wavlink.evaluation.embed_split import Embedded, embed_dataset
from wavlink.evaluation.protocol import Protocol, refuse_unsearchable, scores_of
from wavlink.kept_memory import limit_kept_memory, return_freed_memory
from wavlink.progress import Bar, loading_bars_hidden
from wavlink.training import distributed as sharding
from wavlink.training.augmentation import augment
from wavlink.training.caption_bank import CaptionBank
from wavlink.training.checkpoints import load_state, save_state
from wavlink.training.degradation import degrade
from wavlink.training.factory import build, refuse_bad_start, refuse_long_crops
from wavlink.training.finetuning import (
    clamp_scale,
    describe,
    has_lora,
    merged_state_dict,
    parameter_groups,
    save_adapter,
)
from wavlink.training.grad_cache import backward
from wavlink.training.log import Log
from wavlink.training.memory import recompute_attention, recompute_long_texts
from wavlink.training.recipe_fields import Recipe, refuse_another_run
from wavlink.training.recipes import RECIPES
from wavlink.training.run_folder import (
    alone_in_its_folder,
    holds_run,
    naming_dead_workers,
    refuse_unknown_trackers,
    remove,
    whole,
)
from wavlink.training.weight_average import WeightAverage

MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*_wavlink.py")  # whose names change from run to run


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
        if self.accelerator.is_fsdp2 and (recipe.caption_bank or recipe.ema_decay):
            name = "caption_bank" if recipe.caption_bank else "ema_decay"
            raise ValueError(f"{name} does not work with FSDP2, which shards the weights: launch with DDP")
        refuse_bad_start(recipe)
        set_seed(recipe.seed)
        share = self.accelerator.process_index, self.accelerator.num_processes
        self.feed = Stream(recipe, *share) if recipe.streaming else Epochs(recipe, *share)
        sharding.refuse_unequal_chunks(self.accelerator, self.feed.batch_size, recipe.micro_batch_size)
        self.steps = self.feed.steps
        self.validation_set, self.columns = _validation_set(recipe)
        model, self.processor = build(recipe, self.feed.captions)
        refuse_long_crops(self.feed.longest, self.processor.feature_extractor)
        if recipe.augmented and not isinstance(model.audio_model, WavLinkAudioModel):
            raise ValueError(
                "spec_augment, equalization and degraded_share change Whisper's log-mels; this audio tower has others"
            )
        if recipe.token_start == "mean_frame" and not recipe.init and isinstance(model.audio_model, WavLinkAudioModel):
            model.audio_model.start_token(**self.feed.first_sounds(self.processor))
        if recipe.cache_features:
            self.accelerator.print(f"log-mels of {len(self.feed.data):,} clips are computed, or read from the cache")
            self.feed.cache_features(self.processor)
        self.accelerator.print(describe(model))
        if self.on_cpu and not (recipe.compile or recipe.gradient_checkpointing):
            recompute_long_texts(model.text_model)
            if recipe.attn_implementation == "eager":
                recompute_attention(model.audio_model)
        groups = parameter_groups(
            model, recipe.weight_decay, recipe.head_learning_rate, text_learning_rate=recipe.text_learning_rate
        )
        optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
        warmup = math.ceil(recipe.warmup_ratio * self.steps)
        self.schedule = get_cosine_schedule_with_warmup(optimizer, warmup, self.steps)
        if recipe.compile:
            for tower in (model.audio_model, model.text_model):
                tower.compile(dynamic=True)  # in place: the names of weights stay
        self.model, self.optimizer = sharding.prepare(self.accelerator, model, optimizer)
        trained = self.accelerator.unwrap_model(self.model)
        self.average = WeightAverage(trained, recipe.ema_decay) if recipe.ema_decay else None
        self.bank = None
        if recipe.caption_bank:
            self.bank = CaptionBank(trained, self.processor, self.feed.captions(), self.accelerator.autocast)
            if not (recipe.text_learns and self._checkpoints()):  # `resume` loads it
                self.accelerator.print("all training captions are embedded once")
                self.bank.refresh()
        self.facts = self._facts()
        self.step = 0
        self.best = -1.0

    def _facts(self) -> dict:
        """Facts that must be the same when the run is resumed, as the main process finds them."""
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
        """Return the run's state, with every process's position in the data, as only the main process writes it."""
        feeds = gather_object([self.feed.state_dict()])
        schedule = self.schedule.state_dict()
        return {"step": self.step, "best": self.best, "schedule": schedule, "feeds": feeds, "facts": self.facts}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.step, self.best = state["step"], state["best"]
        self.schedule.load_state_dict(state["schedule"])
        self.feed.load_state_dict(state["feeds"][self.accelerator.process_index])

    def learn(self, batch: dict[str, torch.Tensor], stop: bool = False) -> tuple[float, bool]:
        """Take an optimizer step; return the mean loss over processes, and whether one of them has to stop."""
        recipe = self.recipe
        batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}
        if recipe.augmented:
            generator = np.random.default_rng((recipe.seed, self.step, self.accelerator.process_index))
            batch = degrade(batch, generator, recipe.degraded_share)
            batch = augment(batch, generator, recipe.spec_augment, recipe.equalization)
        added_loss = None
        if (bank_ids := batch.pop("bank_ids", None)) is not None:
            added_loss = self.bank.loss_of(bank_ids)
            if not (recipe.all_captions or recipe.text_learns):
                batch = self.bank.with_pooled_texts(batch, bank_ids)
        loss = backward(self.accelerator, self.model, batch, recipe.micro_batch_size, added_loss)
        value, stops = self.accelerator.reduce(torch.stack([loss, torch.full_like(loss, bool(stop))]), "mean").tolist()
        if not math.isfinite(value):
            raise ValueError(
                f"the loss is {value} at step {self.step}; its clips: {', '.join(self.feed.names(self.step))}"
            )
        self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.max_grad_norm)
        self.optimizer.step()
        clamp_scale(self.accelerator.unwrap_model(self.model))
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.step)
        self.step += 1
        return value, stops > 0

    @property
    def aging_bank(self) -> CaptionBank | None:
        """The caption bank beside a text tower that learns, which leaves its outputs behind; else None."""
        return self.bank if self.recipe.text_learns else None

    def averaged(self) -> AbstractContextManager:
        """A context in which the model has its averaged weights, with `ema_decay`."""
        return nullcontext() if self.average is None else self.average.applied()

    def score(self) -> tuple[dict, Embedded]:
        """Compute validation scores; save `best/`, calibrated, if the mean R@10 of both directions is the best yet."""
        model = self.accelerator.unwrap_model(self.model)
        with sharding.gathering_features(model, self.accelerator.autocast):
            split = self.validation_set, self.columns
            embedded = embed_dataset(model, self.processor, *split, progress=False, shared=True)
            protocol = Protocol(choices=0, group_column="", calibration=False)
            scores = scores_of(embedded, model, self.processor, self.validation_set, protocol)
        scores = broadcast_object_list([scores])[0]
        full = str(model.config.projection_dim)
        quality = sum(scores[way][full]["R@10"]["value"] for way in ("text_to_audio", "audio_to_text")) / 2
        if quality > self.best:
            self.best = quality
            self.save_model("best", embedded)
        return scores, embedded

    def save_model(self, name: str, embedded: Embedded | None = None) -> None:
        """Write `name/` with merged weights, and with LoRA `name/adapter/`; all processes must call it.

        Args:
            embedded: the validation split, to calibrate the model on; None leaves it without a calibration.
        """
        model, weights = sharding.savable(self.accelerator, self.model)
        if not self.accelerator.is_main_process:
            return
        model.config.match_calibration = None if embedded is None else self._calibration(model, embedded)
        learned = self.accelerator.unwrap_model(self.model)
        with whole(self.folder / name, stale=MODEL_FILES) as folder:
            model.save_pretrained(folder, state_dict=merged_state_dict(learned, weights))
            self.processor.save_pretrained(folder)
            if has_lora(learned):
                save_adapter(learned, folder / "adapter", base=self.recipe.init, state=weights)

    def _calibration(self, model: WavLinkModel, embedded: Embedded) -> dict | None:
        recipe = self.recipe
        try:
            return fit_to(model, embedded, recipe.validation_data or recipe.data, recipe.validation_split)
        except ValueError as error:
            Bar.write(f"best/ is saved without probabilities of matches: {error}")
            return None

    def save_checkpoint(self) -> None:
        """Write a checkpoint and remove the oldest; all processes must call it."""
        folder = self.folder / "checkpoints"
        broadcast = lambda token: broadcast_object_list([token])[0]  # noqa: E731
        share = self.accelerator.process_index, self.accelerator.wait_for_everyone, broadcast
        with whole(folder / f"step-{self.step:08d}", *share) as unfinished:
            save_state(self.accelerator, unfinished, self.state_dict())
            if self.accelerator.is_main_process:
                if self.average is not None:
                    self.average.save(unfinished)
                if self.aging_bank is not None:
                    self.aging_bank.save(unfinished)
        if self.accelerator.is_main_process:
            for old in sorted(folder.glob("step-*"))[: -self.recipe.checkpoints_kept]:
                remove(old)

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("step-*"))

    def resume(self) -> None:
        """Load the newest checkpoint, if there is one."""
        if self.accelerator.is_main_process:
            for folder in (self.folder, self.folder / "checkpoints"):
                remove_leftovers(folder)
        if checkpoints := self._checkpoints():
            self.load_state_dict(load_state(self.accelerator, checkpoints[-1], self.facts))
            if self.average is not None:
                self.average.load(checkpoints[-1])
            if self.aging_bank is not None:
                self.aging_bank.load(checkpoints[-1])


def _validation_set(recipe: Recipe) -> tuple[datasets.Dataset, list[str]]:
    """The clips to validate on that have captions, and the columns of these."""
    split = load_source(recipe, recipe.validation_data or recipe.data, recipe.validation_split)
    if not len(split):
        raise ValueError(f"the split {recipe.validation_split!r} to validate on is empty: give --validation_split")
    columns = caption_columns(split, [name for name in recipe.caption_columns if name in split.column_names])
    split = with_captions(split, columns)
    refuse_unsearchable(split, columns, recipe.validation_split)
    return split, columns


def train(recipe: Recipe) -> Path:
    """Train a model by a recipe, going on from the last checkpoint in its output folder.

    On SIGTERM or SIGINT (ctrl-C) the step is finished and a checkpoint written; then the process exits with 143, or
    KeyboardInterrupt is raised. A second SIGINT raises it at once.

    Args:
        recipe: from `load_recipe`; its times are in seconds.

    Returns:
        The output folder, with `best/` and `last/`, which `AutoModel.from_pretrained` loads, `checkpoints/`,
        `metrics.jsonl`, `recipe.json` and plots.

    Raises:
        ValueError: no recipe, one without `output_dir`, data that cannot be trained on, an output folder with another
            run or in use by another process, or a loss that is not finite.

    Example:

    ```python
    >>> import wavlink
    >>> recipe = wavlink.load_recipe(
    ...     "quickstart", init=model_folder, data=sounds_folder, max_steps=1, batch_size=2, num_workers=0,
    ...     mixed_precision="no", label_prompt="", output_dir=output_folder,
    ... )
    >>> folder = wavlink.train(recipe)
    96,962 parameters, of which ...
    >>> sorted(path.name for path in folder.iterdir() if path.is_dir())
    ['best', 'checkpoints', 'last']

    ```
    """
    if not isinstance(recipe, Recipe):
        raise ValueError(f"give a recipe, as from load_recipe({next(iter(RECIPES))!r}), got {recipe!r}")
    if not recipe.output_dir:
        raise ValueError(f"the recipe {recipe.name} has no output_dir: load_recipe gives it one, or name a folder")
    with loading_bars_hidden():
        return _train(recipe)


@alone_in_its_folder
def _train(recipe: Recipe) -> Path:
    if holds_run(Path(recipe.output_dir)):
        refuse_another_run(recipe)
    run = Run(recipe)
    run.resume()
    log = Log(run)
    run.model.train()
    line = "stopping: a checkpoint will be written after this step" if run.accelerator.is_main_process else ""
    with StopSignal(line) as signal_received, naming_dead_workers():
        for batch in run.feed.batches(run.processor, run.step):
            if run.step == run.steps:
                break
            learning_rate = run.schedule.get_last_lr()[0]
            loss, stop = run.learn(batch, signal_received)
            if run.on_cpu:
                return_freed_memory()
            log.step(loss, run.accelerator.unwrap_model(run.model).scale.item(), learning_rate)
            if run.feed.is_epoch_end(run.step):
                with run.averaged():
                    log.validation(*run.score())
                if run.aging_bank is not None and run.step < run.steps:
                    run.aging_bank.refresh()
            if stop or run.feed.is_epoch_end(run.step) or (recipe.save_steps and run.step % recipe.save_steps == 0):
                run.save_checkpoint()
            if stop:
                log.note_seconds()
                number = signal_received.number or signal.SIGTERM  # which another process has received
                Bar.write(f"stopped by {signal.Signals(number).name} after step {run.step}; the same command goes on")
                if number == signal.SIGINT:
                    raise KeyboardInterrupt(number)
                sys.exit(128 + number)
    with run.averaged():
        run.save_model("last")
    run.accelerator.wait_for_everyone()
    log.end()
    return run.folder
