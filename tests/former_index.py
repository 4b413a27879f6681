"""Write an index as versions before the Lance table wrote it: parquet parts, and `index.json` that names them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as pq

from wavlink.search.manifest import checksum
from wavlink.search.scoring import vectors_of
from wavlink.search.table import Table

STORAGES = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8, "binary": np.uint8}


def codes_of(vectors: np.ndarray, storage: str) -> np.ndarray:
    """Unit vectors `[N, dim]` as those versions stored them."""
    if storage == "binary":
        return np.packbits(vectors > 0, axis=1)
    if storage == "int8":
        return np.rint(127 * np.clip(vectors / min(1.0, 6 / vectors.shape[1] ** 0.5), -1, 1)).astype(np.int8)
    return vectors.astype(STORAGES[storage])


def write_former(folder: Path, table: Table, storage: str = "int8", parts: int = 2, **fields) -> Path:
    """The rows of an index, in so many parts of about as many windows; `fields` of `index.json` replace others."""
    rows = table.dataset.to_table(filter="error = ''")
    skipped = table.dataset.to_table(filter="error != ''").to_pylist()
    described = []
    for number, of in enumerate(np.array_split(np.arange(len(rows)), parts)):
        some = rows.slice(of[0], len(of))
        codes = codes_of(vectors_of(some["embedding"]), storage)
        kind = pyarrow.list_(pyarrow.from_numpy_dtype(codes.dtype), codes.shape[1])
        values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(codes.reshape(-1)), type=kind)
        windows = some.select(["path", "start", "end"]).append_column("embedding", values)
        files = {}
        for row in some.to_pylist():
            facts = {"path": row["path"], "size": row["size"], "version": row["version"], "first": row["window"]}
            file = files.setdefault(row["path"], facts | {"rows": 0, "windows": row["windows"], "error": ""})
            file["rows"] += 1
        more = [] if number else [_skipped(row) for row in skipped]
        tables = {"embeddings": windows, "files": pyarrow.Table.from_pylist([*files.values(), *more])}
        described.append(_part(folder, number, tables))
    names = "model revision dims matryoshka_dims dim window hop sampling_rate root backend precision".split()
    told = {name: getattr(table.manifest, name) for name in names}
    told |= {"storage": storage, "format": 1, "next_part": parts, "parts": described}
    sign(folder, **told | fields)
    return folder


def _skipped(row: dict) -> dict:
    kept = {name: row[name] for name in ("path", "size", "version", "error")}
    return kept | {"first": 0, "rows": 0, "windows": 0}


def _part(folder: Path, number: int, tables: dict[str, pyarrow.Table]) -> dict:
    name, digests = f"part-{number:06d}.parquet", {}
    for kind, table in tables.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        pq.write_table(table.replace_schema_metadata(None), folder / kind / name, compression="zstd")
        digests[kind] = hashlib.sha256((folder / kind / name).read_bytes()).hexdigest()
    rows = {"rows": len(tables["embeddings"]), "files": len(tables["files"])}
    return {"name": name, **rows, "bytes": 0, "sha256": digests}


def sign(folder: Path, **fields) -> None:
    """Put fields into `index.json`, with a checksum that is right, as anybody can."""
    path = folder / "index.json"
    told = json.loads(path.read_text()) if path.exists() else {}
    told = {name: value for name, value in (told | fields).items() if name != "sha256"}
    path.write_text(json.dumps(told | {"sha256": checksum(told)}))
