"""The size of a recipe's training data: from a local folder, or from the built-in facts about known data sets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from processing.datasets.audiofolder import load_folder
from processing.datasets.folder_form import holds_parquet, hub_parquet, parquet_files
from processing.datasets.load import SYNTHETIC, caption_columns, captions_of, load_split
from processing.datasets.youtube_ids import in_threads, seconds_in
from wavlink.training.recipe_fields import Recipe

from .facts import SOURCES, TOKENS_A_WORD, WORDS, Source

_SAMPLE = 1000  # clips whose headers and captions are read


@dataclass(frozen=True)
class TrainingData:
    """The clips of an epoch."""

    clips: int
    seconds: float  # of a clip as it is trained on, on average
    longest: float
    tokens: int  # to which the texts of a chunk are padded
    origin: str
    captions: tuple[str, ...] = ()


def training_data(recipe: Recipe, clips: int = 0, seconds: float = 0.0) -> TrainingData:
    """Return the size of a recipe's data; a source in a mixture is repeated by its weight, as in training.

    Args:
        recipe: what is to be trained.
        clips: of an epoch, instead of those of the recipe's data.
        seconds: of a clip, likewise.

    Raises:
        ValueError: a data set whose size is not known here, or one that cannot be read.
    """
    if clips and seconds:
        longest = min(seconds, recipe.max_seconds)
        return TrainingData(clips, longest, longest, _tokens([WORDS], 2), f"{clips:,} clips of {seconds:g} s as given")
    weights = recipe.mixture or {recipe.data: 1.0}
    parts = {name: _source(recipe, name) for name in weights}
    sources = [source for source, _ in parts.values()]
    captions = [text for _, texts in parts.values() for text in texts]
    least = min(weights.values())  # a source with it occurs once, see `processing.datasets.mixture`
    counts = [round(weights[name] / least * source.clips) for name, (source, _) in parts.items()]
    used = [min(source.seconds, recipe.max_seconds) for source in sources]
    mean = seconds or sum(n * s for n, s in zip(counts, used, strict=True)) / sum(counts)
    words = [len(text.split()) for text in captions] or [WORDS]
    chunk = min(recipe.micro_batch_size or recipe.batch_size, recipe.batch_size)
    described = ", ".join(f"{name} {s.clips:,} clips of {s.seconds:.1f} s" for name, (s, _) in parts.items())
    return TrainingData(
        clips or sum(counts),
        min(mean, recipe.max_seconds),
        min(max(source.longest for source in sources), recipe.max_seconds),
        _tokens(words, chunk),
        described,
        tuple(captions),
    )


def _tokens(words: list[int], chunk: int) -> int:
    """The tokens of the longest of `chunk` captions, roughly, from the numbers of words of some captions."""
    return round(TOKENS_A_WORD * float(np.quantile(words, 1 - 1 / max(chunk, 2)))) + 2


def _source(recipe: Recipe, name: str) -> tuple[Source, list[str]]:
    """A source's size and some of its captions, which are none where it is not counted here."""
    copy = Path(recipe.audio_folder) / name if recipe.audio_folder else Path(name)
    folder = copy if name in SOURCES and copy.is_dir() and parquet_files(copy) else Path(name)
    if name == SYNTHETIC or folder.is_dir():
        source, captions = _counted(recipe, folder)
        return source, [] if name in SOURCES else captions  # Clotho's five are joined
    if name in SOURCES:
        return SOURCES[name], []
    raise ValueError(
        f"the size of {name or 'the data'} is not known without reading it: give --plan_clips and --plan_seconds, or a "
        f"folder; known are {', '.join(SOURCES)}"
    )


def _counted(recipe: Recipe, folder: Path) -> tuple[Source, list[str]]:
    """A local source: all clips are counted, and the headers and captions of some are read."""
    if holds_parquet(folder, recipe.train_split):
        clips, rows = _parquet_rows(folder, recipe.train_split)
        names = [name for name in (rows[0] if rows else {}) if name in recipe.caption_columns]
    else:
        name = str(folder)
        dataset = load_split(name, recipe.train_split) if name == SYNTHETIC else load_folder(folder, recipe.train_split)
        clips, names = len(dataset), caption_columns(dataset, recipe.caption_columns)
        rows = list(dataset.select(np.linspace(0, clips - 1, min(clips, _SAMPLE)).astype(int)))
    seconds = in_threads(seconds_in, [row["audio"].get("bytes") or row["audio"].get("path") for row in rows])
    seconds = seconds[~np.isnan(seconds)]
    if not len(seconds):
        raise ValueError(f"{folder} holds no sounds that can be read in its split {recipe.train_split!r}")
    names = names or [name for name in rows[0] if name in ("caption", "text")]
    captions = [text for row in rows for text in captions_of({n: row[n] for n in names}, names)]
    used = np.minimum(seconds, recipe.max_seconds)
    return Source(clips, float(used.mean()), float(seconds.max())), captions


def _parquet_rows(folder: Path, split: str) -> tuple[int, list[dict]]:
    """The number of rows of a split's parquet files, and some rows, without a copy in the cache of `datasets`."""
    files = parquet_files(folder)
    files = [path for path in files if hub_parquet(folder, split, [path])] or files
    opened = [pyarrow.parquet.ParquetFile(path) for path in files]
    rows: list[dict[str, Any]] = []
    for file in opened:
        share = -(-_SAMPLE // len(opened))
        rows += next(file.iter_batches(batch_size=share), pyarrow.RecordBatch.from_pylist([])).to_pylist()
    return sum(file.metadata.num_rows for file in opened), [row for row in rows if isinstance(row.get("audio"), dict)]

