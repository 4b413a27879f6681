"""An index as a Lance table: a row per window, with the facts of its file; one commit a change.

    INDEX/windows.lance    the table, see `wavlink.search.manifest` for its columns
    INDEX/checksums.jsonl  the SHA-256 of the table's files; only on a local disk

INDEX is a folder, or an address in object storage such as `s3://bucket/index`. Rows count once a commit names them.
What a killed process leaves behind is in no commit: the next writer removes it (in object storage one that comes seven
days later). A reader whose version is replaced meanwhile begins again, see `Table.reading`.
"""

import dataclasses
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import lance
import pyarrow
from lance.fragment import FragmentMetadata, write_fragments

from .changes import KnownFile
from .checksums import Checksums
from .concurrent_writes import TRIES, Others
from .file_facts import FILE_FACTS, files_of
from .location import is_remote, refuse_no_index
from .manifest import COLUMNS, METADATA, VECTORS, Manifest, read_manifest
from .rows import with_columns_of
from .table_errors import explained, unless_preempted
from .table_files import LOST, TableFiles
from .table_place import (
    VERSION,
    Storage,
    create_table,
    has_table,
    identity_of,
    is_foreign,
    lock_of,
    open_table,
    state_of,
)

_VERIFIED_BYTES = 1 << 26  # an index of up to this size is verified whenever it is opened
_SAME, _PAUSE = 2, 0.05  # errors of one and the same version that count; seconds between two attempts
_READS = _WRITES = 20  # attempts at an index that another process changes meanwhile
_DELETED_AT_ONCE = 1000
_AGAIN = {"conflict_retries": TRIES, "retry_timeout": timedelta(minutes=10)}  # beside other writers on a busy machine
_FEW_FRAGMENTS = 16  # more are compacted
_Result = TypeVar("_Result")


