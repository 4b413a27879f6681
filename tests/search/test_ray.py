"""Indexing by Ray: on two workers the rows of `index` on one machine, also where a worker or the driver is killed."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import RATE, tone
from tests.object_storage import s3_server

ray = pytest.importorskip("ray", reason="of the optional extra cluster")
pytest.importorskip("ray.data", reason="of the optional extra cluster")
pytest.importorskip("lance", reason="of the optional extra search")

from wavlink.embedder import Embedder  # noqa: E402
from wavlink.search import ray as ray_embedding  # noqa: E402
from wavlink.search.build import index_sounds  # noqa: E402
from wavlink.search.index import Index  # noqa: E402
from wavlink.search.ray import embed_with_ray, main  # noqa: E402
from wavlink.search.ray_actors import FileEmbedder  # noqa: E402
from wavlink.search.table import Table  # noqa: E402

ROOT = Path(__file__).parents[2]
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


def rows(out: Path, options: dict | None = None) -> list[dict]:
    """The rows in the order of their paths and windows."""
    table = Table.unverified(out, options)
    found = table.dataset.to_table([name for name in table.schema.names if name != "embedding"])
    return sorted(found.to_pylist(), key=lambda row: (row["path"], row["window"]))


def vectors(out: Path, options: dict | None = None) -> np.ndarray:
    """The vectors in the same order."""
    found = Table.unverified(out, options).dataset.to_table(["path", "window", "embedding"]).to_pylist()
    found = sorted(found, key=lambda row: (row["path"], row["window"]))
    return np.array([row["embedding"] for row in found if row["embedding"] is not None], np.float32)


def check_rows(out: Path, folder: Path, model: Path, options: dict | None = None) -> None:
    """The index is the one that a single process makes."""
    local = out.parent / "local" if isinstance(out, Path) else folder.parent / "local"
    how = {"window": WINDOW, "hop": HOP, "progress": False}
    if not local.exists():
        index_sounds(str(folder), str(local), str(model), **how)
    assert rows(out, options) == rows(local)
    np.testing.assert_allclose(vectors(out, options), vectors(local), atol=2e-3)  # fp16
    assert Table.unverified(out, options).manifest == Table.unverified(local).manifest


@pytest.fixture
def here(monkeypatch):
    """Replace the cluster: batches are embedded in this process."""

    def embedded(files, model, options, actors, batch_size) -> Iterator[str]:
        embedder = FileEmbedder(model, **options)
        for start in range(0, len(files), batch_size):
            taken = files[start : start + batch_size]
            columns = {name: np.empty(len(taken), object) for name in taken[0]}
            for name, column in columns.items():
                column[:] = [file[name] for file in taken]
            yield from embedder(columns)["written"].tolist()

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
    out = tmp_path / "index"
    report = embed(folder, wavlink_folder, out)
    assert (report.added, report.unchanged, report.sounds) == (6, 0, 6)
    assert sorted(report.skipped) == ["a/broken.wav", "b/empty.wav"] and len(rows(out)) == report.windows + 2
    check_rows(out, folder, wavlink_folder)
    before = rows(out)
    write(folder / "a/new.wav", 1.0, 50)
    again = embed(folder, wavlink_folder, out)
    counts = (again.added, again.unchanged, again.sounds, again.windows, len(again.skipped))
    assert counts == (1, 6, 7, report.windows + 1, 2)
    assert [row for row in rows(out) if row["path"] != "a/new.wav"] == before and len(rows(out)) == len(before) + 1
    how = {"window": WINDOW, "hop": HOP, "progress": False}
    assert index_sounds(str(folder), str(out), **how).unchanged == 7  # of one process, in the same index
    hits = Index.open(out).query("a low sound", top_k=100)
    assert len(hits) == 7 and not Table.open(out).damaged()


def test_two_workers_write_to_object_storage(cluster, folder, wavlink_folder, tmp_path):
    with s3_server() as (bucket, options):
        out = f"{bucket}/index"
        report = embed(folder, wavlink_folder, out, storage_options=options, commit_seconds=0)
        assert (report.added, report.sounds, len(report.skipped)) == (6, 6, 2)
        check_rows(out, folder, wavlink_folder, options)
        assert len(Index.open(out, storage_options=options).query("a low sound", top_k=100)) == 6
        assert embed(folder, wavlink_folder, out, storage_options=options).unchanged == 6


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
    notes, out = tmp_path / "notes", tmp_path / "index"
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
        def _windows(self, sounds, *arguments):
            for path in [sound.path for sound in sounds]:
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
            yield from super()._windows(sounds, *arguments)

    return Faulty


@pytest.mark.timeout(600)
def test_files_that_kill_their_worker_are_skipped_by_name(cluster, folder, wavlink_folder, tmp_path, monkeypatch):
    notes, out = tmp_path / "notes", tmp_path / "index"
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
    assert {row["path"] for row in rows(out) if not row["error"]} == {*SECONDS} - bad

    again = embed(folder, wavlink_folder, out)
    assert (again.added, again.changed, again.unchanged) == (0, 0, 2) and again.skipped == report.skipped
    again = embed(folder, wavlink_folder, out, retry=True)
    assert (again.added, again.changed, again.unchanged, again.sounds) == (0, 4, 2, 6)  # two are skipped again
    check_rows(out, folder, wavlink_folder)


def test_no_file_is_skipped_if_every_worker_dies(here, folder, wavlink_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_embedding, "_embedded", lambda *_: iter(()))
    with pytest.raises(OSError, match="the workers of all 7 files have died"):
        embed(folder, wavlink_folder, tmp_path / "index")
    assert [row["path"] for row in rows(tmp_path / "index")] == ["b/empty.wav"]


def test_model_error_skips_one_file(here, folder, wavlink_folder, tmp_path, monkeypatch):
    real = FileEmbedder.embed_clips

    def embed_clips(self, clips):
        for number, vector in enumerate(real(self, clips)):
            clip = vector  # of what is embedded together, the third is too much
            if number == 2:
                raise MemoryError("too much at once")
            yield clip

    monkeypatch.setattr(FileEmbedder, "embed_clips", embed_clips)
    report = embed(folder, wavlink_folder, tmp_path / "index")
    assert report.skipped["b/it's.wav"] == "MemoryError: too much at once"
    fine = {row["path"] for row in rows(tmp_path / "index") if not row["error"]}
    assert fine == {*SECONDS} - {"a/1.wav", "b/it's.wav"}


def test_changed_and_removed_files_are_noticed(here, folder, wavlink_folder, tmp_path):
    out = tmp_path / "index"
    embed(folder, wavlink_folder, out)
    size = (folder / "a/0.wav").stat().st_size
    write(folder / "a/0.wav", 1.0, 70)  # of the same size
    assert (folder / "a/0.wav").stat().st_size == size
    write(folder / "a/1.wav", 1.0, 71)
    write(folder / "a/broken.wav", 1.0, 72)
    (folder / "b/empty.wav").unlink()
    (folder / "b/0.wav").unlink()
    report = embed(folder, wavlink_folder, out)
    counts = (report.added, report.unchanged, report.changed, report.removed, report.sounds, report.skipped)
    assert counts == (0, 3, 3, 2, 6, {}) and report.windows == len(rows(out))
    check_rows(out, folder, wavlink_folder)
    again = embed(folder, wavlink_folder, out)
    assert (again.unchanged, again.sounds) == (6, 6)


def test_a_file_that_index_has_begun_is_embedded_whole(here, folder, wavlink_folder, tmp_path, monkeypatch):
    out, append = tmp_path / "index", Table.append

    def dies(table, some):
        append(table, some)
        if table.rows("path = 'b/it''s.wav'"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Table, "append", dies)
        index_sounds(str(folder), str(out), str(wavlink_folder), window=WINDOW, hop=HOP, commit_seconds=0)
    known = Table.open(out).files()
    assert known["b/it's.wav"].windows == -1 and known["b/it's.wav"].rows
    embed(folder, wavlink_folder, out)
    check_rows(out, folder, wavlink_folder)


def test_resume_after_kill_between_batches(here, folder, wavlink_folder, tmp_path, monkeypatch):
    out = tmp_path / "index"

    def dies(*arguments):
        batches = here(*arguments)
        yield next(batches)
        yield next(batches)
        next(batches)  # written, and never committed
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_embedding, "_embedded", dies)
    with pytest.raises(KeyboardInterrupt):
        embed(folder, wavlink_folder, out, commit_seconds=0)
    written = {row["path"] for row in rows(out)}
    assert len(written) == 7  # one is known to be empty before
    files = {*(out / "windows.lance/data").iterdir()}
    monkeypatch.setattr(ray_embedding, "_embedded", here)
    report = embed(folder, wavlink_folder, out)
    assert report.unchanged + len(written & {"a/broken.wav", "b/empty.wav"}) == 7
    check_rows(out, folder, wavlink_folder)
    assert len(files) == 4 and len(files & {*(out / "windows.lance/data").iterdir()}) == 3


def test_a_task_done_again_adds_nothing(here, folder, wavlink_folder, tmp_path, monkeypatch):
    def twice(files, *arguments):
        results = [*here(files, *arguments)]
        yield from results
        yield from results
        yield from here(files, *arguments[:-1], 5)  # in other batches, of which one has new files too

    monkeypatch.setattr(ray_embedding, "_embedded", twice)
    embed(folder, wavlink_folder, tmp_path / "index")
    check_rows(tmp_path / "index", folder, wavlink_folder)

    def overlapping(files, *arguments):
        yield from here(files[:4], *arguments[:-1], 4)
        yield from here(files[2:], *arguments[:-1], 8)

    monkeypatch.setattr(ray_embedding, "_embedded", overlapping)
    embed(folder, wavlink_folder, tmp_path / "other")
    check_rows(tmp_path / "other", folder, wavlink_folder)


DRIVER = """
import sys
from wavlink.search.ray import embed_with_ray
folder, model, out = sys.argv[1:]
options = {"window": 2.0, "hop": 1.0, "batch_size": 2, "commit_seconds": 0, "progress": False}
print(embed_with_ray(folder, model, out, **options).unchanged)
"""


@pytest.mark.timeout(600)
def test_killed_driver_loses_no_rows(folder, wavlink_folder, tmp_path, start):
    out, cluster = tmp_path / "index", {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    for number in range(20):
        write(folder / f"c/{number}.wav", 1.0 + number % 4, 20 + number)
    environment = {**os.environ, **cluster, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER, folder, wavlink_folder, out]
    driver = start(command, env=environment)
    while not ((out / "windows.lance").exists() and Table.unverified(out).windows()):
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    left = rows(out)
    again = start(command, env=environment, stdout=-1, text=True)
    assert int(again.communicate(timeout=300)[0]) >= 1 and again.returncode == 0
    assert 0 < len(left) < len(rows(out)) and {row["path"] for row in left} < {row["path"] for row in rows(out)}
    check_rows(out, folder, wavlink_folder)


def test_metadata_of_new_and_of_skipped_files_is_kept(here, folder, wavlink_folder, tmp_path):
    labels = folder / "labels.csv"
    labels.write_text("file_name,label,take\na/0.wav,dog,1\nb/ü.wav,cat,2\na/broken.wav,none,3\n", encoding="utf-8")
    embed(folder, wavlink_folder, tmp_path / "index", metadata=labels)
    found = {row["path"]: (row["label"], row["take"]) for row in rows(tmp_path / "index")}
    assert found["a/0.wav"] == ("dog", 1) and found["b/ü.wav"] == ("cat", 2) and found["a/1.wav"] == (None, None)
    assert found["a/broken.wav"] == ("none", 3)
    (hit,) = Index.open(tmp_path / "index").query("a low sound", where="label = 'dog'")
    assert hit.path == "a/0.wav" and hit.metadata == {"label": "dog", "take": 1}


def test_a_file_broken_in_its_middle_has_its_error_and_no_rows(here, folder, wavlink_folder, tmp_path):
    loud = tone(300, 5, 1)
    loud[-100] = np.nan
    soundfile.write(folder / "a/late.wav", loud, RATE, subtype="FLOAT")
    embed(folder, wavlink_folder, tmp_path / "index")
    (row,) = [row for row in rows(tmp_path / "index") if row["path"] == "a/late.wav"]
    assert "a/late.wav holds NaN" in row["error"] and row["start"] is None


def test_a_worker_that_cannot_write_ends_the_run(here, folder, wavlink_folder, tmp_path, monkeypatch):
    out = tmp_path / "index"
    (folder / "b/empty.wav").unlink()  # which this process writes an error of

    def full(table, some):
        raise OSError(28, "No space left on device", table.index)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="a worker cannot write: .*No space left"):
        patch.setattr(Table, "write", full)
        embed(folder, wavlink_folder, out)
    assert not rows(out)
    embed(folder, wavlink_folder, out)
    check_rows(out, folder, wavlink_folder)


def test_a_folder_that_is_not_shared_is_refused(here, folder, wavlink_folder, tmp_path, monkeypatch):
    def elsewhere(*arguments):
        for result in here(*arguments):
            yield result.replace(".lance", "-elsewhere.lance")

    monkeypatch.setattr(ray_embedding, "_embedded", elsewhere)
    with pytest.raises(ValueError, match="a worker has written to a disk of its own"):
        embed(folder, wavlink_folder, tmp_path / "index")
    assert [row["path"] for row in rows(tmp_path / "index")] == ["b/empty.wav"]


def test_other_options_of_the_same_index_are_refused(here, folder, wavlink_folder, tmp_path, model, processor):
    out = tmp_path / "index"
    embed(folder, wavlink_folder, out)
    before = rows(out)
    with pytest.raises(ValueError, match="hop=1.0, not 2.0"):
        embed(folder, wavlink_folder, out, hop=2.0)
    with pytest.raises(ValueError, match="dim="):
        embed(folder, wavlink_folder, out, dim=8)
    model.audio_projection.weight.data.mul_(-1)
    model.save_pretrained(wavlink_folder)
    with pytest.raises(ValueError, match="their vectors do not compare"):
        embed(folder, wavlink_folder, out)
    assert rows(out) == before


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
        embed(folder, wavlink_folder, tmp_path / "index", **options)
    assert not (tmp_path / "index").exists()


def test_no_sounds_or_two_writers_are_refused(here, folder, wavlink_folder, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no sounds"):
        embed(tmp_path / "none", wavlink_folder, tmp_path / "index")
    with pytest.raises(ValueError, match="workers read files"):
        embed_with_ray("user/sounds", str(wavlink_folder), tmp_path / "index")
    assert not (tmp_path / "index").exists()
    embed(folder, wavlink_folder, tmp_path / "index")
    with Table.open(tmp_path / "index").writing(), pytest.raises(ValueError, match="another process"):
        embed(folder, wavlink_folder, tmp_path / "index")


def test_a_worker_with_other_weights_or_without_the_index_refuses_to_work(wavlink_folder, tmp_path):
    with pytest.raises(ValueError, match="not at sha256:0"):
        FileEmbedder(str(wavlink_folder), index="", expected="sha256:0")
    with pytest.raises(ValueError, match="is no index"):
        revision = Embedder(str(wavlink_folder)).revision
        FileEmbedder(str(wavlink_folder), index=str(tmp_path / "none"), expected=revision)


def test_the_command(here, folder, wavlink_folder, tmp_path, capsys):
    out = tmp_path / "index"
    main([str(folder), "--model", str(wavlink_folder), "--out", str(out), "--window", "2", "--hop", "1"])
    printed = capsys.readouterr().out
    assert "6 added" in printed and "2 skipped" in printed and "a/broken.wav: cannot read" in printed
    check_rows(out, folder, wavlink_folder)
