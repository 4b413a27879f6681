"""Loading of data sets of all layouts to rows of audio and captions."""

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow
import pyarrow.compute as pc

from processing.audio import clip_name
from processing.hub_names import needs_cache
from processing.prompts import checked_prompt, prompted

from .audiofolder import load_folder
from .cells import refuse_other_captions, refuse_other_labels, texts_in
from .durations import header_seconds
from .folder_form import holds_parquet
from .paper import NAMES, load_paper_data
from .synthetic import synthetic_dataset

logger = logging.getLogger(__name__)

SYNTHETIC = "synthetic"
SYNTHETIC_CLIPS_PER_KIND = {"train": 60, "validation": 5, "test": 10}
_CAPTION_COLUMN = re.compile(r"captions?(_?\d+)?|text")
_LANGUAGE_COLUMN = re.compile(r"(?:captions?|text)_([a-z]{2,3}(?:[-_][A-Za-z]{2,4})?)(?:_\d+)?")


def load_split(data: str, split: str, audio: str = "") -> datasets.Dataset:
    """Load a split as a `datasets.Dataset` whose `audio` column holds undecoded bytes or a path.

    Args:
        data: `"synthetic"` (made by code), a folder in the `audiofolder` layout (see `load_folder`), a Hub id, a copy
            of a Hub repository with parquet files, or a data set of the paper by name: `auto_acd`, `audiosetcaps`,
            `audiocaps`, `clotho`. Clips over 30 s stay in; missing and broken ones are logged.
        split: such as `"train"`.
        audio: for a data set of the paper, the folder of its sounds.

    Raises:
        ValueError: there is no such data set or split, or it cannot be read, holds no sounds or names other files.
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
        return synthetic_dataset(split, SYNTHETIC_CLIPS_PER_KIND.get(split, 1))
    if Path(data).is_dir() and not holds_parquet(Path(data), split):
        return load_folder(Path(data), split)
    needs_cache(data, "README.md", kind="dataset")
    try:
        dataset = datasets.load_dataset(data, split=split)
    except datasets.exceptions.DatasetGenerationError as error:  # its cause is more specific
        raise ValueError(f"{data} cannot be read as a data set: {error.__cause__ or error}") from error
    if "audio" not in dataset.column_names:
        raise ValueError(f"{data} has no column 'audio', only {', '.join(dataset.column_names)}")
    try:
        dataset = dataset.cast_column("audio", datasets.Audio(decode=False))
    except (pyarrow.ArrowException, TypeError, ImportError) as error:  # arrays would be encoded, by torchcodec
        raise ValueError(f"{data} has a column 'audio' that holds no sounds: {error}") from error
    _refuse_foreign_files(dataset, data)
    return dataset


def _refuse_foreign_files(dataset: datasets.Dataset, data: str) -> None:
    """Refuse rows without bytes that name a file outside the data set's folder and the Hub's cache."""
    audio = dataset.data.column("audio")
    paths = pc.struct_field(audio, "path").filter(pc.is_null(pc.struct_field(audio, "bytes"))).to_pylist()
    folders = [data, datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]
    allowed = tuple(os.path.join(os.path.abspath(folder), "") for folder in folders)
    for path in paths:
        if path and not (os.path.isabs(path) and os.path.normpath(path).startswith(allowed)):
            raise ValueError(
                f"{data} holds no sound in a row but names {path[:300]!r}, which is not below its folder: load the "
                "files as an audiofolder, or write the data set with their bytes in it"
            )


def caption_columns(dataset: datasets.Dataset | datasets.IterableDataset, wanted: Sequence[str] = ()) -> list[str]:
    """Return the columns that hold captions: `wanted`, or all that are named like `caption`, `caption_2` or `text`.

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


def named_like_captions(dataset: datasets.Dataset | datasets.IterableDataset) -> list[str]:
    """Return the columns that are named like `caption`, `caption_2` or `text`."""
    return [name for name in dataset.column_names if is_caption_column(name)]


def is_caption_column(name: str) -> bool:
    """Return whether a column is named like `caption`, `caption_2` or `text`."""
    return _CAPTION_COLUMN.fullmatch(name) is not None


def columns_by_language(columns: Iterable[str]) -> dict[str, list[str]]:
    """Return the columns whose name states a language, such as `caption_de`, `captions_pt_BR` or `caption_fr_2`."""
    languages: dict[str, list[str]] = {}
    for name in columns:
        if found := _LANGUAGE_COLUMN.fullmatch(name):
            languages.setdefault(found[1], []).append(name)
    return languages


def captions_of(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """Return the captions of a row that are not empty; a column may hold one caption or a list.

    Raises:
        ValueError: a column holds anything else.
    """
    where = clip_name(row["audio"], "?") if "audio" in row else "a row"
    captions = [caption for name in columns for caption in texts_in(row.get(name), name, where)]
    return [caption for caption in captions if caption.strip()]


def with_captions(dataset: datasets.Dataset, columns: Sequence[str]) -> datasets.Dataset:
    """Select the rows with a caption in one of `columns`; the number of others is logged.

    Raises:
        ValueError: no row has a caption.
    """
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
    """Return the `label` column as names, None for missing labels; data sets on the Hub often hold class numbers.

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


def add_label_captions(dataset: datasets.Dataset, *prompts: str) -> tuple[datasets.Dataset, str]:
    """Add a caption column with each of `prompts` around each clip's label, and return it with the column's name.

    Zero-shot classification then uses texts that the model was trained on.

    Args:
        dataset: with a column `label`.
        prompts: texts with one `{}`, for the label. With several a cell is a list, empty without a label.

    Raises:
        ValueError: no labels, or another prompt.
    """
    for prompt in prompts:
        checked_prompt(prompt)
    if "label" not in dataset.column_names:
        raise ValueError(f"label_prompt needs a column 'label'; the columns are {', '.join(dataset.column_names)}")
    labels = [label and label.replace("_", " ") for label in label_names(dataset)]
    if len(prompts) == 1:
        captions = [prompted(prompts[0], label) if label else "" for label in labels]
        return dataset.add_column("label_caption", captions), "label_caption"
    lists = [[prompted(prompt, label) for prompt in prompts] if label else [] for label in labels]
    return dataset.add_column("label_caption", lists), "label_caption"


def durations(dataset: datasets.Dataset) -> list[float]:
    """Return the seconds of each clip by the `duration` column, else by the file's header; 0 for unreadable clips."""
    return np.nan_to_num(header_seconds(dataset)).tolist()
