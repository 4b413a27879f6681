"""Digests of data sets, by which a resumed run knows whether its data has changed."""

import hashlib
import os
from collections.abc import Iterator, Sequence

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_ROWS = 10_000  # of captions in memory at once


def rows_digest(dataset: datasets.Dataset, columns: Sequence[str], seconds: Sequence[float] = ()) -> str:
    """16 hexadecimal digits of what decides the order and the texts of training, without reading any sound: captions,
    durations, and the names and sizes of the sounds.

    Args:
        columns: with captions.
        seconds: the duration of each clip.
    """
    digest = hashlib.blake2b(digest_size=8)
    for table in dataset.select_columns(list(columns)).with_format("arrow").iter(_ROWS):
        digest.update(repr(table.to_pydict()).encode())
    digest.update(np.asarray(seconds, np.float64).round(3).tobytes())
    for known in _names_and_sizes(dataset.data.column("audio")):
        digest.update(repr(known).encode())
    return digest.hexdigest()


def _names_and_sizes(audio: pa.ChunkedArray) -> Iterator[tuple[str, int | None]]:
    """Of the `audio` column: files by their names and sizes, sounds within the data set by the number of bytes."""
    if pa.types.is_struct(audio.type):
        content = pc.struct_field(audio, "bytes")
        yield from (("", size) for size in pc.binary_length(content).drop_null().to_pylist())
        audio = pc.struct_field(audio, "path").filter(pc.is_null(content))
    for path in audio.to_pylist():
        yield os.path.basename(path or ""), os.path.getsize(path) if os.path.isfile(path or "") else None


def vocabulary_digest(tokenizer) -> str:
    """16 hexadecimal digits of a tokenizer's tokens and their ids."""
    return hashlib.blake2b(repr(sorted(tokenizer.get_vocab().items())).encode(), digest_size=8).hexdigest()
