"""The size of a recipe's training data: from a local folder, or from the built-in facts about known data sets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet

from processing.collator import caption_key
from processing.datasets.audiofolder import load_folder
from processing.datasets.folder_form import holds_parquet, hub_parquet, parquet_files
from processing.datasets.load import (
    SYNTHETIC,
    SYNTHETIC_CLIPS_PER_KIND,
    add_label_captions,
    caption_columns,
    captions_of,
    is_caption_column,
)
from processing.datasets.synthetic import synthetic_dataset
from processing.datasets.youtube_ids import in_threads, seconds_in
from wavlink.training.recipe_fields import Recipe

from .facts import SOURCES, TOKENS_A_WORD, WORDS, Source

_SAMPLE = 1000  # clips whose headers and captions are read
_MADE = 4  # clips of each kind of the data made by code that are made


@dataclass(frozen=True)
class TrainingData:
    """The clips of an epoch."""

    clips: int
    seconds: float  # of a clip as it is trained on, on average
    longest: float
    tokens: int  # to which the texts of a chunk are padded
    origin: str
    captions: tuple[str, ...] = ()
    bank: int = 0  # different captions, for a recipe with a caption bank


@dataclass(frozen=True)
class _Part:
    """A source's size, some of its captions (none where they are not read), and captions for a bank."""

    source: Source
    captions: list[str]
    bank: int


def training_data(recipe: Recipe, clips: int = 0, seconds: float = 0.0) -> TrainingData:
    """Return the size of a recipe's data; a source in a mixture is repeated by its weight, as in training.

    Args:
        recipe: what is to be trained.
        clips: of an epoch, instead of those of the recipe's data.
        seconds: of a clip, likewise.

    Raises:
        ValueError: a data set whose size is not known here, or one that cannot be read.
    """
    if not (recipe.data or recipe.mixture):
        raise ValueError("name the data set: an audiofolder, a Hub id, or 'synthetic' (train.py --data)")
    if clips and seconds:
        longest = min(seconds, recipe.max_seconds)
        origin, bank = f"{clips:,} clips of {seconds:g} s as given", clips if recipe.caption_bank else 0
        return TrainingData(clips, longest, longest, _tokens([WORDS], 2), origin, bank=bank)
    weights = recipe.mixture or {recipe.data: 1.0}
    parts = {name: _source(recipe, name) for name in weights}
    sources = [part.source for part in parts.values()]
    captions = [text for part in parts.values() for text in part.captions]
    least = min(weights.values())  # a source with it occurs once, see `processing.datasets.mixture`
    counts = [round(weights[name] / least * part.source.clips) for name, part in parts.items()]
    bank = sum(part.bank for part in parts.values())
    used = [min(source.seconds, recipe.max_seconds) for source in sources]
    mean = seconds or sum(n * s for n, s in zip(counts, used, strict=True)) / sum(counts)
    words = [len(text.split()) for text in captions] or [WORDS]
    chunk = min(recipe.micro_batch_size or recipe.batch_size, recipe.batch_size)
    described = [f"{name} {part.source.clips:,} clips of {part.source.seconds:.1f} s" for name, part in parts.items()]
    return TrainingData(
        clips or sum(counts),
        min(mean, recipe.max_seconds),
        min(max(seconds, *(source.longest for source in sources)), recipe.max_seconds),
        _tokens(words, chunk),
        ", ".join(described),
        tuple(captions),
        round(bank * clips / sum(counts)) if clips else bank,
    )


def _tokens(words: list[int], chunk: int) -> int:
    """The tokens of the longest of `chunk` captions, roughly, from the numbers of words of some captions."""
    return round(TOKENS_A_WORD * float(np.quantile(words, 1 - 1 / max(chunk, 2)))) + 2


