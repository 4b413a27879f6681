"""Keep an index up to date with its sounds: look for changes again and again, with the model kept loaded."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from wavlink.console import without_foreign_output
from wavlink.locks import Locked
from wavlink.sanitize import clean, path_text

from .build import index_sounds, own_precision
from .changes import Report
from .index_model import embedder_of, new_embedder
from .listing import UNKNOWN, Listing, Sound, list_sounds
from .table import Table
from .table_place import Storage, has_table

Signature = tuple[int, int, str]  # of a file: its size, its version (see `Sound`), and why it cannot be read
_IDLE = 4  # times as long as a look has taken, at least, until the next one


def watch_sounds(
    sounds: str | Sequence[str],
    out: str | os.PathLike,
    model: str = "",
    *,
    seconds: float = 1.0,
    root: str = "",
    retry: bool = False,
    metadata: Sequence[str | os.PathLike] = (),
    device: str = "cpu",
    dtype: str = "float32",
    backend: str | None = None,
    precision: str | None = None,
    progress: bool = True,
    stop: threading.Event | None = None,
    show: Callable[[str], None] = print,
    storage_options: Storage = None,
    **options: Any,
) -> Report:
    """Bring an index up to date with `sounds`, or make it, and again at each change until `stop` is set.

    A file is taken once two looks have found it with the same size and modification time. The index is locked only
    while a change is written, so that other processes may change it too.

    Args:
        sounds: folders, files or `@list.txt`.
        out, model, root, retry, metadata, device, dtype, backend, precision, options: as for `index_sounds`.
        seconds: from look to look; more where looking takes long.
        show: is given a line about each change.

    Returns:
        A report on all changes.

    Raises:
        ValueError: as `index_sounds`; or another process has changed the index to another model.
        OSError: the disk is full, or there is no right to write.
    """
    stop = stop or threading.Event()
    run = {"device": device, "dtype": dtype, "backend": backend, "precision": precision}
    known = {}
    if has_table(out, storage_options):
        table = Table.open(out, storage_options)
        embedder = embedder_of(table.manifest, model, **own_precision(table.manifest, run))
        known = {path: (file.size, file.version, "") for path, file in table.files().items()}
    else:
        embedder = new_embedder(model, **run)
    sources = [os.fspath(each) for each in ([sounds] if isinstance(sounds, str | os.PathLike) else sounds)]
    options |= {"stop": stop, "storage_options": storage_options, "metadata": metadata, "precision": precision}

    def list_now() -> Listing:
        here = root or (Table.open(out, storage_options).manifest.root if has_table(out, storage_options) else "")
        return list_sounds(sources, here)

    def update(listing: Listing, first: bool) -> Report:
        return index_sounds(listing, out, embedder, retry=retry and first, progress=progress and first, **options)

    watch = _Watch(list_now, update, metadata, known, show)
    while not stop.is_set():
        if not watch.looks and not all(map(os.path.lexists, (source.removeprefix("@") for source in sources))):
            list_now()  # raises the error
        watch.look()
        stop.wait(max(seconds, _IDLE * watch.seconds))
    return replace(watch.report, stopped=True)


class _Watch:
    """What is indexed of the sounds, and what the last look has found.

    Attributes:
        looks: how many there were.
        seconds: that the last one has taken, without the update after it.
        report: on all changes.
    """

    def __init__(
        self,
        list_now: Callable[[], Listing],
        update: Callable[[Listing, bool], Report],
        metadata: Sequence[str | os.PathLike],
        known: dict[str, Signature],
        show: Callable[[str], None],
    ):
        self._list, self._update, self._metadata, self._show = list_now, update, metadata, show
        self._indexed = known
        self._seen: dict[str, Signature] = {}
        self._described: list = []  # signatures of the metadata files that are in the index
        self._first, self._told = True, ""
        self.looks, self.seconds, self.report = 0, 0.0, Report()

    def look(self) -> None:
        """Look for changes, and bring the index up to date with those that have come to rest."""
        self.looks += 1
        start = time.monotonic()
        try:
            with without_foreign_output() if self.looks > 1 else nullcontext():
                listing = self._list()
        except ValueError as error:  # no sounds yet, or their folder is gone
            self._tell(str(error))
            return
        finally:
            self.seconds = time.monotonic() - start
        if listing.rows is not None:
            raise ValueError(f"{listing.root} cannot be watched: name folders or files, or leave --watch out")
        found = {sound.path: _signature(sound) for sound in listing.sounds}
        described = [_metadata_signature(file) for file in self._metadata]
        at_rest = {path for path, signature in found.items() if self._is_at_rest(path, signature)}
        before, self._seen = self._seen, found
        changed = [path for path in found if path in at_rest and self._indexed.get(path) != found[path]]
        gone = [path for path in self._indexed if path not in found and listing.covers(path)]
        gone_twice = any(path not in before for path in gone)  # not between the two steps of a renaming
        if not before or not (changed or gone_twice or self._first or described != self._described):
            return
        listing.sounds = [each for sound in listing.sounds for each in self._settled(sound, at_rest)]
        try:
            report = self._update(listing, self._first)
        except Locked as error:
            self._tell(str(error))
            return
        self._tell_changes(report, changed, gone)
        self._indexed = {sound.path: _signature(sound) for sound in listing.sounds}
        self._first, self._told, self._described = False, "", described

    def _is_at_rest(self, path: str, signature: Signature) -> bool:
        """True if the last look has found the same, and the file's time tells changes apart."""
        return self._seen.get(path) == signature and (signature[1] != UNKNOWN or bool(signature[2]))

    def _settled(self, sound: Sound, at_rest: set[str]) -> list[Sound]:
        """Return a sound as it is; of one that is still being written what is indexed of it."""
        if sound.path in at_rest:
            return [sound]
        if before := self._indexed.get(sound.path):
            return [sound._replace(size=before[0], version=before[1], error=before[2])]
        return []

    def _tell(self, line: str) -> None:
        """Show why the index is not up to date, once."""
        if line != self._told:
            self._show(f"waiting: {clean(line, 1000)}")
        self._told = line

    def _tell_changes(self, report: Report, changed: Sequence[str], gone: Sequence[str]) -> None:
        """Show a line about each change, at first about all of them, and add them up."""
        if self._first:
            self._show(str(report))
        else:
            for path in changed:
                word = "changed" if path in self._indexed else "added"
                why = f": {clean(report.skipped[path], 1000)}" if path in report.skipped else ""
                self._show(f"{'skipped' if why else word} {path_text(path)}{why}")
            for path in gone:
                self._show(f"removed {path_text(path)}")
            for described in report.described:
                if described.source != "tags" and described not in self.report.described:
                    self._show(str(described))
        total = {name: getattr(self.report, name) + getattr(report, name) for name in ("added", "changed", "removed")}
        self.report = replace(report, **total)


def _signature(sound: Sound) -> Signature:
    return sound.size, sound.version, sound.error


def _metadata_signature(file: str | os.PathLike) -> tuple[int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
