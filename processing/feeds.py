"""What a recipe learns from, as batches for this process: planned epochs of a data set, or a stream without end."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from .captions import CAPTION_FILES, captions_by_id, find_captions
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
from .fingerprints import rows_digest
from .mixture import mixture
from .paper_data import NAMES
from .shards import load_stream
from .streaming import StreamedBatches


def load_training_set(recipe) -> Dataset:
    """A recipe's `data`, or its `mixture`: a clip of a source with weight 2 comes twice for one with weight 1."""
    if not recipe.mixture:
        return load_source(recipe, recipe.data, recipe.train_split)
    parts = {source: load_source(recipe, source, recipe.train_split) for source in recipe.mixture}
    shares = {source: weight * len(parts[source]) for source, weight in recipe.mixture.items()}
    return mixture(parts, shares, recipe.seed)


def load_source(recipe, source: str, split: str) -> Dataset:
    """One source; its sounds lie in the audio folder's subfolder of its name, or in the folder that all share."""
    own = Path(recipe.audio_folder) / source
    shared = recipe.audio_folder if source in CAPTION_FILES else ""
    return load_split(source, split, str(own) if source in NAMES and own.is_dir() else shared)


class Epochs:
    """A data set of known length, in epochs of length-grouped batches (`BatchPlan`).

    Args:
        recipe: a `Recipe`.
        rank, world_size: this process among all; `recipe.batch_size` is over all of them.
    """

    def __init__(self, recipe, rank: int, world_size: int):
        self.recipe = recipe
        train_set = load_training_set(recipe)
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

    def first_sounds(self, processor, count: int = 64) -> dict[str, torch.Tensor]:
        """The features of `count` clips, the same in every process."""
        self.data.rate = processor.feature_extractor.sampling_rate
        drawn = np.random.default_rng(self.recipe.seed).permutation(len(self.data))[:count]
        clips = [self.data[0, int(index)]["audio"]["array"] for index in drawn]
        return {**processor(audio=clips, sampling_rate=self.data.rate, return_tensors="pt")}

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

    def facts(self) -> dict:
        """What a resumed run must find as it was."""
        return {
            "clips": len(self.data),
            "captions and sounds": rows_digest(self.data.dataset, self.data.columns, self.plan.lengths),
        }

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
        sources = recipe.mixture or {recipe.data: 1.0}
        self.captions_by_id = joined_captions(recipe, sources) if recipe.audio_folder else None
        self.source = load_stream(recipe.audio_folder or recipe.data, recipe.train_split)
        self.columns = [] if recipe.audio_folder else caption_columns(self.source, recipe.caption_columns)
        self.share = {"rank": rank, "world_size": world_size}
        self.steps = recipe.max_steps
        self.stream, self.resumed = None, None

    def captions(self) -> Iterable[str]:
        raise ValueError("a text tower from scratch needs the words of a data set held whole: give --text_model")

    def first_sounds(self, processor, count: int = 64) -> dict[str, torch.Tensor]:
        """The features of the first `count` clips, the same in every process."""
        batch = next(iter(self._read(processor, count, num_workers=0, rank=0, world_size=1)))
        return {name: value for name, value in batch.items() if name.startswith("input_features")}

    def batches(self, processor, step: int) -> Iterable[dict[str, torch.Tensor]]:
        self.stream = self._read(processor, self.recipe.batch_size, self.recipe.num_workers, **self.share)
        if self.resumed is not None:
            self.stream.load_state_dict(self.resumed)
        return self.stream

    def _read(self, processor, batch_size: int, num_workers: int, rank: int, world_size: int) -> StreamedBatches:
        recipe = self.recipe
        return StreamedBatches(
            self.source,
            self.columns,
            collator(recipe, processor),
            batch_size,
            recipe.seed,
            max_seconds=recipe.max_seconds,
            rate=processor.feature_extractor.sampling_rate,
            num_workers=num_workers,
            captions_by_id=self.captions_by_id,
            rank=rank,
            world_size=world_size,
        )

    def is_epoch_end(self, step: int) -> bool:
        return step == self.steps or bool(self.recipe.save_steps and step % self.recipe.save_steps == 0)

    def names(self, step: int) -> list[str]:
        return ["of a stream"]

    def facts(self) -> dict:
        """What a resumed run must find as it was."""
        return {"shards": self.source.num_shards}

    def state_dict(self) -> dict:
        return self.stream.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.resumed = state


def joined_captions(recipe, sources: dict) -> "JoinedCaptions":
    if not all(source in CAPTION_FILES and weight == 1 for source, weight in sources.items()):
        raise ValueError(
            f"an audio folder is streamed with the captions of {' and '.join(CAPTION_FILES)}, each of weight 1, got "
            f"{sources}"
        )
    return JoinedCaptions([captions_by_id(source, recipe.train_split) for source in sources])


class JoinedCaptions:
    """All captions of a clip in several caption-only sets, by its key in a tar."""

    def __init__(self, parts: list[dict[str, list[str]]]):
        self.parts = parts

    def get(self, key: str) -> list[str] | None:
        return [text for part in self.parts for text in find_captions(part, key) or ()] or None


def collator(recipe, processor) -> AudioTextCollator:
    return AudioTextCollator(
        processor,
        padding=recipe.padding,
        with_caption_ids=recipe.mask_false_negatives,
        all_captions=recipe.all_captions,
    )
