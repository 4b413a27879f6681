"""The place of an index's table: whether it is there, its making, and the lock on it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lance
import pyarrow

from wavlink.locks import locked
from wavlink.temporary_paths import remove_path

from .location import NO_INDEX, TABLE, is_remote, versions_of
from .table_errors import explained

LOCK = ".lock"
VERSION = "2.2"  # of Lance's files: the first that stores repeated values once
Storage = dict[str, str] | None


def has_table(index: str | os.PathLike, storage_options: Storage = None) -> bool:
    """True if an index holds a table with a version; False for one whose making was interrupted."""
    return state_of(index, storage_options) is not None


def open_table(index: str, storage_options: Storage) -> lance.LanceDataset:
    """Open the table of an index.

    Raises:
        ValueError: there is none.
    """
    try:
        return lance.dataset(uri_of(index), storage_options=storage_options)
    except ValueError as error:
        if is_remote(index) and "was not found" in str(error):
            raise ValueError(NO_INDEX.format(index)) from error
        raise


def create_table(index: str, schema: pyarrow.Schema, storage_options: Storage) -> lance.LanceDataset:
    """Create an empty table; in object storage, return the one that another process has just made."""
    options = {"data_storage_version": VERSION, "enable_v2_manifest_paths": True, "storage_options": storage_options}
    try:
        return lance.write_dataset(schema.empty_table(), uri_of(index), **options)
    except OSError:
        if not has_table(index, storage_options):
            raise
        if not is_remote(index):
            raise ValueError(f"{index} has just become the index of another process: start again") from None
        return lance.dataset(uri_of(index), storage_options=storage_options)


def remove_index(index: str, storage_options: Storage) -> None:
    """Remove an index with all that its folder holds; in object storage its table."""
    if not is_remote(index):
        remove_path(Path(index))
    elif has_table(index, storage_options):
        lance.LanceDataset.drop(uri_of(index), storage_options=storage_options)


def uri_of(index: str | os.PathLike) -> str:
    """Return the address of an index's table; of a folder absolute, since Lance takes `memory:x` for an address."""
    place = os.fspath(index) if is_remote(index) else os.path.abspath(index)
    return f"{place.rstrip('/')}/{TABLE}"


def state_of(index: str | os.PathLike, storage_options: Storage = None) -> int | str | None:
    """Return what differs between versions of a table, None without one."""
    if not is_remote(index):
        return next(iter(versions_of(index)), None)
    try:
        with explained(os.fspath(index)):
            return lance.dataset(uri_of(index), storage_options=storage_options).version
    except (ValueError, OSError):
        return None


def identity_of(dataset: lance.LanceDataset) -> tuple[int, list[str]]:
    """Return what differs also between tables that were made one after the other in the same place."""
    return dataset.version, [file.path for each in dataset.get_fragments() for file in each.metadata.files]


@contextmanager
def lock_of(index: str) -> Iterator[None]:
    """Hold an index against other writers; in object storage there is no lock."""
    if is_remote(index):
        yield
    else:
        with locked(Path(index) / LOCK):
            yield


def is_foreign(path: Path) -> bool:
    """True if a process that was killed before the first version cannot have left this."""
    return path.name != TABLE and not path.name.startswith(".")
