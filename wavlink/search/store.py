"""An index on disk, consistent at any moment: a manifest, and the parts that it names.

    INDEX/index.json                       model, storage, windows; the parts that count, with their checksums
    INDEX/embeddings/part-000003.parquet   a row per window: path, start, end (seconds), embedding
    INDEX/files/part-000003.parquet        a row per file: its size and version when it was embedded, or why not
    INDEX/README.md                        tells `datasets.load_dataset(INDEX)` which parquet is what

A part gets its name once it is on the disk. It counts once a new manifest names it and has replaced the former one.
What a killed process leaves behind is in no manifest: the next writer removes it.
"""

import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wavlink.atomic_files import locked, write_bytes, write_text

from .manifest import FILES, KINDS, MANIFEST_FILE, PART_NAME, Manifest, Part, read_manifest
from .parts import PartTooLarge, is_small, read_part, read_steps, split_part, unpacked, width

_LOCK, _CARD = ".lock", "README.md"
_UNFINISHED = re.compile(r"\.part-\d{6,}\.parquet\.(\w+\.)?unfinished")  # what a killed process has left of a part
_PART_BYTES, _PART_ROWS = 1 << 26, 1 << 20  # parts are merged up to this size on the disk; in memory see `parts`
_READS = 20  # attempts at an index that another process changes meanwhile
_REPAIR = "`verify INDEX --drop` forgets what is damaged, and `index` then embeds it anew"
_SPLIT = "`verify INDEX --drop` writes it as several, and loses nothing"
_Result = TypeVar("_Result")
CARD = """---
configs:
- config_name: default
  data_files: embeddings/*.parquet
- config_name: files
  data_files: files/*.parquet
---
"""


