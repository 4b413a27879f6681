"""Build an index of sounds, or bring one up to date: embed what is new or has changed, remove what has gone."""

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import pyarrow

from processing.windows import stream_windows
from wavlink.defaults import HOP, PRECISIONS, STORAGE, WINDOW
from wavlink.destinations import check_folder
from wavlink.embedder import Embedder
from wavlink.progress import Bar

from .changes import Changes, KnownFile, Report, Task, compare
from .index_model import check_window_of, embedder_of, new_embedder
from .listing import Listing, list_sounds
from .manifest import FILES, Manifest
from .parts import with_large_texts
from .quantization import bytes_per_vector, encode
from .store import IndexFolder

_DIM = 48  # the smallest nested dim that is kept by default: fewer dims lower recall
_BYTES_AT_ONCE = 1 << 26  # of vectors that are in memory only


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
    backend: str | None = None,
    precision: str | None = None,
    commit_seconds: float = 30.0,
    progress: bool = True,
    stop: threading.Event | None = None,
) -> Report:
    """Bring an index up to date with `sources`, or make it. After a kill, the same call goes on.

    A file is recognised by its size and its modification time. Files outside `sources` stay in the index unchanged.

    Args:
        sources: see `wavlink.search.listing.list_sounds`, also for `root` and `split`. Another `root` than that of
            the index means that its sounds have moved.
        out: the index's folder.
        model: as `Embedder` takes it (default: the bundled one). An existing index names its model: give it only where
            this machine does not have it under that name (see `embedder_of`).
        dim: one of the nested dims, of a new index (default: the smallest from 48 on).
        storage: of a new index, see `quantization.STORAGES` (default: int8).
        window, hop: in seconds, of a new index (defaults: 10 and 5).
        retry: embed files too that earlier runs skipped.
        device, dtype, backend, precision: see `Embedder` (default precision: the index's own).
        commit_seconds: embedded windows are written to the disk at least this often.
        stop: once it is set, what is embedded is written and the run ends.

    Raises:
        ValueError: no sounds; an index of another model or with other options; none of the sounds can be read.
    """
    check_folder(out)
    options = {"dim": dim, "storage": storage, "window": window, "hop": hop}
    run = {"device": device, "dtype": dtype, "backend": backend, "precision": precision}
    sources = [os.fspath(each) for each in ([sources] if isinstance(sources, str | os.PathLike) else sources)]
    if os.path.exists(os.path.join(out, "index.json")):
        index, listing = IndexFolder.open(out), None
        _refuse_other_options(index.manifest, options | {"precision": precision})
        if dtype == "float32" and index.manifest.precision in PRECISIONS:
            run["precision"] = index.manifest.precision
        embedder = embedder_of(index.manifest, model, **run) if model else None
        writing = index.writing()
    else:
        listing, embedder = list_sounds(sources, root, split), new_embedder(model, **run)
        writing = IndexFolder.create(out, _new_manifest(embedder, listing.root, options))
    with writing as index:
        # Sounds are listed after the lock is held: another process may have added some just before.
        listing = listing or list_sounds(sources, root or index.manifest.root, split)
        _note(index, listing.root, embedder.name if embedder and isinstance(model, str) else "")
        changes = compare(listing, _known(index), retry)
        index.drop(changes.changed + changes.removed)
        stopped, tasks = False, _without_broken(index, changes.tasks)
        if tasks:
            embedder = embedder or embedder_of(index.manifest, **run)
            stopped = _embed(index, embedder, listing, tasks, commit_seconds, progress, stop or threading.Event())
        if not stopped:
            index.merge()
        return _report(index, changes, listing, stopped)


def _new_manifest(embedder: Embedder, root: str, options: dict) -> Manifest:
    nested = sorted(embedder.matryoshka_dims)
    dim = options["dim"] or next((dim for dim in nested if dim >= _DIM), nested[-1])
    if dim not in nested:
        raise ValueError(f"dim={dim} is none of the model's nested dims: {', '.join(map(str, nested))}")
    storage = options["storage"] or STORAGE
    bytes_per_vector(dim, storage)  # raises for an unknown storage
    window = min(WINDOW, embedder.max_seconds or WINDOW) if options["window"] is None else options["window"]
    hop = min(HOP, window) if options["hop"] is None else options["hop"]
    check_window_of(embedder, window, hop)
    times = {"window": float(window), "hop": float(hop), "sampling_rate": embedder.sampling_rate}
    run = {"backend": embedder.backend, "precision": embedder.precision}
    return Manifest(embedder.name, embedder.revision, embedder.dims, nested, dim, storage, **times, **run, root=root)


def _refuse_other_options(manifest: Manifest, options: dict) -> None:
    for name, value in options.items():
        current = getattr(manifest, name)
        if value is not None and value != current:
            raise ValueError(
                f"the index has {name}={current}, not {value}: leave it out, or index into another folder"
            )


