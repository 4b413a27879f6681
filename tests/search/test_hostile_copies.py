"""A push of others is checked: each file and value that is not in order is refused by name."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest

from tests import pushed_index
from tests.former_index import sign
from tests.pushed_index import DIM, changed
from wavlink.bundled_models import digest_of
from wavlink.search import parquet
from wavlink.search.hub import pull
from wavlink.search.manifest import checksum
from wavlink.search.table import Table

folder, pushed = pushed_index.folder, pushed_index.pushed

# --- what others have made


def resigned(pushed: Path, table: pyarrow.Table, rows: int | None = None, **options) -> None:
    """Other rows in the first part, with a checksum and a number that are right, as anybody can."""
    path = pushed / "data/part-000000.parquet"
    pq.write_table(table, path, compression="zstd", **options)
    part = {"name": path.name, "rows": len(table) if rows is None else rows, "sha256": digest_of(path)}
    sign(pushed, parts=[part])


NAN = [np.nan] * DIM
BAD_VALUES = {
    "missing path": ("path", ["a"] * 7 + [None], "gaps, values of path"),
    "empty path": ("path", ["a"] * 7 + [""], "paths that are none"),
    "null in a path": ("path", ["a"] * 7 + ["a\0b"], "paths that are none"),
    "long path": ("path", ["a"] * 7 + ["a" * 2**21], "a 'path' of more than 1 MB"),
    "long label": ("label", ["a"] * 7 + ["a" * 2**21], "a 'label' of more than 1 MB"),
    "time": ("start", [np.nan] * 8, "times that are none"),
    "time backwards": ("start", [99.0] * 8, "times that are none"),
    "duration": ("duration", [np.inf] + [None] * 7, "times that are none"),
    "count": ("window", [-1] * 8, "counts that are none"),
    "skipped": ("error", ["why"] * 8, "windows of files that were skipped"),
    "model": ("revision", ["sha256:1"] * 8, "several models"),
    "missing vector": ("embedding", [[1.0] * DIM] * 7 + [None], "gaps, values of embedding"),
    "missing number": ("embedding", [[1.0] * DIM] * 7 + [[None] * DIM], "gaps, values of embedding"),
    "NaN": ("embedding", [[1.0] * DIM] * 7 + [NAN], "vectors without a direction"),
    "zero": ("embedding", [[0.0] * DIM] * 8, "vectors without a direction"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values_are_refused_by_the_name_of_the_file(pushed, tmp_path, case):
    name, values, message = BAD_VALUES[case]
    resigned(pushed, changed(pq.read_table(pushed / "data/part-000000.parquet"), name, values))
    with pytest.raises(ValueError, match=f"pushed/data/part-000000.parquet is none of this program's: .*{message}"):
        pull(str(pushed), tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists() and not list(tmp_path.glob(".*"))


def test_other_columns_are_refused(pushed, tmp_path):
    table = pq.read_table(pushed / "data/part-000000.parquet")
    lists = pyarrow.array([[1]] * 8, pyarrow.list_(pyarrow.int64()))
    ones = pyarrow.array([1.0] * 8)
    wide = pyarrow.array([[1.0] * 24] * 8, pyarrow.list_(pyarrow.float16(), 24))
    refused = {
        "other columns than the index says": table.drop_columns(["start"]),
        "other columns than the index": table.set_column(10, "embedding", wide),
        "its column 'x' is of the type list": table.append_column("x", lists),
        "names that are taken, or no names: .*score": table.append_column("score", ones),
        "names that are taken": table.append_column("x", ones).append_column("x", ones),
    }
    for message, rows in refused.items():
        resigned(pushed, rows)
        with pytest.raises(ValueError, match=f"part-000000.parquet is none of this program's: .*{message}"):
            pull(str(pushed), tmp_path / "pulled")
    resigned(pushed, table, rows=9)
    with pytest.raises(ValueError, match="other columns or rows than the index says"):
        pull(str(pushed), tmp_path / "pulled")


def test_files_that_unpack_to_more_than_they_may_are_refused(pushed, tmp_path, monkeypatch):
    """A hundredth of a bound, and files of a few kB: rows that are all alike, long texts, and one long text."""
    monkeypatch.setattr(parquet, "MOST_BYTES", 10 << 20)
    table = pq.read_table(pushed / "data/part-000000.parquet").slice(0, 1)
    long = changed(table, "label", ["x" * 1000])
    for rows in (table.take([0] * 120_000), long.take([0] * 12_000), changed(table, "path", ["x" * (11 << 20)])):
        resigned(pushed, rows)
        assert (pushed / "data/part-000000.parquet").stat().st_size < 30_000
        before = pyarrow.total_allocated_bytes()
        with pytest.raises(ValueError, match="pushed/data/part-000000.parquet .*unpacks to more than 10 MB"):
            pull(str(pushed), tmp_path / "pulled")
        assert pyarrow.total_allocated_bytes() - before < 1 << 20
    resigned(pushed, changed(long.take([0] * 5000), "window", [*range(5000)]))  # 5 MB
    pull(str(pushed), tmp_path / "pulled")
    assert Table.open(tmp_path / "pulled").rows() == 5000


def test_files_that_are_no_parquet_or_not_the_ones_named_are_refused(pushed, tmp_path):
    path = pushed / "data/part-000000.parquet"
    whole, told = path.read_bytes(), (pushed / "index.json").read_bytes()
    for content in (b"", b"PAR1PAR1", whole[:-400] + bytes(392) + whole[-8:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="part-000000.parquet is damaged, its checksum"):
            pull(str(pushed), tmp_path / "pulled")
        sign(pushed, parts=[{"name": path.name, "rows": 8, "sha256": digest_of(path)}])
        with pytest.raises(ValueError, match="part-000000.parquet is none of this program's"):
            pull(str(pushed), tmp_path / "pulled")
        (pushed / "index.json").write_bytes(told)
    path.unlink()
    with pytest.raises(ValueError, match="part-000000.parquet is missing"):
        pull(str(pushed), tmp_path / "pulled")


@pytest.mark.parametrize(
    "fields",
    [
        *({"parts": parts} for parts in (None, "x", [[]], {}, [{}], [])),
        {"parts": [{"name": "../x.parquet", "rows": 1, "sha256": ""}]},
        {"parts": [{"name": "part-000000.parquet", "rows": -1, "sha256": ""}]},
        {"parts": [{"name": "part-000000.parquet", "rows": 1, "sha256": ""}] * 2},
        *({"manifest": manifest} for manifest in (None, {}, [], "x")),
        *({"format": number} for number in (3, "2", None)),
    ],
    ids=str,
)
def test_an_index_json_with_a_right_checksum_and_wrong_values_is_refused(pushed, tmp_path, fields):
    sign(pushed, **fields)
    with pytest.raises(ValueError, match="index.json"):
        pull(str(pushed), tmp_path / "pulled")


@pytest.mark.parametrize(
    "fields",
    [
        *({"window": value} for value in (0, -1, float("nan"), float("inf"), "10", None)),
        *({"dims": value} for value in (24.0, "24", -24, 2**60, None)),
        *({"root": value} for value in (None, 3, "a\0b")),
        {"revision": "\ud800"},
        *({"storage": "../x"}, {"storage": "int8"}, {"matryoshka_dims": ["8"]}, {"format": "1"}, {"more": 1}),
    ],
    ids=str,
)
def test_wrong_values_of_the_model_are_refused(pushed, tmp_path, fields):
    told = json.loads((pushed / "index.json").read_text())["manifest"] | fields
    del told["sha256"]
    sign(pushed, manifest=told | {"sha256": checksum(told)})
    with pytest.raises(ValueError, match=r"pushed/index\.json is damaged \("):
        pull(str(pushed), tmp_path / "pulled")


def test_a_truncated_or_changed_index_json_is_refused(pushed, tmp_path):
    path = pushed / "index.json"
    whole = path.read_bytes()
    wrong = [whole[:length] for length in range(0, len(whole) - 1, 97)]
    for content in [*wrong, whole.replace(b'"dim": 12', b'"dim": 11'), b"[]", b"null", b"\xff", b"[" * 100_000]:
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"index\.json is damaged"):
            pull(str(pushed), tmp_path / "pulled")


def test_windows_that_are_there_twice_are_refused(pushed, tmp_path):
    table = pq.read_table(pushed / "data/part-000000.parquet")
    resigned(pushed, pyarrow.concat_tables([table, table]))
    with pytest.raises(ValueError, match="pushed holds windows of .* twice: take another copy"):
        pull(str(pushed), tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
