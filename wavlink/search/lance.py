"""Vectors in LanceDB: in a folder, in object storage or in its cluster, by one client.

    python -m wavlink.search.lance load ROWS --database URI --table sounds --dim 48
    python -m wavlink.search.lance query "a dog barks" --database URI --table sounds --model M --top_k 5

ROWS is what `wavlink.search.ray` has written. URI is a folder, `s3://bucket/path`, `gs://bucket/path`
(both embedded: this process reads and writes the files), or `db://name`, a cluster, whose key is in LANCEDB_API_KEY.
"""

import json
import os
from collections.abc import Sequence

import lancedb
import numpy as np
import pyarrow
import pyarrow.compute as pc
import pyarrow.parquet as pq
from lancedb.expr import Expr, col
from lancedb.index import IvfPq

from wavlink import options as of
from wavlink.console import print_json
from wavlink.embedder import Embedder
from wavlink.parsing import Parser
from wavlink.sanitize import clean

from .embedded_rows import fixed_size_list, parts_of
from .index import Hit, as_dict
from .quantization import encode

INDEX_ROWS = 1 << 18  # up to here comparing with all takes some 20 ms, and finds all
_ABOUT = b"wavlink"  # in the schema's metadata
_PATHS_AT_ONCE = 1000
_PROBES, _REFINE = 40, 10  # partitions looked into; candidates per hit that are rescored