def _note(index: IndexFolder, root: str, model: str) -> None:
    """Write to the manifest where the sounds are and, if a user has named it, the model."""
    manifest = index.manifest
    fields = {"root": root, "model": model or manifest.model}
    if any(getattr(manifest, name) != value for name, value in fields.items()):
        index.change(**fields)


def _known(index: IndexFolder) -> dict[str, KnownFile]:
    """Add up the rows of `files` by path; where they do not fit together, the version is one that no file has."""
    known = {}
    files = with_large_texts(index.files()).sort_by([("path", "ascending"), ("first", "ascending")])
    columns = (files[name].to_pylist() for name in FILES.names)
    for path, size, version, first, rows, windows, error in zip(*columns, strict=True):
        before = known.get(path)
        fits = (before.size, before.version, before.rows) == (size, version, first) if before else first == 0
        known[path] = KnownFile(size, version if fits else -2, first + rows, windows, error)
    return known


def _without_broken(index: IndexFolder, tasks: list[Task]) -> list[Task]:
    """Write the errors that are known from the listing, and return the other tasks."""
    broken = [task for task in tasks if task.sound.error]
    if broken:
        rows = _file_rows([(*task, 0, 0, task.sound.error) for task in broken])
        index.append(index.manifest.schema.empty_table(), rows)
    return [task for task in tasks if not task.sound.error]


def _report(index: IndexFolder, changes: Changes, listing: Listing, stopped: bool) -> Report:
    known = _known(index)
    report = changes.report(known, listing.unreadable, index.manifest.rows)
    report.stopped = stopped
    if not report.sounds and not stopped:
        path, file = next(iter(known.items()))
        raise ValueError(f"none of {len(known)} sounds can be read; the first, {path}: {file.error}")
    return report


def _embed(
    index: IndexFolder,
    embedder: Embedder,
    listing: Listing,
    tasks: list[Task],
    commit_seconds: float,
    progress: bool,
    stop: threading.Event,
) -> bool:
    """Embed files and write their rows; return True if `stop` was set."""
    rows = _Rows(index, Bar(total=len(tasks), desc="sounds", unit="file", disable=not progress), commit_seconds)
    clips = _clips(listing, tasks, index.manifest, rows.events, stop)
    with rows.bar, closing(embedder.embed_clips(clips)) as vectors:
        for vector in vectors:
            rows.take(vector)
            if stop.is_set():
                break
        else:
            rows.settle()
        rows.write()
    return stop.is_set()


def _clips(
    listing: Listing, tasks: list[Task], manifest: Manifest, events: deque, stop: threading.Event
) -> Iterator[np.ndarray]:
    """Yield the windows to embed; append to `events` each file's begin, its windows' `(start, end)`, and its end."""
    for task in tasks:
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
    """Rows that are embedded but not yet in the index, and the file that the run is at."""

    def __init__(self, index: IndexFolder, bar: Bar, commit_seconds: float):
        self.index, self.bar, self.commit_seconds = index, bar, commit_seconds
        self.events = deque()
        self.windows = 0
        self.task, self.error = None, ""  # the current file
        self._clear()

    def _clear(self) -> None:
        self.paths, self.times, self.vectors, self.records = [], [], [], []
        self.begun = 0  # the index of the current file's first row
        self.written = time.monotonic()

    def take(self, vector: np.ndarray) -> None:
        """Take the vector of the next window."""
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
        """Process all events before the next window."""
        while self.events and self.events[0][0] != "window":
            name, value = self.events.popleft()
            if name == "begin":
                self.task, self.error, self.begun = value, "", len(self.paths)
            else:
                self._end(value or self.error)

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
        """Discard the rows of the current file, also those that are written."""
        del self.paths[self.begun :], self.times[self.begun :], self.vectors[self.begun :]
        if self.task.first:
            self.index.drop([self.task.sound.path])
            self.task = self.task._replace(first=0)

    def write(self) -> None:
        """Append the rows to the index; of the current file, the windows so far."""
        records, rows = list(self.records), len(self.paths) - self.begun
        if self.task and rows:
            records.append((*self.task, rows, -1, ""))
            self.task = self.task._replace(first=self.task.first + rows)
        if records:
            manifest = self.index.manifest
            starts, ends = np.reshape(self.times, (-1, 2)).T
            codes = encode(np.reshape(self.vectors, (-1, manifest.dims)), manifest.dim, manifest.storage)
            self.index.append(manifest.windows(self.paths, starts, ends, codes), _file_rows(records))
        self._clear()


def _file_rows(rows: list[tuple]) -> pyarrow.Table:
    """Return rows of `files`, from (sound, first, rows, windows, error)."""
    rows = [(sound.path, sound.size, sound.version, *rest) for sound, *rest in rows]
    return pyarrow.Table.from_pylist([dict(zip(FILES.names, row, strict=True)) for row in rows], schema=FILES)
