"""From sounds to an index: what is new is embedded, what has changed embedded anew, what has gone removed."""

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow

from processing.windows import check_window, stream_windows
from wavlink.defaults import HOP, STORAGE, WINDOW
from wavlink.embedder import Embedder
from wavlink.progress import Bar

from .index_model import embedder_of, new_embedder
from .listing import Listing, Sound, list_sounds
from .parts import with_large_texts
from .quantization import bytes_per_vector, encode
from .store import FILES, IndexFolder, Manifest

_DIM = 48  # the least of the nested dims that is kept by default: fewer cost recall
_BYTES_AT_ONCE = 1 << 26  # of vectors that are in memory only


@dataclass
class Report:
    """What a run did; `skipped` is all that the index holds no vectors of, and why."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    sounds: int = 0
    windows: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    stopped: bool = False

    def __str__(self) -> str:
        done = f"{self.added} added, {self.changed} changed, {self.removed} removed, {self.unchanged} as they were"
        return f"{done}; the index holds {self.sounds} sounds in {self.windows} windows, {len(self.skipped)} skipped"


def index_sounds(
    sources: str | Sequence[str],
    out: str | os.PathLike,
    model: str | Embedder = "",
    *,
    dim: int | None = None,
    storage: str | None = None,
    window: float | None = None,
    hop: float | None = None,
    root: str = "",
    split: str = "train",
    retry: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
    commit_seconds: float = 30.0,
    progress: bool = True,
    stop: threading.Event | None = None,
) -> Report:
    """Brings an index to what is in `sources`, or makes it. Killed at any moment, the same call goes on.

    A file is known again by its size and its time of change. Files outside `sources` stay in the index as they are.

    Args:
        sources: see `wavlink.search.listing.list_sounds`; `root` and `split` too. Another `root` for an index that has
            one says that its sounds have moved there.
        out: the index's folder.
        model: as `Embedder` takes it; of an index that there is, its own, and needed only where this machine does not
            have it under the name that the index holds (see `embedder_of`).
        dim: of the nested dims, of a new index (default: the least from 48 on).
        storage: of a new index, see `vectors.STORAGES` (default: int8).
        window, hop: in seconds, of a new index (defaults: 10 and 5).
        retry: also what was skipped before and has not changed.
        device, dtype: see `Embedder`.
        commit_seconds: what is embedded is on the disk after at most so long.
        stop: once it is set, what is embedded is written and the run ends.

    Raises:
        ValueError: no sounds; an index of another model or with other options; nothing in it can be read.
    """
    wanted = {"dim": dim, "storage": storage, "window": window, "hop": hop}
    sources = [sources] if isinstance(sources, str | os.PathLike) else sources
    index = IndexFolder.open(out) if os.path.exists(os.path.join(out, "index.json")) else None
    sources = [os.fspath(source) for source in sources]
    listing = None if index else list_sounds(sources, root, split)
    if index:
        _refuse_other_options(index.manifest, wanted)
        writing = index.writing()
        embedder = embedder_of(index.manifest, model, device, dtype) if model else None
    else:
        embedder = new_embedder(model, device, dtype)
        writing = IndexFolder.create(out, _new_manifest(embedder, listing.root, wanted))
    with writing as index:
        # An index is compared with what there is once no other process adds to it.
        listing = listing or list_sounds(sources, root or index.manifest.root, split)
        _note(index, listing.root, embedder.name if embedder and isinstance(model, str) else "")
        todo, new, report = _compare(index, listing, retry)
        broken = [task for task in todo if task.sound.error]
        if broken:
            index.append(
                index.manifest.schema.empty_table(), _records([(*task, 0, 0, task.sound.error) for task in broken])
            )
        todo = [task for task in todo if not task.sound.error]
        if todo:
            embedder = embedder or embedder_of(index.manifest, "", device, dtype)
            report.stopped = _embed(
                index, embedder, listing, todo, commit_seconds, progress, stop or threading.Event()
            )
        if not report.stopped:
            index.merge()
        return _finished(report, index, new, listing.unreadable)


def _new_manifest(embedder: Embedder, root: str, wanted: dict) -> Manifest:
    nested = sorted(embedder.matryoshka_dims)
    dim = wanted["dim"] or next((dim for dim in nested if dim >= _DIM), nested[-1])
    if dim not in nested:
        raise ValueError(f"dim={dim} is none of the model's nested dims: {', '.join(map(str, nested))}")
    storage = wanted["storage"] or STORAGE
    bytes_per_vector(dim, storage)  # refuses what is no storage
    window = min(WINDOW, embedder.max_seconds or WINDOW) if wanted["window"] is None else wanted["window"]
    hop = min(HOP, window) if wanted["hop"] is None else wanted["hop"]
    check_window(window, hop, embedder.sampling_rate)
    if embedder.max_seconds and window > embedder.max_seconds:
        raise ValueError(f"a window of {window:g} s is more than the model's {embedder.max_seconds:g} s")
    made = {"window": float(window), "hop": float(hop), "sampling_rate": embedder.sampling_rate, "root": root}
    name, revision = embedder.name, embedder.revision
    return Manifest(name, revision, embedder.dims, nested, dim, storage, **made)


def _refuse_other_options(manifest: Manifest, wanted: dict) -> None:
    for name, value in wanted.items():
        own = getattr(manifest, name)
        if value is not None and value != own:
            raise ValueError(f"the index has {name}={own}, not {value}: leave it out, or index into another folder")


def _note(index: IndexFolder, root: str, model: str) -> None:
    """Where the sounds are and, if a user has named it, the model."""
    manifest = index.manifest
    now = {"root": root, "model": model or manifest.model}
    if any(getattr(manifest, name) != value for name, value in now.items()):
        index.change(**now)


class _Task(NamedTuple):
    sound: Sound
    first: int  # of its windows, the first that is not in the index


class _Known(NamedTuple):
    size: int
    version: int
    rows: int
    windows: int
    error: str


def _known(index: IndexFolder) -> dict[str, _Known]:
    """Of each path what its rows of `files` add up to; if they do not, a version that no file has."""
    known = {}
    files = with_large_texts(index.files()).sort_by([("path", "ascending"), ("first", "ascending")])
    columns = (files[name].to_pylist() for name in FILES.names)
    for path, size, version, first, rows, windows, error in zip(*columns, strict=True):
        before = known.get(path)
        fits = (before.size, before.version, before.rows) == (size, version, first) if before else first == 0
        known[path] = _Known(size, version if fits else -2, first + rows, windows, error)
    return known


def _compare(index: IndexFolder, listing: Listing, retry: bool) -> tuple[list[_Task], set[str], Report]:
    """What is to be done, and of that what is new; what has changed or vanished is forgotten already."""
    known, report, todo, changed = _known(index), Report(), [], []
    for sound in listing.sounds:
        there = known.get(sound.path)
        if there is None or (there.size, there.version) != sound[1:3] or sound.version < 0 or (there.error and retry):
            todo.append(_Task(sound, 0))
            changed += [sound.path] if there else []
        elif there.error or there.rows == there.windows:
            report.unchanged += not there.error
        else:
            todo.append(_Task(sound, there.rows))
    listed = {sound.path for sound in listing.sounds}
    gone = [path for path in known if path not in listed and listing.covers(path)]
    index.drop(changed + gone)
    report.changed, report.removed = len(changed), len(gone)
    return todo, {task.sound.path for task in todo} - set(changed), report


def _finished(report: Report, index: IndexFolder, new: set[str], unreadable: dict[str, str]) -> Report:
    known = _known(index)
    report.skipped = {path: there.error for path, there in known.items() if there.error}
    report.sounds, report.windows = len(known) - len(report.skipped), index.manifest.rows
    report.added = sum(path in known and path not in report.skipped for path in new)
    if not report.sounds and not report.stopped:
        path, error = next(iter(report.skipped.items()))
        raise ValueError(f"none of {len(known)} sounds can be read; the first, {path}: {error}")
    report.skipped |= unreadable
    return report


def _embed(index, embedder, listing, todo: list[_Task], commit_seconds: float, progress: bool, stop) -> bool:
    """Whether it was stopped."""
    rows = _Rows(index, Bar(total=len(todo), desc="sounds", unit="file", disable=not progress), commit_seconds)
    clips = _clips(listing, todo, index.manifest, rows.events, stop)
    with rows.bar, closing(embedder.embed_clips(clips)) as vectors:
        for vector in vectors:
            rows.take(vector)
            if stop.is_set():
                break
        else:
            rows.settle()
        rows.write()
    return stop.is_set()


def _clips(listing: Listing, todo: list[_Task], manifest: Manifest, events: deque, stop) -> Iterator[np.ndarray]:
    """The windows to embed; `events` tells of each file its begin, its windows' `(start, end)` and its end."""
    for task in todo:
        if stop.is_set():  # also among files without windows
            return
        events.append(("begin", task))
        error = ""
        try:
            content = listing.content(task.sound)
            windows = stream_windows(content, manifest.window, manifest.hop, manifest.sampling_rate, task.sound.path)
            for window in itertools.islice(windows, task.first, None):
                events.append(("window", (window.start, window.end)))
                yield window.samples
        except ValueError as caught:
            error = str(caught)
        events.append(("end", error))


