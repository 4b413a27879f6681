"""Training data of a recipe as batches for this process: planned epochs of a data set, or an endless stream."""

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers.utils import logging

from processing.collator import MOST_UNREADABLE, AudioTextCollator, CaptionedAudio, UnreadableClip
from processing.sampling import BatchPlan
from processing.sound_files import such_as

from .caption_tables import CAPTION_FILES, captions_by_id, find_captions
from .durations import header_seconds
from .fingerprints import rows_digest
from .kept_features import KeptFeatures
from .load import (
    add_label_captions,
    caption_columns,
    captions_of,
    clip_name,
    is_caption_column,
    load_split,
    with_captions,
)
from .mixture import mixture, type_conflicts
from .paper import NAMES
from .shards import load_stream
from .streaming import NAMES_KEPT, StreamedBatches
from .worker_processes import loader_options

logger = logging.get_logger(__name__)


def load_training_set(recipe: Any) -> Dataset:
    """Load a recipe's `data`, or its `mixture`, in which a clip of a source with weight 2 counts double."""
    if not recipe.mixture:
        return load_source(recipe, recipe.data, recipe.train_split)
    parts = {source: load_source(recipe, source, recipe.train_split) for source in recipe.mixture}
    shares = {source: weight * len(parts[source]) for source, weight in recipe.mixture.items()}
    return mixture(_without_conflicts(parts, recipe), shares, recipe.seed)


def _without_conflicts(parts: dict[str, Dataset], recipe: Any) -> dict[str, Dataset]:
    """Leave out the columns that sources have in different types and that training does not read."""
    read = {"audio", "duration", "label", *recipe.caption_columns}
    dropped = {name for name in type_conflicts(parts) if name not in read and not is_caption_column(name)}
    return {source: part.remove_columns([*dropped & {*part.column_names}]) for source, part in parts.items()}


def load_source(recipe: Any, source: str, split: str) -> Dataset:
    """Load a source, with sounds from the audio folder's subfolder of its name, else from the audio folder itself.

    Args:
        recipe: a `Recipe`.
        source: name of a data set, see `load_split`.
        split: of it.
    """
    subfolder = Path(recipe.audio_folder) / source
    shared = recipe.audio_folder if source in CAPTION_FILES else ""
    return load_split(source, split, str(subfolder) if source in NAMES and subfolder.is_dir() else shared)


