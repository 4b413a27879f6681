"""Data sets to (audio, captions) rows, rows to batches, and the order in which training sees them."""

import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow.compute as pc
import soundfile
import torch
from torch.utils.data import Sampler
from transformers.utils import logging

from .audio import load_column
from .folders import load_folder
from .paper_data import NAMES, load_paper_data
from .synthetic import synthetic_dataset

logger = logging.get_logger(__name__)

SYNTHETIC = "synthetic"
_SYNTHETIC_CLIPS_PER_KIND = {"train": 60, "validation": 5, "test": 10}
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
    if Path(data).is_dir() and not any(Path(data).rglob("*.parquet")):
        return load_folder(Path(data), split)
    dataset = datasets.load_dataset(data, split=split)
    if "audio" not in dataset.column_names:
        raise ValueError(f"{data} has no column 'audio', only {', '.join(dataset.column_names)}")
    dataset = dataset.cast_column("audio", datasets.Audio(decode=False))
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
    """The columns that hold captions: those `wanted`, or every one named like `caption`, `caption_2` or `text`."""
    missing = [name for name in wanted if name not in dataset.column_names]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}; the columns are {', '.join(dataset.column_names)}")
    names = list(wanted) or [name for name in dataset.column_names if _CAPTION_COLUMN.fullmatch(name)]
    if not names:
        raise ValueError(
            f"no column is named like a caption; name them with caption_columns, out of "
            f"{', '.join(dataset.column_names)}"
        )
    return names


def captions_of(row: dict, columns: Sequence[str]) -> list[str]:
    """The captions of one row that are not empty; a column may hold one caption or a list."""
    values = [row[name] for name in columns if row.get(name)]
    captions = [caption for value in values for caption in ([value] if isinstance(value, str) else value)]
    return [caption for caption in captions if caption and caption.strip()]


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
    """The `label` column as names, None where there is none; data sets on the Hub often hold class numbers."""
    if "label" not in dataset.column_names:
        return [None] * len(dataset)
    names = getattr(dataset.features["label"], "names", None)
    if names:
        return [names[label] if label is not None and label >= 0 else None for label in dataset["label"]]
    return [label if isinstance(label, str) else None for label in dataset["label"]]


def add_label_captions(dataset: datasets.Dataset, prompt: str) -> tuple[datasets.Dataset, str]:
    """The data set with one more caption column, `prompt` around each clip's label, and that column's name.

    Zero-shot classification then asks in words the model has learned from.
    """
    if "label" not in dataset.column_names:
        raise ValueError(f"label_prompt needs a column 'label'; the columns are {', '.join(dataset.column_names)}")
    captions = [prompt.format(label.replace("_", " ")) if label else "" for label in label_names(dataset)]
    return dataset.add_column("label_caption", captions), "label_caption"


def drawn(array: np.ndarray, captions: list[str], max_samples: int, rng) -> tuple[np.ndarray, list[str]]:
    """What training hears and reads of a clip: at most `max_samples` from anywhere, and its captions in any order."""
    start = rng.integers(max(len(array) - max_samples, 0) + 1)
    captions = [captions[position] for position in rng.permutation(len(captions))]
    return array[start : start + max_samples], captions


class CaptionedAudio(torch.utils.data.Dataset):
    """Decoded rows `{"audio": {"array", "sampling_rate"}, "captions": [...]}`, the caption to learn from first.

    An item is asked for by `(epoch, index)`, or by `index` alone. Which caption comes first and, for clips over
    `max_seconds`, which part is heard depend on (seed, epoch, index) only, so that a resumed run sees what an
    unbroken one would. With `shuffle=False` it is the first caption, and a clip over `max_seconds` is an error.
    """

    def __init__(
        self, dataset, columns: Sequence[str], max_seconds: float = 30.0, seed: int = 0, shuffle=False, rate=16000
    ):
        self.dataset = dataset
        self.columns = list(columns)
        self.max_samples = int(max_seconds * rate)
        self.seed = seed
        self.shuffle = shuffle
        self.rate = rate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        row = self.dataset[int(index)]
        captions = captions_of(row, self.columns)
        if not captions:
            raise ValueError(f"row {index} ({self.name(index)}) has no caption in {', '.join(self.columns)}")
        array = load_column(row["audio"], self.rate)
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

    def name(self, index: int) -> str:
        return clip_name(self.dataset[int(index)]["audio"], index)


def clip_name(audio, index: int) -> str:
    """What to call a row in a message: its file, or its number."""
    return audio.get("path") or f"row {index}" if isinstance(audio, dict) else str(audio)


