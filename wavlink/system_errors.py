"""Errors of the operating system as one line: the path or address, what is wrong with it, and what to do.

`console.run_command` describes every error of a command by it. It imports nothing heavy.
"""

import errno
import os
import re
import socket
import sys
from collections.abc import Iterator
from typing import TypeGuard

_ELSEWHERE = "name another path"
_SPACE = ("No space left on its disk", "free space on its disk, or name a path on another")
_PERMISSION = ("there is no permission", f"{_ELSEWHERE}, or make this one writable")
_FILES = ("too many files are open", "raise the limit of open files (ulimit -n)")
_PROBLEMS = {  # what is wrong, and what to do
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: ("its file system is read-only", "name a path on another"),
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: ("File too large", "free space on its disk, or raise the limit of a file's size (ulimit -f)"),
    errno.ENOTDIR: ("{file} is a file, where a folder is needed", _ELSEWHERE),
    errno.EEXIST: ("{file} is there already", _ELSEWHERE),
    errno.EISDIR: ("it is a folder", "name a file"),
    errno.ENOENT: ("it does not exist", "check the path"),
    errno.ENAMETOOLONG: ("its name is too long", "name a shorter one"),
    errno.ELOOP: ("it is a link that leads in a circle", _ELSEWHERE),
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
}
_LISTENING = {
    errno.EADDRINUSE: "another program listens there",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "the system does not allow it; ports below 1024 need more rights",
}
_OF_WRITING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}
_TEMPORARY = re.compile(r"\.(?P<name>[^/\\]+)\.[0-9a-f]{12}\.(unfinished|replaced)")  # see `temporary_paths.hidden`
_NUMBER = re.compile(r"\[Errno -?\d+\] ")
_MOST_CAUSES = 20


def described(error: BaseException) -> str:
    """Return an error's line.

    An error that a cache of Hugging Face has caused says so, whatever a library made of it.
    """
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _OF_WRITING and (variable := _cache_of(_path(cause))):
            what, _ = explained(cause)
            return (
                f"the cache {_path(cause)} cannot be written, {what}: set {variable} to a folder that can be written"
            )
    if not _is_of_system(error):
        return _NUMBER.sub("", str(error))
    path, (what, advice) = _path(error), explained(error)
    if not path:
        return what if (error.errno or 0) not in _PROBLEMS else f"{what}: {advice}"
    return f"{path} {_verb(error, path)}, {what}: {advice}"


def explained(error: BaseException) -> tuple[str, str]:
    """Return what is wrong with a file or folder that could not be written, and what to do.

    For a full disk torch, safetensors and the system each have another error.
    """
    if not _is_of_system(error):
        return _NUMBER.sub("", str(error)), "free space on its disk"
    what, advice = _PROBLEMS.get(error.errno or 0, (str(error.strerror), _ELSEWHERE))
    return what.format(file=_file_above(_path(error))), advice


def _is_of_system(error: BaseException) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno is not None and bool(error.strerror)


def not_listening(host: str, port: int, error: Exception) -> str:
    """Return the line of an address that a server cannot listen on."""
    number = getattr(error, "errno", None) or 0
    if isinstance(error, socket.gaierror | UnicodeError):
        why = "the host is unknown"
    else:
        why = _LISTENING.get(number) or getattr(error, "strerror", None) or str(error)
    return f"cannot listen on {host}:{port}: {why}; give another --host or --port"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and those that it was raised from or while they were handled."""
    current: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if current is None:
            return
        yield current
        current = current.__cause__ or current.__context__


def _path(error: OSError) -> str:
    """Return the path of an error, of a temporary name the final one; "" without a path."""
    path = error.filename2 or error.filename
    if not isinstance(path, str | bytes | os.PathLike):
        return ""
    return _TEMPORARY.sub(lambda match: match["name"], os.fsdecode(path))


def _file_above(path: str) -> str:
    """Return the part of a path that is a file, else the path."""
    while path and not os.path.lexists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


def _verb(error: OSError, path: str) -> str:
    """Return what cannot be done with a path, as far as the system tells."""
    effective = {"effective_ids": True} if os.access in os.supports_effective_ids else {}
    unread = os.path.exists(path) and not os.access(path, os.R_OK, **effective)
    if error.errno in (errno.ENOENT, errno.EISDIR):
        return "cannot be opened"
    return "cannot be read" if unread else "cannot be written"


def _cache_of(path: str) -> str:
    """Return the variable that sets the cache of Hugging Face which holds a path; "" if none does."""
    if not path:
        return ""
    hub, data = sys.modules.get("huggingface_hub.constants"), sys.modules.get("datasets.config")
    caches = {
        "HF_HUB_CACHE": getattr(hub, "HF_HUB_CACHE", ""),
        "HF_DATASETS_CACHE": str(getattr(data, "HF_DATASETS_CACHE", "")),
        "HF_HOME": getattr(hub, "HF_HOME", ""),
    }
    here = os.path.abspath(path)
    inside = [name for name, folder in caches.items() if folder and _is_below(here, os.path.abspath(folder))]
    return ("HF_HOME" if "HF_HOME" in inside or "HF_HOME" in os.environ else inside[0]) if inside else ""


def _is_below(path: str, folder: str) -> bool:
    """Whether a path is in a folder, or is a folder above one that does not exist yet."""
    return f"{path}{os.sep}".startswith(f"{folder}{os.sep}") or (
        not os.path.exists(folder) and f"{folder}{os.sep}".startswith(f"{path}{os.sep}")
    )
