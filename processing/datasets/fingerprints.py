"""Digests of data sets, with which a resumed run detects that its data has changed."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

_ROWS = 10_000  # of captions in memory at once
_PIECES, _PIECE = 4, 1024  # number of pieces that are read of a sound, and bytes of each
_MOST_SOUNDS = 100_000  # sounds of which pieces are read
_WORKERS = 16  # threads that read them


def rows_digest(dataset: datasets.Dataset, columns: Sequence[str], seconds: Sequence[float] = ()) -> str:
    """Compute a digest of 16 hexadecimal digits of a training set, without reading all of it.

    It covers captions, durations, and of the sounds names, sizes and four pieces of 1 KB, from the beginning to the
    end. A replaced sound of the same name, size and duration is noticed where a piece differs; sounds of up to 4 KB
    are read completely. Pieces are read of at most 100,000 sounds, spread evenly over the data set: 400 MB. The files'
    times of change are ignored.

    Args:
        dataset: with a column `audio`.
        columns: of captions.
        seconds: the duration of each clip.
    """
    digest = hashlib.blake2b(digest_size=8)
    for table in dataset.select_columns(list(columns)).with_format("arrow").iter(_ROWS):
        digest.update(repr(table.to_pydict()).encode())
    digest.update(np.asarray(seconds, np.float64).round(3).tobytes())
    for name_and_size in _names_and_sizes(dataset.data.column("audio")):
        digest.update(repr(name_and_size).encode())
    readers = _readers(dataset.data.column("audio"))
    with ThreadPoolExecutor(_WORKERS) as pool:
        while some := list(islice(readers, _ROWS)):
            for pieces in pool.map(lambda read: read(), some):
                digest.update(hashlib.blake2b(pieces, digest_size=16).digest())
    return digest.hexdigest()


def _names_and_sizes(audio: pa.ChunkedArray) -> Iterator[tuple[str, int | None]]:
    """Yield names and sizes of the files of an `audio` column; sounds within the data set have no name."""
    if pa.types.is_struct(audio.type):
        content = pc.struct_field(audio, "bytes")
        yield from (("", size) for size in pc.binary_length(content).drop_null().to_pylist())
        audio = pc.struct_field(audio, "path").filter(pc.is_null(content))
    for path in audio.to_pylist():
        yield os.path.basename(path or ""), os.path.getsize(path) if os.path.isfile(path or "") else None


def _readers(audio: pa.ChunkedArray) -> Iterator[Callable[[], bytes]]:
    """Yield for each of at most `_MOST_SOUNDS` rows a function that reads its pieces."""
    step, first = -(-len(audio) // _MOST_SOUNDS), 0
    for chunk in audio.chunks:
        is_struct = pa.types.is_struct(chunk.type)
        contents = pc.struct_field(chunk, "bytes") if is_struct else pa.nulls(len(chunk), pa.binary())
        paths = pc.struct_field(chunk, "path") if is_struct else chunk
        for row in range(-first % step, len(chunk), step):
            if contents[row].is_valid:
                yield partial(_pieces_of_bytes, contents[row].as_buffer())
            else:
                yield partial(_pieces_of_file, paths[row].as_py() or "")
        first += len(chunk)


def _pieces_of_bytes(content: pa.Buffer) -> bytes:
    return b"".join(content.slice(start, min(_PIECE, content.size - start)) for start in _starts(content.size))


def _pieces_of_file(path: str) -> bytes:
    """Read the pieces of a file, b"" where it is none or cannot be read."""
    if not os.path.isfile(path):
        return b""
    pieces = []
    try:
        with open(path, "rb", buffering=0) as file:
            for start in _starts(os.fstat(file.fileno()).st_size):
                file.seek(start)
                pieces.append(file.read(_PIECE))
    except OSError:
        return b""
    return b"".join(pieces)


def _starts(size: int) -> list[int]:
    return [max(0, size - _PIECE) * piece // (_PIECES - 1) for piece in range(_PIECES)] if size > _PIECE else [0]


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Compute a digest of 16 hexadecimal digits of a tokenizer's tokens and their ids."""
    return hashlib.blake2b(repr(sorted(tokenizer.get_vocab().items())).encode(), digest_size=8).hexdigest()
