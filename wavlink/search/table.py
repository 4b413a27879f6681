"""An index as a Lance table: a row per window, with the facts of its file; one commit a change.

    INDEX/windows.lance    the table, see `wavlink.search.manifest` for its columns
    INDEX/checksums.jsonl  the SHA-256 of the table's files; only on a local disk

INDEX is a folder, or an address in object storage such as `s3://bucket/index`. Rows count once a commit names them.
What a killed process leaves behind is in no commit: the next writer removes it (in object storage one that comes seven
days later). A reader whose version is replaced meanwhile begins again, see `Table.reading`.
"""

import dataclasses
import datetime
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lance
import pyarrow
import pyarrow.compute as pc
from lance.fragment import FragmentMetadata, write_fragments

from processing.file_names import stays_below

from .changes import KnownFile
from .checksums import Checksums
from .concurrent_writes import Others
from .file_facts import FILE_FACTS, files_of
from .location import is_remote, refuse_no_index
from .manifest import COLUMNS, METADATA, VECTORS, Manifest, read_manifest
from .rows import with_columns_of
from .short_files import refuse_short_files, short_files
from .table_errors import REPAIR, explained, unless_preempted
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
    uri_of,
)

_VERIFIED_BYTES = 1 << 26  # an index of up to this size is verified whenever it is opened
_SAME, _PAUSE = 2, 0.05  # errors of one and the same version that count; seconds between two attempts
_READS = 20  # attempts at an index that another process changes meanwhile
_DELETED_AT_ONCE = 1000
_FEW_FRAGMENTS = 16  # more are compacted
_OTHERS_READ = datetime.timedelta(days=1)  # an earlier version, in object storage
_FOLDERS = ("data", "_deletions", "_indices", "_transactions", "_versions")  # that Lance writes
_HINT = "latest_version_hint.json"
_LOST = "what rows the table has is lost: put a copy of the index back, or index the sounds into another folder"
_Result = TypeVar("_Result")


