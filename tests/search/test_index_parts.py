"""Parts of an index: whatever is written can be read, what is too large is divided, and readers and writers meet."""

import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from hub_cards.space.folder import _ship_parts
from tests.index_files import contents, folder, manifest, tables  # noqa: F401
from wavlink.search import build as indexing
from wavlink.search import command as search
from wavlink.search import parts as index_parts
from wavlink.search import store as index_folder
from wavlink.search import transfer as index_copies
from wavlink.search.index import Index
from wavlink.search.map import draw_map
from wavlink.search.parts import split_part, unpacked, with_large_texts
from wavlink.search.quantization import encode
from wavlink.search.store import FILES, IndexFolder, Manifest
from wavlink.search.transfer import reindex

DIM = 512


def silence(storage: str = "fp32") -> Manifest:
    return Manifest("model", "sha256:0", DIM, [DIM], DIM, storage, 10.0, 5.0, 16000, "/sounds")


def alike(made: Manifest, names, windows: int) -> tuple[pyarrow.Table, pyarrow.Table]:
    """Windows of one vector, as of digital silence: they compress to nearly nothing."""
    paths = [name for name in names for _ in range(windows)]
    starts = np.tile(5.0 * np.arange(windows), len(names))
    codes = np.repeat(encode(np.ones((1, DIM)), DIM, made.storage), len(paths), axis=0)
    rows = [dict(zip(FILES.names, (name, 100, 7, 0, windows, windows, ""), strict=True)) for name in names]
    return made.windows(paths, starts, starts + 10, codes), pyarrow.Table.from_pylist(rows, schema=FILES)


