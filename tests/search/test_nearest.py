"""The nearest windows and files of a table: those of a full matrix of cosines, with a vector index and without."""

from pathlib import Path

import numpy as np
import pyarrow
import pytest

from tests.index_files import manifest
from wavlink.search import nearest as searching
from wavlink.search import vector_index
from wavlink.search.listing import Sound
from wavlink.search.nearest import nearest
from wavlink.search.rows import skipped_row, window_rows
from wavlink.search.scoring import truncated, vectors_of
from wavlink.search.table import Table

WINDOWS = 4
FILES = 250


def collection(count: int = FILES * WINDOWS, dims: int = 24, seed: int = 0) -> np.ndarray:
    """Vectors in clusters, of norms other than 1, and some of them twice."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(25, dims))[rng.integers(25, size=count)] + rng.normal(size=(count, dims))
    rows[count // 2 : count // 2 + 20] = rows[:20]
    return (rows * rng.uniform(0.1, 9, (count, 1))).astype(np.float32)


def append(table: Table, vectors: np.ndarray, first: int = 0) -> None:
    """Files of `WINDOWS` windows, numbered from `first` on."""
    made = []
    for number in range(len(vectors) // WINDOWS):
        times = [(float(start), start + 1.0) for start in range(WINDOWS)]
        sound = Sound(f"{first + number:05d}", 100 + first + number, 7, "")
        rows = vectors[number * WINDOWS : (number + 1) * WINDOWS]
        made.append(window_rows(table.manifest, sound, times, rows, windows=WINDOWS, duration=float(WINDOWS)))
    table.append(pyarrow.concat_tables(made))


def make(folder: Path, vectors: np.ndarray, **fields) -> Table:
    """In three commits, with a file that was skipped."""
    with Table.create(folder, manifest(**({"storage": "fp32"} | fields))) as table:
        third = len(vectors) // WINDOWS // 3 * WINDOWS
        append(table, vectors[:third])
        table.append(skipped_row(table.manifest, Sound("bad", 0, 7, ""), "it holds no bytes"))
        append(table, vectors[third : 2 * third], third // WINDOWS)
        append(table, vectors[2 * third :], 2 * third // WINDOWS)
    return table


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Table:
    return make(tmp_path_factory.mktemp("flat") / "index", collection())


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(8, 24)).astype(np.float32)


def stored(table: Table, column: str = "embedding") -> np.ndarray:
    return np.concatenate([vectors_of(batch[column]) for batch in table.scan([column], "error = ''")])


def ranked(table: Table, query: np.ndarray, dim: int, windows: bool, column: str = "embedding") -> list[tuple]:
    """`(file, window, score)`, the best first, of equal ones the earlier."""
    scores = (truncated(stored(table, column), dim) @ truncated(query[None], dim)[0]).astype(np.float64)
    rows = [(f"{n // WINDOWS:05d}", n % WINDOWS, scores[n]) for n in np.argsort(-scores, kind="stable")]
    seen = set()
    return [row for row in rows if windows or not (row[0] in seen or seen.add(row[0]))]


def assert_found(found: tuple, expected: list[tuple]) -> None:
    rows, scores = found
    assert scores.dtype == np.float32 and len(rows) == len(scores) == len(expected)
    np.testing.assert_allclose(scores, [row[2] for row in expected], atol=1e-6)
    assert (np.diff(scores) <= 0).all() and not {"embedding", "rescore"} & {*rows.column_names}
    best = {(path, window): score for path, window, score in expected}
    for path, window, score in zip(rows["path"].to_pylist(), rows["window"].to_pylist(), scores, strict=True):
        assert best.get((path, window), expected[-1][2]) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("windows", [True, False])
@pytest.mark.parametrize("dim", [5, 12])
def test_results_equal_the_cosine_matrix(table, queries, dim, windows):
    for query in queries:
        for k in (1, 10, 100):
            expected = ranked(table, query, dim, windows)[:k]
            assert_found(nearest(table, query, k, dim=dim, windows=windows), expected)
            assert_found(nearest(table, 1e-20 * query, k, dim=dim, windows=windows, exact=True), expected)


@pytest.mark.parametrize(("windows", "count"), [(True, FILES * WINDOWS), (False, FILES)])
def test_fewer_than_k(table, queries, windows, count):
    """All that there are, and in little work."""
    for k in (count, count + 1, 10**9):
        rows, scores = nearest(table, queries[0], k, windows=windows)
        assert len(set(zip(rows["path"].to_pylist(), rows["window"].to_pylist(), strict=True))) == len(rows) == count
        assert (np.diff(scores) <= 0).all()
    assert len(nearest(table, queries[0], 10**9, where="path < '00002'")[0]) == 2
    assert len(nearest(table, queries[0], 5, where="path = 'none'")[0]) == 0


def test_more_files_than_there_are_do_not_ask_again_and_again(table, queries, monkeypatch):
    asked, real = [], searching.rows_by_id
    monkeypatch.setattr(searching, "rows_by_id", lambda table, ids: asked.append(len(ids)) or real(table, ids))
    nearest(table, queries[0], FILES + 1)
    assert len(asked) <= 3 and asked[-1] == FILES * WINDOWS


def test_many_windows_of_one_file_do_not_hide_the_others(tmp_path):
    vectors = np.concatenate([np.tile(np.eye(24)[:1], (400, 1)), np.eye(24)[:1] + np.eye(24)[1:3].repeat(4, 0)])
    with Table.create(tmp_path / "index", manifest("fp32")) as table:
        times = [(float(n), n + 1.0) for n in range(400)]
        table.append(window_rows(table.manifest, Sound("long", 1, 7, ""), times, vectors[:400], windows=400))
        append(table, vectors[400:])
    rows, scores = nearest(table, vectors[0], 3)
    assert rows["path"].to_pylist() == ["long", "00000", "00001"] and rows["window"].to_pylist()[0] == 0
    np.testing.assert_allclose(scores, [1, 0.5**0.5, 0.5**0.5], atol=1e-6)
    assert {*nearest(table, vectors[0], 5, windows=True)[0]["path"].to_pylist()} == {"long"}


def test_ties_are_in_row_order(tmp_path, queries):
    """More of one vector than are asked for."""
    vectors = np.concatenate([np.repeat(-queries[:1], 8, 0), np.repeat(queries[:1], 80, 0), collection(80)])
    table = make(tmp_path / "index", vectors)
    rows, scores = nearest(table, queries[0], 10, windows=True)
    expected = [(f"{n // WINDOWS:05d}", n % WINDOWS) for n in range(8, 18)]
    assert list(zip(*(rows[name].to_pylist() for name in ("path", "window")), strict=True)) == expected
    assert (scores == scores[0]).all()
    rows, _ = nearest(table, queries[0], 10)
    assert rows["path"].to_pylist() == [f"{n:05d}" for n in range(2, 12)] and set(rows["window"].to_pylist()) == {0}


def test_results_do_not_depend_on_batches(table, queries, monkeypatch):
    expected, scores = nearest(table, queries[0], 20)
    real = Table.scan
    monkeypatch.setattr(Table, "scan", lambda self, *a, **options: real(self, *a, batch_size=7, **options))
    rows, again = nearest(table, queries[0], 20)
    assert rows.equals(expected)
    np.testing.assert_allclose(scores, again, atol=1e-6)


def test_conditions_are_met(table, queries):
    where = "size < 150 AND `end` > 2 OR path = '00200'"
    rows, scores = nearest(table, queries[0], 1000, windows=True, where=where)
    facts = zip(*(rows[name].to_pylist() for name in ("size", "end", "path")), strict=True)
    assert all((size < 150 and end > 2) or path == "00200" for size, end, path in facts)
    assert len(rows) == 50 * 2 + WINDOWS
    every = ranked(table, queries[0], 12, True)
    expected = [row for row in every if (row[0] < "00050" and row[1] > 1) or row[0] == "00200"]
    np.testing.assert_allclose(scores, [row[2] for row in expected], atol=1e-6)


@pytest.mark.parametrize("where", ["nonsense = 1", "path = ", "1; DROP TABLE x", "path", "", "size / 0 = 1", "'a'"])
def test_conditions_that_are_none_are_a_value_error(table, queries, where):
    with pytest.raises(ValueError) as caught:
        nearest(table, queries[0], 3, where=where)
    assert ".rs" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_second_vector_orders_the_results(tmp_path, queries):
    table = make(tmp_path / "index", collection(), rescore_dim=24)
    for query in queries:
        assert_found(nearest(table, query, 10), ranked(table, query, 24, False, "rescore")[:10])
        assert_found(nearest(table, query, 10, dim=5), ranked(table, query, 5, False)[:10])


# --- a vector index


@pytest.fixture
def small(monkeypatch):
    """A thousandth of the bounds."""
    monkeypatch.setattr(vector_index, "LEAST_ROWS", 500)
    monkeypatch.setattr(vector_index, "_ROWS_A_PARTITION", 64)
    monkeypatch.setattr(vector_index, "_FIRST_PROBES", 1)
    monkeypatch.setattr(vector_index, "_QUERIES", 40)
    monkeypatch.setattr(vector_index, "_UNINDEXED", 200)
    monkeypatch.setattr(searching, "_FILTERED_ROWS", 50)


def indexed(folder: Path, vectors: np.ndarray, **fields) -> Table:
    table = make(folder, vectors, **fields)
    with table.writing():
        vector_index.update(table)
    return table


def recall(table: Table, queries: np.ndarray, **options) -> float:
    shares = []
    for query in queries:
        exact = nearest(table, query, 10, windows=True, exact=True)[1]
        shares.append(np.mean(nearest(table, query, 10, windows=True, **options)[1] >= exact[-1] - 1e-6))
    return float(np.mean(shares))


@pytest.mark.parametrize("storage", ["fp32", "fp16"])
def test_recall_and_probes_are_measured_and_stored(tmp_path, small, storage):
    vectors = collection(2000)
    table = indexed(tmp_path / "index", vectors, storage=storage)
    assert vector_index.is_indexed(table) and Table.open(tmp_path / "index").manifest == table.manifest
    assert {*table.manifest.recall} == {"sound", "text"}
    assert min(table.manifest.recall.values()) >= vector_index.GOAL and table.manifest.probes > 1
    rng = np.random.default_rng(3)
    near = vectors[rng.integers(2000, size=40)] + 0.1 * rng.normal(size=(40, 24))
    far = rng.normal(size=(40, 24))
    assert recall(table, near) > 0.95 and recall(table, far) > 0.9
    assert recall(table, far, exact=True) == 1


@pytest.mark.slow
def test_texts_are_measured_by_those_given(tmp_path, small):
    table = make(tmp_path / "index", collection(2000))
    texts = np.random.default_rng(4).normal(size=(30, 24)).astype(np.float32)
    with table.writing():
        vector_index.update(table, lambda: texts)
    assert recall(table, texts) == pytest.approx(table.manifest.recall["text"], abs=0.01)


@pytest.mark.parametrize("rescore_dim", [0, 24])
def test_indexed_scores_are_cosines_of_the_stored_vectors(tmp_path, small, queries, rescore_dim):
    table = indexed(tmp_path / "index", collection(2000), rescore_dim=rescore_dim)
    column, dim = ("rescore", 24) if rescore_dim else ("embedding", 12)
    for query in queries:
        by_row = {(p, w): s for p, w, s in ranked(table, query, dim, True, column)}
        for windows in (True, False):
            rows, scores = nearest(table, query, 10, windows=windows)
            keys = list(zip(*(rows[name].to_pylist() for name in ("path", "window")), strict=True))
            np.testing.assert_allclose(scores, [by_row[key] for key in keys], atol=1e-6)
            assert (np.diff(scores) <= 0).all() and len({key[: 2 if windows else 1] for key in keys}) == 10


def test_indexed_search_meets_conditions_and_fills_up(tmp_path, small, queries):
    table = indexed(tmp_path / "index", collection(2000))
    for where, count in (("size < 350", 250), ("path = '00003'", 1)):
        rows, _ = nearest(table, queries[0], 300, where=where)
        assert len(rows) == count
    for k in (500, 10**6):
        assert len(nearest(table, queries[0], k)[0]) == 500  # the files that there are


@pytest.mark.slow
def test_rows_added_later_are_found_without_training(tmp_path, small, monkeypatch):
    table = indexed(tmp_path / "index", collection(2000))
    trained, real = [], vector_index._train
    monkeypatch.setattr(vector_index, "_train", lambda *a: trained.append(a) or real(*a))
    probe = np.full(24, 5.0, np.float32)
    for count, first in ((4, 500), (400, 600), (8000, 1000)):
        with table.writing():
            append(table, np.random.default_rng(count).normal(probe, 1e-4 * (10000 - first), (count, 24)), first)
            before = nearest(table, probe, 1)[0]["path"][0].as_py()
            vector_index.update(table)
        assert f"{first:05d}" <= before < f"{first + count:05d}"
        assert f"{first:05d}" <= nearest(table, probe, 1)[0]["path"][0].as_py()
        assert bool(trained) == (count == 8000)
        unindexed = table.dataset.stats.index_stats("embedding_idx")["num_unindexed_rows"]
        assert unindexed == (4 if count == 4 else 0)


def test_removed_rows_are_not_found(tmp_path, small):
    vectors = collection(2000)
    table = indexed(tmp_path / "index", vectors)
    path = nearest(table, vectors[40], 1)[0]["path"][0].as_py()
    with table.writing():
        table.remove([path])
    assert path not in nearest(table, vectors[40], 100)[0]["path"].to_pylist()
    with table.writing():
        table.compact()
        vector_index.update(table)
    assert path not in nearest(table, vectors[40], 100)[0]["path"].to_pylist()


def test_dropped_index_is_made_again(tmp_path, small, queries):
    table = indexed(tmp_path / "index", collection(2000))
    with table.writing():
        vector_index.drop(table)
        assert not vector_index.is_indexed(table)
        vector_index.drop(table)
    assert_found(nearest(table, queries[0], 10), ranked(table, queries[0], 12, False)[:10])
    with table.writing():
        vector_index.update(table)
    assert vector_index.is_indexed(Table.open(tmp_path / "index"))
    assert not list((tmp_path / "index").rglob("*.tmp*"))


def test_a_small_table_has_no_vector_index(tmp_path, small):
    assert not vector_index.is_indexed(indexed(tmp_path / "index", collection(400)))


def test_an_index_whose_probes_were_not_measured_is_not_used(tmp_path, small, queries, monkeypatch):
    """As after a kill between its training and the measurement."""
    vectors = collection(2000)
    with monkeypatch.context() as patch:
        patch.setattr(vector_index, "_measured", lambda *_: {})
        table = indexed(tmp_path / "index", vectors)
    assert vector_index.is_indexed(table) and not vector_index.is_ready(table)
    assert recall(table, queries) == 1
    with table.writing():
        vector_index.update(table)
    assert vector_index.is_ready(Table.open(tmp_path / "index"))
