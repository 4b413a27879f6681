"""Write files and folders atomically: under a unique hidden name beside the destination, then renamed to it.

    target = file_destination(options.output)  # before the work: refuses what cannot be written
    with atomic_file(target) as unfinished: ...

A writer touches only what it made itself. Two writers to one destination have a temporary name each, and the later
one replaces the file or folder. On any exception the temporary name is removed. What a killed process has left under
such a name is removed by the next writer to the same destination, as its lock is free.
"""

import errno
import fnmatch
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .destinations import check_parent, file_destination, folder_destination, followed
from .locks import hold as hold
from .locks import locked as locked
from .locks import only_writer
from .system_errors import explained
from .temporary_paths import REPLACED, UNFINISHED, hidden, remove_path, restore, temporary
from .temporary_paths import remove_leftovers as remove_leftovers

_MEANWHILE = {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EACCES}  # another process renames it too
_TRIES = 100  # to rename, while other processes rename the same folder
# A folder that cannot be opened (Windows) or synced (some network file systems).
_NO_SYNC = {errno.EACCES, errno.EPERM, errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOTSUP, errno.ENOSYS}


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike, content: bytes | bytearray | memoryview) -> None:
    """Write a bytes-like object to a file."""
    with atomic_file(path) as unfinished:
        unfinished.write_bytes(content)


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name to write a file under, which is renamed to `path` once it is on the disk.

    Raises:
        ValueError: see `file_destination`.
        OSError: the file cannot be written; the older file stays.
    """
    target = file_destination(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary(target, _create) as unfinished:
            yield unfinished
            if target.exists():
                shutil.copymode(target, unfinished)
            sync(unfinished)
            os.replace(unfinished, target)
            sync(target.parent)
    except OSError as error:
        raise could_not_write(path, error) from error


@contextmanager
def new_folder(path: str | os.PathLike, add: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield an empty folder, which is renamed to `path` once its files are on the disk.

    Args:
        add: called with that folder where another process has written `path` meanwhile.

    Raises:
        ValueError: see `folder_destination` (`path` must be new or empty), or another process has written there
            meanwhile.
    """
    target = folder_destination(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary(target, Path.mkdir) as unfinished:
        yield unfinished
        _sync_tree(unfinished)
        if target.is_dir():
            shutil.copymode(target, unfinished)
            with suppress(OSError):
                target.rmdir()  # Windows renames onto no folder, not even an empty one
        try:
            os.replace(unfinished, target)
        except OSError as error:
            if not os.path.lexists(target):
                raise
            if add is not None and target.is_dir():
                return add(unfinished)
            raise ValueError(f"{path} has been written by another process meanwhile: name another folder") from error
        sync(target.parent)


@contextmanager
def replaced_folder(
    path: str | os.PathLike,
    stale: Sequence[str] = ("*",),
    *,
    token: str = "",
    process_index: int = 0,
    barrier: Callable[[], None] = lambda: None,
) -> Iterator[Path]:
    """Yield an empty folder, which replaces the folder `path` once its files are on the disk.

    Args:
        stale: patterns of the names in the older folder that are not kept. Other files there that are not written anew
            are kept.
        token: a random text that several processes share if they write into the folder together.
        process_index: of this process among them.
        barrier: waits for all of them.

    Raises:
        ValueError: see `folder_destination`.
    """
    target = folder_destination(path, replace=True)

    if process_index == 0:
        target.parent.mkdir(parents=True, exist_ok=True)
    with temporary(target, Path.mkdir, token, owner=process_index == 0) as unfinished:
        barrier()
        yield unfinished
        barrier()
        if process_index == 0:
            _sync_tree(unfinished)
            _swap(unfinished, target, stale)
        barrier()


def remove(folder: Path) -> None:
    """Remove a folder. It is renamed first, so that an interrupted removal leaves no incomplete folder by its name."""
    renamed = hidden(folder, secrets.token_hex(6), UNFINISHED)
    with suppress(FileNotFoundError):
        os.replace(folder, renamed)
    shutil.rmtree(renamed, ignore_errors=True)


@contextmanager
def added_files(
    path: str | os.PathLike, record: str, older: Callable[[Path], Sequence[str]] = lambda folder: ()
) -> Iterator[Path]:
    """Yield an empty folder, whose files are moved into the folder `path` as one change; other files there stay.

    The file `record` tells readers that the folder is complete: it is removed first and written last. On an error the
    folder is as before. If the process is killed in between, a hidden copy of `record` stays (see `interrupted`), and
    the next call repairs the folder.

    Args:
        record: a name in the folder.
        older: returns the names of files that earlier calls have written; those that are not written anew are removed.

    Raises:
        ValueError: what cannot be written, or another process writes there now.
    """
    folder = followed(path)

    def add(unfinished: Path) -> None:
        with only_writer(folder):
            _put(unfinished, folder, record, older(folder))

    if not os.path.lexists(folder):
        with new_folder(path, add) as unfinished:
            yield unfinished
        return
    if not folder.is_dir():
        raise ValueError(f"{path} is a file: name a folder")
    check_parent(path, folder / record)
    with temporary(folder / record, Path.mkdir) as unfinished:
        yield unfinished
        add(unfinished)


def _put(source: Path, folder: Path, record: str, older: Sequence[str]) -> None:
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    names = [*(name for name in names if name != record), record]
    stale = [name for name in older if name not in names]
    _sync_tree(source)
    if (folder / record).exists():
        shutil.copy2(folder / record, interrupted(folder, record))
    with temporary(folder / record, Path.mkdir) as aside:
        try:
            _exchange(source, folder, names, stale, aside)
        finally:
            interrupted(folder, record).unlink(missing_ok=True)
    sync(folder)


def _exchange(source: Path, folder: Path, names: Sequence[str], stale: Sequence[str], aside: Path) -> None:
    """Move older files to `aside`, the record (the last name) first; on an exception move them back."""
    moved = []

    def move(start: Path, end: Path) -> None:
        end.parent.mkdir(parents=True, exist_ok=True)
        moved.append((start, end))
        os.replace(start, end)

    try:
        for name in [*reversed(names), *stale]:
            if (folder / name).is_file():
                move(folder / name, aside / name)
        for name in names:
            move(source / name, folder / name)
    except BaseException:
        for start, end in reversed(moved):
            if end.exists():
                os.replace(end, start)
        raise


def interrupted(folder: Path, record: str) -> Path:
    """Return the path of the copy of `record` that a killed `added_files` has left."""
    return folder / f".{record}.interrupted"


def sync(path: Path) -> None:
    """Write a file or folder through to the disk. Windows syncs only what is open for writing, and no folders."""
    is_folder = os.path.isdir(path)
    try:
        try:
            handle = os.open(path, (os.O_RDONLY if is_folder else os.O_RDWR) | getattr(os, "O_BINARY", 0))
        except PermissionError:  # a read-only file
            handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not (is_folder and error.errno in _NO_SYNC):
            raise


def _swap(unfinished: Path, target: Path, stale: Sequence[str]) -> None:
    """Rename `unfinished` to `target` and remove the older folder; on an error that one keeps its name.

    If another process puts its own folder there meanwhile, the later one replaces it.
    """
    for tries_left in reversed(range(_TRIES)):
        aside = hidden(target, secrets.token_hex(6), REPLACED)
        try:
            if target.is_dir():
                _keep(target, unfinished, stale)
                shutil.copymode(target, unfinished)
                os.replace(target, aside)
            os.replace(unfinished, target)
            break
        except BaseException as error:
            restore(aside, target)
            if not (isinstance(error, OSError) and error.errno in _MEANWHILE and tries_left):
                raise
    sync(target.parent)
    remove_path(aside)


def _keep(older: Path, newer: Path, stale: Sequence[str]) -> None:
    """Link into `newer` the files of `older` that are kept; copy them if the disk has no links."""
    for entry in os.scandir(older):
        kept = newer / entry.name
        if os.path.lexists(kept):
            if entry.is_dir(follow_symlinks=False) and kept.is_dir():
                _keep(Path(entry.path), kept, stale)
        elif any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in stale):
            continue
        elif entry.is_dir(follow_symlinks=False):
            shutil.copytree(entry.path, kept, symlinks=True, copy_function=_link)
        else:
            _link(entry.path, kept)


def _link(source: str, target: str | os.PathLike) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
            sync(path)
    sync(folder)


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o666))


def could_not_write(path: str | os.PathLike, error: Exception) -> OSError:
    """Return an OSError that names the path and says what to do."""
    what, advice = explained(error)
    named = OSError(
        f"could not write {path}: {what}; what was there before is untouched: {advice}, and start the same command "
        "again when it can be written"
    )
    named.errno = getattr(error, "errno", None)
    return named
