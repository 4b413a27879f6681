"""Data sets to (audio, captions) rows, and rows to batches."""

import hashlib
import os
import re
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow
import pyarrow.compute as pc
import torch
from transformers.utils import logging

from .audio import clip_name, load_column
from .batch_plan import BatchPlan
from .cells import refuse_other_captions, refuse_other_labels, texts_in
from .durations import header_seconds
from .folder_form import holds_parquet
from .folders import load_folder
from .hub_names import needs_cache
from .paper_data import NAMES, load_paper_data
from .prompts import checked_prompt, prompted
from .synthetic import synthetic_dataset

logger = logging.get_logger(__name__)

SYNTHETIC = "synthetic"
_SYNTHETIC_CLIPS_PER_KIND = {"train": 60, "validation": 5, "test": 10}
MOST_UNREADABLE = 100  # clips; after that many in a row the disk or the data set is at fault, not a clip
_CAPTION_COLUMN = re.compile(r"captions?(_?\d+)?|text")


def load_split(data: str, split: str, audio: str = "") -> datasets.Dataset:
    """One split as a `datasets.Dataset` whose `audio` column holds undecoded bytes or a path.

    Args:
        data: `"synthetic"` (made by code), a folder in the `audiofolder` layout (see `load_folder`), a Hub id, a copy
            of a Hub repository with parquet files, or a data set of the paper by name: `auto_acd`, `audiosetcaps`,
            `audiocaps`, `clotho`. Clips over 30 s stay in; what is missing or broken is logged.
        split: such as `"train"`.
        audio: for a data set of the paper, the folder of its sounds.
    """
    if not data:
        raise ValueError("name the data set: an audiofolder, a Hub id, or 'synthetic' (train.py --data)")
    if data in NAMES:
        dataset, report = load_paper_data(data, split, audio, max_seconds=None)
        logger.log(logging.WARNING if report.missing or report.broken else logging.INFO, str(report))
        return dataset
    if audio:
        raise ValueError(f"a folder of sounds belongs to a data set of the paper ({', '.join(NAMES)}), not to {data}")
    if data == SYNTHETIC:
        return synthetic_dataset(split, _SYNTHETIC_CLIPS_PER_KIND.get(split, 1))
    if Path(data).is_dir() and not holds_parquet(Path(data), split):
        return load_folder(Path(data), split)
    needs_cache(data, "README.md", kind="dataset")
    try:
        dataset = datasets.load_dataset(data, split=split)
    except datasets.exceptions.DatasetGenerationError as error:  # its cause says more
        raise ValueError(f"{data} cannot be read as a data set: {error.__cause__ or error}") from error
    if "audio" not in dataset.column_names:
        raise ValueError(f"{data} has no column 'audio', only {', '.join(dataset.column_names)}")
    try:
        dataset = dataset.cast_column("audio", datasets.Audio(decode=False))
    except (pyarrow.ArrowException, TypeError, ImportError) as error:  # arrays would be encoded, by torchcodec
        raise ValueError(f"{data} has a column 'audio' that holds no sounds: {error}") from error
    _refuse_other_places(dataset, data)
    return dataset


def _refuse_other_places(dataset: datasets.Dataset, data: str) -> None:
    """A row without bytes names a file: below the data set's folder or the Hub's cache, or it is none of its own."""
    audio = dataset.data.column("audio")
    paths = pc.struct_field(audio, "path").filter(pc.is_null(pc.struct_field(audio, "bytes"))).to_pylist()
    folders = [data, datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]
    own = tuple(os.path.join(os.path.abspath(folder), "") for folder in folders)
    for path in paths:
        if path and not (os.path.isabs(path) and os.path.normpath(path).startswith(own)):
            raise ValueError(
                f"{data} holds no sound in a row but names {path[:300]!r}, which is not below its folder: load the "
                "files as an audiofolder, or write the data set with their bytes in it"
            )


def caption_columns(dataset: datasets.Dataset, wanted: Sequence[str] = ()) -> list[str]:
    """The columns that hold captions: those `wanted`, or every one named like `caption`, `caption_2` or `text`.

    Raises:
        ValueError: there is no such column, or one holds neither texts nor lists of texts.
    """
    missing = [name for name in wanted if name not in dataset.column_names]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}; the columns are {', '.join(dataset.column_names)}")
    names = list(wanted) or named_like_captions(dataset)
    if not names:
        raise ValueError(
            f"no column is named like a caption; name them with caption_columns, out of "
            f"{', '.join(dataset.column_names)}"
        )
    refuse_other_captions(dataset, names)
    return names


def named_like_captions(dataset) -> list[str]:
    return [name for name in dataset.column_names if _CAPTION_COLUMN.fullmatch(name)]


def captions_of(row: dict, columns: Sequence[str]) -> list[str]:
    """The captions of one row that are not empty; a column may hold one caption or a list.

    Raises:
        ValueError: a column holds anything else.
    """
    where = clip_name(row["audio"], "?") if "audio" in row else "a row"
    captions = [caption for name in columns for caption in texts_in(row.get(name), name, where)]
    return [caption for caption in captions if caption.strip()]