class Epochs:
    """A data set of known length, in epochs of length-grouped batches (`BatchPlan`).

    Clips whose header cannot be read are left out before the first step; clips that fail later are replaced
    (`BatchPlan.substitutes`), in an epoch by the same ones in every run. Both are counted in `report` and named in the
    log. If more than half of the clips cannot be read, a ValueError ends the run.

    Args:
        recipe: a `Recipe`.
        rank, world_size: this process, and the number of all; `recipe.batch_size` is over all of them.
    """

    def __init__(self, recipe: Any, rank: int, world_size: int):
        self.recipe = recipe
        train_set = load_training_set(recipe)
        columns = caption_columns(train_set, recipe.caption_columns)
        label_column = ""
        if recipe.prompts:
            train_set, label_column = add_label_captions(train_set, *recipe.prompts)
            columns.append(label_column)
        train_set, seconds = readable(with_captions(train_set, columns), warn=rank == 0)
        self.data = CaptionedAudio(
            train_set,
            columns,
            recipe.max_seconds,
            recipe.seed,
            shuffle=True,
            label_column=label_column,
            label_share=recipe.label_share,
        )
        lengths = np.minimum(seconds, recipe.max_seconds)
        self.plan = BatchPlan(lengths, recipe.batch_size, recipe.epochs, recipe.seed, rank=rank, world_size=world_size)
        if recipe.max_steps:
            self.plan.epochs = math.ceil(recipe.max_steps / self.plan.batches_per_epoch)
        self.data.plan = self.plan
        self.steps = recipe.max_steps or len(self.plan)
        self.batch_size = self.plan.batch_size  # that of the recipe, or all clips of a smaller data set
        self.longest = float(lengths.max(initial=0))  # seconds of a crop
        self.report = {"read": 0, "skipped_broken": 0, "names": []}
        self._broken: dict[str, str] = {}

    def captions(self) -> Iterable[str]:
        """Yield every caption of the training set."""
        rows = self.data.dataset.select_columns(self.data.columns)
        return (text for row in rows for text in captions_of(row, self.data.columns))

    def first_sounds(self, processor: Any, count: int = 64) -> dict[str, torch.Tensor]:
        """Compute the features of `count` clips that can be read, the same in every process."""
        self.data.rate = processor.feature_extractor.sampling_rate
        clips, broken = [], []
        for index in np.random.default_rng(self.recipe.seed).permutation(len(self.data)).tolist():
            try:
                clips.append(self.data[0, index]["audio"]["array"])
            except UnreadableClip as error:
                broken.append(str(error))
            if len(clips) == count:
                break
            if len(broken) == MOST_UNREADABLE:
                raise ValueError(f"{MOST_UNREADABLE} of the first clips cannot be read: {such_as(broken)}")
        if not clips:
            raise ValueError(f"not one of {len(broken)} clips can be read: {such_as(broken)}")
        return {**processor(audio=clips, sampling_rate=self.data.rate, return_tensors="pt")}

    def cache_features(self, processor: Any) -> None:
        """Compute the log-mels of all clips, or find them in the cache, and train on crops of these."""
        data, extractor = self.data, processor.feature_extractor
        columns = [name for name in data.columns if name != data.label_column]
        data.features = KeptFeatures(data.dataset, columns, extractor)
        data.frame = extractor.hop_length

    def batches(self, processor: Any, step: int) -> Iterable[dict[str, torch.Tensor]]:
        """Yield the batches from `step` on."""
        self.plan.start = step
        self.data.rate = processor.feature_extractor.sampling_rate
        loader = DataLoader(
            self.data,
            batch_sampler=self.plan,
            collate_fn=_WithUnreadable(collator(self.recipe, processor), self.data),
            **loader_options(self.recipe.num_workers),
        )
        for batch, clips, unreadable in loader:
            self._note(clips, unreadable)
            yield batch

    def _note(self, clips: int, unreadable: dict[str, str]) -> None:
        """Count unreadable clips, each once although several workers may report it."""
        self._broken |= unreadable
        names = list(self._broken)
        self.report = {"read": self.report["read"] + clips, "skipped_broken": len(names), "names": names[:NAMES_KEPT]}
        if len(names) > max(MOST_UNREADABLE, self.report["read"]):
            raise ValueError(
                f"more than half of the clips cannot be read, {len(names)} so far, such as {such_as(names)}: "
                "check the disk that holds them"
            )

    def is_epoch_end(self, step: int) -> bool:
        """Whether an epoch or the run ends after `step` steps."""
        return step % self.plan.batches_per_epoch == 0 or step == self.steps

    def names(self, step: int) -> list[str]:
        """Return the names of the clips in a step's batch, of all processes."""
        epoch, position = divmod(step, self.plan.batches_per_epoch)
        return [self.data.name(index) for index in self.plan.epoch(epoch)[position]]

    def facts(self) -> dict:
        """Return properties of the data that must not change before a run is resumed."""
        return {
            "clips": len(self.data),
            "captions and sounds": rows_digest(self.data.dataset, self.data.columns, self.plan.lengths),
        }

    def state_dict(self) -> dict:
        """Return an empty state: the number of the step determines the batches."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Do nothing, see `state_dict`."""


class _WithUnreadable:
    """A collator that adds the number of clips, and the unreadable clips of the data set since the last batch."""

    def __init__(self, collate: Callable, data: CaptionedAudio):
        self.collate = collate
        self.data = data  # in a worker process, the copy that the worker reads
        self.reported = 0

    def __call__(self, rows: list[dict]) -> tuple[dict[str, torch.Tensor], int, dict[str, str]]:
        new = dict(islice(self.data.unreadable.items(), self.reported, None))
        self.reported += len(new)
        return self.collate(rows), len(rows), new