class Table:
    """`Table.open(index)`, or a new one by `create`; to change it, `with table.writing(): ...`.

    Attributes:
        index: the folder or address of the index.
        manifest: how it was made.
        dataset: Lance's view of one version of the table.

    Raises:
        ValueError: a file is missing or damaged; a table of another program; another process writes.
        OSError: the disk is full, or there is no right to write. The version before still counts.
    """

    def __init__(self, index: str | os.PathLike, dataset: lance.LanceDataset, storage_options: Storage = None):
        self.index, self.dataset, self.storage_options = os.fspath(index), dataset, storage_options
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
            raise ValueError(f"{'; '.join(damaged.values())}: {_LOST}")
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
        self._tidy()
        self.others = Others(self) if is_remote(self.index) else None
        yield self
        self._tidy()

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
    def uri(self) -> str:
        """The address of the table."""
        return uri_of(self.index)

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
        return files_of(map(self._without_nulls, self.scan(FILE_FACTS)))

    def _without_nulls(self, batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
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
                self._refuse_short(fragment.metadata for fragment in self.dataset.get_fragments())
            except OSError:
                self.dataset.checkout_version(before).restore()
                self.dataset.checkout_latest()
                raise

    def _refuse_short(self, fragments: Iterable[FragmentMetadata]) -> None:
        if self.checksums:
            refuse_short_files(Path(self.uri), fragments)

    def commit(self, fragments: Sequence[FragmentMetadata]) -> None:
        """Let rows of `write` count, all or none; in object storage without windows that other writers have added."""
        self._refuse_short(fragments)
        if self.others:
            self.others.append(fragments)
        else:
            self._commit(lance.LanceOperation.Append([*fragments]))

    def _commit(self, operation: lance.LanceOperation.BaseOperation) -> None:
        with explained(self.index):
            version = self.dataset.version
            lance.LanceDataset.commit(self.uri, operation, read_version=version, storage_options=self.storage_options)
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
        self._refuse_short(fragments)
        self._commit(lance.LanceOperation.Overwrite(schema, fragments))
        self.manifest = read_manifest(self.dataset.schema.metadata, self.index)

    def complete(self, path: str, windows: int, duration: float) -> None:
        """Note in one commit how many windows a file has, and its duration in seconds."""
        facts = {"windows": str(windows), "duration": repr(float(duration))}
        with self._whole():
            self.dataset.update(facts, where=f"path = {quoted(path)}")

    def describe(self, rows: pyarrow.Table) -> None:
        """Set columns of metadata by `path`, all in one commit; sounds that `rows` does not name stay as they are.

        New columns are null until then. Where a column changes its type, all rows are written anew, and `rows` names
        every sound; a vector index must be made again.
        """
        before = {name: self.schema.field(name) for name in self.metadata_columns}
        if any(before.get(field.name, field) != field for field in rows.schema):
            self._retype(rows)
            return
        with explained(self.index):
            if new := [field for field in rows.schema if field.name not in self.schema.names]:
                self.dataset.add_columns(pyarrow.schema(new))
            fragments, fields = [], set()
            for fragment in self.dataset.get_fragments() if len(rows) else ():
                updated, modified = fragment.update_columns(rows, left_on="path", right_on="path")
                fragments.append(updated)
                fields |= {*modified}
        if fragments:
            self._refuse_short(fragments)
            options = {"fields_modified": sorted(fields), "update_mode": "rewrite_columns"}
            self._commit(lance.LanceOperation.Update(updated_fragments=fragments, **options))

    def _retype(self, values: pyarrow.Table) -> None:
        fields = {field.name: field for field in (*self.schema, *values.schema)} | {"path": self.schema.field("path")}
        manifest = dataclasses.replace(self.manifest, probes=0, recall={})
        schema = pyarrow.schema([*fields.values()], {METADATA: manifest.to_json()})
        values = values.combine_chunks()

        def batches() -> Iterator[pyarrow.RecordBatch]:
            for batch in self.scan(self.schema.names):
                rows = pc.index_in(batch["path"], values["path"])
                columns = {name: batch[name] for name in batch.schema.names}
                columns |= {name: values[name].take(rows) for name in values.column_names if name != "path"}
                arrays = [columns[name] for name in schema.names]
                yield from pyarrow.Table.from_arrays(arrays, schema=schema).to_batches()

        self.replace_all(batches(), schema)

    def remove(self, paths: Iterable[str]) -> None:
        """Remove every row of these files."""
        paths = [*paths]
        with explained(self.index):
            for start in range(0, len(paths), _DELETED_AT_ONCE):
                names = ", ".join(map(quoted, paths[start : start + _DELETED_AT_ONCE]))
                self.dataset.delete(f"path IN ({names})")
        if self.others:
            self.others.forget(paths)

    def change(self, **fields: Any) -> None:
        """Set other fields of the manifest, in one commit."""
        for last in (*[False] * _READS, True):
            manifest = dataclasses.replace(self.manifest, **fields)
            if manifest == self.manifest:
                return
            with explained(self.index), unless_preempted(raises=last):
                self.dataset.update_schema_metadata({METADATA.decode(): manifest.to_json()})
            self.dataset.checkout_latest()
            self.manifest = read_manifest(self.dataset.schema.metadata, self.index)

    def compact(self) -> None:
        """Merge small fragments into larger ones, if there are many and no other writer is at work."""
        if len(self.dataset.get_fragments()) > _FEW_FRAGMENTS:
            with self._whole(), unless_preempted():
                self.dataset.optimize.compact_files()

    def bytes(self) -> int:
        """Return the bytes of the table's files; in object storage those of its rows alone."""
        if is_remote(self.index):
            fragments = [fragment.metadata for fragment in self.dataset.get_fragments()]
            return sum(file.file_size_bytes or 0 for fragment in fragments for file in fragment.files)
        return sum(path.stat().st_size for path in Path(self.uri).rglob("*") if path.is_file())

    def damaged(self) -> dict[str, str]:
        """Return by name why a file of the table is not as it was written."""
        if not self.checksums:
            return {}
        table = Path(self.uri)
        with explained(self.index):
            short = short_files(table, (fragment.metadata for fragment in self.dataset.get_fragments()))
        damaged = {name: f"{table / name} is damaged, it is shorter than what was written: {REPAIR}" for name in short}
        return damaged | self.checksums.damaged(self.file_names())

    def without_checksum(self) -> list[str]:
        """Return the files, of a table on a local disk, of which no checksum is noted: their damage is not seen."""
        known = self.checksums.read() if self.checksums else {}
        return [name for name in self.file_names() if name not in known] if self.checksums else []

    def file_names(self) -> list[str]:
        """Return the files of the current version, relative to the table, without those of its version log."""
        with explained(self.index):
            rows = self.dataset.tracked_files().read_all()
        names = sorted(rows.filter(pc.equal(rows["version"], self.dataset.version))["path"].to_pylist())
        if wrong := next((name for name in names if not stays_below(name)), None):
            raise ValueError(f"{self.index} names a file that is none of its own, {wrong!r:.200}: {_LOST}")
        return names

    def drop_fragments(self, ids: Iterable[int]) -> None:
        """Remove these fragments unread, in one commit."""
        self._commit(lance.LanceOperation.Delete([], [*ids], "false"))

    def rewrite(self) -> None:
        """Write the list of rows anew, in a commit that changes none."""
        with explained(self.index):
            self.dataset.update_schema_metadata({METADATA.decode(): self.manifest.to_json()})
            self.dataset.checkout_latest()

    def _tidy(self) -> None:
        """Remove files that no version names and older versions, and note checksums of new files."""
        if self.checksums is None:  # others may be about to name their files: Lance keeps them for seven days
            self.dataset.cleanup_old_versions(older_than=_OTHERS_READ)
        else:
            self.dataset.cleanup_old_versions(older_than=datetime.timedelta(0), delete_unverified=True)
            names = self.file_names()
            self._remove_others({*names})
            self.checksums.update(names)

    def _remove_others(self, names: set[str]) -> None:
        """Remove temporary files of processes that were killed, which Lance does not clean up."""
        table = Path(self.uri)
        for folder in _FOLDERS:
            for path in (table / folder).rglob("*"):
                if path.is_file() and path.relative_to(table).as_posix() not in names and path.name != _HINT:
                    path.unlink(missing_ok=True)


def quoted(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
