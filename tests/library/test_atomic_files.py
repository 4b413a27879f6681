"""Files and folders are written atomically: whole as before or whole as after, and nobody else's are touched."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from wavlink import locks
from wavlink.atomic_files import (
    added_files,
    atomic_file,
    file_destination,
    folder_destination,
    interrupted,
    new_folder,
    only_writer,
    replaced_folder,
    write_text,
)
from wavlink.temporary_paths import temporary_folder

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_is_replaced_and_keeps_its_mode(tmp_path):
    write_text(tmp_path / "a/scores.json", "first")
    assert stat.S_IMODE((tmp_path / "a/scores.json").stat().st_mode) == 0o666 & ~_umask()
    (tmp_path / "a/scores.json").chmod(0o640)
    write_text(tmp_path / "a/scores.json", "second é")
    assert (tmp_path / "a/scores.json").read_text(encoding="utf-8") == "second é"
    assert stat.S_IMODE((tmp_path / "a/scores.json").stat().st_mode) == 0o640
    assert names(tmp_path / "a") == ["scores.json"]


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, OSError, MemoryError])
@pytest.mark.parametrize("writer", [atomic_file, new_folder, replaced_folder])
def test_exceptions_leave_the_destination_unchanged(tmp_path, writer, error):
    if writer is atomic_file:
        (tmp_path / "out").write_text("before")
    elif writer is replaced_folder:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/weights").write_text("before")
    before = names(tmp_path)
    with pytest.raises(error), writer(tmp_path / "out") as unfinished:
        (unfinished / "weights" if unfinished.is_dir() else unfinished).write_text("half")
        raise error
    assert names(tmp_path) == before


@pytest.mark.parametrize("writer", [atomic_file, new_folder, replaced_folder])
def test_links_are_followed_and_kept(tmp_path, writer):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk/there")
    if writer is not atomic_file:
        (tmp_path / "disk/there").mkdir()
    with writer(tmp_path / "out") as unfinished:
        (unfinished / "x" if unfinished.is_dir() else unfinished).write_text("new")
    assert (tmp_path / "out").is_symlink() and names(tmp_path / "disk")[0] == "there"
    found = tmp_path / "disk/there" if writer is atomic_file else tmp_path / "disk/there/x"
    assert found.read_text() == "new"


def test_unwritable_destinations_raise_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "full/inside").mkdir(parents=True)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, said in {
        "full": "is a folder: name a file",
        "new/": "is a folder: name a file",
        "file/below": "cannot be written",
        "file/far/below": "cannot be written",
        "loop": "leads nowhere",
        "pipe": "not a regular file",
        "x" * 300: "cannot be written",
        "a\0b": "is no path",
    }.items():
        with pytest.raises(ValueError, match=said):
            file_destination(f"{tmp_path}/{path}")
    for path, said in {
        "file": "is a file: name a folder",
        "full": "is there already",
        "file/below": "cannot be written",
        "loop": "leads nowhere",
        "x" * 300: "cannot be written",
    }.items():
        with pytest.raises(ValueError, match=said):
            folder_destination(tmp_path / path)
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"the folder you are in.*name a new folder in it"):
        folder_destination(".")
    with pytest.raises(ValueError, match="the folder you are in, or one above it"):
        folder_destination("..", replace=True)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="a mount point"):
        patch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "full/inside")
        folder_destination(tmp_path / "full/inside")

    def refused(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    for check in (file_destination, folder_destination):
        with pytest.raises(ValueError, match="cannot be written.*Permission denied"):
            check(tmp_path / "new")
    assert names(tmp_path) == sorted(["file", "full", "full/inside", "loop", "empty", "pipe"])


def test_second_writer_of_a_new_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="another process meanwhile"), new_folder(tmp_path / "out") as slow:
        (slow / "a").write_text("slow")
        with new_folder(tmp_path / "out") as quick:
            (quick / "b").write_text("quick")
    assert names(tmp_path) == ["out", "out/b"]


def test_concurrent_writers_leave_one_complete_folder(tmp_path):
    def write(number: int) -> None:
        for _ in range(20):
            with replaced_folder(tmp_path / "best") as unfinished:
                for name in "abc":
                    (unfinished / name).write_text(str(number))

    failed = []

    def run(number: int) -> None:
        try:
            write(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failed
    assert names(tmp_path) == ["best", "best/a", "best/b", "best/c"]
    assert len({(tmp_path / "best" / name).read_text() for name in "abc"}) == 1


def test_a_replaced_folder_keeps_what_is_not_stale(tmp_path):
    best = tmp_path / "best"
    with replaced_folder(best) as unfinished:
        (unfinished / "model-1.safetensors").write_text("old")
        (unfinished / "config.json").write_text("old")
        (unfinished / "adapter").mkdir()
    (best / "NOTES.md").write_text("mine")
    (best / "adapter/NOTES.md").write_text("mine too")
    (best / "mine").mkdir()
    (best / "mine/link").symlink_to("../NOTES.md")
    inode = (best / "NOTES.md").stat().st_ino
    with replaced_folder(best, ("*.safetensors",)) as unfinished:
        (unfinished / "config.json").write_text("new")
        (unfinished / "adapter").mkdir()
    expected = ["NOTES.md", "adapter", "adapter/NOTES.md", "config.json", "mine", "mine/link"]
    assert names(best) == expected and (best / "NOTES.md").stat().st_ino == inode
    assert (best / "config.json").read_text() == "new" and os.readlink(best / "mine/link") == "../NOTES.md"
    assert names(tmp_path) == ["best", *(f"best/{name}" for name in expected)]


KILLED = """
import os, signal, sys
from pathlib import Path
from modeling_wavlink import atomic_files
with getattr(atomic_files, sys.argv[1])(sys.argv[2]) as unfinished:
    (unfinished / "weights" if unfinished.is_dir() else unfinished).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("writer", ["atomic_file", "new_folder", "replaced_folder"])