class VectorDatabase:
    """A table of windows: `path`, `start`, `end` (seconds) and `vector`, of one model at one of its nested dims.

    Several processes may read while one adds. A row is known by its path and start: adding it again changes nothing,
    and with another vector replaces it.

    Args:
        uri: see above; `table` is made if it is not there and `revision` and `dim` are given.
        model, revision: by which the vectors are made, see `peers.revision`.
        dim: of the vectors kept.
        options: of `lancedb.connect`, such as `storage_options` or `api_key`.

    Raises:
        ValueError: the table is not there, is none of this program's, or of another revision or dim.
    """

    def __init__(
        self, uri: str | os.PathLike, table: str, *, model: str = "", revision: str = "", dim: int = 0, **options
    ):
        database = lancedb.connect(uri, **options)
        try:
            self._table = database.open_table(table)
        except (ValueError, FileNotFoundError) as error:
            if not (revision and dim):
                raise ValueError(f"{uri} has no table {table!r}: load rows into it") from error
            schema = _schema(dim, {"model": model, "revision": revision, "dim": dim})
            self._table = database.create_table(table, schema=schema, exist_ok=True)
        try:
            about = json.loads(self._table.schema.metadata[_ABOUT])
            self.model, self.revision, self.dim = about["model"], about["revision"], about["dim"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"table {table!r} of {uri} is none of this program's: name another") from error
        for name, wanted in (("revision", revision), ("dim", dim)):
            if wanted and wanted != about[name]:
                raise ValueError(
                    f"table {table!r} of {uri} has {name}={about[name]}, not {wanted}: its vectors do not compare "
                    "with these, name another table"
                )

    def __len__(self) -> int:
        return self._table.count_rows()

    def add(self, paths: Sequence[str], starts: Sequence[float], ends: Sequence[float], vectors: np.ndarray) -> None:
        """All rows or none.

        Args:
            starts, ends: in seconds.
            vectors: `[N, D]` fp32 with D >= dim, cut to `dim` and normalised here.

        Raises:
            ValueError: other numbers of each, times that are not finite, a window given twice, or a vector of no
                direction.
        """
        starts, ends = np.asarray(starts, np.float64), np.asarray(ends, np.float64)
        vectors = encode(vectors, self.dim, "fp32")
        if not len(paths) == len(starts) == len(ends) == len(vectors):
            raise ValueError(f"{len(paths)} paths, {len(starts)} starts, {len(ends)} ends and {len(vectors)} vectors")
        if not (np.isfinite(starts).all() and np.isfinite(ends).all()):
            raise ValueError("starts and ends must be finite: leave out files that could not be read")
        if len({*zip(paths, starts.tolist(), strict=True)}) < len(paths):
            raise ValueError("a window is given twice: each path and start at most once")
        if len(paths):
            columns = [pyarrow.array(paths, pyarrow.string()), starts, ends, fixed_size_list(vectors)]
            rows = pyarrow.table([pyarrow.array(column) for column in columns], schema=_schema(self.dim))
            merge = self._table.merge_insert(["path", "start"])
            merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def remove(self, paths: Sequence[str]) -> None:
        """All windows of these files."""
        for start in range(0, len(paths), _PATHS_AT_ONCE):
            self._table.delete(col("path").isin(paths[start : start + _PATHS_AT_ONCE]))

    def stale(self, paths: Sequence[str], starts: Sequence[float]) -> list[str]:
        """Those of the files that have other windows in the table than these, too."""
        wanted, files, found = {*zip(paths, starts, strict=True)}, [*dict.fromkeys(paths)], set()
        for first in range(0, len(files) if len(self) else 0, _PATHS_AT_ONCE):
            here = self._table.search().where(col("path").isin(files[first : first + _PATHS_AT_ONCE]))
            rows = here.select(["path", "start"]).limit(len(self)).to_arrow()
            windows = zip(rows["path"].to_pylist(), rows["start"].to_pylist(), strict=True)
            found |= {path for path, start in windows if (path, start) not in wanted}
        return sorted(found)

    def search(self, queries: np.ndarray, k: int, where: Expr | None = None) -> list[list[Hit]]:
        """Of each query the k nearest windows, best first, with the exact cosine as `score`.

        Args:
            queries: `[Q, D]` fp32 with D >= dim.
            where: a condition on `path`, `start` and `end` that is built, such as `below("dogs/")` or
                `lancedb.expr.col("path").isin(paths)`. No SQL is taken: a name in it could be more than a name.
        """
        if k < 1:
            raise ValueError(f"k must be 1 or more, got {k}")
        if not isinstance(where, Expr | None):
            raise ValueError("where is built with lancedb.expr, such as col('path') == 'dog.wav', and no text of SQL")
        return [self._nearest(query, k, where) for query in encode(queries, self.dim, "fp32")]

    def optimize(self, least: int = INDEX_ROWS) -> None:
        """After many additions: their small files become few, and from `least` rows on an index is made anew.

        The index is approximate (IVF, product quantisation); its candidates are scored again with the vectors
        themselves. Rows that are added later are found too, each by comparing.
        """
        self._table.optimize()
        if len(self) >= least:
            width = next(width for width in (4, 2, 1) if self.dim % width == 0)
            self._table.create_index(
                "vector", config=IvfPq(distance_type="cosine", num_sub_vectors=self.dim // width), replace=True
            )

    def _nearest(self, query: np.ndarray, k: int, where: Expr | None) -> list[Hit]:
        asked = self._table.search(query, vector_column_name="vector").distance_type("cosine").limit(k)
        asked = asked.refine_factor(_REFINE).nprobes(_PROBES).select(["path", "start", "end", "_distance"])
        found = (asked if where is None else asked.where(where)).to_arrow()
        paths, starts, ends, distances = (found[name].to_pylist() for name in ("path", "start", "end", "_distance"))
        rows = zip(paths, distances, starts, ends, strict=True)
        return [Hit(path, 1 - distance, start, end) for path, distance, start, end in rows]


def below(folder: str) -> Expr:
    """For `where`: paths that begin so, such as `"dogs/"`."""
    return (col("path") >= folder) & (col("path") < folder + "\U0010ffff")


def load_rows(rows: str | os.PathLike, uri: str | os.PathLike, table: str, dim: int | None = None) -> VectorDatabase:
    """Takes what `embed_with_ray` has written into a table. Killed at any moment, the same call goes on.

    Of a file that has changed, windows that it has no more are removed. Files that `rows` knows no more stay in the
    table, which may hold others' too: `VectorDatabase.remove` takes them out.

    Args:
        dim: one of the model's nested dims (default: all of its dims).

    Raises:
        ValueError: no rows, or of another model or dim than the table's.
    """
    parts = list(parts_of(rows))
    if not parts:
        raise ValueError(f"{rows} holds no rows: `python -m wavlink.search.ray` writes them")
    about = parts[0][1]
    if dim not in (None, *about["matryoshka_dims"]):
        raise ValueError(f"dim={dim} is none of the model's nested dims: {about['matryoshka_dims']}")
    model = {"model": about["model"], "revision": about["revision"], "dim": dim or about["dims"]}
    database = VectorDatabase(uri, table, **model)
    for path, _ in parts:
        part = pq.read_table(path)
        database.remove(database.stale(part["path"].to_pylist(), part["start"].to_pylist()))
        part = part.filter(pc.equal(part["error"], "")).combine_chunks()
        if len(part):
            vectors = np.concatenate([chunk.flatten().to_numpy() for chunk in part["embedding"].chunks])
            times = (part[name].to_numpy() for name in ("start", "end"))
            database.add(part["path"].to_pylist(), *times, vectors.reshape(len(part), -1))
    database.optimize()
    return database


def load(rows, database, table, dim) -> None:
    loaded = load_rows(rows, database, table, dim)
    print(f"{len(loaded)} windows of {loaded.dim} dims in table {table} of {database}")


def query(text, database, table, model, top_k, under, as_json) -> None:
    opened = VectorDatabase(database, table)
    commit = opened.revision if len(opened.revision) == 40 and not os.path.isdir(model) else None
    embedder = Embedder(model, revision=commit)
    found = VectorDatabase(database, table, revision=embedder.revision)
    hits = found.search(embedder.embed_text([text]), top_k, below(under) if under else None)[0]
    if as_json:
        print_json([as_dict(hit) for hit in hits])
        return
    for hit in hits:
        print(f"{hit.score:6.3f}  {hit.start:8.2f} - {hit.end:8.2f} s  {clean(hit.path, 1000)}")


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="wavlink lance", description=__doc__)
    commands = parser.add_commands()
    for name, add_options, run in (("load", of.lance_load, load), ("query", of.lance_query, query)):
        command = commands.add_parser(name)
        add_options(command)
        command.set_defaults(run=run)
    options = vars(parser.parse_args(arguments))
    options.pop("run")(**options)


def _schema(dim: int, about: dict | None = None) -> pyarrow.Schema:
    fields = {"path": pyarrow.string(), "start": pyarrow.float64(), "end": pyarrow.float64()}
    fields["vector"] = pyarrow.list_(pyarrow.float32(), dim)
    return pyarrow.schema(fields, metadata={_ABOUT: json.dumps(about)} if about else None)
