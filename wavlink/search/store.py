"""An index on disk, whole at any moment: a manifest, and what it names.

    INDEX/index.json                       model, storage, windows; the parts that count, with their checksums
    INDEX/embeddings/part-000003.parquet   a row a window: path, start, end (seconds), embedding
    INDEX/files/part-000003.parquet        a row a file: what it was when it was embedded, or why not
    INDEX/README.md                        tells `datasets.load_dataset(INDEX)` which parquet is what

A part takes its name once it is on the disk, and counts once the manifest that names it has replaced the one before.
What a killed process leaves behind is named by no manifest: the next one to write removes it.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wavlink.atomic_files import locked, write_bytes

from .parts import PartTooLarge, is_small, read_part, read_steps, split_part, unpacked, width
from .quantization import STORAGES, bytes_per_vector

_FORMAT = 1
_MANIFEST, _LOCK, _CARD = "index.json", ".lock", "README.md"
_KINDS = ("embeddings", "files")
_PART = re.compile(r"part-(\d{6,})\.parquet")
_UNFINISHED = re.compile(r"\.part-\d{6,}\.parquet\.(\w+\.)?unfinished")  # what a killed process has left of one
_PART_BYTES, _PART_ROWS = 1 << 26, 1 << 20  # parts are merged up to this size on the disk; in memory see index_parts
_READS = 20  # of an index that another process changes meanwhile
_REPAIR = "`verify INDEX --drop` forgets what is damaged, and `index` then embeds it anew"
_SPLIT = "`verify INDEX --drop` writes it as several, and loses nothing"
_Result = TypeVar("_Result")
_CODES = {"fp32": pyarrow.float32(), "fp16": pyarrow.float16(), "int8": pyarrow.int8(), "binary": pyarrow.uint8()}
FILES = pyarrow.schema(
    {
        "path": pyarrow.string(),
        "size": pyarrow.int64(),  # bytes
        "version": pyarrow.int64(),  # see wavlink.search.listing.Sound
        "first": pyarrow.int64(),  # of the file's windows, which is the first of this part
        "rows": pyarrow.int64(),  # how many of them are in this part
        "windows": pyarrow.int64(),  # how many there are, once that is known; until then -1
        "error": pyarrow.string(),  # why the file was skipped, "" of others
    }
)
CARD = """---
configs:
- config_name: default
  data_files: embeddings/*.parquet
- config_name: files
  data_files: files/*.parquet
---
"""


@dataclass(frozen=True)
class Part:
    """A file of each kind, of one name."""

    name: str
    rows: int
    files: int
    bytes: int
    sha256: dict[str, str]  # of each kind


@dataclass(frozen=True)
class Manifest:
    """How an index was made, and of what it is made up."""

    model: str
    revision: str  # of the weights, see `peers.revision`
    dims: int  # of the model's vectors
    matryoshka_dims: list[int]
    dim: int  # kept of them
    storage: str
    window: float  # seconds
    hop: float
    sampling_rate: int
    root: str  # that paths are below, see `wavlink.search.listing.Listing`; "" in an index from elsewhere
    next_part: int = 0
    parts: list[Part] = dataclasses.field(default_factory=list)
    format: int = _FORMAT

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def schema(self) -> pyarrow.Schema:
        """Of `embeddings`."""
        width = bytes_per_vector(self.dim, self.storage) * 8 // _CODES[self.storage].bit_width
        codes = pyarrow.list_(_CODES[self.storage], width)
        seconds = pyarrow.float64()
        return pyarrow.schema({"path": pyarrow.string(), "start": seconds, "end": seconds, "embedding": codes})

    def to_json(self) -> str:
        """With a checksum over all else."""
        fields = dataclasses.asdict(self)
        return json.dumps(fields | {"sha256": _digest(fields)}, indent=2) + "\n"

    def windows(self, paths: Sequence, starts: Sequence, ends: Sequence, codes: np.ndarray) -> pyarrow.Table:
        """Rows of `embeddings`; `codes` `[N, ...]` of `vectors.encode`."""
        schema = self.schema
        values = pyarrow.array(np.ascontiguousarray(codes).reshape(-1), schema.field("embedding").type.value_type)
        codes = pyarrow.FixedSizeListArray.from_arrays(values, type=schema.field("embedding").type)
        return pyarrow.table([paths, starts, ends, codes], schema=schema)

    def codes(self, windows: pyarrow.Table) -> np.ndarray:
        """`[N, ...]` as `vectors.encode` gives them."""
        kind = self.schema.field("embedding").type
        chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in windows["embedding"].chunks]
        empty = np.empty(0, kind.value_type.to_pandas_dtype())
        return np.concatenate([empty, *chunks]).reshape(-1, kind.list_size)


class IndexFolder:
    """`IndexFolder.open(folder)`, or a new one by `create`; to change it, `with index.writing(): ...`.

    Raises:
        ValueError: a manifest or a part is missing, damaged, or of a later format; another process writes.
        OSError: the disk is full, or there is no right to write. What was there before still counts.
    """

    def __init__(self, folder: str | os.PathLike, manifest: Manifest):
        self.folder, self.manifest = Path(folder), manifest

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "IndexFolder":
        return cls(folder, _read_manifest(Path(folder)))

    @classmethod
    def reading(cls, folder: str | os.PathLike, read: Callable[["IndexFolder"], _Result]) -> _Result:
        """`read(index)`, again where another process has changed the index meanwhile.

        A part that was replaced is missing for those who opened the index before. What is damaged indeed is an error
        of the manifest that counts now, too.

        Raises:
            ValueError: whatever `read` raises of an index that nobody changes.
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
        """An empty index, for writing."""
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
            raise ValueError(f"{folder} is there already and is no index: name a folder that is new or empty")
        folder.mkdir(parents=True, exist_ok=True)
        index = cls(folder, manifest)
        with locked(index.folder / _LOCK):
            if (folder / _MANIFEST).exists():
                raise ValueError(f"{folder} has just become the index of another process: start again")
            for kind in _KINDS:
                (folder / kind).mkdir(exist_ok=True)
            write_durably(folder / _CARD, CARD.encode())
            index._commit([], manifest.next_part)
            index._remove_strays()
            yield index

    @contextmanager
    def writing(self) -> Iterator["IndexFolder"]:
        """Locked against other writers, at the state the last one left; readers may go on reading."""
        with locked(self.folder / _LOCK):
            self.manifest = _read_manifest(self.folder)
            self._remove_strays()
            yield self

    def read(self, part: Part, kind: str) -> pyarrow.Table:
        """A part's `"embeddings"` or `"files"`, its checksum verified."""
        content = self._content(part, kind)
        with self._naming(part, kind):
            return read_part(*content)

    def _in_steps(self, part: Part, kind: str) -> Iterator[pyarrow.Table]:
        """The same, some rows at a time; also of a part that is too large to be read at once."""
        content = self._content(part, kind)
        with self._naming(part, kind):
            yield from read_steps(*content)

    def _content(self, part: Part, kind: str) -> tuple[bytes, pyarrow.Schema, int]:
        """Bytes, verified, and the schema and the number of rows that they must have."""
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
        """Errors of reading name the part."""
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
        """Of each part that cannot be read, why; also of one that is only too large."""
        return {part.name: str(error) for part in self.manifest.parts if (error := self._error(part))}

    def _error(self, part: Part) -> ValueError | None:
        """Why it cannot be read; that it is too large only where nothing else is wrong."""
        errors = []
        for kind in _KINDS:
            try:
                self.read(part, kind)
            except ValueError as error:
                errors.append(error)
        return min(errors, key=lambda error: isinstance(error, PartTooLarge), default=None)

    def repair(self) -> tuple[list[str], dict[str, list[str] | None]]:
        """Writes parts that are too large as several, and drops those that are damaged.

        Returns:
            The names of the former, and of the latter by name the sounds that it told of, None if that is lost too.
        """
        large = self.divide_large()
        dropped = {part.name: self._sounds(part) for part in self.manifest.parts if self._error(part)}
        self.drop_parts(dropped)
        return large, dropped

    def divide_large(self) -> list[str]:
        """Writes each part that is only too large to be read as several, and returns the names it had."""
        large = [part.name for part in self.manifest.parts if isinstance(self._error(part), PartTooLarge)]

        def divided(part: Part) -> tuple[Iterator[pyarrow.Table], pyarrow.Table]:
            return self._in_steps(part, "embeddings"), pyarrow.concat_tables(self._in_steps(part, "files"))

        if large:
            self.replace(divided(part) if part.name in large else part for part in self.manifest.parts)
        return large

    def _sounds(self, part: Part) -> list[str] | None:
        for kind in reversed(_KINDS):
            with suppress(ValueError):
                return self.read(part, kind)["path"].unique().to_pylist()
        return None

    def files(self) -> pyarrow.Table:
        """The rows of all parts' `files`."""
        return pyarrow.concat_tables(
            [FILES.empty_table(), *(self.read(part, "files") for part in self.manifest.parts)]
        )

    def append(self, windows: pyarrow.Table, files: pyarrow.Table) -> None:
        """Both on the disk, and then both count."""
        self.replace([*self.manifest.parts, (windows, files)])

    def drop(self, paths: Iterable[str]) -> None:
        """Without all that is known of these files; the parts that tell of them are written anew."""
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
        names = set(names)
        self.replace([part for part in self.manifest.parts if part.name not in names])

    def merge(self) -> None:
        """Neighbouring parts as one, as long as it stays small on the disk and in memory."""
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

    def change(self, **fields) -> None:
        """Other fields of the manifest."""
        self.manifest = dataclasses.replace(self.manifest, **fields)
        self._commit(self.manifest.parts, self.manifest.next_part)

    def _merged(self, parts: list[Part]) -> Iterator[Part | tuple[pyarrow.Table, ...]]:
        """As few as their texts let them be."""
        if len(parts) < 2:
            yield from parts
            return
        members, tables = [], []

        def together() -> Part | tuple[pyarrow.Table, ...]:
            return members[0] if len(members) == 1 else tuple(map(pyarrow.concat_tables, zip(*tables, strict=True)))

        for part in parts:
            read = [self.read(part, kind) for kind in _KINDS]
            if members and not is_small(unpacked(*read, *itertools.chain(*tables))):
                yield together()
                members, tables = [], []
            members.append(part)
            tables.append(read)
        yield together()

    def replace(self, parts: Iterable) -> None:
        """These parts alone: those that stay, and of those to come windows and files, see `index_parts.split_part`.

        Raises:
            ValueError: a part that nothing could read.
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
        sizes, digests = 0, {}
        for kind, table in zip(_KINDS, (windows, files), strict=True):
            sink = pyarrow.BufferOutputStream()
            pq.write_table(table, sink, compression="zstd")
            content = sink.getvalue()
            write_durably(self.folder / kind / name, content)
            sizes, digests[kind] = sizes + content.size, hashlib.sha256(content).hexdigest()
        return Part(name, len(windows), len(files), sizes, digests)

    def _commit(self, parts: list[Part], next_part: int) -> None:
        manifest = dataclasses.replace(self.manifest, parts=parts, next_part=next_part)
        write_durably(self.folder / _MANIFEST, manifest.to_json().encode())
        self.manifest = manifest

    def _remove_strays(self) -> None:
        named = {part.name for part in self.manifest.parts}
        for kind in _KINDS:
            for path in (self.folder / kind).iterdir():
                if path.name not in named and (_PART.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name)):
                    path.unlink()


def _is_foreign(path: Path) -> bool:
    """Whether it is none of what a process that was killed before the first manifest has left."""
    if path.name in _KINDS and path.is_dir():
        return any(not name.startswith(".") for name in os.listdir(path))
    if path.name == _CARD and path.is_file():
        return path.read_bytes() != CARD.encode()
    return not path.name.startswith(".")


def write_durably(path: Path, content) -> None:
    """A file that is whole or as it was before, also after a power cut."""
    write_bytes(path, content)


def _check_manifest(manifest: Manifest) -> None:
    """Of its fields, what else would go wrong later and elsewhere, or be believed."""
    numbers = {"window": manifest.window, "hop": manifest.hop, "sampling_rate": manifest.sampling_rate}
    wrong = [name for name, value in numbers.items() if not isinstance(value, int | float) or not 0 < value < 1e6]
    counts = [manifest.dims, manifest.dim, manifest.next_part, *manifest.matryoshka_dims]
    counts += [count for part in manifest.parts for count in (part.rows, part.files, part.bytes)]
    wrong += [f"the count {count!r}" for count in counts if type(count) is not int or not 0 <= count < 2**53]
    texts = [manifest.model, manifest.revision, manifest.root]
    wrong += [f"the text {text!r:.40}" for text in texts if not isinstance(text, str) or "\0" in text]
    wrong += ["parts of one name"] * (len({part.name for part in manifest.parts}) < len(manifest.parts))
    numbers = [int(found[1]) for part in manifest.parts if (found := _PART.fullmatch(str(part.name)))]
    if not wrong and max(numbers, default=-1) >= manifest.next_part:  # it would be written over
        wrong = [f"the next part {manifest.next_part} beside part {max(numbers)}"]
    if wrong:
        raise ValueError(f"there cannot be {', '.join(wrong[:3])}")


def _digest(fields: dict) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> Manifest:
    path = folder / _MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{folder} is no index, it has no {_MANIFEST}: make one with `index SOUNDS --model M --out {folder}`"
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        checksum = fields.pop("sha256")
        if fields["format"] > _FORMAT:
            raise ValueError(f"it is of format {fields['format']}, this program knows {_FORMAT}: update it")
        if checksum != _digest(fields):
            raise ValueError("its checksum is not the one written")
        fields.pop("foreign", None)  # of earlier versions
        if not isinstance(fields["parts"], list):
            raise ValueError("its parts are no list")
        parts = [Part(**part) for part in fields.pop("parts")]
        manifest = Manifest(**fields, parts=parts)
        _check_manifest(manifest)
        if not all(_PART.fullmatch(part.name) and set(part.sha256) == set(_KINDS) for part in parts):
            raise ValueError("it names parts that are none")
        if manifest.storage not in STORAGES or not 0 < manifest.dim <= manifest.dims:
            raise ValueError(f"there is no storage {manifest.storage!r} of {manifest.dim} dims")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): put a copy of it back, or index the sounds into another folder"
        ) from error
    return manifest
