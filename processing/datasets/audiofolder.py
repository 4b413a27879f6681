"""Loading of a folder of sounds: captions and labels from its metadata, or labels from its folders."""

import csv
import json
import logging
import math
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet

from processing.file_names import existing, stays_below
from processing.sound_files import SoundFiles, is_utf8, such_as
from processing.text_inputs_wavlink import has_half_pair

from .cells import refuse_mixed
from .folder_form import class_root, metadata_of

logger = logging.getLogger(__name__)

_END = "\x1a"  # a line after the last one of a CSV: within a cell, it tells that a quote is open


def load_folder(folder: Path, split: str) -> datasets.Dataset:
    """Load a split with undecoded `audio` and the metadata of each clip.

    The layouts are those of `datasets`' audiofolder, whose builder cannot run without torchcodec: `SPLIT/metadata.csv`
    (or `.jsonl`, `.parquet`) with a `file_name` column, the same without split folders, or no such file and a folder
    for each class, `SPLIT/LABEL/1.wav` or deeper, `SPLIT/LABEL/session1/1.wav`: the `label` is the name of the first
    folder below the split. Without metadata, sound files are those of `SoundFiles`. Sounds that are left out are
    counted and named in a warning. Rows of the same file are one clip, with the captions of all.

    Raises:
        ValueError: no rows or sounds, or metadata that cannot be read or names other files.
    """
    metadata = metadata_of(folder, split)
    if metadata is None:
        return _from_classes(folder, split)
    rows = read_metadata(metadata)
    root = metadata.parent if metadata.parent != folder else class_root(folder, split)
    if metadata.parent != root:  # one list for all split folders
        rows = [row for row in rows if Path(row["file_name"]).parts[:1] == (split,)]
    elif metadata.parent == folder:
        logger.warning(f"{folder} has no split folders: all of its rows are taken as {split!r}")
    if not rows:
        raise ValueError(f"{metadata} has no rows for {split}")
    for row, path in zip(rows, _files_of(metadata, [row.pop("file_name") for row in rows]), strict=True):
        row["audio"] = {"bytes": None, "path": path}
    _warn_of_unnamed(metadata, root, {os.path.normpath(row["audio"]["path"]) for row in rows})
    refuse_mixed(rows, str(metadata))
    try:
        return _as_dataset(_by_file(rows, metadata))
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{metadata} has a column whose values are of several kinds: {error}") from error


def _by_file(rows: list[dict], metadata: Path) -> list[dict]:
    """Return a row for each file: a clip that stands in several rows would be a wrong answer to its own captions.

    A column with different cells for a file becomes one of lists, but `duration` is then unknown. Rows with different
    labels stay several clips, as do rows with questions.
    """
    paths = [os.path.normpath(row["audio"]["path"]) for row in rows]
    labels = {path: row["label"] for path, row in zip(paths, rows, strict=True) if row.get("label")}
    files: dict[tuple[str, str], list[dict]] = {}
    for path, row in zip(paths, rows, strict=True):
        files.setdefault((path, repr(row.get("label") or labels.get(path))), []).append(row)
    if len(files) == len(rows) or "question" in rows[0]:
        return rows
    cells = [{name: _different(row[name] for row in group) for name in rows[0]} for group in files.values()]
    for clip in cells:
        if len(clip.get("duration", ())) > 1:  # perhaps of parts of the file, whose header is read instead
            clip["duration"] = []
    lists = {name for name in rows[0] if any(len(clip[name]) > 1 for clip in cells)}
    several = f" with all that they hold in {', '.join(sorted(lists))}" if lists else ""
    logger.warning(f"{metadata} has {len(rows)} rows of {len(files)} sounds: those of a sound are one clip{several}")
    return [
        {name: _items(found) if name in lists else found[0] if found else None for name, found in clip.items()}
        for clip in cells
    ]


def _different(cells: Iterable) -> list:
    """The cells that are not empty, equal ones once."""
    found: list = []
    for cell in cells:
        if cell not in (None, "") and cell not in found:
            found.append(cell)
    return found


def _items(cells: list) -> list:
    """The cells, and the items of those that are lists."""
    return _different(chain.from_iterable(cell if isinstance(cell, list) else [cell] for cell in cells))


def _files_of(metadata: Path, names: list[str]) -> list[str]:
    """Return the files that rows name, all of which must exist."""
    paths = [_file_of(metadata, name) for name in names]
    if missing := {name for name, path in zip(names, paths, strict=True) if not path}:
        shown = such_as(str(metadata.parent / name)[:300] for name in sorted(missing))
        raise ValueError(
            f"{metadata} names {shown}, which {'do' if len(missing) > 1 else 'does'} not exist "
            f"({len(missing)} of {len({*names})} files): put the sounds there, or take their rows out"
        )
    return paths


def _file_of(metadata: Path, name: str) -> str:
    """Return the file that a row names, "" if it does not exist.

    It must be below the metadata's folder: data may not name other files.

    Links are followed, since folders of the Hub's cache are made of them.
    """
    if "\0" not in name and not stays_below(name):
        raise ValueError(
            f"{metadata} names {name!r}, which may lie outside its folder: put the sounds (or links to them) below "
            f"{metadata.parent}, and name them from there"
        )
    path = metadata.parent / name
    try:
        path = Path(existing(str(path)))
        exists = path.is_file()
    except (OSError, ValueError):  # too long, or with a NUL
        exists = False
    return str(path) if exists else ""


