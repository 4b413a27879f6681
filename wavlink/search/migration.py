"""Embed an index anew by another model, while the old vectors answer queries; then switch in one commit.

    INDEX/.migration   an index of the new model, which a killed migration goes on with

The columns of metadata are kept. The vector index of a large table is made anew after the switch. Other processes may
write to object storage meanwhile: the switch is tried again once what they have added is embedded too. A writer that
has begun before it ends with an error at its next commit.
"""

import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import pyarrow

from wavlink.embedder import Embedder

from . import vector_index
from .build import index_sounds, none_read, text_vectors
from .changes import Report
from .index_model import new_embedder, preprocessing_of
from .listing import DATA_SET, Listing, list_sounds
from .manifest import Manifest
from .metadata import Row, described, with_values
from .rows import with_columns_of
from .table import Storage, Table
from .table_place import remove_index

FOLDER = ".migration"
_OPTIONS = ("dim", "storage", "rescore_dim", "window", "hop")


def migrate(
    index: str | os.PathLike,
    model: str | os.PathLike | Embedder,
    sounds: str | Sequence[str] = (),
    *,
    dim: int | None = None,
    storage: str | None = None,
    rescore_dim: int | None = None,
    window: float | None = None,
    hop: float | None = None,
    root: str = "",
    split: str = "train",
    device: str = "cpu",
    dtype: str = "float32",
    backend: str | None = None,
    precision: str | None = None,
    commit_seconds: float = 30.0,
    progress: bool = True,
    stop: threading.Event | None = None,
    storage_options: Storage = None,
) -> Report:
    """Embed the sounds of an index by another model, and switch to it. After a kill, the same call goes on.

    Args:
        index: its folder, or its address in object storage.
        model: as `Embedder` takes it.
        sounds: as for `index_sounds` (default: those of the index, below its root).
        dim: one of the new model's nested dims (default: the smallest from 48 on).
        storage, window, hop: default: the index's own.
        rescore_dim: as for `index_sounds`.
        root, split, device, dtype, backend, precision, commit_seconds, stop, storage_options: as for `index_sounds`.

    Returns:
        A report that counts all sounds as changed, and as removed those of the index whose files are gone.

    Raises:
        ValueError: no index; no sounds; a model that cannot be loaded, or not be used.
    """
    table, staged = Table.open(index, storage_options), f"{os.fspath(index).rstrip('/')}/{FOLDER}"
    embedder = new_embedder(model, device, dtype, backend=backend, precision=precision)
    given = {"dim": dim, "rescore_dim": rescore_dim, "storage": storage or table.manifest.storage}
    given |= {"window": window or table.manifest.window, "hop": hop or table.manifest.hop}
    run = {"commit_seconds": commit_seconds, "progress": progress, "stop": stop, "storage_options": storage_options}
    if _is_made_by(table.manifest, embedder, given):
        return _ended(table, staged, embedder)
    if not _goes_on(staged, embedder, given, storage_options):
        remove_index(staged, storage_options)
    list_now = partial(_listed, table, sounds, root, split)
    report = index_sounds(list_now(), staged, embedder, **given, **run)
    if report.stopped:
        return report
    with table.writing():
        report = table.repeated(lambda: _switched(table, staged, embedder, list_now(), run))
        if not report.stopped:
            vector_index.update(table, partial(text_vectors, embedder))
            remove_index(staged, storage_options)
    return report


def _switched(table: Table, staged: str, embedder: Embedder, listing: Listing, run: dict[str, Any]) -> Report:
    """Embed what other processes have indexed meanwhile, and switch."""
    report = index_sounds(listing, staged, embedder, **run)
    if not (report.stopped or report.sounds):
        raise ValueError(none_read(report))
    if not report.stopped:
        gone = {*table.files()} - _switch(table, Table.open(staged, table.storage_options), embedder.name)
        report.added, report.unchanged, report.changed, report.removed = 0, 0, report.sounds, len(gone)
    return report


def _is_made_by(manifest: Manifest, embedder: Embedder, given: dict[str, Any]) -> bool:
    made = manifest.revision == embedder.revision and manifest.preprocessing == preprocessing_of(embedder)
    made = made and (manifest.backend, manifest.precision) == (embedder.backend, embedder.precision)
    return made and all(value in (None, getattr(manifest, name)) for name, value in given.items())


def _goes_on(staged: str, embedder: Embedder, given: dict[str, Any], storage_options: Storage) -> bool:
    """True if an interrupted migration was to the same model, with the same options."""
    with suppress(ValueError, OSError):
        return _is_made_by(Table.open(staged, storage_options).manifest, embedder, given)
    return False


def _ended(table: Table, staged: str, embedder: Embedder) -> Report:
    """End a migration that was killed after its switch, or one to the model that the index has already."""
    with table.writing():
        vector_index.update(table, partial(text_vectors, embedder))
        remove_index(staged, table.storage_options)
    files = table.files()
    skipped = {path: file.error for path, file in files.items() if file.error}
    sounds = len(files) - len(skipped)
    return Report(unchanged=sounds, sounds=sounds, windows=table.windows(), skipped=skipped)


def _listed(table: Table, sounds: str | Sequence[str], root: str, split: str) -> Listing:
    """List the sounds to embed: those given, or those of the index whose files are there."""
    sounds = [sounds] if isinstance(sounds, str | os.PathLike) else [*sounds]
    own = root or table.manifest.root
    if sounds:
        return list_sounds([os.fspath(sound) for sound in sounds], own, split)
    if not own:
        raise ValueError(f"{table.index} does not say where its sounds are: name them before --out")
    if own.startswith(DATA_SET):
        name, _, split = own.removeprefix(DATA_SET).rpartition("@")
        return list_sounds([name], "", split)
    if not os.path.isdir(own):
        raise ValueError(f"{own}, which holds the sounds of {table.index}, is not there: name it by --root")
    listing, known = list_sounds([own], own, split), table.files()
    listing.sounds = [sound for sound in listing.sounds if sound.path in known]
    if not listing.sounds:
        raise ValueError(f"none of the {len(known)} sounds of {table.index} is in {own}: name that folder by --root")
    return listing


def _switch(table: Table, staged: Table, model: str) -> set[str]:
    """Let the rows of the new model count, in one commit, and return their paths."""
    columns = [field for field in table.schema if field.name in table.metadata_columns]
    manifest = dataclasses.replace(staged.manifest, model=model, tags=table.manifest.tags)
    schema = manifest.schema
    for field in columns:
        schema = schema.append(field)
    paths: set[str] = set()
    table.replace_all(_rows(staged, schema, described(table), paths), schema)
    return paths


def _rows(
    staged: Table, schema: pyarrow.Schema, values: dict[str, Row], paths: set[str]
) -> Iterator[pyarrow.RecordBatch]:
    for batch in staged.scan(staged.schema.names):
        rows = pyarrow.Table.from_batches([batch])
        paths.update(batch["path"].to_pylist())
        yield from with_columns_of(schema, with_values(rows, values, schema)).to_batches()
