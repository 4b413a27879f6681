"""Embedding by Ray: on two workers the same rows as on one machine, also where a worker is killed."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
import soundfile

from processing.windows import stream_windows
from tests.conftest import RATE, tone

ray = pytest.importorskip("ray", reason="of the optional extra cluster")
pytest.importorskip("ray.data", reason="of the optional extra cluster")
pytest.importorskip("faiss", reason="of the optional extra search")

from wavlink.embedder import Embedder  # noqa: E402
from wavlink.search import ray as ray_embedding  # noqa: E402
from wavlink.search.ray import FileEmbedder, embed_with_ray, main, parts_of  # noqa: E402

pytestmark = pytest.mark.slow  # a Ray of its own for the module
WINDOW, HOP = 2.0, 1.0
SECONDS = {"a/0.wav": 1.0, "a/1.wav": 3.5, "a/2.wav": 2.0, "b/0.wav": 0.7, "b/it's.wav": 5.25, "b/ü.wav": 1.6}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Sounds of one and of several windows, and two files that are none."""
    sounds = tmp_path / "sounds"
    for number, (path, seconds) in enumerate(SECONDS.items()):
        write(sounds / path, seconds, number)
    (sounds / "a/broken.wav").write_bytes(b"RIFF and no more")
    (sounds / "b/empty.wav").write_bytes(b"")
    return sounds


def write(file: Path, seconds: float, number: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, tone(200 + 90 * number, seconds, number), RATE, subtype="FLOAT")


def embed(folder: Path, model: Path, out: Path, **options):
    options = {"window": WINDOW, "hop": HOP, "batch_size": 3, "progress": False} | options
    return embed_with_ray(str(folder), str(model), out, **options)


def rows(out: Path) -> list[dict]:
    return [row for path, _ in parts_of(out) for row in pq.read_table(path).to_pylist()]


def local(folder: Path, model: Path) -> dict[tuple[str, float, float], np.ndarray]:
    embedder = Embedder(str(model))
    windows = [(path, window) for path in SECONDS for window in stream_windows(str(folder / path), WINDOW, HOP)]
    vectors = embedder.embed_clips(window.samples for _, window in windows)
    return {(path, window.start, window.end): v for (path, window), v in zip(windows, vectors, strict=True)}


def check_rows(out: Path, folder: Path, model: Path) -> None:
    """The local rows and those of what cannot be read, each once."""
    fine = [row for row in rows(out) if not row["error"]]
    wanted = local(folder, model)
    assert sorted((row["path"], row["start"], row["end"]) for row in fine) == sorted(wanted)
    for row in fine:
        np.testing.assert_allclose(row["embedding"], wanted[row["path"], row["start"], row["end"]], atol=1e-5)
    broken = [row for row in rows(out) if row["error"]]
    assert sorted(row["path"] for row in broken) == ["a/broken.wav", "b/empty.wav"]
    for row in broken:
        assert row["path"] in row["error"] and row["start"] is row["end"] is None and np.isnan(row["embedding"]).all()


@pytest.fixture
def here(monkeypatch):
    """Replace the cluster: batches are embedded in this process."""

    def embedded(sounds, model, options, actors, batch_size) -> Iterator[dict]:
        embedder = FileEmbedder(model, **options)
        for start in range(0, len(sounds), batch_size):
            taken = sounds[start : start + batch_size]
            yield embedder(
                {
                    "path": np.array([sound.path for sound in taken], dtype=object),
                    "file": np.array([os.fsencode(sound.source) for sound in taken], dtype=object),
                }
            )

    monkeypatch.setattr(ray_embedding, "_embedded", embedded)
    monkeypatch.setattr(ray_embedding, "_start", lambda address: None)
    return embedded