def _warn_of_unnamed(metadata: Path, root: Path, named: set[str]) -> None:
    files = SoundFiles(root)
    others = sorted(path for path in files if os.path.normpath(path) not in named)
    if others:
        logger.warning(f"{len(others)} sounds in {root} are in no row of {metadata.name}: {such_as(others)}")


def _as_dataset(rows: list[dict]) -> datasets.Dataset:
    dataset = datasets.Dataset.from_list(rows)
    return dataset.cast(datasets.Features({**dataset.features, "audio": datasets.Audio(decode=False)}))


def _from_classes(folder: Path, split: str) -> datasets.Dataset:
    root = class_root(folder, split)
    files = SoundFiles(root)
    paths = sorted(map(Path, files))
    rows, loose, unnamed = [], [], []
    for path in paths:
        label, *inside = path.relative_to(root).parts
        if not is_utf8(str(path)):
            unnamed.append(ascii(str(path)))
        elif not inside:
            loose.append(str(path))
        else:
            rows.append({"label": label, "audio": {"bytes": None, "path": str(path)}})
    if not rows:
        also = f"; {files.warning()}" if root.is_dir() and files.warning() else ""
        also += f"; {len(loose)} sounds lie in no folder of a class: {such_as(loose)}" if loose else ""
        raise ValueError(
            f"{folder} holds neither {split}/metadata.csv (or .jsonl, .parquet) nor metadata.csv (or .jsonl, "
            f".parquet), nor sounds in a folder a class, such as {split}/dog/1.wav{also}"
        )
    if root == folder:
        logger.warning(f"{folder} has no split folders: all of its clips are taken as {split!r}")
    if loose:
        logger.warning(
            f"{len(loose)} sounds in {root} lie in no folder of a class and are left out: {such_as(loose)}; put each "
            "in the folder of its class, or write a metadata.csv"
        )
    if unnamed:
        logger.warning(f"{len(unnamed)} sounds have names that are not UTF-8 and are left out: {such_as(unnamed)}")
    if warning := files.warning():
        logger.warning(warning)
    return _as_dataset(rows)


def read_metadata(path: Path) -> list[dict]:
    """Read the rows of a metadata file, with the same keys, None for missing cells, and `duration` in seconds.

    Raises:
        ValueError: the file cannot be read, or has rows without `file_name`.
    """
    try:
        rows = _rows_of(path)
        for row in rows:
            _check_row(row)
    except (ValueError, RecursionError, csv.Error, pyarrow.ArrowException) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name is not None]
    if rows and "file_name" not in names:
        raise ValueError(f"{path} has no column 'file_name', only {', '.join(names)}")
    for number, row in enumerate(rows, start=1):
        if not row.get("file_name") or not isinstance(row["file_name"], str):
            raise ValueError(f"{path} has no file_name in row {number}")
        if None in row:
            raise ValueError(
                f"{path} has more cells than columns for {row['file_name']}: put a text that holds a comma in quotes"
            )
    return [{name: row.get(name) for name in names} for row in rows]


def _rows_of(path: Path) -> list:
    if path.suffix == ".parquet":
        with open(path, "rb") as file:
            try:
                return pyarrow.parquet.read_table(file).to_pylist()
            except OSError as error:  # pyarrow's, of a damaged file
                raise ValueError(str(error)) from error
    with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
        return rows_of_csv(file) if path.suffix == ".csv" else [json.loads(x) for x in file if x.strip()]


def rows_of_csv(lines: Iterable[str], delimiter: str = ",") -> list[dict]:
    """Return the rows, None for missing cells; a row with more cells than columns has these under None.

    Raises:
        ValueError: two columns of one name, or a quote that is never closed, which would take all that follows into
            one cell.
        csv.Error: no CSV.
    """
    reader = csv.DictReader(chain(lines, [_END]), delimiter=delimiter)
    rows = list(reader)
    header = [name for name in reader.fieldnames or () if name]
    if header == [_END]:
        return []
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise ValueError(f"it has several columns named {twice!r}: rename or remove one")
    if not rows or next(iter(rows.pop().values())) not in (_END, [_END]):
        raise ValueError("a quote is opened and never closed: close it, or write a quote within a text twice")
    return rows


def _check_row(row) -> None:
    """Check a row, which in JSON may be any value, and convert its `duration` to a number."""
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object such as {{'file_name': ...}}, not {str(row)[:40]!r}")
    texts = [text for text in (*row, *row.values()) if isinstance(text, str)]
    if any(has_half_pair(text) for text in texts):
        raise ValueError("a text holds half of a surrogate pair, which is no character")
    if row.get("duration") not in (None, ""):
        try:
            seconds = float(row["duration"])
        except (TypeError, ValueError, OverflowError):
            seconds = math.nan
        if not 0 <= seconds < math.inf:
            raise ValueError(f"the duration {row['duration']!r:.40} is no number of seconds")
        row["duration"] = seconds
    elif "duration" in row:
        row["duration"] = None
