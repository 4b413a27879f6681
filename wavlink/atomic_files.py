"""Write files and folders atomically: under a unique hidden name beside the destination, then renamed to it.

    target = file_destination(options.output)  # before the work: refuses what cannot be written
    with atomic_file(target) as unfinished: ...

A writer touches only what it made itself. Two writers to one destination have a temporary name each, and the later
one replaces the whole file or folder. On any exception the temporary name is removed. What a killed process left under
such a name is removed by the next writer to the same destination: nobody holds its lock any more.
"""

import errno
import fnmatch
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import filelock

from .destinations import check_parent, file_destination, folder_destination, followed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_UNFINISHED, _REPLACED = ".unfinished", ".replaced"
_MEANWHILE = {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EACCES}  # another process renames it too
_LOCK = ".lock"
_TRIES = 100
# A folder that cannot be opened (Windows) or synced (some network file systems).
_NO_SYNC = {errno.EACCES, errno.EPERM, errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOTSUP, errno.ENOSYS}


def write_text(path: str | os.PathLike, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike, content) -> None:
    """Write a bytes-like object to a file."""
    with atomic_file(path) as unfinished:
        unfinished.write_bytes(content)


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield the name to write a file under, which is renamed to `path` once it is on the disk.

    Raises:
        ValueError: see `file_destination`.
        OSError: what the disk does not allow, with the file's name; the older file stays.
    """
    target = file_destination(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(target, lambda place: os.close(os.open(place, os.O_CREAT | os.O_EXCL, 0o666))) as unfinished:
            yield unfinished
            if target.exists():
                shutil.copymode(target, unfinished)
            sync(unfinished)
            os.replace(unfinished, target)
            sync(target.parent)
    except OSError as error:
        raise could_not_write(path, error) from error


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder, which is renamed to `path`, a new or empty folder, once all in it is on the disk.

    Raises:
        ValueError: see `folder_destination`; or another process has written there meanwhile.
    """
    target = folder_destination(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(target, Path.mkdir) as unfinished:
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
    """Yield an empty folder, which takes the name `path`, and the place of an older one, once all is on the disk.

    Args:
        stale: patterns of the names in the older folder that are not kept. Whatever else is there and not written
            anew stays, as it is not ours.
        token, process_index, barrier: where several processes write into it together: a random text that they share.

    Raises:
        ValueError: see `folder_destination`.
    """
    target = folder_destination(path, replace=True)

    if process_index == 0:
        target.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(target, Path.mkdir, token, owner=process_index == 0) as unfinished:
        barrier()
        yield unfinished
        barrier()
        if process_index == 0:
            _sync_tree(unfinished)
            _swap(unfinished, target, stale)
        barrier()


def remove(folder: Path) -> None:
    """Remove a folder, which loses its name before its files: killed on the way, no half of it keeps the name."""
    hidden = _hidden(folder, secrets.token_hex(6), _UNFINISHED)
    with suppress(FileNotFoundError):
        os.replace(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def added_files(
    path: str | os.PathLike, record: str, older: Callable[[Path], Sequence[str]] = lambda folder: ()
) -> Iterator[Path]:
    """Yield an empty folder, all of which is moved into the folder `path` in one change; other files there stay.

    The file `record` tells readers that all is there: it goes first and comes last. On an error all is as before.
    Where the process is killed in between, a hidden copy of it stays (see `interrupted`), and the next call mends.

    Args:
        older: gives the names of files that earlier calls have written; those that are not written anew are removed.

    Raises:
        ValueError: what cannot be written, or another process writes there now.
    """
    folder = followed(path)
    if not os.path.lexists(folder):
        with new_folder(path) as unfinished:
            yield unfinished
        return
    if not folder.is_dir():
        raise ValueError(f"{path} is a file: name a folder")
    check_parent(path, folder / record)
    with _temporary(folder / record, Path.mkdir) as unfinished:
        yield unfinished
        with only_writer(folder):
            _put(unfinished, folder, record, older(folder))


def _put(source: Path, folder: Path, record: str, older: Sequence[str]) -> None:
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    names = [*(name for name in names if name != record), record]
    stale = [name for name in older if name not in names]
    _sync_tree(source)
    if (folder / record).exists():
        shutil.copy2(folder / record, interrupted(folder, record))
    with _temporary(folder / record, Path.mkdir) as aside:
        try:
            _exchange(source, folder, names, stale, aside)
        finally:
            interrupted(folder, record).unlink(missing_ok=True)
    sync(folder)


def _exchange(source: Path, folder: Path, names: Sequence[str], stale: Sequence[str], aside: Path) -> None:
    """Older files go to `aside`, the record (the last name) first; on an exception they come back."""
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
    """The copy of `record` that an `added_files` which was killed has left."""
    return folder / f".{record}.interrupted"


@contextmanager
def locked(path: Path, remove: bool = False) -> Iterator[None]:
    """Hold a lock file, which stands for the folder that it lies in, against other processes.

    Args:
        remove: whether the file goes in the end.

    Raises:
        ValueError: another one holds it.
    """
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise ValueError(f"another process is writing to {path.parent}: wait until it has ended") from error
    try:
        yield
    finally:
        if remove and fcntl:
            path.unlink(missing_ok=True)
        lock.release()
        if remove and not fcntl:  # Windows removes no open file
            _remove(path)


def only_writer(folder: Path) -> AbstractContextManager[None]:
    """Hold a folder against other processes that ask for it in this way; see `locked`."""
    return locked(folder / _LOCK, remove=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in a folder that this process alone writes to (see `only_writer`).

    What was being replaced gets its name back where nothing has it.
    """
    for path in list(folder.glob(f".*{_REPLACED}")):
        _restore(path, folder / path.name[1 : -len(_REPLACED)].rpartition(".")[0])
    for path in list(folder.glob(f".*{_UNFINISHED}")):
        _remove(path)


def sync(path: Path) -> None:
    """Bring a file or folder to the disk. Windows syncs only what is open for writing, and no folders."""
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


def hold(path: Path) -> int | None:
    """Lock a file or folder of this user until the handle is closed, be it by the end of the process.

    None if somebody holds it, it is gone, or there are no such locks here.
    """
    if not fcntl:
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_uid == os.getuid() and os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


@contextmanager
def _temporary(target: Path, make: Callable[[Path], None], token: str = "", owner: bool = True) -> Iterator[Path]:
    """A unique name beside `target`, held while this process lives and removed in the end by its owner."""
    if not owner:
        yield _hidden(target, token, _UNFINISHED)
        return
    _remove_leftovers_of(target)
    place, handle = _made_and_held(target, make, token)
    try:
        yield place
    finally:
        try:
            _remove(place)
        finally:
            if handle is not None:
                os.close(handle)


def _made_and_held(target: Path, make: Callable[[Path], None], token: str) -> tuple[Path, int | None]:
    """Another process may take a new name for a leftover before it is held: then it goes, and another is made."""
    for tries_left in reversed(range(10 if fcntl else 1)):
        place = _hidden(target, token or secrets.token_hex(6), _UNFINISHED)
        make(place)
        handle = hold(place)
        if handle is not None or not tries_left:  # the disk may have no locks
            return place, handle
        _remove(place)
    raise AssertionError


def _hidden(target: Path, token: str, ending: str) -> Path:
    return target.with_name(f".{target.name[:48]}.{token}{ending}")  # a name has at most 255 bytes


def _remove_leftovers_of(target: Path) -> None:
    start = f".{target.name[:48]}."
    with suppress(FileNotFoundError), os.scandir(target.parent) as entries:
        names = sorted(entry.name for entry in entries if entry.name.startswith(start))
        for name in names:
            path = target.with_name(name)
            if name.endswith(_UNFINISHED):
                _remove_unheld(path)
            elif name.endswith(_REPLACED) and target.name[:48] == target.name:
                _restore(path, target)


def _remove_unheld(path: Path) -> None:
    """Remove a temporary file or folder, unless a living process holds it or nobody can know."""
    if (handle := hold(path)) is not None:
        try:
            _remove(path)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _swap(unfinished: Path, target: Path, stale: Sequence[str]) -> None:
    """Give `unfinished` the name of `target`, which goes; on an error that keeps its name.

    Where another process puts its own folder there meanwhile, the later one replaces it.
    """
    for tries_left in reversed(range(_TRIES)):
        aside = _hidden(target, secrets.token_hex(6), _REPLACED)
        try:
            if target.is_dir():
                _keep(target, unfinished, stale)
                shutil.copymode(target, unfinished)
                os.replace(target, aside)
            os.replace(unfinished, target)
            break
        except BaseException as error:
            _restore(aside, target)
            if not (isinstance(error, OSError) and error.errno in _MEANWHILE and tries_left):
                raise
    sync(target.parent)
    _remove(aside)


def _restore(aside: Path, target: Path) -> None:
    """The older folder gets its name back, or goes where another has it already."""
    if os.path.lexists(target):
        _remove(aside)
    else:
        with suppress(OSError):  # another process does the same
            os.replace(aside, target)


def _keep(older: Path, newer: Path, stale: Sequence[str]) -> None:
    """Link into `newer` what is in `older` and not ours, as the same files where the disk has links."""
    for entry in os.scandir(older):
        place = newer / entry.name
        if os.path.lexists(place):
            if entry.is_dir(follow_symlinks=False) and place.is_dir():
                _keep(Path(entry.path), place, stale)
        elif any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in stale):
            continue
        elif entry.is_dir(follow_symlinks=False):
            shutil.copytree(entry.path, place, symlinks=True, copy_function=_link)
        else:
            _link(entry.path, place)


def _link(source: str, place: str | os.PathLike) -> None:
    try:
        os.link(source, place, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, place, follow_symlinks=False)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
            sync(path)
    sync(folder)


def could_not_write(path: str | os.PathLike, error: Exception) -> OSError:
    """Return an OSError that names the path and says what to do."""
    named = OSError(
        f"could not write {path}: {error}; what was there before is untouched: free space on its disk, and start the "
        "same command again when it can be written"
    )
    named.errno = getattr(error, "errno", None)
    return named
