"""The vector database: the same hits as by hand, nothing twice, nothing of another model."""

import json
import subprocess
import sys
import time

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest

lancedb = pytest.importorskip("lancedb", reason="of the optional extra cluster")
pytest.importorskip("faiss", reason="of the optional extra search")

from wavlink.search import lance as vector_database  # noqa: E402
from wavlink.search.lance import VectorDatabase, below, load_rows, main  # noqa: E402
from wavlink.search.ray import fixed_size_list, parts_of  # noqa: E402

DIM, WIDTH = 12, 16
REVISION = "sha256:0123456789abcdef"


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def windows(count: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Three windows a file."""
    starts = np.arange(count) % 3 * 5.0
    return [f"{'dogs' if row % 2 else 'cats'}/{row // 3}.wav" for row in range(count)], starts, starts + 10


def opened(folder, **options) -> VectorDatabase:
    return VectorDatabase(folder, "sounds", **({"model": "m", "revision": REVISION, "dim": DIM} | options))


def unit(rows: np.ndarray) -> np.ndarray:
    cut = rows[:, :DIM]
    return cut / np.linalg.norm(cut, axis=1, keepdims=True)


@pytest.fixture
def filled(tmp_path) -> VectorDatabase:
    database = opened(tmp_path / "db")
    database.add(*windows(300), vectors(300))
    return database


def windows_of(hits) -> list[tuple[str, float, float]]:
    return [(hit.path, hit.start, hit.end) for hit in hits]


def brute_force(queries: np.ndarray, k: int, among=slice(None)) -> tuple[np.ndarray, list[list[tuple]]]:
    rows = [*zip(*windows(300), strict=True)]
    kept = np.arange(300)[among]
    cosines = unit(queries) @ unit(vectors(300))[kept].T
    order = np.argsort(-cosines, axis=1)[:, :k]
    return np.take_along_axis(cosines, order, 1), [[rows[kept[row]] for row in best] for best in order]


def test_search_agrees_with_brute_force(filled):
    queries = 3 * vectors(4, seed=1)
    cosines, rows = brute_force(queries, 10)
    results = filled.search(queries, 10)
    assert [windows_of(hits) for hits in results] == rows
    np.testing.assert_allclose([[hit.score for hit in hits] for hits in results], cosines, atol=1e-6)
    assert len(filled.search(queries[:1], 1000)[0]) == 300


@pytest.mark.slow
def test_scores_of_an_approximate_index_are_exact_cosines(tmp_path, monkeypatch):
    """Of vectors enough for several partitions: looking into one finds too few, and so does no rescoring."""
    database = opened(tmp_path)
    count = 40_000
    database.add(*windows(count), vectors(count))
    database.optimize(least=count)
    assert database._table.list_indices()
    queries = vectors(50, seed=2)
    cosines = unit(queries) @ unit(vectors(count)).T
    best = np.sort(cosines, axis=1)[:, : -10 - 1 : -1]
    row_of = {(path, start): row for row, (path, start, _) in enumerate(zip(*windows(count), strict=True))}

    def recall() -> float:
        scores = np.array([[hit.score for hit in hits] for hits in database.search(queries, 10)])
        return (scores >= best[:, -1:] - 1e-6).mean()

    for query, hits in enumerate(database.search(queries, 10)):
        expected = [cosines[query, row_of[hit.path, hit.start]] for hit in hits]
        np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-6)
    assert recall() > 0.93  # 0.966
    for name, least in (("_PROBES", 0.85), ("_REFINE", 0.65)):  # 0.70, 0.49
        with monkeypatch.context() as patch:
            patch.setattr(vector_database, name, 1)
            assert recall() < least


def test_rows_added_after_the_index_are_found(tmp_path):
    database = opened(tmp_path)
    database.add(*windows(1000), vectors(1000))
    database.optimize(least=1000)
    new = vectors(1, seed=3)
    database.add(["new.wav"], [0.0], [10.0], new)
    assert windows_of(database.search(new, 1)[0]) == [("new.wav", 0.0, 10.0)]


def test_no_vector_index_below_the_least_rows(filled):
    filled.optimize(least=301)
    assert not filled._table.list_indices()


def test_adding_again_changes_nothing(filled):
    filled.add(*windows(300), vectors(300))
    assert len(filled) == 300


def test_adding_another_vector_replaces(filled):
    new = vectors(1, seed=4)
    filled.add(["cats/0.wav"], [0.0], [10.0], new)
    assert len(filled) == 300
    assert filled.search(new, 1)[0][0].score == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((["a", "a"], [0.0, 0.0], [1.0, 1.0], vectors(2)), "twice"),
        ((["a"], [np.nan], [1.0], vectors(1)), "finite"),
        ((["a"], [0.0, 1.0], [1.0], vectors(1)), "1 paths, 2 starts"),
        ((["a", "b"], [0.0, 0.0], [1.0, 1.0], vectors(2) * [[1], [np.nan]]), "no direction"),
        ((["a"], [0.0], [1.0], vectors(1)[:, : DIM - 1]), "12 or more"),
    ],
)
def test_invalid_rows_add_nothing(filled, rows, message):
    with pytest.raises(ValueError, match=message):
        filled.add(*rows)
    assert len(filled) == 300


def test_no_rows_are_no_error(filled):
    filled.add([], [], [], np.empty((0, WIDTH), np.float32))
    filled.remove([])
    assert len(filled) == 300 and filled.search(np.empty((0, WIDTH), np.float32), 3) == []


def test_another_model_or_dim_is_refused(filled, tmp_path):
    for name, other in (("revision", "sha256:fedcba9876543210"), ("dim", 8)):
        with pytest.raises(ValueError, match=f"{name}=.*, not {other}"):
            opened(tmp_path / "db", **{name: other})
    again = VectorDatabase(tmp_path / "db", "sounds")
    assert (again.model, again.revision, again.dim, len(again)) == ("m", REVISION, DIM, 300)


def test_missing_or_foreign_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no table 'sounds'"):
        VectorDatabase(tmp_path, "sounds")
    lancedb.connect(tmp_path).create_table("sounds", pyarrow.table({"path": ["a"]}))
    with pytest.raises(ValueError, match="none of this program's"):
        opened(tmp_path)


def test_metadata_survives_changes(filled, tmp_path):
    filled.remove(["cats/0.wav"])
    filled.optimize(least=1)
    with pytest.raises(ValueError, match="dim=12, not 8"):
        opened(tmp_path / "db", dim=8)


def test_remove_takes_all_windows_of_the_files_and_no_others(filled):
    paths = windows(300)[0]
    filled.remove(["cats/0.wav", "x' OR 'a' = 'a", "none.wav"])
    assert len(filled) == 300 - paths.count("cats/0.wav")


def test_where(filled):
    query = vectors(1, seed=5)
    among = [row for row, path in enumerate(windows(300)[0]) if path.startswith("dogs/")]
    assert windows_of(filled.search(query, 7, below("dogs/"))[0]) == brute_force(query, 7, among)[1][0]
    hits = filled.search(query, 7, lancedb.expr.col("path").isin(["cats/2.wav"]))[0]
    assert {hit.path for hit in hits} == {"cats/2.wav"}


@pytest.mark.parametrize("name", ["' OR 1=1 --", "it's a dog.wav", '"; DROP TABLE sounds', "a\\' OR ''='", "%", "_"])
def test_names_in_where_inject_nothing(filled, name):
    query = vectors(1, seed=6)
    assert filled.search(query, 5, below(name))[0] == []
    filled.add([name + "/1.wav"], [0.0], [1.0], query)
    for where in (below(name), lancedb.expr.col("path").isin([name + "/1.wav"])):
        assert windows_of(filled.search(query, 5, where)[0]) == [(name + "/1.wav", 0.0, 1.0)]
    filled.remove([name + "/1.wav"])
    assert len(filled) == 300


def test_sql_text_and_zero_k_are_refused(filled):
    with pytest.raises(ValueError, match="no text of SQL"):
        filled.search(vectors(1), 3, "path = 'a' OR 1=1")
    with pytest.raises(ValueError, match="1 or more"):
        filled.search(vectors(1), 0)


def write_part(folder, number: int, count: int, revision=REVISION, broken=()) -> None:
    """As `embed_with_ray` writes it."""
    folder.mkdir(exist_ok=True)
    values, errors = vectors(count, seed=number), ["broken" if row in broken else "" for row in range(count)]
    values[list(broken)] = np.nan
    columns = {
        "path": [f"{number}/{row}.wav" for row in range(count)],
        "start": pyarrow.array([None if error else 0.0 for error in errors], pyarrow.float64()),
        "end": pyarrow.array([None if error else 10.0 for error in errors], pyarrow.float64()),
        "embedding": fixed_size_list(values),
        "error": errors,
    }
    about = {"model": "m", "revision": revision, "dims": WIDTH, "matryoshka_dims": [8, DIM, WIDTH]}
    table = pyarrow.table(columns).replace_schema_metadata({"wavlink": json.dumps(about)})
    pq.write_table(table, folder / f"part-{number:06d}.parquet")


def test_load_leaves_out_what_cannot_be_read(tmp_path):
    write_part(tmp_path / "rows", 0, 50, broken=(3, 4))
    write_part(tmp_path / "rows", 1, 50)
    database = load_rows(tmp_path / "rows", tmp_path / "db", "sounds", DIM)
    assert (len(database), database.dim, database.revision) == (98, DIM, REVISION)
    query = vectors(50, seed=1)[7:8]
    assert windows_of(database.search(query, 1)[0]) == [("1/7.wav", 0.0, 10.0)]


def test_reload_replaces_windows_of_changed_files(tmp_path):
    def write_rows(starts: dict[str, list[float]]) -> None:
        (tmp_path / "rows").mkdir(exist_ok=True)
        paths = [path for path, each in starts.items() for _ in each]
        times = [start for each in starts.values() for start in each]
        times = pyarrow.array([None if start < 0 else start for start in times], pyarrow.float64())
        errors = ["broken" if start is None else "" for start in times.to_pylist()]
        columns = {"path": paths, "start": times, "end": times, "embedding": fixed_size_list(vectors(len(paths)))}
        about = {"model": "m", "revision": REVISION, "dims": WIDTH, "matryoshka_dims": [WIDTH]}
        table = pyarrow.table(columns | {"error": errors}).replace_schema_metadata({"wavlink": json.dumps(about)})
        pq.write_table(table, tmp_path / "rows/part-000000.parquet")

    write_rows({"a": [0.0, 5.0, 10.0], "b": [0.0, 5.0], "c": [0.0]})
    load_rows(tmp_path / "rows", tmp_path / "db", "sounds")
    VectorDatabase(tmp_path / "db", "sounds").add(["others"], [0.0], [1.0], vectors(1))
    write_rows({"a": [0.0, 2.5], "b": [-1.0], "c": [0.0]})
    database = load_rows(tmp_path / "rows", tmp_path / "db", "sounds")
    rows = database._table.to_arrow()
    results = sorted(zip(rows["path"].to_pylist(), rows["start"].to_pylist(), strict=True))
    assert results == [("a", 0.0), ("a", 2.5), ("c", 0.0), ("others", 0.0)]


def test_load_refuses_other_rows(tmp_path):
    rows = tmp_path / "rows"
    with pytest.raises(ValueError, match="holds no rows"):
        load_rows(rows, tmp_path / "db", "sounds")
    write_part(rows, 0, 5)
    with pytest.raises(ValueError, match="nested dims"):
        load_rows(rows, tmp_path / "db", "sounds", 9)
    load_rows(rows, tmp_path / "db", "sounds", DIM)
    write_part(rows, 0, 5, revision="another")
    with pytest.raises(ValueError, match="revision"):
        load_rows(rows, tmp_path / "db", "sounds", DIM)
    pq.write_table(pyarrow.table({"path": ["a"]}), rows / "part-000001.parquet")
    with pytest.raises(ValueError, match="none of this program's"):
        [*parts_of(rows)]


LOAD = "import sys; from wavlink.search.lance import load_rows; load_rows(*sys.argv[1:3], 'sounds')"


@pytest.fixture
def start_code(start):
    """`start_code(code, *arguments)`: a process that runs it."""
    options = {"stdout": subprocess.PIPE, "text": True}
    return lambda code, *arguments: start([sys.executable, "-c", code, *map(str, arguments)], **options)


@pytest.mark.slow
def test_load_after_kill_equals_an_unbroken_load(tmp_path, start_code):
    rows, folder = tmp_path / "rows", tmp_path / "db"
    for number in range(30):
        write_part(rows, number, 100)
    process = start_code(LOAD, rows, folder)
    parts = folder / "sounds.lance" / "data"
    deadline = time.monotonic() + 200
    while len([*parts.glob("*.lance")] if parts.is_dir() else []) < 5 and time.monotonic() < deadline:
        assert process.poll() is None, "it has ended before it could be killed"
        time.sleep(0.002)
    process.kill()
    process.communicate()
    between = len(VectorDatabase(folder, "sounds"))
    assert 0 < between < 3000 and between % 100 == 0
    database = load_rows(rows, folder, "sounds")
    paths = database._table.to_arrow()["path"].to_pylist()
    assert len(paths) == len({*paths}) == 3000


READ = """
import sys, numpy
from wavlink.search.lance import VectorDatabase
database = VectorDatabase(sys.argv[1], "sounds")
print("open", flush=True)
query = numpy.load(sys.argv[2])
for _ in range(20):
    assert len(database.search(query, 5)[0]) == 5
print(database.search(query, 1)[0][0].path)
"""


@pytest.mark.slow
def test_two_processes_read_while_this_one_adds(filled, tmp_path, start_code):
    np.save(tmp_path / "query.npy", vectors(300)[10:11])
    readers = [start_code(READ, tmp_path / "db", tmp_path / "query.npy") for _ in range(2)]
    for reader in readers:
        assert reader.stdout.readline() == "open\n"
    for seed in range(5):
        filled.add([f"new/{seed}.wav"], [0.0], [1.0], vectors(1, seed=90 + seed))
    for reader in readers:
        assert reader.communicate()[0].strip() == windows(300)[0][10] and reader.returncode == 0
    assert len(filled) == 305


def test_the_commands(wavlink_folder, tmp_path, capsys):
    from wavlink.embedder import Embedder

    embedder = Embedder(str(wavlink_folder))
    texts = ["a dog barks", "a cat meows"]
    about = {"model": "m", "revision": embedder.revision, "dims": embedder.dims, "matryoshka_dims": [embedder.dims]}
    columns = {"path": ["dog.wav", "cat.wav"], "start": [0.0, 0.0], "end": [1.0, 2.0], "error": ["", ""]}
    columns["embedding"] = fixed_size_list(embedder.embed_text(texts))
    (tmp_path / "rows").mkdir()
    rows = pyarrow.table(columns).replace_schema_metadata({"wavlink": json.dumps(about)})
    pq.write_table(rows, tmp_path / "rows" / "part-000000.parquet")
    database = ["--database", str(tmp_path / "db")]
    main(["load", str(tmp_path / "rows"), *database])
    assert "2 windows" in capsys.readouterr().out
    command = ["query", texts[1], *database, "--model", str(wavlink_folder)]
    main([*command, "--top_k", "1", "--json"])
    hits = json.loads(capsys.readouterr().out)
    assert hits == [{"path": "cat.wav", "score": pytest.approx(1, abs=1e-5), "start": 0.0, "end": 2.0, "file": None}]
    main([*command, "--under", "dog"])
    assert capsys.readouterr().out.split()[-1] == "dog.wav"


def test_the_command_refuses_another_model(filled, wavlink_folder, tmp_path):
    with pytest.raises(ValueError, match="revision"):
        main(["query", "a dog", "--database", str(tmp_path / "db"), "--model", str(wavlink_folder)])