def with_captions(dataset: datasets.Dataset, columns: Sequence[str]) -> datasets.Dataset:
    """The rows that have a caption in one of `columns`; how many have none is said."""
    texts = dataset.select_columns(list(columns))
    kept = [index for index, row in enumerate(texts) if captions_of(row, columns)]
    if len(kept) == len(dataset):
        return dataset
    if not kept:
        raise ValueError(f"none of {len(dataset)} rows has a caption in {', '.join(columns)}")
    logger.warning(
        f"{len(dataset) - len(kept)} of {len(dataset)} rows have no caption in {', '.join(columns)}: left out"
    )
    return dataset.select(kept)


def label_names(dataset: datasets.Dataset) -> list[str | None]:
    """The `label` column as names, None where there is none; data sets on the Hub often hold class numbers.

    Raises:
        ValueError: the column holds neither text nor class numbers with names.
    """
    if "label" not in dataset.column_names:
        return [None] * len(dataset)
    refuse_other_labels(dataset)
    names = getattr(dataset.features["label"], "names", None)
    if names:
        return [names[label] if label is not None and label >= 0 else None for label in dataset["label"]]
    return [label if label and label.strip() else None for label in dataset["label"]]


def add_label_captions(dataset: datasets.Dataset, prompt: str) -> tuple[datasets.Dataset, str]:
    """The data set with one more caption column, `prompt` around each clip's label, and that column's name.

    Zero-shot classification then asks in words the model has learned from.

    Args:
        prompt: a text with one `{}`, where the label goes.
    """
    checked_prompt(prompt)
    if "label" not in dataset.column_names:
        raise ValueError(f"label_prompt needs a column 'label'; the columns are {', '.join(dataset.column_names)}")
    captions = [prompted(prompt, label.replace("_", " ")) if label else "" for label in label_names(dataset)]
    return dataset.add_column("label_caption", captions), "label_caption"


def drawn(array: np.ndarray, captions: list[str], max_samples: int, rng) -> tuple[np.ndarray, list[str]]:
    """What a step trains on: at most `max_samples` from anywhere, and its captions in any order."""
    start = rng.integers(max(len(array) - max_samples, 0) + 1)
    captions = [captions[position] for position in rng.permutation(len(captions))]
    return array[start : start + max_samples], captions


class UnreadableClip(ValueError):
    """The sound of a row cannot be decoded."""


def _decoded(audio, rate: int) -> np.ndarray:
    """A row's samples; of what is no array, what goes wrong is the fault of that one clip."""
    try:
        return load_column(audio, rate)
    except ValueError as error:
        if isinstance(audio, dict) and audio.get("array") is not None:
            raise
        raise UnreadableClip(str(error)) from error


class CaptionedAudio(torch.utils.data.Dataset):
    """Decoded rows `{"audio": {"array", "sampling_rate"}, "captions": [...]}`, the caption to learn from first.

    An item is asked for by `(epoch, index)`, or by `index` alone. Which caption comes first and, for clips over
    `max_seconds`, which part is heard depend on (seed, epoch, index) only, so that a resumed run sees what an
    unbroken one would. With `shuffle=False` it is the first caption, and a clip over `max_seconds` is an error.

    A single item whose sound cannot be decoded is an `UnreadableClip`. A DataLoader asks for whole batches
    (`__getitems__`): there such a clip is noted in `unreadable`, logged, and another takes its place, of those that
    `plan`, a `BatchPlan`, has for it, so that all processes have as many clips; without a plan it is left out.
    """

    def __init__(
        self, dataset, columns: Sequence[str], max_seconds: float = 30.0, seed: int = 0, shuffle=False, rate=16000
    ):
        self.dataset = dataset
        self.columns = list(columns)
        self.max_seconds = max_seconds
        self.seed = seed
        self.shuffle = shuffle
        self.rate = rate
        self.plan: BatchPlan | None = None
        self.unreadable: dict[str, str] = {}  # clip -> why; of a worker process its own

    @property
    def max_samples(self) -> int:
        """`max_seconds` at the rate of the moment, which the processor may set later."""
        return int(self.max_seconds * self.rate)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        row = self.dataset[int(index)]
        captions = captions_of(row, self.columns)
        if not captions:
            raise ValueError(f"row {index} ({self.name(index)}) has no caption in {', '.join(self.columns)}")
        array = _decoded(row["audio"], self.rate)
        if self.shuffle:
            rng = np.random.default_rng((self.seed, epoch, index))
            array, captions = drawn(array, captions, self.max_samples, rng)
        elif len(array) > self.max_samples:
            raise ValueError(
                f"{self.name(index)} lasts {len(array) / self.rate:.2f} s, the limit is "
                f"{self.max_samples / self.rate:g} s: cut it into windows"
            )
        return {
            "audio": {"array": array, "sampling_rate": self.rate},
            "captions": captions,
        }

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[dict]:
        rows = [row for key in keys if (row := self._readable(key)) is not None]
        if not rows:
            raise ValueError(f"none of the {len(keys)} clips of a batch can be read: {self._last_unreadable()}")
        return rows

    def _readable(self, key: int | tuple[int, int]) -> dict | None:
        """The row, or the first of its substitutes that can be read; None if there is no plan."""
        planned = self.plan is not None and isinstance(key, tuple)
        substitutes = self.plan.substitutes(*key) if planned else ()
        for candidate in chain([key], islice(substitutes, MOST_UNREADABLE)):
            try:
                return self[candidate]
            except UnreadableClip as error:
                name = self.name(candidate[1] if isinstance(candidate, tuple) else candidate)
                if name not in self.unreadable:
                    self.unreadable[name] = str(error)
                    instead = "replaced by another clip" if planned else "left out"
                    logger.warning(f"{name} cannot be read and is {instead} ({len(self.unreadable)} so far): {error}")
        if not planned:
            return None
        raise ValueError(f"no other clip can take the place of one that cannot be read: {self._last_unreadable()}")

    def _last_unreadable(self) -> str:
        name, why = next(reversed(self.unreadable.items()))
        return f"{len(self.unreadable)} cannot be read so far, the last is {name} ({why}); repair or remove them"

    def name(self, index: int) -> str:
        return clip_name(self.dataset[int(index)]["audio"], index)


