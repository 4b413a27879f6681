"""What a recipe learns from, as batches for this process: planned epochs of a data set, or a stream without end."""

import math
from collections.abc import Iterable

import torch
from torch.utils.data import DataLoader

from .data import (
    AudioTextCollator,
    BatchPlan,
    CaptionedAudio,
    add_label_captions,
    caption_columns,
    captions_of,
    durations,
    load_split,
    with_captions,
)
from .shards import load_stream
from .streaming import StreamedBatches


class Epochs:
    """A data set of known length, in epochs of length-grouped batches (`BatchPlan`).

    Args:
        recipe: a `Recipe`.
        rank, world_size: this process among all; `recipe.batch_size` is over all of them.
    """

    def __init__(self, recipe, rank: int, world_size: int):
        self.recipe = recipe
        train_set = load_split(recipe.data, recipe.train_split)
        learned = caption_columns(train_set, recipe.caption_columns)
        if recipe.label_prompt:
            train_set, name = add_label_captions(train_set, recipe.label_prompt)
            learned.append(name)
        self.data = CaptionedAudio(
            with_captions(train_set, learned), learned, recipe.max_seconds, recipe.seed, shuffle=True
        )
        lengths = [min(seconds, recipe.max_seconds) for seconds in durations(self.data.dataset)]
        self.plan = BatchPlan(lengths, recipe.batch_size, recipe.epochs, recipe.seed, rank=rank, world_size=world_size)
        if recipe.max_steps:
            self.plan.epochs = math.ceil(recipe.max_steps / self.plan.batches_per_epoch)
        self.steps = recipe.max_steps or len(self.plan)

    def captions(self) -> Iterable[str]:
        """Every caption to learn from."""
        rows = self.data.dataset.select_columns(self.data.columns)
        return (text for row in rows for text in captions_of(row, self.data.columns))

    def batches(self, processor, step: int) -> Iterable[dict[str, torch.Tensor]]:
        """The batches from `step` on."""
        self.plan.start = step
        self.data.rate = processor.feature_extractor.sampling_rate
        return DataLoader(
            self.data,
            batch_sampler=self.plan,
            collate_fn=collator(self.recipe, processor),
            num_workers=self.recipe.num_workers,
            generator=torch.Generator(),  # its own, so that a resumed run does not draw from the model's chance again
            pin_memory=torch.cuda.is_available(),
        )

    def is_epoch_end(self, step: int) -> bool:
        return step % self.plan.batches_per_epoch == 0 or step == self.steps

    def names(self, step: int) -> list[str]:
        """The clips of a step's batch, of all processes."""
        epoch, position = divmod(step, self.plan.batches_per_epoch)
        return [self.data.name(index) for index in self.plan.epoch(epoch)[position]]

    def state_dict(self) -> dict:
        return {}  # the step says it all

    def load_state_dict(self, state: dict) -> None:
        pass


class Stream:
    """Shards read in turn (`StreamedBatches`), for `recipe.max_steps` steps; `recipe.save_steps` stand for epochs."""

    def __init__(self, recipe, rank: int, world_size: int):
        if not recipe.max_steps:
            raise ValueError("a stream has no length: give --max_steps")
        if recipe.label_prompt:
            raise ValueError("label_prompt needs a data set held whole: leave --streaming or --label_prompt out")
        self.recipe = recipe
        self.source = load_stream(recipe.data, recipe.train_split)
        self.columns = caption_columns(self.source, recipe.caption_columns)
        self.share = {"rank": rank, "world_size": world_size}
        self.steps = recipe.max_steps
        self.stream, self.resumed = None, None

    def captions(self) -> Iterable[str]:
        raise ValueError("a text tower from scratch needs the words of a data set held whole: give --text_model")

    def batches(self, processor, step: int) -> Iterable[dict[str, torch.Tensor]]:
        recipe = self.recipe
        self.stream = StreamedBatches(
            self.source,
            self.columns,
            collator(recipe, processor),
            recipe.batch_size,
            recipe.seed,
            max_seconds=recipe.max_seconds,
            rate=processor.feature_extractor.sampling_rate,
            num_workers=recipe.num_workers,
            **self.share,
        )
        if self.resumed is not None:
            self.stream.load_state_dict(self.resumed)
        return self.stream

    def is_epoch_end(self, step: int) -> bool:
        return step == self.steps or bool(self.recipe.save_steps and step % self.recipe.save_steps == 0)

    def names(self, step: int) -> list[str]:
        return ["of a stream"]

    def state_dict(self) -> dict:
        return self.stream.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.resumed = state


def collator(recipe, processor) -> AudioTextCollator:
    return AudioTextCollator(
        processor,
        padding=recipe.padding,
        with_caption_ids=recipe.mask_false_negatives,
        all_captions=recipe.all_captions,
    )
