"""Captions of the data sets that come without sounds: tables of ids and texts, grouped by clip."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pyarrow.compute as pc
import pyarrow.csv
from huggingface_hub import hf_hub_download

from .caption_store import CaptionTable, kept_table
from .youtube_ids import clip_keys

CAPTION_FILES = {  # Hub id, the column of ids, the files of each split
    "auto_acd": ("Loie/Auto-ACD", "youtube_id", {"train": ["train.csv"], "test": ["test.csv"]}),
    "audiosetcaps": (
        "baijs/AudioSetCaps",
        "id",
        {"train": [f"Dataset/{origin}AudioSetCaps_caption.csv" for origin in ("", "VGGSound_", "YouTube-8M_")]},
    ),
}


def read_captions(name: str, split: str) -> tuple[pyarrow.Table, int, int]:
    """Read the columns `id` and `caption` of the rows that have both, the number of rows, and the number of others."""
    _, id_column, _ = CAPTION_FILES[name]
    tables = [read_csv(path, [id_column, "caption"]) for path in caption_files(name, split)]
    table = pyarrow.concat_tables(table.rename_columns(["id", "caption"]) for table in tables)
    columns = {column: pc.utf8_trim_whitespace(table[column]) for column in ("id", "caption")}
    complete = pc.and_(*(pc.not_equal(column, "") for column in columns.values()))
    kept = pyarrow.table(columns).filter(complete)
    return kept, len(table), len(table) - len(kept)


def caption_files(name: str, split: str) -> list[str]:
    """Download the files of a split and return their paths."""
    repository, _, files = CAPTION_FILES[name]
    return [hf_hub_download(repository, file, repo_type="dataset") for file in files[split]]


def read_csv(path: str | Path, columns: Sequence[str]) -> pyarrow.Table:
    """Read columns as strings, "" where a cell is empty.

    Raises:
        ValueError: the file cannot be read, or lacks a column.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = pandas.read_csv(file, nrows=0).columns
        if missing := [column for column in columns if column not in header]:
            raise ValueError(f"no column {', '.join(missing)}, only {', '.join(header)}")
        return pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=columns, column_types={column: pyarrow.large_string() for column in columns}
            ),
        )
    except (ValueError, OSError) as error:  # pyarrow's errors and pandas' are ValueErrors
        raise ValueError(f"cannot read {path}: {error}") from error


def group(keys: pyarrow.ChunkedArray, captions: pyarrow.ChunkedArray, names: pyarrow.ChunkedArray) -> pyarrow.Table:
    """Group rows by key, in order of appearance: the first `name` of a key, and its `captions` as a list."""
    groups, _ = pandas.factorize(keys.to_pandas())
    order = np.argsort(groups, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(groups))])
    lists = pyarrow.LargeListArray.from_arrays(offsets, captions.take(order).combine_chunks())
    return pyarrow.table({"name": names.take(order[offsets[:-1]]), "captions": lists})


def captions_by_id(name: str, split: str) -> CaptionTable:
    """Return the captions of `auto_acd` or `audiosetcaps` by `clip_key`, to be joined with streamed sounds.

    Besides its key, a clip that is the only one of its video has a second one, for `find_captions`: the id if its key
    has a start, the id and an underscore if it has none. One process makes the table and caches it on disk
    (`kept_table`), where all processes and their workers read it.

    Raises:
        ValueError: an unknown name or split.
    """
    if name not in CAPTION_FILES:
        raise ValueError(f"captions by id are those of {' and '.join(CAPTION_FILES)}, not of {name!r}")
    if split not in CAPTION_FILES[name][2]:
        raise ValueError(f"{name} has no split {split!r}: {', '.join(CAPTION_FILES[name][2])}")
    return kept_table(f"{name}-{split}", caption_files(name, split), lambda: _table_by_id(name, split))


def _table_by_id(name: str, split: str) -> pyarrow.Table:
    table, _, _ = read_captions(name, split)
    clips = group(clip_keys(table["id"])["key"], table["caption"], table["id"])
    names = clip_keys(clips["name"])
    videos = names["video"].to_pandas()
    lone = np.flatnonzero(~videos.duplicated(keep=False))
    suffixes = pc.if_else(names["has_start"].take(lone), "", "_")
    seconds = pc.binary_join_element_wise(names["video"].take(lone), suffixes, "")
    return CaptionTable.of([names["key"], seconds], [np.arange(len(names)), lone], clips["captions"])


def find_captions(captions: Mapping[str, list[str]], name: str) -> list[str] | None:
    """Return the captions of the clip that a file or tar entry is named after (without extension), or None.

    A match is the same id and start, or, for a video's only clip, the same id where only one of the two has a start.
    """
    (key, video, has_start), *_ = zip(*clip_keys(pyarrow.array([name], "string")).to_pydict().values(), strict=True)
    return captions.get(key) or (captions.get(f"{video}_") if has_start else None)