def readable(dataset: Dataset, warn: bool = True) -> tuple[Dataset, np.ndarray]:
    """Select the rows whose sound can be read by its header, with their seconds; the others are counted and named.

    All processes use the result of the first one, so that they have the same rows.

    Args:
        dataset: with a column `audio`.
        warn: whether to log the others.

    Raises:
        ValueError: more than half of the rows cannot be read.
    """
    seconds = header_seconds(dataset)
    if dist.is_available() and dist.is_initialized():
        seconds = broadcast_object_list([seconds])[0]
    broken = np.flatnonzero(np.isnan(seconds))
    if not len(broken):
        return dataset, seconds
    names = [clip_name(dataset[int(row)]["audio"], row) for row in broken[:NAMES_KEPT]]
    message = f"{len(broken)} of {len(dataset)} clips cannot be read as sound: {such_as(names)}"
    if 2 * len(broken) > len(dataset):
        raise ValueError(f"{message}; repair them, or leave them out of the data set")
    if warn:
        logger.warning(f"{message}; they are left out")
    kept = np.flatnonzero(~np.isnan(seconds))
    return dataset.select(kept), seconds[kept]


class Stream:
    """Streamed shards (`StreamedBatches`), for `recipe.max_steps` steps; `recipe.save_steps` are its epochs.

    Arguments as for `Epochs`.
    """

    def __init__(self, recipe: Any, rank: int, world_size: int):
        if not recipe.max_steps:
            raise ValueError("a stream has no length: give --max_steps")
        if recipe.prompts:
            name = "label_prompt" if recipe.label_prompt else "label_prompts"
            raise ValueError(f"{name} needs a data set held whole: leave --streaming or --{name} out")
        self.recipe = recipe
        sources = recipe.mixture or {recipe.data: 1.0}
        self.captions_by_id = joined_captions(recipe, sources) if recipe.audio_folder else None
        self.source = load_stream(recipe.audio_folder or recipe.data, recipe.train_split)
        self.columns = [] if recipe.audio_folder else caption_columns(self.source, recipe.caption_columns)
        self.share = {"rank": rank, "world_size": world_size}
        self.steps, self.batch_size, self.longest = recipe.max_steps, recipe.batch_size, recipe.max_seconds
        self.stream, self.resumed = None, None

    def captions(self) -> Iterable[str]:
        """Raise a ValueError: captions of a stream are not known in advance."""
        raise ValueError("a text tower from scratch needs the words of a data set held whole: give --text_model")

    def first_sounds(self, processor: Any, count: int = 64) -> dict[str, torch.Tensor]:
        """Compute the features of the first `count` clips, the same in every process."""
        batch = next(iter(self._read(processor, count, num_workers=0, rank=0, world_size=1)))
        return {name: value for name, value in batch.items() if name.startswith("input_features")}

    def batches(self, processor: Any, step: int) -> Iterable[dict[str, torch.Tensor]]:
        """Return the batches from the loaded state on; `step` is ignored."""
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
        """Whether the run ends, or saves a checkpoint, after `step` steps."""
        return step == self.steps or bool(self.recipe.save_steps and step % self.recipe.save_steps == 0)

    def names(self, step: int) -> list[str]:
        """Return a description in place of the clips' names, which are not kept."""
        return ["of a stream"]

    def facts(self) -> dict:
        """Return properties of the data that must not change before a run is resumed."""
        return {"shards": self.source.num_shards}

    def state_dict(self) -> dict:
        """Return the state of `StreamedBatches`."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state when `batches` is called."""
        self.resumed = state


def joined_captions(recipe: Any, sources: Mapping[str, float]) -> "JoinedCaptions":
    """Load the captions of caption-only data sets for streamed sounds.

    Args:
        recipe: a `Recipe`.
        sources: names and weights, which must be 1.

    Raises:
        ValueError: other data sets or weights.
    """
    if not all(source in CAPTION_FILES and weight == 1 for source, weight in sources.items()):
        raise ValueError(
            f"an audio folder is streamed with the captions of {' and '.join(CAPTION_FILES)}, each of weight 1, got "
            f"{sources}"
        )
    return JoinedCaptions([captions_by_id(source, recipe.train_split) for source in sources])


class JoinedCaptions:
    """All captions of a clip in several caption-only data sets, by its key in a tar."""

    def __init__(self, parts: list[Mapping[str, list[str]]]):
        self.parts = parts

    def get(self, key: str) -> list[str] | None:
        """Return the captions of a clip, None if there are none."""
        return [text for part in self.parts for text in find_captions(part, key) or ()] or None


def collator(recipe: Any, processor: Any) -> AudioTextCollator:
    """Make the collator of a recipe."""
    return AudioTextCollator(
        processor,
        padding=recipe.padding,
        with_caption_ids=recipe.mask_false_negatives,
        all_captions=recipe.all_captions,
        with_bank_ids=recipe.caption_bank,
    )