@pytest.fixture
def small(monkeypatch):
    """A thousandth of the bounds."""
    monkeypatch.setattr(index_parts, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(index_parts, "PART_BYTES", 1 << 18)


def windows_of(index_path) -> dict[str, int]:
    """Return the number of windows by file; none appears twice, and `files` agrees."""
    index, starts = IndexFolder.open(index_path), {}
    for part in index.manifest.parts:
        for row in index.read(part, "embeddings").select(["path", "start"]).to_pylist():
            assert row["start"] not in starts.setdefault(row["path"], set())
            starts[row["path"]].add(row["start"])
    known = indexing._known(index)
    counts = {path: len(each) for path, each in starts.items()}
    assert counts == {path: file.rows for path, file in known.items() if file.rows}
    assert all(k.rows == k.windows and k.version != -2 for k in known.values())
    return counts


def too_large_part(index_path, monkeypatch, storage: str = "fp32") -> None:
    """As merged by their size on the disk alone: 18 parts of 60 windows of fp32, 2 MB in memory."""
    with monkeypatch.context() as patch:
        patch.setattr(index_parts, "MOST_BYTES", 1 << 40)
        patch.setattr(index_parts, "PART_BYTES", 1 << 40)
        with IndexFolder.create(index_path, silence(storage)) as index:
            for number in range(18):
                index.append(*alike(index.manifest, [f"{number}.wav", f"{number}-b.wav"], 30))
            index.merge()
    assert len(index.manifest.parts) == 1


# --- writing


def test_merged_parts_of_silence_can_be_read(tmp_path, small, monkeypatch):
    with IndexFolder.create(tmp_path / "index", silence()) as index:
        for number in range(18):
            index.append(*alike(index.manifest, [f"{number}.wav"], 60))
        index.merge()
        parts = index.manifest.parts
        assert 1 < len(parts) < 18 and index.damaged() == {}
        with monkeypatch.context() as patch:
            patch.setattr(IndexFolder, "read", None)  # what is merged is not even read again
            index.merge()
        assert index.manifest.parts == parts
    assert windows_of(tmp_path / "index") == {f"{number}.wav": 60 for number in range(18)}


def test_merge_counts_texts_and_is_idempotent(tmp_path, small):
    """Their length is in no manifest; a second merge changes nothing."""
    with IndexFolder.create(tmp_path / "index", manifest()) as index:
        names = [f"{number:02d}" + "x" * 40_000 for number in range(12)]
        for name in names:
            index.append(*tables(index.manifest, [name], windows=1))
        index.merge()
        parts = index.manifest.parts
        assert len(parts) == 4 and index.damaged() == {}
        index.merge()
        assert index.manifest.parts == parts
    assert sorted(windows_of(tmp_path / "index")) == names


@pytest.mark.parametrize("kind", ["one long file", "many files", "errors"])
def test_append_divides_large_parts(tmp_path, small, kind):
    with IndexFolder.create(tmp_path / "index", silence()) as index:
        names = ["long.wav"] if kind == "one long file" else [f"{number}.wav" for number in range(1500)]
        windows, files = alike(index.manifest, names, {"one long file": 1500, "many files": 1}.get(kind, 0))
        if kind == "errors":
            errors = pyarrow.array(["cannot read " + "x" * 1000] * len(files))
            files = files.set_column(6, FILES.field("error"), errors)
        index.append(windows, files)
        assert len(index.manifest.parts) > 5 and index.damaged() == {}
        assert all(part.rows * DIM * 4 < 1 << 18 for part in index.manifest.parts)
    if kind == "errors":
        assert index.files().equals(files)
        return
    assert sum(windows_of(tmp_path / "index").values()) == 1500
    part = index.manifest.parts[2]
    index.drop_parts([part.name])  # what is lost with a part is noticed
    short = [path for path, known in indexing._known(index).items() if known.version == -2 or known.rows < 1]
    assert short == ["long.wav"] or len(indexing._known(index)) == 1500 - part.files


def test_split_part_of_random_windows(monkeypatch):
    rng, made = np.random.default_rng(0), manifest("fp32")
    for _ in range(60):
        counts = rng.integers(0, rng.choice([2, 5, 40]), rng.integers(1, 12))
        names = [f"{number}" * int(rng.integers(1, 60)) for number in range(len(counts))]
        rows = [(name, 9, 7, 3, n, n + 3, "bad" * (n == 0)) for name, n in zip(names, counts.tolist(), strict=True)]
        files = pyarrow.Table.from_pylist([dict(zip(FILES.names, row, strict=True)) for row in rows], schema=FILES)
        paths = np.repeat(np.array(names, dtype=object), counts).tolist()
        starts = np.arange(len(paths), dtype=float)
        windows = made.windows(paths, starts, starts + 1, rng.normal(size=(len(paths), 12)).astype(np.float32))
        monkeypatch.setattr(index_parts, "PART_BYTES", int(rng.integers(400, 3000)))
        steps = int(rng.integers(1, 9))
        given = windows if rng.random() < 0.5 else (windows.slice(n, steps) for n in range(0, len(windows), steps))
        parts = [*split_part(given, files, made.schema)]
        assert pyarrow.concat_tables([part for part, _ in parts]).equals(windows)
        assert all(unpacked(*part) <= index_parts.PART_BYTES or len(part[0]) <= 1 for part in parts)
        described = {}
        for part, of in parts:
            assert np.repeat(np.array(of["path"].to_pylist(), dtype=object), of["rows"]).tolist() == (
                part["path"].to_pylist()
            )
            for row in of.to_pylist():
                before = described.setdefault(row["path"], [3, 0])
                assert row["first"] == before[0] and (row["size"], row["version"]) == (9, 7)
                described[row["path"]] = [row["first"] + row["rows"], row["windows"]]
        assert described == {name: [n + 3, n + 3] for name, n in zip(names, counts.tolist(), strict=True)}


def test_reindex_to_a_finer_storage_divides_parts(tmp_path, small):
    with IndexFolder.create(tmp_path / "index", silence("binary")) as index:
        index.append(*alike(index.manifest, [f"{number}.wav" for number in range(90)], 9))
    assert len(index.manifest.parts) == 1
    reindex(tmp_path / "index", tmp_path / "fine", storage="fp32")
    fine = IndexFolder.open(tmp_path / "fine")
    assert len(fine.manifest.parts) > 5 and fine.damaged() == {}
    assert windows_of(tmp_path / "fine") == windows_of(tmp_path / "index")


# --- parts that are too large


def test_too_large_part_is_named_and_divided_without_loss(tmp_path, small, monkeypatch, capsys):
    index_path = str(tmp_path / "index")
    too_large_part(index_path, monkeypatch)
    (part,) = IndexFolder.open(index_path).manifest.parts
    for read in (Index.open, lambda index_path: search.main(["verify", index_path])):
        with pytest.raises(ValueError, match=f"{part.name} is too large to be read at once.*--drop` writes it"):
            read(index_path)
    search.main(["verify", index_path, "--drop"])
    printed = capsys.readouterr().out
    assert f"{part.name} was too large" in printed and "forgotten" not in printed
    assert windows_of(index_path) == {f"{n}{b}.wav": 30 for n in range(18) for b in ("", "-b")}
    assert len(Index.open(index_path)) == 18 * 60
    with IndexFolder.open(index_path).writing() as index:
        index.merge()
        assert index.damaged() == {}
    search.main(["verify", index_path])


def test_too_large_and_damaged_part_is_dropped_and_others_are_divided(tmp_path, small, monkeypatch, capsys):
    index_path = tmp_path / "index"
    too_large_part(index_path, monkeypatch)
    with IndexFolder.open(index_path).writing() as index:
        index.append(*alike(index.manifest, ["x\x1b.wav", "y.wav"], 2))
    lost = index.manifest.parts[-1]
    (index_path / "embeddings" / lost.name).unlink()
    search.main(["verify", str(index_path), "--drop"])
    printed = capsys.readouterr().out
    assert "was too large" in printed and f"forgotten: {lost.name}\n  x .wav\n  y.wav\n" in printed
    assert len(windows_of(index_path)) == 36


def test_verify_drop_names_all_that_it_drops(folder, capsys):  # noqa: F811
    import json

    first, second, third = IndexFolder.open(folder).manifest.parts
    (folder / "embeddings" / first.name).unlink()
    (folder / "files" / second.name).write_bytes(b"x")
    for kind in ("embeddings", "files"):
        (folder / kind / third.name).unlink()
    search.main(["verify", str(folder), "--drop", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["forgotten"] == [first.name, second.name, third.name] and facts["sounds"] == ["a", "b", "c"]
    assert contents(folder) == {}


def test_pull_divides_too_large_parts(tmp_path, small, monkeypatch):
    too_large_part(tmp_path / "index", monkeypatch, "int8")
    too_large_part(tmp_path / "fine", monkeypatch)

    def snapshot_download(name, local_dir, **_):
        shutil.copytree(tmp_path / name, local_dir, dirs_exist_ok=True)

    monkeypatch.setattr(index_copies, "snapshot_download", snapshot_download)
    index_copies.pull("fine", tmp_path / "pulled", model="m", root=str(tmp_path))
    assert windows_of(tmp_path / "pulled") == {f"{n}{b}.wav": 30 for n in range(18) for b in ("", "-b")}
    with pytest.raises(ValueError, match="too large to be read at once"):
        index_copies.push(tmp_path / "fine", "user/fine")


def test_memory_error_is_not_treated_as_damage(folder, monkeypatch):  # noqa: F811
    def read_part(*_):
        raise pyarrow.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr(index_folder, "read_part", read_part)
    with pytest.raises(MemoryError):
        search.main(["verify", str(folder), "--drop"])
    monkeypatch.undo()
    assert set(contents(folder)) == set("abcd")


def test_manifest_that_would_overwrite_its_parts_is_refused(folder):  # noqa: F811
    from tests.helpers import signed

    signed(IndexFolder.open(folder), next_part=2)
    with pytest.raises(ValueError, match=r"index\.json is damaged .*the next part 2 beside part 2"):
        IndexFolder.open(folder)


@pytest.mark.slow
def test_more_than_2_gb_of_paths_are_taken_and_sorted():
    """1 GB of zeros that no memory is needed for, three times: arrow's own offsets count 2 GB."""
    count, size = 1 << 10, 1 << 20
    offsets = pyarrow.py_buffer((np.arange(count + 1) * size).astype(np.int32))
    paths = pyarrow.StringArray.from_buffers(count, offsets, pyarrow.py_buffer(np.zeros(count * size, np.uint8)))
    table = pyarrow.table({"path": pyarrow.chunked_array([paths] * 3), "start": np.arange(3.0 * count)})
    with pytest.raises(pyarrow.ArrowInvalid, match="offset overflow"):
        table.take([1, 3 * count - 1])
    assert with_large_texts(table).take([1, 3 * count - 1])["start"].to_pylist() == [1.0, 3 * count - 1.0]


# --- readers beside a writer

READERS = {
    "query": lambda source, out: len(Index.open(source)),
    "info": lambda source, out: search.main(["info", str(source)]),
    "verify": lambda source, out: search.main(["verify", str(source)]),
    "map": lambda source, out: draw_map(source, out / "map.html"),
    "reindex": lambda source, out: reindex(source, out / "copy", storage="binary"),
    "space": lambda source, out: IndexFolder.reading(source, lambda index: _ship_parts(index, out / "shipped")),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("at", [1, 3])
def test_reader_beside_a_writer_sees_a_consistent_state(folder, tmp_path, monkeypatch, reader, at):  # noqa: F811
    """At some of its reads, a writer drops a file and merges what is left."""
    real, reads, left = IndexFolder._content, [0], list("ab")

    def read(self, part, kind):
        reads[0] += 1
        if reads[0] % at == 0 and left and self.folder == folder:
            with monkeypatch.context() as patch, IndexFolder.open(folder).writing() as other:
                patch.setattr(IndexFolder, "_content", real)
                other.drop([left.pop()])
                other.merge()
        return real(self, part, kind)

    monkeypatch.setattr(IndexFolder, "_content", read)
    READERS[reader](folder, tmp_path)
    monkeypatch.undo()
    for made in (tmp_path / "copy", tmp_path / "shipped"):
        if made.exists():
            if made.name == "shipped":
                (made / "index.json").write_bytes((folder / "index.json").read_bytes())
            assert set(contents(made)) == set(contents(folder))
    assert len(left) < 2, "nothing was replaced"


def test_damage_beside_a_writer_is_an_error(folder):  # noqa: F811
    for part in (folder / "embeddings").iterdir():
        part.unlink()

    def read(index):
        if len(index.manifest.parts) < 6:
            with index.writing():
                index.append(*tables(index.manifest, [f"new {len(index.manifest.parts)}"]))
        return index.read(index.manifest.parts[0], "embeddings")

    with pytest.raises(ValueError, match="is missing from the index"):
        IndexFolder.reading(folder, read)


def test_decompression_bomb_is_refused(small):
    """Long reasons, which the columns' widths do not show: each step is within its bound, all steps are not."""
    step = index_parts.PART_BYTES // index_parts.width(FILES)
    row = dict(zip(FILES.names, ("a.wav", 1, 1, 0, 0, 0, "x" * (700_000 // step)), strict=True))
    rows = 100 * step  # 70 MB of reasons, where 64 are the bound
    table = pyarrow.table({name: pyarrow.repeat(row[name], rows) for name in FILES.names}, schema=FILES)
    content = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, content, compression="zstd")
    read = []
    with pytest.raises(ValueError, match="unpacks to more than"):
        for part in index_parts.read_steps(content.getvalue().to_pybytes(), FILES, rows):
            read.append(unpacked(part))
    assert len(read) > 10 and max(read) <= index_parts.MOST_BYTES