def test_leftovers_of_killed_writers_alone_are_removed(tmp_path, writer):
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, writer, str(out)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = names(tmp_path)[:1]
    assert left.endswith(".unfinished") and not out.exists()
    with replaced_folder(out) as living:
        with replaced_folder(out) as other:
            (other / "weights").write_text("other")
        assert living.is_dir() and not (tmp_path / left).exists()
        (living / "weights").write_text("whole")
    assert names(tmp_path) == ["out", "out/weights"] and (out / "weights").read_text() == "whole"


def export(folder: Path, content: str, *files: str) -> None:
    with added_files(folder, "about.json", lambda _: ["audio.onnx", "old.data", "about.json"]) as unfinished:
        for name in (*files, "about.json"):
            (unfinished / name).write_text(content)


def test_added_files_keep_other_files(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM scratch")
    export(tmp_path, "1", "audio.onnx", "old.data")
    export(tmp_path, "2", "audio.onnx")
    assert [name for name in names(tmp_path) if name != ".lock"] == ["Dockerfile", "about.json", "audio.onnx"]
    assert (tmp_path / "audio.onnx").read_text() == "2" and (tmp_path / "Dockerfile").read_text() == "FROM scratch"


def test_files_are_added_to_a_folder_that_another_process_makes_meanwhile(tmp_path):
    """Such as exports in fp32 and in int8 at once, into the same new folder."""
    folder = tmp_path / "onnx"
    with added_files(folder, "fp32.json") as late:
        for name in ("audio", "fp32.json"):
            (late / name).write_text("late")
        with added_files(folder, "int8.json") as early:
            for name in ("audio", "audio_int8", "int8.json"):
                (early / name).write_text("early")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "audio": "late",
        "audio_int8": "early",
        "fp32.json": "late",
        "int8.json": "early",
    }
    assert os.listdir(tmp_path) == ["onnx"]
    with pytest.raises(ValueError, match="another process"), added_files(tmp_path / "file", "a.json") as unfinished:
        (unfinished / "a.json").write_text("")
        (tmp_path / "file").write_text("another's")
    assert (tmp_path / "file").read_text() == "another's"


