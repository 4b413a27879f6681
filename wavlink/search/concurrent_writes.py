"""Append to a table in object storage, where no lock keeps other writers away.

Lance joins appends of two writers, also where both have embedded the same sounds. So rows are added by a commit that
names all fragments (`Merge`), which Lance refuses where another commit came between. Then the rows that the other
writer has added are taken out, and the commit is tried again: each window is in the table once, whoever is first.
"""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import lance
import numpy as np
import pyarrow
import pyarrow.compute as pc
from lance.commit import CommitConflictError
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata

from .manifest import Manifest

TRIES = 200  # of one commit; a try takes less than a second, and each that fails is another writer's success
_LONGEST_WAIT = 1.0  # seconds between two tries
_KEYS = ["path", "window", "size", "version", "error"]


class Table(Protocol):
    """What is needed of `wavlink.search.table.Table`."""

    index: str
    dataset: lance.LanceDataset
    manifest: Manifest
    storage_options: dict[str, str] | None

    @property
    def uri(self) -> str: ...

    def refresh(self) -> None: ...

    def scan(self, columns: Sequence[str], **options: Any) -> Iterator[pyarrow.RecordBatch]: ...

    def write(self, rows: pyarrow.Table) -> list[FragmentMetadata]: ...


class Others:
    """What other writers have added to a table since this one began.

    Args:
        table: in the version that this writer's work is planned by, or an earlier one.
    """

    def __init__(self, table: Table):
        self.table = table
        self.known = set(map(_name, _fragments(table)))  # data files; a fragment's number may come again
        self.expect_columns()
        self.added = defaultdict(list)  # by path: (size, version, has an error, first window, last window)

    def append(self, fragments: Sequence[FragmentMetadata]) -> None:
        """Commit fragments that were written, without the rows that others have added meanwhile.

        Raises:
            ValueError: other writers were faster again and again.
        """
        for number in range(TRIES):
            self.table.refresh()
            self._refuse_other_columns()
            self._look()
            fragments = rewritten(self.table, fragments, self._new) if self.added else fragments
            if not fragments:
                return
            try:
                self._commit(fragments)
            except CommitConflictError:
                time.sleep(random.uniform(0, min(0.05 * 2**number, _LONGEST_WAIT)))
            else:
                self.known |= set(map(_name, fragments))
                self.table.refresh()
                return
        raise ValueError(f"{self.table.index} is changed by other writers again and again: start again later")

    def forget(self, paths: Iterable[str]) -> None:
        """Note that this writer has removed all rows of these files."""
        for path in paths:
            self.added.pop(path, None)

    def expect_columns(self) -> None:
        """Note the table's model and types of columns, which this writer's rows have."""
        self.revision, self.types = self.table.manifest.revision, _types(self.table)

    def _refuse_other_columns(self) -> None:
        """Refuse to add rows to a table whose model, or types of columns, another process has changed meanwhile."""
        types = _types(self.table)
        if self.table.manifest.revision != self.revision or self.types != {
            name: types.get(name) for name in self.types
        }:
            raise ValueError(
                f"another process has changed the model or the columns of {self.table.index} meanwhile: start again"
            )

    def _look(self) -> None:
        """Note what has been added since the last look."""
        fragments = [each for each in self.table.dataset.get_fragments() if _name(each.metadata) not in self.known]
        if not fragments:
            return
        for batch in self.table.scan(_KEYS, fragments=fragments):
            rows = pyarrow.Table.from_batches([batch])
            failed = pc.not_equal(rows["error"], "")
            rows = rows.append_column("failed", failed).group_by(["path", "size", "version", "failed"])
            sums = rows.aggregate([("window", "min"), ("window", "max")])
            names = ("path", "size", "version", "failed", "window_min", "window_max")
            columns = [sums[name].to_pylist() for name in names]
            for path, *facts in zip(*columns, strict=True):
                self.added[path].append(tuple(facts))
        self.known |= {_name(each.metadata) for each in fragments}

    def _new(self, rows: pyarrow.Table) -> np.ndarray:
        """Return which rows `[N]` are to be added: no other writer has added the window, or another version."""
        new = np.ones(len(rows), bool)
        touched = pc.is_in(rows["path"], pyarrow.array(self.added, pyarrow.string()))
        for number in np.flatnonzero(touched.to_numpy()):
            path, window, size, version, error = (rows[name][number].as_py() for name in _KEYS)
            new[number] = not any(
                (size, version) != (other_size, other_version) or failed or error or first <= window <= last
                for other_size, other_version, failed, first, last in self.added[path]
            )
        return new

    def _commit(self, fragments: Iterable[FragmentMetadata]) -> None:
        dataset = self.table.dataset
        present = _fragments(self.table)
        segments = [segment for index in dataset.describe_indices() for segment in index.segments]
        indexed = [number for segment in segments for number in segment.fragment_ids]
        free = 1 + max([*indexed, *(fragment.id for fragment in present)], default=-1)  # never a number of an index
        for number, fragment in enumerate(fragments, free):
            fragment.id = number
        lance.LanceDataset.commit(
            self.table.uri,
            lance.LanceOperation.Merge([*present, *fragments], dataset.lance_schema),
            read_version=dataset.version,
            storage_options=self.table.storage_options,
        )


def rewritten(
    table: Table, fragments: Iterable[FragmentMetadata], keep: Callable[[pyarrow.Table], np.ndarray]
) -> list[FragmentMetadata]:
    """Return fragments that are not committed without some of their rows; those that lose rows are written anew.

    Args:
        keep: takes rows of the columns path, window, size, version and error, and returns which stay, `[N]` bool.
    """
    kept = []
    for fragment in fragments:
        address = f"{table.uri}/data/{_name(fragment)}"
        stays = keep(LanceFileReader(address, table.storage_options, _KEYS).read_all().to_table())
        if stays.all():
            kept.append(fragment)
        elif stays.any():
            rows = LanceFileReader(address, table.storage_options).read_all().to_table()
            kept += table.write(rows.filter(pyarrow.array(stays)))
    return kept


def _types(table: Table) -> dict[str, pyarrow.DataType]:
    return {field.name: field.type for field in table.dataset.schema}


def _fragments(table: Table) -> list[FragmentMetadata]:
    return [fragment.metadata for fragment in table.dataset.get_fragments()]


def _name(fragment: FragmentMetadata) -> str:
    return fragment.files[0].path