class _Rows:
    """What is embedded but not yet in the index, and where in a file the run is."""

    def __init__(self, index: IndexFolder, bar: Bar, commit_seconds: float):
        self.index, self.bar, self.commit_seconds = index, bar, commit_seconds
        self.events = deque()
        self.windows = 0
        self.task, self.error = None, ""  # the file that has begun
        self._clear()

    def _clear(self) -> None:
        self.paths, self.times, self.vectors, self.records = [], [], [], []
        self.begun = 0  # where the rows of the file that has begun begin
        self.written = time.monotonic()

    def take(self, vector: np.ndarray) -> None:
        """The vector of the next window."""
        self.settle()
        _, times = self.events.popleft()
        if not (np.isfinite(vector).all() and vector[: self.index.manifest.dim].any()):
            self.error = f"the model gives it a vector that is zero or not finite, from {times[0]:g} s on"
            self._forget()
        if self.error:
            return
        self.windows += 1
        self.bar.set_postfix(windows=self.windows, refresh=False)
        self.paths.append(self.task.sound.path)
        self.times.append(times)
        self.vectors.append(vector)
        if time.monotonic() - self.written > self.commit_seconds or len(self.vectors) * vector.nbytes > _BYTES_AT_ONCE:
            self.write()

    def settle(self) -> None:
        """All that happened before the next window."""
        while self.events and self.events[0][0] != "window":
            name, what = self.events.popleft()
            if name == "begin":
                self.task, self.error, self.begun = what, "", len(self.paths)
            else:
                self._end(what or self.error)

    def _end(self, error: str) -> None:
        rows = len(self.paths) - self.begun
        if error:
            self._forget()
            self.records.append((self.task.sound, 0, 0, 0, error))
        else:
            self.records.append((*self.task, rows, self.task.first + rows, ""))
        self.task = None
        self.bar.update()

    def _forget(self) -> None:
        """What there is of the file that has begun."""
        del self.paths[self.begun :], self.times[self.begun :], self.vectors[self.begun :]
        if self.task.first:
            self.index.drop([self.task.sound.path])
            self.task = self.task._replace(first=0)

    def write(self) -> None:
        """Makes it count. Of a file that has begun and not ended, the windows so far."""
        records, rows = list(self.records), len(self.paths) - self.begun
        if self.task and rows:
            records.append((*self.task, rows, -1, ""))
            self.task = self.task._replace(first=self.task.first + rows)
        if records:
            manifest = self.index.manifest
            starts, ends = np.reshape(self.times, (-1, 2)).T
            codes = encode(np.reshape(self.vectors, (-1, manifest.dims)), manifest.dim, manifest.storage)
            self.index.append(manifest.windows(self.paths, starts, ends, codes), _records(records))
        self._clear()


def _records(rows: list[tuple]) -> pyarrow.Table:
    """Rows of `files`, of (sound, first, rows, windows, error)."""
    rows = [(sound.path, sound.size, sound.version, *rest) for sound, *rest in rows]
    return pyarrow.Table.from_pylist([dict(zip(FILES.names, row, strict=True)) for row in rows], schema=FILES)