def test_added_files_are_atomic_at_every_step(tmp_path, monkeypatch):
    """The call of that number, of those that rename, is interrupted."""
    real, number, ended = os.replace, 0, False
    while not ended:
        folder = tmp_path / str(number)
        folder.mkdir()
        export(folder, "1", "audio.onnx", "old.data")
        left = [number]

        def replace(start, end, left=left):
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            real(start, end)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            try:
                export(folder, "2", "audio.onnx", "text.onnx")
                ended = True
            except KeyboardInterrupt:
                pass
        found = {path.name: path.read_text() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
        before = {"audio.onnx": "1", "old.data": "1", "about.json": "1"}
        assert found == ({"audio.onnx": "2", "text.onnx": "2", "about.json": "2"} if ended else before)
        assert not interrupted(folder, "about.json").exists()
        number += 1
    assert number > 5


@pytest.mark.parametrize("moment", ["made", "worked in", "removed"])
def test_an_interrupted_temporary_folder_leaves_nothing(tmp_path, monkeypatch, moment):
    """A signal may arrive at any moment, also right after the folder was made and while it is removed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mkdir, rmtree, calls = Path.mkdir, shutil.rmtree, []

    def stop(*_) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt(signal.SIGINT)

    if moment == "made":
        monkeypatch.setattr(Path, "mkdir", lambda path, **options: (mkdir(path, **options), stop()))
    if moment == "removed":
        monkeypatch.setattr(shutil, "rmtree", lambda path, **options: (stop(), rmtree(path, **options)))
    with pytest.raises(KeyboardInterrupt), temporary_folder("wavlink-test-") as folder:
        mkdir(folder / "part")
        if moment == "worked in":
            stop()
    assert calls and names(tmp_path) == []


def test_a_temporary_folder_is_empty_private_and_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder("wavlink-test-") as folder:
        assert folder.parent == tmp_path and folder.name.startswith("wavlink-test-") and not any(folder.iterdir())
        assert os.name == "nt" or folder.stat().st_mode & 0o077 == 0
        (folder / "part").write_text("x")
    assert names(tmp_path) == []


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    code = "import sys\nfrom pathlib import Path\nfrom wavlink.atomic_files import only_writer\n"
    code += "with only_writer(Path(sys.argv[1])): print('got it')"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with only_writer(tmp_path):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "another process is writing to" in done.stderr and not done.stdout
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "got it\n"


@pytest.fixture
def windows(monkeypatch):
    """Windows opens no folders, and syncs no file that is open for reading alone."""
    fcntl = pytest.importorskip("fcntl")
    real_open, real_fsync = os.open, os.fsync

    def open_(path, flags, *rest, **more):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_open(path, flags, *rest, **more)

    def fsync(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real_fsync(handle)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr("shutil._use_fd_functions", False)  # there, a folder's files are removed by their paths


@pytest.mark.parametrize("writer", [atomic_file, new_folder, replaced_folder])
def test_writers_work_without_fcntl_as_on_windows(tmp_path, windows, writer):
    for _ in range(1 if writer is new_folder else 2):
        with writer(tmp_path / "out") as unfinished:
            if unfinished.is_dir():
                (unfinished / "adapter").mkdir()
                (unfinished / "adapter/weights").write_text("1")
            else:
                unfinished.write_text("1")
    assert names(tmp_path)[0] == "out" and len(names(tmp_path)) == (1 if writer is atomic_file else 3)


def test_a_failed_sync_of_a_file_is_an_error(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_text(tmp_path / "a", "before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="could not write .*a: .*No space left") as raised:
        write_text(tmp_path / "a", "after")
    assert raised.value.errno == errno.ENOSPC and (tmp_path / "a").read_text() == "before" and names(tmp_path) == ["a"]