class AudioTextCollator:
    """Rows to the model's inputs, for our loop and for `transformers.Trainer` (with `remove_unused_columns=False`).

    A row holds `audio` (what `processing.audio.load_column` takes: a path, bytes, a dict or a decoder) and captions,
    of which the first is the text. `caption_ids` `[B, K]` tell the loss which clips share a caption.

    With `all_captions` all of a clip's captions are its texts, one clip's after another's, and `text_owner`
    `[B_text]` int64 gives the row of each text's clip. Trainer's `compute_metrics` expects one text a clip.

    A row whose file or bytes cannot be read is left out of its batch, noted in `unreadable` and logged.

    Raises:
        ValueError: a row without caption, or a batch of which nothing can be read.
    """

    def __init__(
        self,
        processor,
        columns: Sequence[str] = ("captions",),
        padding: str | None = None,
        with_caption_ids=True,
        all_captions=False,
    ):
        self.processor = processor
        self.with_caption_ids = with_caption_ids
        self.columns = list(columns)
        self.padding = padding
        self.all_captions = all_captions
        self.unreadable: dict[str, str] = {}  # clip -> why; of a worker process its own

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        rate = self.processor.feature_extractor.sampling_rate
        rows, clips = self._read(rows, rate)
        captions = [captions_of(row, self.columns) for row in rows]
        if not all(captions):
            raise ValueError(f"a row without caption in {', '.join(self.columns)}; it has {', '.join(rows[0])}")
        learned = captions if self.all_captions else [texts[:1] for texts in captions]
        batch = self.processor(
            text=[text for texts in learned for text in texts],
            audio=clips,
            sampling_rate=rate,
            audio_kwargs={} if self.padding is None else {"padding": self.padding},
            return_tensors="pt",
        )
        extra = {"caption_ids": caption_ids(captions)} if self.with_caption_ids else {}
        if self.all_captions:
            extra["text_owner"] = torch.arange(len(rows)).repeat_interleave(torch.tensor([*map(len, learned)]))
        return {**batch, **extra}

    def _read(self, rows: Sequence[dict], rate: int) -> tuple[list[dict], list[np.ndarray]]:
        """The rows that can be read, and their samples."""
        read, clips, name, why = [], [], "", ""
        for number, row in enumerate(rows):
            try:
                clips.append(_decoded(row["audio"], rate))
                read.append(row)
            except UnreadableClip as error:
                why = str(error)
                name = clip_name(row["audio"], number)
                if name not in self.unreadable:
                    self.unreadable[name] = str(error)
                    logger.warning(f"{name} cannot be read and is left out ({len(self.unreadable)} so far): {error}")
        if not read:
            raise ValueError(f"none of the {len(rows)} clips of a batch can be read, such as {name} ({why})")
        return read, clips


def caption_ids(captions: Sequence[Sequence[str]]) -> torch.Tensor:
    """`[B, K]` int64: captions of one `caption_key` have one id; -1 fills shorter rows."""
    ids = torch.full((len(captions), max(map(len, captions))), -1)
    for row, texts in enumerate(captions):
        ids[row, : len(texts)] = torch.tensor([_caption_id(text) for text in texts])
    return ids


def caption_key(text: str) -> str:
    """What makes two captions one, in training and in evaluation: their text without case and outer space."""
    return text.strip().lower()


def _caption_id(text: str) -> int:
    digest = hashlib.blake2b(caption_key(text).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # non-negative in int64


def durations(dataset: datasets.Dataset) -> list[float]:
    """Seconds of each clip: the `duration` column, else what the file's header says, 0 where neither does."""
    return np.nan_to_num(header_seconds(dataset)).tolist()
