"""What an index remembers of itself: the model, its preprocessing, and how the vectors are kept.

It is JSON in the metadata of the table's schema, and changes in the same commit as the rows that it describes.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow

from wavlink.defaults import STORAGES

METADATA = b"wavlink"  # its key in the schema's metadata
_FORMAT = 2
_TYPES = {"fp32": pyarrow.float32(), "fp16": pyarrow.float16()}
_SECONDS = pyarrow.float64()
COLUMNS = {
    "path": pyarrow.string(),
    "window": pyarrow.int32(),  # its number in the file; -1 of a file that was skipped
    "start": _SECONDS,
    "end": _SECONDS,
    "duration": _SECONDS,  # of the file; null until it is known
    "size": pyarrow.int64(),  # of the file in bytes
    "version": pyarrow.int64(),  # see `wavlink.search.listing.Sound`
    "windows": pyarrow.int32(),  # how many the file has; -1 until that is known
    "error": pyarrow.string(),  # why the file was skipped, "" otherwise
    "revision": pyarrow.string(),  # of the model that made the vector
}
VECTORS = ("embedding", "rescore")
RESERVED = {*COLUMNS, *VECTORS, "score", "probability", "calibration", "file", "missing", "changed", "metadata"}


@dataclass(frozen=True)
class Manifest:
    """How an index was made."""

    model: str
    revision: str  # of the weights, see `wavlink.loading.revision`
    dims: int  # of the model's vectors
    matryoshka_dims: list[int]
    dim: int  # dims that are searched
    storage: str
    window: float  # seconds
    hop: float
    sampling_rate: int
    root: str  # the folder that paths are relative to, see `wavlink.search.listing.Listing`; "" after a pull
    backend: str = "torch"  # that embedded the first windows, and its precision, see `Embedder`
    precision: str = "fp32"
    preprocessing: str = ""  # digest of how sounds become the model's inputs; "" where it is not known
    rescore_dim: int = 0  # dims of a second vector that orders the candidates; 0 without one
    probes: int = 0  # partitions that a query reads, see `wavlink.search.vector_index`
    recall: dict[str, float] = dataclasses.field(default_factory=dict)  # what was measured with them
    tags: bool = False  # whether tags in sound files are columns of the table
    format: int = _FORMAT

    @property
    def schema(self) -> pyarrow.Schema:
        """The schema of the table, without columns of metadata about the sounds."""
        fields = [pyarrow.field(name, kind) for name, kind in COLUMNS.items()]
        fields.append(pyarrow.field("embedding", pyarrow.list_(_TYPES[self.storage], self.dim)))
        if self.rescore_dim:
            fields.append(pyarrow.field("rescore", pyarrow.list_(_TYPES[self.storage], self.rescore_dim)))
        return pyarrow.schema(fields, metadata={METADATA: self.to_json()})

    def to_json(self) -> str:
        """Return the manifest as JSON, with a checksum over all other fields."""
        fields = dataclasses.asdict(self)
        return json.dumps(fields | {"sha256": checksum(fields)})


def checksum(fields: dict) -> str:
    """Return the SHA-256 of a manifest's fields."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def read_manifest(metadata: Mapping[bytes, bytes] | None, name: str) -> Manifest:
    """Read and check a manifest.

    Args:
        metadata: of the table's schema.
        name: of the index, for the errors.

    Raises:
        ValueError: it is missing, damaged or of a later format.
    """
    text = (metadata or {}).get(METADATA)
    if text is None:
        raise ValueError(f"{name} is a table of another program: index the sounds into another folder")
    try:
        return _parse(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"what {name} says of its model is damaged ({error}): put a copy of the index back, or index the sounds "
            "into another folder"
        ) from error


def _parse(fields: dict[str, Any]) -> Manifest:
    written = fields.pop("sha256")
    if fields["format"] > _FORMAT:
        raise ValueError(f"it is of format {fields['format']}, this program knows {_FORMAT}: update it")
    if written != checksum(fields):
        raise ValueError("its checksum is not the one written")
    manifest = Manifest(**fields)
    check_fields(manifest)
    return manifest


def check_fields(manifest: Manifest) -> None:
    """Refuse values that would cause errors later, or be believed. Whoever writes a table can sign it too."""
    numbers = {"window": manifest.window, "hop": manifest.hop, "sampling_rate": manifest.sampling_rate}
    wrong = [name for name, value in numbers.items() if not isinstance(value, int | float) or not 0 < value < 1e6]
    counts = [manifest.dims, manifest.dim, manifest.rescore_dim, manifest.probes, *manifest.matryoshka_dims]
    wrong += [f"the count {count!r}" for count in counts if type(count) is not int or not 0 <= count < 2**31]
    texts = [manifest.model, manifest.revision, manifest.root, manifest.backend, manifest.precision]
    texts.append(manifest.preprocessing)
    wrong += [f"the text {text!r:.40}" for text in texts if not isinstance(text, str) or "\0" in text]
    revision = str(manifest.revision)
    if revision.encode(errors="ignore") != revision.encode(errors="surrogatepass"):  # Lance compares it, as UTF-8
        wrong.append(f"the revision {revision!r:.40}")
    recall = manifest.recall.values()
    wrong += [f"the recall {each!r}" for each in recall if not isinstance(each, float) or not math.isfinite(each)]
    if wrong:
        raise ValueError(f"there cannot be {', '.join(wrong[:3])}")
    if not isinstance(manifest.tags, bool):
        raise ValueError(f"there cannot be the tags {manifest.tags!r:.40}")
    if manifest.storage not in STORAGES or not 0 < manifest.dim <= manifest.dims:
        raise ValueError(f"there is no storage {manifest.storage!r} of {manifest.dim} dims")
    if manifest.rescore_dim and not manifest.dim < manifest.rescore_dim <= manifest.dims:
        raise ValueError(f"vectors of {manifest.dim} dims are not rescored by {manifest.rescore_dim}")