class IndexFolder:
    """`IndexFolder.open(folder)`, or a new one by `create`; to change it, `with index.writing(): ...`.

    Raises:
        ValueError: a manifest or a part is missing, damaged, or of a later format; another process writes.
        OSError: the disk is full, or there is no right to write. The state before still counts.
    """

    def __init__(self, folder: str | os.PathLike, manifest: Manifest):
        self.folder, self.manifest = Path(folder), manifest

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "IndexFolder":
        """Open an index for reading."""
        return cls(folder, read_manifest(Path(folder)))

    @classmethod
    def reading(cls, folder: str | os.PathLike, read: Callable[["IndexFolder"], _Result]) -> _Result:
        """Return `read(index)`, repeated where another process has changed the index meanwhile.

        A part that was replaced is missing for readers who opened the index before. An error counts only if the
        manifest is still the one that was read.

        Raises:
            ValueError: whatever `read` raises of an index that no process changes.
        """
        index = cls.open(folder)
        for _ in range(_READS):
            try:
                return read(index)
            except (ValueError, FileNotFoundError):
                before, index = index, cls.open(folder)
                if index.manifest == before.manifest:
                    raise
        raise ValueError(f"{folder} is changed faster than it can be read: wait until `index` has ended")

    @classmethod
    @contextmanager
    def create(cls, folder: str | os.PathLike, manifest: Manifest) -> Iterator["IndexFolder"]:
        """Create an empty index, and hold it for writing."""
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
            raise ValueError(f"{folder} is there already and is no index: name a folder that is new or empty")
        folder.mkdir(parents=True, exist_ok=True)
        index = cls(folder, manifest)
        with locked(index.folder / _LOCK):
            if (folder / MANIFEST_FILE).exists():
                raise ValueError(f"{folder} has just become the index of another process: start again")
            for kind in KINDS:
                (folder / kind).mkdir(exist_ok=True)
            write_text(folder / _CARD, CARD)
            index._commit([], manifest.next_part)
            index._remove_strays()
            yield index

    @contextmanager
    def writing(self) -> Iterator["IndexFolder"]:
        """Lock the index against other writers, in the state that the last one left; readers may go on reading."""
        with locked(self.folder / _LOCK):
            self.manifest = read_manifest(self.folder)
            self._remove_strays()
            yield self

    def read(self, part: Part, kind: str) -> pyarrow.Table:
        """Read a part's `"embeddings"` or `"files"`, and verify its checksum."""
        content = self._content(part, kind)
        with self._naming(part, kind):
            return read_part(*content)

    def _in_steps(self, part: Part, kind: str) -> Iterator[pyarrow.Table]:
        """Read some rows at a time; works for a part that is too large to be read at once."""
        content = self._content(part, kind)
        with self._naming(part, kind):
            yield from read_steps(*content)

    def _content(self, part: Part, kind: str) -> tuple[bytes, pyarrow.Schema, int]:
        """Return a part's verified bytes, and the schema and the number of rows that they must have."""
        path = self.folder / kind / part.name
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise ValueError(f"{path} is missing from the index: {_REPAIR}") from error
        if hashlib.sha256(content).hexdigest() != part.sha256[kind]:
            raise ValueError(f"{path} is damaged, its checksum is not the one written: {_REPAIR}")
        return content, *((self.manifest.schema, part.rows) if kind == "embeddings" else (FILES, part.files))

    @contextmanager
    def _naming(self, part: Part, kind: str) -> Iterator[None]:
        """Name the part in errors of reading it."""
        path = self.folder / kind / part.name
        try:
            yield
        except MemoryError:  # arrow's too, which is an ArrowException: the part may be in order
            raise
        except PartTooLarge as error:
            raise PartTooLarge(f"{path} is too large to be read at once, {error}: {_SPLIT}") from error
        except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path} is none of this program's: {error}") from error

    def damaged(self) -> dict[str, str]:
        """Return by name why a part cannot be read, also where it is only too large."""
        return {part.name: str(error) for part in self.manifest.parts if (error := self._error(part))}

    def _error(self, part: Part) -> ValueError | None:
        """Return why a part cannot be read; that it is too large only where nothing else is wrong."""
        errors = []
        for kind in KINDS:
            try:
                self.read(part, kind)
            except ValueError as error:
                errors.append(error)
        return min(errors, key=lambda error: isinstance(error, PartTooLarge), default=None)

    def repair(self) -> tuple[list[str], dict[str, list[str] | None]]:
        """Write parts that are too large as several, and drop those that are damaged.

        Returns:
            The names of the former; by name of the latter the sounds that it held, None if their names are lost too.
        """
        large = self.divide_large()
        dropped = {part.name: self._sounds(part) for part in self.manifest.parts if self._error(part)}
        self.drop_parts(dropped)
        return large, dropped

    def divide_large(self) -> list[str]:
        """Write each part that is only too large to be read as several, and return their former names."""
        large = [part.name for part in self.manifest.parts if isinstance(self._error(part), PartTooLarge)]

        def divided(part: Part) -> tuple[Iterator[pyarrow.Table], pyarrow.Table]:
            return self._in_steps(part, "embeddings"), pyarrow.concat_tables(self._in_steps(part, "files"))

        if large:
            self.replace(divided(part) if part.name in large else part for part in self.manifest.parts)
        return large

    def _sounds(self, part: Part) -> list[str] | None:
        for kind in reversed(KINDS):
            with suppress(ValueError):
                return self.read(part, kind)["path"].unique().to_pylist()
        return None

    def files(self) -> pyarrow.Table:
        """Read the `files` of all parts."""
        return pyarrow.concat_tables(
            [FILES.empty_table(), *(self.read(part, "files") for part in self.manifest.parts)]
        )

    def append(self, windows: pyarrow.Table | Iterable[pyarrow.Table], files: pyarrow.Table) -> None:
        """Write both to the disk, and then let both count."""
        self.replace([*self.manifest.parts, (windows, files)])

    def drop(self, paths: Iterable[str]) -> None:
        """Remove every row of these files; the parts that have some are written anew."""
        paths = pyarrow.array(paths, pyarrow.string())

        def parts() -> Iterator[Part | tuple[pyarrow.Table, pyarrow.Table]]:
            for part in self.manifest.parts:
                files = self.read(part, "files")
                kept = files.filter(pc.invert(pc.is_in(files["path"], paths)))
                if len(kept) == len(files):
                    yield part
                elif len(kept):
                    windows = self.read(part, "embeddings")
                    yield windows.filter(pc.invert(pc.is_in(windows["path"], paths))), kept

        if len(paths):
            self.replace(parts())

    def drop_parts(self, names: Iterable[str]) -> None:
        """Remove these parts, unread."""
        names = set(names)
        self.replace([part for part in self.manifest.parts if part.name not in names])

    def merge(self) -> None:
        """Merge neighbouring parts as long as the result stays small on the disk and in memory."""
        groups = [[]]
        for part in self.manifest.parts:
            if not self._is_small([*groups[-1], part]):
                groups.append([])
            groups[-1].append(part)
        if any(len(group) > 1 for group in groups):
            self.replace(part for group in groups for part in self._merged(group))

    def _is_small(self, parts: list[Part]) -> bool:
        rows, files, size = (sum(getattr(part, name) for part in parts) for name in ("rows", "files", "bytes"))
        in_memory = rows * width(self.manifest.schema) + files * width(FILES)  # without their texts
        return rows + files <= _PART_ROWS and size <= _PART_BYTES and is_small(in_memory)

    def _merged(self, parts: list[Part]) -> Iterator[Part | tuple[pyarrow.Table, ...]]:
        """Yield as few parts as the size of their texts allows."""
        if len(parts) < 2:
            yield from parts
            return
        members, tables = [], []

        def together() -> Part | tuple[pyarrow.Table, ...]:
            return members[0] if len(members) == 1 else tuple(map(pyarrow.concat_tables, zip(*tables, strict=True)))

        for part in parts:
            read = [self.read(part, kind) for kind in KINDS]
            if members and not is_small(unpacked(*read, *itertools.chain(*tables))):
                yield together()
                members, tables = [], []
            members.append(part)
            tables.append(read)
        yield together()

    def change(self, **fields: Any) -> None:
        """Set other fields of the manifest."""
        self.manifest = dataclasses.replace(self.manifest, **fields)
        self._commit(self.manifest.parts, self.manifest.next_part)

    def replace(self, parts: Iterable) -> None:
        """Let these parts alone count.

        Args:
            parts: a `Part` that stays, or the windows and files of a new one, see `parts.split_part`.

        Raises:
            ValueError: a part that could not be read again.
        """
        number, committed = self.manifest.next_part, []
        for part in parts:
            if isinstance(part, Part):
                committed.append(part)
                continue
            for tables in split_part(*part, self.manifest.schema):
                committed.append(self._write(f"part-{number:06d}.parquet", *tables))
                number += 1
        if committed != self.manifest.parts:
            self._commit(committed, number)
        self._remove_strays()

    def _write(self, name: str, windows: pyarrow.Table, files: pyarrow.Table) -> Part:
        size, digests = 0, {}
        for kind, table in zip(KINDS, (windows, files), strict=True):
            content = parquet_bytes(table)
            write_bytes(self.folder / kind / name, content)
            size, digests[kind] = size + content.size, hashlib.sha256(content).hexdigest()
        return Part(name, len(windows), len(files), size, digests)

    def _commit(self, parts: list[Part], next_part: int) -> None:
        manifest = dataclasses.replace(self.manifest, parts=parts, next_part=next_part)
        write_text(self.folder / MANIFEST_FILE, manifest.to_json())
        self.manifest = manifest

    def _remove_strays(self) -> None:
        named = {part.name for part in self.manifest.parts}
        for kind in KINDS:
            for path in (self.folder / kind).iterdir():
                if path.name not in named and (PART_NAME.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name)):
                    path.unlink()


def parquet_bytes(table: pyarrow.Table) -> pyarrow.Buffer:
    """Return a table as a parquet file in memory."""
    sink = pyarrow.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _is_foreign(path: Path) -> bool:
    """True if a process that was killed before the first manifest cannot have left this."""
    if path.name in KINDS and path.is_dir():
        return any(not name.startswith(".") for name in os.listdir(path))
    if path.name == _CARD and path.is_file():
        return path.read_bytes() != CARD.encode()
    return not path.name.startswith(".")