@pytest.fixture(scope="module")
def cluster():
    """Two workers on this machine, without Ray's reports, dashboard and tokens in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_raylet_start_wait_time_s", "200")
        patch.setenv("OMP_NUM_THREADS", "1")
        ray.init(
            num_cpus=2,
            object_store_memory=80_000_000,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        yield
        ray.shutdown()


def test_two_workers_give_the_local_rows_and_resume(cluster, folder, wavlink_folder, tmp_path):
    out = tmp_path / "rows"
    report = embed(folder, wavlink_folder, out)
    windows = len(local(folder, wavlink_folder))
    assert (report.added, report.unchanged, report.sounds, report.windows) == (6, 0, 6, windows)
    assert sorted(report.skipped) == ["a/broken.wav", "b/empty.wav"] and len(rows(out)) == windows + 2
    check_rows(out, folder, wavlink_folder)
    write(folder / "a/new.wav", 1.0, 50)
    before = rows(out)
    report = embed(folder, wavlink_folder, out)
    counts = (report.added, report.unchanged, report.sounds, report.windows, len(report.skipped))
    assert counts == (1, 6, 7, windows + 1, 2)
    assert str(rows(out)[:-1]) == str(before) and rows(out)[-1]["path"] == "a/new.wav"


def dies_once(notes: Path) -> type[FileEmbedder]:
    """An embedder that writes its process id once it has begun a batch, and waits until one has been killed."""

    class Mortal(FileEmbedder):
        def _windows(self, *arguments):
            for number, samples in enumerate(super()._windows(*arguments)):
                yield samples
                if number == 1:
                    (notes / f"{os.getpid()}.pid").touch()
                    while not (notes / "killed").exists():
                        time.sleep(0.05)

    return Mortal


def test_killed_worker_loses_no_rows(cluster, folder, wavlink_folder, tmp_path, monkeypatch):
    notes, out = tmp_path / "notes", tmp_path / "rows"
    notes.mkdir()
    mortal, map_batches, killed = dies_once(notes), ray.data.Dataset.map_batches, []
    monkeypatch.setattr(ray.data.Dataset, "map_batches", lambda data, _, **how: map_batches(data, mortal, **how))

    def kill():
        while not (begun := [*notes.glob("*.pid")]):
            time.sleep(0.05)
        killed.append(int(begun[0].stem))
        os.kill(killed[0], signal.SIGKILL)
        (notes / "killed").touch()

    threading.Thread(target=kill, daemon=True).start()
    report = embed(folder, wavlink_folder, out, batch_size=2)
    assert killed and not Path(f"/proc/{killed[0]}").exists()
    assert report.added == 6 and len(report.skipped) == 2
    check_rows(out, folder, wavlink_folder)
    assert len({*notes.glob("*.pid")}) > 1  # another process has gone on


def faulty(notes: Path) -> type[FileEmbedder]:
    """An embedder that ends its process, or raises, as it comes to some files, and notes each time."""

    class Faulty(FileEmbedder):
        def _windows(self, batch, *arguments):
            for path in batch["path"]:
                with open(notes / path.replace("/", "-"), "a", encoding="utf-8") as file:
                    file.write("begun\n")
                if path == "a/1.wav":
                    os._exit(0)
                if path == "b/0.wav":
                    signal.raise_signal(signal.SIGSEGV)  # in this thread, before the next line
                if path == "a/2.wav":
                    raise RuntimeError("the decoder is confused")
                if path == "b/it's.wav":
                    raise SystemExit(3)
            yield from super()._windows(batch, *arguments)

    return Faulty


@pytest.mark.timeout(600)
def test_files_that_kill_their_worker_are_skipped_by_name(cluster, folder, wavlink_folder, tmp_path, monkeypatch):
    notes, out = tmp_path / "notes", tmp_path / "rows"
    notes.mkdir()
    kind, map_batches = faulty(notes), ray.data.Dataset.map_batches
    with monkeypatch.context() as patch:
        patch.setattr(ray.data.Dataset, "map_batches", lambda data, _, **how: map_batches(data, kind, **how))
        report = embed(folder, wavlink_folder, out)
    bad = {"a/1.wav", "a/2.wav", "b/0.wav", "b/it's.wav"}
    assert set(report.skipped) == bad | {"a/broken.wav", "b/empty.wav"} and report.added == 2
    for path in ("a/1.wav", "b/0.wav"):
        assert report.skipped[path].startswith(f"its worker died 2 times while it embedded {path} alone")
        assert (notes / path.replace("/", "-")).read_text().count("begun") <= 3
    assert report.skipped["a/2.wav"] == "RuntimeError: the decoder is confused"
    assert report.skipped["b/it's.wav"] == "SystemExit: 3"
    assert {row["path"]: row["error"] for row in rows(out) if row["error"]} == report.skipped
    wanted = {key: vector for key, vector in local(folder, wavlink_folder).items() if key[0] not in bad}
    fine = {(row["path"], row["start"], row["end"]): row["embedding"] for row in rows(out) if not row["error"]}
    assert fine.keys() == wanted.keys() and len(wanted) == 2
    for key, vector in wanted.items():
        np.testing.assert_allclose(fine[key], vector, atol=1e-5)

    again = embed(folder, wavlink_folder, out)
    assert (again.added, again.changed, again.unchanged) == (0, 0, 2) and again.skipped == report.skipped
    again = embed(folder, wavlink_folder, out, retry=True)
    assert (again.added, again.changed, again.unchanged, again.sounds) == (0, 6, 2, 6)
    check_rows(out, folder, wavlink_folder)


def test_no_file_is_skipped_if_every_worker_dies(here, folder, wavlink_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_embedding, "_embedded", lambda *_: iter(()))
    with pytest.raises(OSError, match="the workers of all 8 files have died"):
        embed(folder, wavlink_folder, tmp_path / "rows")
    assert not [*parts_of(tmp_path / "rows")]


def test_model_error_skips_one_file(here, folder, wavlink_folder, tmp_path, monkeypatch):
    real = FileEmbedder.embed_clips

    def embed_clips(self, clips):
        for number, vector in enumerate(real(self, clips)):
            clip = vector  # of what is embedded together, the third is too much
            if number == 2:
                raise MemoryError("too much at once")
            yield clip

    monkeypatch.setattr(FileEmbedder, "embed_clips", embed_clips)
    report = embed(folder, wavlink_folder, tmp_path / "rows")
    assert report.skipped["b/it's.wav"] == "MemoryError: too much at once"
    assert {row["path"] for row in rows(tmp_path / "rows") if not row["error"]} == {*SECONDS} - {
        "a/1.wav",
        "b/it's.wav",
    }


def test_changed_and_removed_files_are_noticed(here, folder, wavlink_folder, tmp_path):
    out = tmp_path / "rows"
    embed(folder, wavlink_folder, out)
    size = (folder / "a/0.wav").stat().st_size
    write(folder / "a/0.wav", 1.0, 70)  # of the same size
    assert (folder / "a/0.wav").stat().st_size == size
    write(folder / "a/1.wav", 1.0, 71)
    write(folder / "a/broken.wav", 1.0, 72)
    (folder / "b/empty.wav").unlink()
    (folder / "b/0.wav").unlink()
    kept = [row for row in rows(out) if row["path"] in ("a/2.wav", "b/it's.wav", "b/ü.wav")]
    report = embed(folder, wavlink_folder, out)
    counts = (report.added, report.unchanged, report.changed, report.removed, report.sounds, report.skipped)
    assert counts == (0, 3, 3, 2, 6, {}) and report.windows == len(rows(out))
    assert [row for row in rows(out) if row["path"] in ("a/2.wav", "b/it's.wav", "b/ü.wav")] == kept
    embed(folder, wavlink_folder, tmp_path / "anew")
    updated, anew = ({(r["path"], r["start"]): r["embedding"] for r in rows(o)} for o in (out, tmp_path / "anew"))
    assert len(rows(out)) == len(updated) and updated.keys() == anew.keys()
    for key, vector in anew.items():
        np.testing.assert_allclose(updated[key], vector, atol=1e-5)
    assert embed(folder, wavlink_folder, out).unchanged == 6


def test_rows_without_recorded_versions_are_kept(here, folder, wavlink_folder, tmp_path):
    """As they were written before sizes and times were."""
    out = tmp_path / "rows"
    embed(folder, wavlink_folder, out)
    (part,) = (path for path, _ in parts_of(out))
    table = pq.read_table(part)
    pq.write_table(table.replace_schema_metadata({b"wavlink": table.schema.metadata[b"wavlink"]}), part)
    write(folder / "a/new.wav", 1.0, 50)
    (folder / "a/0.wav").unlink()
    report = embed(folder, wavlink_folder, out)
    counts = (report.added, report.unchanged, report.changed, report.removed, len(report.skipped))
    assert counts == (1, 5, 0, 1, 2)


def test_rows_are_a_dataset(here, folder, wavlink_folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "rows"
    embed(folder, wavlink_folder, out)
    dims = Embedder(str(wavlink_folder)).dims
    for path, about in parts_of(out):
        schema = pq.read_schema(path)
        assert schema.names == ["path", "start", "end", "embedding", "error"]
        assert schema.field("embedding").type.equals(pyarrow.list_(pyarrow.float32(), dims))
        assert (about["window"], about["hop"], about["dims"], about["root"]) == (WINDOW, HOP, dims, str(folder))
    cache = str(tmp_path / "cache")
    read = datasets.load_dataset("parquet", data_files=str(out / "*.parquet"), split="train", cache_dir=cache)
    assert len(read) == len(rows(out)) and len(read[0]["embedding"]) == dims
    check_rows(out, folder, wavlink_folder)


def test_resume_after_kill_between_batches(here, folder, wavlink_folder, tmp_path, monkeypatch):
    out = tmp_path / "rows"

    def dies(*arguments):
        batches = here(*arguments)
        yield next(batches)
        yield next(batches)
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_embedding, "_embedded", dies)
    with pytest.raises(KeyboardInterrupt):
        embed(folder, wavlink_folder, out, commit_seconds=0)
    written = {row["path"] for row in rows(out)}
    assert len(written) == 6
    (out / ".part-000002.parquet.unfinished").write_bytes(b"PAR1 of a process killed while it wrote")
    monkeypatch.setattr(ray_embedding, "_embedded", here)
    report = embed(folder, wavlink_folder, out)
    assert report.unchanged + len(written & {"a/broken.wav", "b/empty.wav"}) == 6
    check_rows(out, folder, wavlink_folder)


def test_file_is_written_once_with_all_its_rows(tmp_path):
    def batch(*starts, path="a.wav"):
        count = len(starts)
        times = np.array(starts, np.float64)
        vectors = np.repeat(times.astype(np.float32)[:, None], 4, axis=1)
        return {
            "path": np.array([path] * count, dtype=object),
            "start": times,
            "end": times + 2,
            "embedding": vectors,
            "error": np.array([""] * count, dtype=str),
            "windows": np.full(count, 3),
        }

    with ray_embedding._Rows(tmp_path, {"dims": 4}, commit_seconds=0) as written:
        assert written.take(batch(1.0, 0.0)) == 0
        assert written.take(batch(1.0)) == 0
        assert not [*parts_of(tmp_path)]
        assert written.take(batch(2.0)) == 1
        assert written.take(batch(0.0, 1.0, 2.0)) == 0  # a task done again
        assert written.take(batch(0.0, path="b.wav")) == 0
        written.write()
    assert [(row["path"], row["start"]) for row in rows(tmp_path)] == [("a.wav", 0.0), ("a.wav", 1.0), ("a.wav", 2.0)]


def test_a_file_broken_in_its_middle_has_its_error_and_no_rows(here, folder, wavlink_folder, tmp_path):
    loud = tone(300, 5, 1)
    loud[-100] = np.nan
    soundfile.write(folder / "a/late.wav", loud, RATE, subtype="FLOAT")
    embed(folder, wavlink_folder, tmp_path / "rows")
    (row,) = [row for row in rows(tmp_path / "rows") if row["path"] == "a/late.wav"]
    assert "a/late.wav holds NaN" in row["error"] and row["start"] is None


def test_other_options_of_the_same_folder_are_refused(here, folder, wavlink_folder, tmp_path, model, processor):
    out = tmp_path / "rows"
    embed(folder, wavlink_folder, out)
    before = [path.name for path in out.iterdir()]
    with pytest.raises(ValueError, match="hop=1.0, not 2.0"):
        embed(folder, wavlink_folder, out, hop=2.0)
    with pytest.raises(ValueError, match="root="):
        embed(folder / "a", wavlink_folder, out)
    model.audio_projection.weight.data.mul_(-1)
    model.save_pretrained(wavlink_folder)
    with pytest.raises(ValueError, match="revision="):
        embed(folder, wavlink_folder, out)
    assert [path.name for path in out.iterdir()] == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actors": 0}, "1 or more"),
        ({"batch_size": 0}, "1 or more"),
        ({"window": 31.0}, "more than the model's 30 s"),
        ({"hop": 3.0}, "hop"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    here, folder, wavlink_folder, tmp_path, options, message
):
    with pytest.raises(ValueError, match=message):
        embed(folder, wavlink_folder, tmp_path / "rows", **options)
    assert not (tmp_path / "rows").exists()


def test_no_sounds_or_two_writers_are_refused(here, folder, wavlink_folder, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no sounds"):
        embed(tmp_path / "none", wavlink_folder, tmp_path / "rows")
    with ray_embedding._Rows(tmp_path / "rows", {}, 1), pytest.raises(ValueError, match="another process"):
        embed(folder, wavlink_folder, tmp_path / "rows")


def test_a_worker_with_other_weights_refuses_to_work(wavlink_folder):
    with pytest.raises(ValueError, match="not at sha256:0"):
        FileEmbedder(str(wavlink_folder), window=WINDOW, hop=HOP, expected="sha256:0")


def test_a_part_of_another_program_is_refused(here, folder, wavlink_folder, tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/part-000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="part-000000.parquet is damaged"):
        embed(folder, wavlink_folder, tmp_path / "rows")


def test_the_command(here, folder, wavlink_folder, tmp_path, capsys):
    out = tmp_path / "rows"
    main([str(folder), "--model", str(wavlink_folder), "--out", str(out), "--window", "2", "--hop", "1"])
    printed = capsys.readouterr().out
    assert "6 added" in printed and "2 skipped" in printed and "a/broken.wav: cannot read" in printed
    check_rows(out, folder, wavlink_folder)
