"""The manifest of an index: how its vectors were made, and which parts hold them."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow

from .quantization import STORAGES, bytes_per_vector

MANIFEST_FILE = "index.json"
KINDS = ("embeddings", "files")
PART_NAME = re.compile(r"part-(\d{6,})\.parquet")
_FORMAT = 1
_CODES = {"fp32": pyarrow.float32(), "fp16": pyarrow.float16(), "int8": pyarrow.int8(), "binary": pyarrow.uint8()}
FILES = pyarrow.schema(
    {
        "path": pyarrow.string(),
        "size": pyarrow.int64(),  # bytes
        "version": pyarrow.int64(),  # see wavlink.search.listing.Sound
        "first": pyarrow.int64(),  # of the file's windows, which is the first of this part
        "rows": pyarrow.int64(),  # how many of them are in this part
        "windows": pyarrow.int64(),  # how many the file has; -1 until that is known
        "error": pyarrow.string(),  # why the file was skipped, "" otherwise
    }
)


@dataclass(frozen=True)
class Part:
    """One parquet file of each kind, under one name."""

    name: str
    rows: int
    files: int
    bytes: int
    sha256: dict[str, str]  # by kind


@dataclass(frozen=True)
class Manifest:
    """How an index was made, and the parts that it consists of."""

    model: str
    revision: str  # of the weights, see `wavlink.loading.revision`
    dims: int  # of the model's vectors
    matryoshka_dims: list[int]
    dim: int  # dims that are kept
    storage: str
    window: float  # seconds
    hop: float
    sampling_rate: int
    root: str  # the folder that paths are relative to, see `wavlink.search.listing.Listing`; "" after a pull
    backend: str = "torch"  # that embedded the first windows, and its precision, see `Embedder`
    precision: str = "fp32"
    next_part: int = 0
    parts: list[Part] = dataclasses.field(default_factory=list)
    format: int = _FORMAT

    @property
    def rows(self) -> int:
        """The number of windows."""
        return sum(part.rows for part in self.parts)

    @property
    def schema(self) -> pyarrow.Schema:
        """The schema of `embeddings`."""
        width = bytes_per_vector(self.dim, self.storage) * 8 // _CODES[self.storage].bit_width
        codes = pyarrow.list_(_CODES[self.storage], width)
        seconds = pyarrow.float64()
        return pyarrow.schema({"path": pyarrow.string(), "start": seconds, "end": seconds, "embedding": codes})

    def to_json(self) -> str:
        """Return the manifest as JSON, with a checksum over all other fields."""
        fields = dataclasses.asdict(self)
        return json.dumps(fields | {"sha256": checksum(fields)}, indent=2) + "\n"

    def windows(
        self, paths: Sequence[str], starts: Sequence[float], ends: Sequence[float], codes: np.ndarray
    ) -> pyarrow.Table:
        """Return rows of `embeddings`.

        Args:
            starts, ends: in seconds.
            codes: `[N, ...]`, as `quantization.encode` returns them.
        """
        schema = self.schema
        values = pyarrow.array(np.ascontiguousarray(codes).reshape(-1), schema.field("embedding").type.value_type)
        codes = pyarrow.FixedSizeListArray.from_arrays(values, type=schema.field("embedding").type)
        return pyarrow.table([paths, starts, ends, codes], schema=schema)

    def codes(self, windows: pyarrow.Table) -> np.ndarray:
        """Return the codes `[N, ...]` of rows of `embeddings`, as `quantization.encode` returns them."""
        kind = self.schema.field("embedding").type
        chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in windows["embedding"].chunks]
        empty = np.empty(0, kind.value_type.to_pandas_dtype())
        return np.concatenate([empty, *chunks]).reshape(-1, kind.list_size)


def checksum(fields: dict) -> str:
    """Return the SHA-256 of a manifest's fields."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of an index folder.

    Raises:
        ValueError: it is missing, damaged or of a later format.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} is no index, it has no {MANIFEST_FILE}: make one with `wavlink index SOUNDS --model M --out "
            f"{folder}`"
        )
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): put a copy of it back, or index the sounds into another folder"
        ) from error


def _parse(fields: dict) -> Manifest:
    written = fields.pop("sha256")
    if fields["format"] > _FORMAT:
        raise ValueError(f"it is of format {fields['format']}, this program knows {_FORMAT}: update it")
    if written != checksum(fields):
        raise ValueError("its checksum is not the one written")
    fields.pop("foreign", None)  # of earlier versions
    if not isinstance(fields["parts"], list):
        raise ValueError("its parts are no list")
    parts = [Part(**part) for part in fields.pop("parts")]
    manifest = Manifest(**fields, parts=parts)
    _check_fields(manifest)
    if not all(PART_NAME.fullmatch(part.name) and set(part.sha256) == set(KINDS) for part in parts):
        raise ValueError("it names parts that are none")
    if manifest.storage not in STORAGES or not 0 < manifest.dim <= manifest.dims:
        raise ValueError(f"there is no storage {manifest.storage!r} of {manifest.dim} dims")
    return manifest


def _check_fields(manifest: Manifest) -> None:
    """Refuse values that would cause errors later, or be believed. Whoever writes the file can sign it too."""
    numbers = {"window": manifest.window, "hop": manifest.hop, "sampling_rate": manifest.sampling_rate}
    wrong = [name for name, value in numbers.items() if not isinstance(value, int | float) or not 0 < value < 1e6]
    counts = [manifest.dims, manifest.dim, manifest.next_part, *manifest.matryoshka_dims]
    counts += [count for part in manifest.parts for count in (part.rows, part.files, part.bytes)]
    wrong += [f"the count {count!r}" for count in counts if type(count) is not int or not 0 <= count < 2**53]
    texts = [manifest.model, manifest.revision, manifest.root, manifest.backend, manifest.precision]
    wrong += [f"the text {text!r:.40}" for text in texts if not isinstance(text, str) or "\0" in text]
    wrong += ["parts of one name"] * (len({part.name for part in manifest.parts}) < len(manifest.parts))
    numbers = [int(match[1]) for part in manifest.parts if (match := PART_NAME.fullmatch(str(part.name)))]
    if not wrong and max(numbers, default=-1) >= manifest.next_part:  # it would be overwritten
        wrong = [f"the next part {manifest.next_part} beside part {max(numbers)}"]
    if wrong:
        raise ValueError(f"there cannot be {', '.join(wrong[:3])}")
