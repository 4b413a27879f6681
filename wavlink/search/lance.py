"""Store vectors in LanceDB and search them: in a folder, in object storage or in a cluster.

    wavlink lance load ROWS --database URI --table sounds --dim 48
    wavlink lance query "a dog barks" --database URI --table sounds --model M --top_k 5

ROWS is a folder that `wavlink.search.ray` has written. URI is a folder, `s3://bucket/path`, `gs://bucket/path`
(both embedded: this process reads and writes the files), or `db://name`, a cluster, whose key is in LANCEDB_API_KEY.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import lancedb
import numpy as np
import pyarrow
import pyarrow.compute as pc
import pyarrow.parquet as pq
from lancedb.expr import Expr, col
from lancedb.index import IvfPq

from wavlink import options as of
from wavlink.embedder import Embedder
from wavlink.parsing import Parser

from .embedded_rows import fixed_size_list, parts_of
from .index import Hit, print_hits
from .index_model import is_commit
from .quantization import encode

INDEX_ROWS = 1 << 18  # up to this many rows, an exact search takes some 20 ms
_ABOUT = b"wavlink"  # in the schema's metadata
_PATHS_AT_ONCE = 1000
_PROBES, _REFINE = 40, 10  # partitions searched; candidates per hit that are rescored


class VectorDatabase:
    """A table of windows: `path`, `start`, `end` (seconds) and `vector`, of one model at one of its nested dims.

    Several processes may read while one adds. Path and start identify a row: adding it again replaces its vector.

    Args:
        uri: see above; a missing `table` is created if `revision` and `dim` are given.
        model, revision: of the vectors, see `wavlink.loading.revision`.
        dim: of the stored vectors.
        options: of `lancedb.connect`, such as `storage_options` or `api_key`.

    Raises:
        ValueError: there is no such table, another program made it, or it has another revision or dim.
    """

    def __init__(
        self,
        uri: str | os.PathLike,
        table: str,
        *,
        model: str = "",
        revision: str = "",
        dim: int = 0,
        **options: Any,
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
        """Add rows, all or none.

        Args:
            starts, ends: in seconds.
            vectors: `[N, D]` fp32 with D >= dim; they are cut to `dim` and normalised.

        Raises:
            ValueError: different lengths, times that are not finite, a window given twice, or a vector without
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
        """Remove all windows of these files."""
        for start in range(0, len(paths), _PATHS_AT_ONCE):
            self._table.delete(col("path").isin(paths[start : start + _PATHS_AT_ONCE]))

    def stale(self, paths: Sequence[str], starts: Sequence[float]) -> list[str]:
        """Return the paths of which the table has further windows than these."""
        current, files, stale = {*zip(paths, starts, strict=True)}, [*dict.fromkeys(paths)], set()
        for first in range(0, len(files) if len(self) else 0, _PATHS_AT_ONCE):
            query = self._table.search().where(col("path").isin(files[first : first + _PATHS_AT_ONCE]))
            rows = query.select(["path", "start"]).limit(len(self)).to_arrow()
            windows = zip(rows["path"].to_pylist(), rows["start"].to_pylist(), strict=True)
            stale |= {path for path, start in windows if (path, start) not in current}
        return sorted(stale)

    def search(self, queries: np.ndarray, k: int, where: Expr | None = None) -> list[list[Hit]]:
        """Find the k nearest windows of each query, best first, with the exact cosine as `score`.

        Args:
            queries: `[Q, D]` fp32 with D >= dim.
            where: an expression over `path`, `start` and `end`, such as `below("dogs/")` or
                `lancedb.expr.col("path").isin(paths)`. SQL text is refused: a file name in it could inject code.
        """
        if k < 1:
            raise ValueError(f"k must be 1 or more, got {k}")
        if not isinstance(where, Expr | None):
            raise ValueError("where is built with lancedb.expr, such as col('path') == 'dog.wav', and no text of SQL")
        return [self._nearest(query, k, where) for query in encode(queries, self.dim, "fp32")]

    def optimize(self, least: int = INDEX_ROWS) -> None:
        """Compact the table's files after many additions, and from `least` rows on rebuild its vector index.

        The index is approximate (IVF, product quantisation); its candidates are rescored with the stored vectors.
        Rows that are added later are found too, by an exact search among them.
        """
        self._table.optimize()
        if len(self) >= least:
            width = next(width for width in (4, 2, 1) if self.dim % width == 0)
            self._table.create_index(
                "vector", config=IvfPq(distance_type="cosine", num_sub_vectors=self.dim // width), replace=True
            )

    def _nearest(self, query: np.ndarray, k: int, where: Expr | None) -> list[Hit]:
        search = self._table.search(query, vector_column_name="vector").distance_type("cosine").limit(k)
        search = search.refine_factor(_REFINE).nprobes(_PROBES).select(["path", "start", "end", "_distance"])
        results = (search if where is None else search.where(where)).to_arrow()
        paths, starts, ends, distances = (results[name].to_pylist() for name in ("path", "start", "end", "_distance"))
        rows = zip(paths, distances, starts, ends, strict=True)
        return [Hit(path, 1 - distance, start, end) for path, distance, start, end in rows]


def below(folder: str) -> Expr:
    """Return a condition for `where`: paths that begin with `folder`, such as `"dogs/"`."""
    return (col("path") >= folder) & (col("path") < folder + "\U0010ffff")


def load_rows(rows: str | os.PathLike, uri: str | os.PathLike, table: str, dim: int | None = None) -> VectorDatabase:
    """Load the rows that `embed_with_ray` has written into a table. After a kill, the same call goes on.

    Former windows of a file that has changed are removed. Files that have gone from `rows` stay in the table, which
    may hold other collections too: use `VectorDatabase.remove`.

    Args:
        rows: the folder of `embed_with_ray`.
        uri, table: see `VectorDatabase`.
        dim: one of the model's nested dims (default: all of its dims).

    Raises:
        ValueError: no rows, or of another model or dim than the table's.
    """
    parts = list(parts_of(rows))
    if not parts:
        raise ValueError(f"{rows} holds no rows: `wavlink ray` writes them")
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


def load(rows: str, database: str, table: str, dim: int | None) -> None:
    """Load rows into a table, and print its size."""
    loaded = load_rows(rows, database, table, dim)
    print(f"{len(loaded)} windows of {loaded.dim} dims in table {table} of {database}")


def query(text: str, database: str, table: str, model: str, top_k: int, under: str | None, as_json: bool) -> None:
    """Search a table by text, and print the hits."""
    revision = VectorDatabase(database, table).revision
    embedder = Embedder(model, revision=revision if is_commit(revision) and not os.path.isdir(model) else None)
    checked = VectorDatabase(database, table, revision=embedder.revision)
    hits = checked.search(embedder.embed_text([text]), top_k, below(under) if under else None)[0]
    print_hits(hits, as_json)


def main(arguments: list[str] | None = None) -> None:
    """Run a command with these arguments, or those of the process."""
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