def _source(recipe: Recipe, name: str) -> _Part:
    if name == SYNTHETIC:
        return _synthetic(recipe)
    copy = Path(recipe.audio_folder) / name if recipe.audio_folder else Path(name)
    if name in SOURCES and not (copy.is_dir() and parquet_files(copy)):
        return _Part(SOURCES[name], [], _known(recipe, name, SOURCES[name].clips))
    folder = copy if name in SOURCES else Path(name)
    if not folder.is_dir():
        raise ValueError(
            f"the size of {name or 'the data'} is not known without reading it: give --plan_clips and --plan_seconds, "
            f"or a folder; known are {', '.join(SOURCES)}"
        )
    if parquet := holds_parquet(folder, recipe.train_split):
        clips, rows = _parquet_rows(folder, recipe.train_split)
    else:
        dataset = load_folder(folder, recipe.train_split)
        clips = len(dataset)
        rows = list(dataset.select(np.linspace(0, clips - 1, min(clips, _SAMPLE)).astype(int)))
    seconds = in_threads(seconds_in, [row["audio"].get("bytes") or row["audio"].get("path") for row in rows])
    seconds = seconds[~np.isnan(seconds)]
    if not len(seconds):
        raise ValueError(f"{folder} holds no sounds that can be read in its split {recipe.train_split!r}")
    source = _measured(recipe, clips, seconds)
    if name in SOURCES:
        return _Part(source, [], _known(recipe, name, clips))  # Clotho's five are joined
    if not recipe.caption_bank:
        return _Part(source, _captions(recipe, rows), 0)
    texts = _parquet_texts(folder, recipe.train_split) if parquet else dataset
    return _Part(source, _captions(recipe, rows), _distinct(recipe, texts))


def _known(recipe: Recipe, name: str, clips: int) -> int:
    """The captions of a known source's clips; how many are equal is not known."""
    return SOURCES[name].captions * clips if recipe.caption_bank else 0


def _distinct(recipe: Recipe, dataset: datasets.Dataset) -> int:
    """The different captions of all rows and wordings of their labels, as a `CaptionBank` counts them."""
    columns = caption_columns(dataset, recipe.caption_columns)
    if recipe.prompts:
        dataset, column = add_label_captions(dataset, *recipe.prompts)
        columns.append(column)
    rows = dataset.select_columns(columns)
    return len({caption_key(text) for row in rows for text in captions_of(row, columns)})


def _synthetic(recipe: Recipe) -> _Part:
    """The data made by code, of which a few clips of each kind are made, and all of them for a bank."""
    clips = SYNTHETIC_CLIPS_PER_KIND.get(recipe.train_split, 1)
    made = clips if recipe.caption_bank else _MADE
    dataset = synthetic_dataset(recipe.train_split, made)
    source = _measured(recipe, round(clips / made * len(dataset)), np.array(dataset["duration"]))
    return _Part(source, _captions(recipe, list(dataset)), _distinct(recipe, dataset) if recipe.caption_bank else 0)


def _measured(recipe: Recipe, clips: int, seconds: np.ndarray) -> Source:
    """A source of `clips` clips by the seconds of some of them."""
    return Source(clips, float(np.minimum(seconds, recipe.max_seconds).mean()), float(seconds.max()))


def _captions(recipe: Recipe, rows: list[dict[str, Any]]) -> list[str]:
    """All captions of some rows."""
    names = recipe.caption_columns or tuple(name for name in rows[0] if is_caption_column(name))
    return [text for row in rows for text in captions_of({name: row.get(name) for name in names}, names)]


def _parquet_rows(folder: Path, split: str) -> tuple[int, list[dict]]:
    """The number of rows of a split's parquet files, and some rows, without a copy in the cache of `datasets`."""
    opened = _parquet(folder, split)
    rows: list[dict[str, Any]] = []
    for file in opened:
        share = -(-_SAMPLE // len(opened))
        rows += next(file.iter_batches(batch_size=share), pyarrow.RecordBatch.from_pylist([])).to_pylist()
    return sum(file.metadata.num_rows for file in opened), [row for row in rows if isinstance(row.get("audio"), dict)]


def _parquet_texts(folder: Path, split: str) -> datasets.Dataset:
    """All rows of a split's parquet files without their sounds, which are not read."""
    parts = [
        file.read(columns=[name for name in file.schema_arrow.names if name != "audio"])
        for file in _parquet(folder, split)
    ]
    return datasets.Dataset(pyarrow.concat_tables(parts, promote_options="default"))


def _parquet(folder: Path, split: str) -> list[pyarrow.parquet.ParquetFile]:
    files = parquet_files(folder)
    files = [path for path in files if hub_parquet(folder, split, [path])] or files
    return [pyarrow.parquet.ParquetFile(path) for path in files]