class AudioTextCollator:
    """Rows to the model's inputs, for our loop and for `transformers.Trainer` (with `remove_unused_columns=False`).

    A row holds `audio` (a path, `{"bytes", "path"}` or `{"array", "sampling_rate"}`) and captions, of which the
    first is the text. `caption_ids` `[B, K]` tell the loss which clips share a caption.

    With `all_captions` all of a clip's captions are its texts, one clip's after another's, and `text_owner`
    `[B_text]` int64 gives the row of each text's clip. Trainer's `compute_metrics` expects one text a clip.
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

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        rate = self.processor.feature_extractor.sampling_rate
        captions = [captions_of(row, self.columns) for row in rows]
        if not all(captions):
            raise ValueError(f"a row without caption in {', '.join(self.columns)}; it has {', '.join(rows[0])}")
        learned = captions if self.all_captions else [texts[:1] for texts in captions]
        batch = self.processor(
            text=[text for texts in learned for text in texts],
            audio=[load_column(row["audio"], rate) for row in rows],
            sampling_rate=rate,
            padding=self.padding,
            return_tensors="pt",
        )
        extra = {"caption_ids": caption_ids(captions)} if self.with_caption_ids else {}
        if self.all_captions:
            extra["text_owner"] = torch.arange(len(rows)).repeat_interleave(torch.tensor([*map(len, learned)]))
        return {**batch, **extra}


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
    named = "duration" in getattr(dataset, "column_names", ())  # a list of rows has no columns
    known = dataset["duration"] if named else [None] * len(dataset)
    return [
        float(_header_seconds(dataset[index]["audio"]) if seconds is None else seconds)
        for index, seconds in enumerate(known)
    ]


def _header_seconds(audio) -> float:
    """Only orders batches, so what cannot be read is left to the decoder to complain of."""
    audio = audio if isinstance(audio, dict) else {"path": audio}
    if audio.get("array") is not None:
        return len(audio["array"]) / audio["sampling_rate"]
    content = audio.get("bytes")
    try:
        return soundfile.info(audio["path"] if content is None else io.BytesIO(content)).duration
    except (soundfile.SoundFileError, OSError, TypeError):
        return 0.0


class BatchPlan(Sampler):
    """The batches of all epochs, each a list of `(epoch, index)`; of every batch this process takes its share.

    Batches are grouped by length: each epoch shuffles the clips, sorts them by duration within runs of
    `group` batches, cuts them, and shuffles the batches. So a batch holds clips of like length drawn at random from
    1 / (number of runs) of the data; `group=1` is a plain shuffle. The plan depends on (seed, epoch) alone, the
    number of processes only divides it. What does not fill a batch is left out of that epoch.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        batch_size: int,
        epochs: int,
        seed: int = 0,
        group: int = 16,
        rank: int = 0,
        world_size: int = 1,
    ):
        if min(batch_size, len(lengths)) < 2:
            raise ValueError(
                f"a contrastive loss needs at least two clips in a batch, got batch_size={batch_size} and a data set "
                f"of {len(lengths)}"
            )
        if min(batch_size, len(lengths)) < world_size:
            raise ValueError(
                f"batch_size={batch_size} and a data set of {len(lengths)} leave nothing for some of the "
                f"{world_size} processes: use fewer"
            )
        self.lengths = np.asarray(lengths)
        self.batch_size = min(batch_size, len(lengths))
        self.epochs = epochs
        self.seed = seed
        self.group = group
        self.rank = rank
        self.world_size = world_size
        self.start = 0  # batches a resumed run has behind it

    @property
    def batches_per_epoch(self) -> int:
        return len(self.lengths) // self.batch_size

    def __len__(self) -> int:
        return self.epochs * self.batches_per_epoch - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self.start // self.batches_per_epoch, self.epochs):
            skipped = max(self.start - epoch * self.batches_per_epoch, 0)
            for batch in self.epoch(epoch)[skipped:]:
                yield [(epoch, int(index)) for index in batch[self.rank :: self.world_size]]

    def epoch(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.lengths))[: self.batches_per_epoch * self.batch_size]
        run = self.group * self.batch_size
        runs = [order[start : start + run] for start in range(0, len(order), run)]
        ordered = np.concatenate([run[np.argsort(self.lengths[run], kind="stable")] for run in runs])
        batches = ordered.reshape(-1, self.batch_size)
        return list(batches[rng.permutation(len(batches))])