class Table(TableFiles):
    """`Table.open(index)`, or a new one by `create`; to change it, `with table.writing(): ...`.

    Attributes:
        index: the folder, absolute, or the address of the index.
        manifest: how it was made.
        dataset: Lance's view of one version of the table.

    Raises:
        ValueError: a file is missing or damaged; a table of another program; another process writes.
        OSError: the disk is full, or there is no right to write. The version before still counts.
    """

    def __init__(self, index: str | os.PathLike, dataset: lance.LanceDataset, storage_options: Storage = None):
        self.index = os.fspath(index) if is_remote(index) else os.path.abspath(index)  # also after a change of folder
        self.dataset, self.storage_options = dataset, storage_options
        self.manifest = read_manifest(dataset.schema.metadata, self.index)
        schema = dataset.schema
        if any(field not in schema for field in self.manifest.schema):
            raise ValueError(f"{self.index} has other columns than its manifest says: index into another folder")
        self.checksums = None if is_remote(self.index) else Checksums(Path(self.index))
        self.others: Others | None = None  # other writers, in object storage

    @classmethod
    def open(cls, index: str | os.PathLike, storage_options: Storage = None) -> "Table":
        """Open an index for reading; a small one on a local disk is verified."""
        table = cls.unverified(index, storage_options)
        if table.checksums and table.bytes() <= _VERIFIED_BYTES and (damaged := table.damaged()):
            raise ValueError("; ".join(damaged.values()))
        return table

    @classmethod
    def unverified(cls, index: str | os.PathLike, storage_options: Storage = None) -> "Table":
        """Open an index without a look at the checksums of its rows."""
        index = os.fspath(index)
        refuse_no_index(index)
        if not is_remote(index) and (damaged := Checksums(Path(index)).damaged_versions()):
            raise ValueError(f"{'; '.join(damaged.values())}: {LOST}")
        with explained(index):
            return cls(index, open_table(index, storage_options), storage_options)

    @classmethod
    def reading(
        cls, index: str | os.PathLike, read: Callable[["Table"], _Result], storage_options: Storage = None
    ) -> _Result:
        """Return `read(table)`, repeated where another process has changed the index meanwhile.

        Raises:
            ValueError: whatever `read` raises of an index that no process changes.
        """
        version, same = None, 0
        for _ in range(_READS):
            try:
                table = cls.open(index, storage_options)
                return read(table)
            except (ValueError, OSError):
                before, version = version, state_of(index, storage_options)
                same = same + 1 if version == before else 0
                if version is None or same == _SAME:
                    raise
                time.sleep(_PAUSE * same)  # a writer may be between two steps
        raise ValueError(f"{index} is changed faster than it can be read: wait until `index` has ended")

    @classmethod
    @contextmanager
    def create(
        cls,
        index: str | os.PathLike,
        manifest: Manifest,
        storage_options: Storage = None,
        columns: Iterable[pyarrow.Field] = (),
    ) -> Iterator["Table"]:
        """Create an empty index, and hold it for writing; in object storage another process may just have made it.

        Args:
            columns: that describe the sounds.
        """
        index = os.fspath(index)
        if not is_remote(index):
            folder = Path(index)
            is_free = not folder.exists() or (folder.is_dir() and not any(map(is_foreign, folder.iterdir())))
            if not is_free and not has_table(index):
                raise ValueError(f"{index} is there already and is no index: name a folder that is new or empty")
            folder.mkdir(parents=True, exist_ok=True)
        with lock_of(index), explained(index):
            schema = pyarrow.schema([*manifest.schema, *columns], manifest.schema.metadata)
            table = cls(index, create_table(index, schema, storage_options), storage_options)
            if dataclasses.replace(table.manifest, probes=0, recall={}) != manifest:
                raise ValueError(f"{index} has just become the index of another process: start again")
            yield from table._held()

    @contextmanager
    def writing(self) -> Iterator["Table"]:
        """Lock the index against other writers, in the state that the last one left; readers may go on reading.

        In object storage there is no lock: see `wavlink.search.concurrent_writes`.
        """
        with lock_of(self.index), explained(self.index):
            self.refresh()
            yield from self._held()

    def _held(self) -> Iterator["Table"]:
        """Yield the table between two tidyings."""
        self.tidy()
        self.others = Others(self) if is_remote(self.index) else None
        yield self
        self.tidy()

    def refresh(self) -> None:
        """Go on to the table's latest version."""
        with explained(self.index):
            if self.dataset.latest_version != self.dataset.version:
                self.dataset.checkout_latest()
                self.manifest = read_manifest(self.dataset.schema.metadata, self.index)

    def newest(self) -> "Table":
        """Return the table at its latest version: itself, or another one, so that whoever reads this one goes on."""
        with explained(self.index):
            version = self.dataset.latest_version
            if version == self.dataset.version:
                return self
            return Table(self.index, self.dataset.checkout_version(version), self.storage_options)

    def reopened(self) -> "Table":
        """Return the table as it is now: itself, or another one where a writer has replaced this one."""
        with explained(self.index):
            dataset = lance.dataset(self.uri, storage_options=self.storage_options)
        same = identity_of(dataset) == identity_of(self.dataset)
        return self if same else Table(self.index, dataset, self.storage_options)

    @property
    def metadata_columns(self) -> list[str]:
        """The names of columns that describe the sounds."""
        return [name for name in self.dataset.schema.names if name not in COLUMNS and name not in VECTORS]

    @property
    def schema(self) -> pyarrow.Schema:
        """The table's schema."""
        return self.dataset.schema

    def rows(self, where: str | None = None) -> int:
        """Return the number of rows, also of files that were skipped; with `where`, of those that it names."""
        with explained(self.index):
            return self.dataset.count_rows(filter=where)

    def windows(self) -> int:
        """Return the number of windows that have a vector."""
        return self.rows("error = ''") if self.rows() else 0

    def has_windows(self) -> bool:
        """True if there is a window with a vector."""
        return any(len(batch) for batch in self.scan(["window"], "error = ''", limit=1))

    def scan(
        self, columns: Sequence[str], where: str | None = None, batch_size: int = 1 << 16, **options: Any
    ) -> Iterator[pyarrow.RecordBatch]:
        """Read rows in their order.

        Args:
            where: an SQL expression over the columns.
            options: of `lance.LanceDataset.scanner`, such as `with_row_id`.
        """
        if where and "\0" in where:  # which Lance cannot say in an error
            raise ValueError(f"there is no such condition as {where!r:.200}")
        with explained(self.index, self):
            yield from self.dataset.scanner(
                columns=[*columns], filter=where, batch_size=batch_size, **options
            ).to_batches()

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pyarrow.Table:
        """Read rows by their numbers, in the order of these."""
        with explained(self.index, self):
            return self.dataset.take([*rows], columns=[*columns])

    def files(self) -> dict[str, KnownFile]:
        """Add up the rows by path; where they do not fit together, the version is one that no file has."""
        return files_of(map(self.without_nulls, self.scan(FILE_FACTS)))

    def without_nulls(self, batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
        """Return a batch of rows, or raise a ValueError where a value is missing."""
        if empty := [
            name for name, column in zip(batch.schema.names, batch.columns, strict=True) if column.null_count
        ]:
            raise ValueError(f"{self.index} has rows without {', '.join(empty)}: index the sounds into another folder")
        return batch

    def append(self, rows: pyarrow.Table) -> None:
        """Add rows in one commit."""
        if len(rows):
            self.commit(self.write(rows))

    def write(self, rows: pyarrow.Table) -> list[FragmentMetadata]:
        """Write rows to the storage, without a commit: they count once `commit` names them."""
        with explained(self.index):
            return write_fragments(
                with_columns_of(self.schema, rows),
                self.uri,
                schema=self.schema,
                mode="append",
                data_storage_version=VERSION,
                storage_options=self.storage_options,
            )

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Take a commit back where its files do not fit on the disk."""
        before = self.dataset.version
        with explained(self.index):
            yield
            self.dataset.checkout_latest()
            try:
                self.refuse_short(fragment.metadata for fragment in self.dataset.get_fragments())
            except OSError:
                self.dataset.checkout_version(before).restore()
                self.dataset.checkout_latest()
                raise

    def commit(self, fragments: Sequence[FragmentMetadata]) -> None:
        """Let rows of `write` count, all or none; in object storage without windows that other writers have added."""
        self.refuse_short(fragments)
        if self.others:
            self.others.append(fragments)
        else:
            self.commit_operation(lance.LanceOperation.Append([*fragments]))

    def commit_operation(self, operation: lance.LanceOperation.BaseOperation) -> None:
        """Commit an operation of Lance on this version of the table.

        Raises:
            ValueError: another writer's commit has come before, and the two do not go together.
        """
        options = {"read_version": self.dataset.version, "storage_options": self.storage_options}
        if isinstance(operation, lance.LanceOperation.Overwrite):
            options["max_retries"] = 0  # otherwise Lance drops what has come before
        with explained(self.index):
            lance.LanceDataset.commit(self.uri, operation, **options)
            self.dataset.checkout_latest()

    def replace_all(self, batches: Iterable[pyarrow.RecordBatch], schema: pyarrow.Schema) -> None:
        """Let these rows alone count, under another schema and its manifest, in one commit."""
        with explained(self.index):
            fragments = write_fragments(
                pyarrow.RecordBatchReader.from_batches(schema, batches),
                self.uri,
                schema=schema,
                mode="overwrite",
                data_storage_version=VERSION,
                storage_options=self.storage_options,
            )
        self.refuse_short(fragments)
        self.commit_operation(lance.LanceOperation.Overwrite(schema, fragments))
        self.manifest = read_manifest(self.dataset.schema.metadata, self.index)
        if self.others:
            self.others.expect_columns()

    def complete(self, path: str, windows: int, duration: float) -> None:
        """Note in one commit how many windows a file has, and its duration in seconds."""
        facts = {"windows": str(windows), "duration": repr(float(duration))}
        with self._whole():
            self.dataset.update(facts, where=f"path = {quoted(path)}", **_AGAIN)

    def remove(self, paths: Iterable[str]) -> None:
        """Remove every row of these files."""
        paths = [*paths]
        with explained(self.index):
            for start in range(0, len(paths), _DELETED_AT_ONCE):
                names = ", ".join(map(quoted, paths[start : start + _DELETED_AT_ONCE]))
                self.dataset.delete(f"path IN ({names})", **_AGAIN)
        if self.others:
            self.others.forget(paths)

    def change(self, **fields: Any) -> None:
        """Set other fields of the manifest, in one commit."""

        def changed() -> None:
            manifest = dataclasses.replace(self.manifest, **fields)
            if manifest != self.manifest:
                self.dataset.update_schema_metadata({METADATA.decode(): manifest.to_json()})
                self.dataset.checkout_latest()
                self.manifest = read_manifest(self.dataset.schema.metadata, self.index)

        self.repeated(changed)

    def repeated(self, change: Callable[[], _Result]) -> _Result:
        """Return `change()`, which ends in a commit; once more where another writer's commit has come before.

        Raises:
            ValueError: whatever `change` raises; other writers were faster again and again.
        """
        for _ in range(_WRITES):
            with explained(self.index), unless_preempted():
                return change()
            time.sleep(random.uniform(0, _PAUSE))
            self.refresh()
        raise ValueError(f"{self.index} is changed by other writers again and again: start again later")

    def compact(self) -> None:
        """Merge small fragments into larger ones, if there are many and no other writer is at work."""
        if len(self.dataset.get_fragments()) > _FEW_FRAGMENTS:
            with self._whole(), unless_preempted():
                self.dataset.optimize.compact_files()

    def drop_fragments(self, ids: Iterable[int]) -> None:
        """Remove these fragments unread, in one commit."""
        self.commit_operation(lance.LanceOperation.Delete([], [*ids], "false"))

    def rewrite(self) -> None:
        """Write the list of rows anew, in a commit that changes none."""
        with explained(self.index):
            self.dataset.update_schema_metadata({METADATA.decode(): self.manifest.to_json()})
            self.dataset.checkout_latest()


def quoted(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
