"""Build an index of sounds, or bring one up to date: embed what is new or has changed, remove what has gone."""

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as pc

from processing.windows import stream_windows
from wavlink.common_sounds import COMMON_SOUNDS
from wavlink.defaults import HOP, PRECISIONS, PROMPT, STORAGE, STORAGES, WINDOW
from wavlink.destinations import check_folder
from wavlink.embedder import Embedder
from wavlink.progress import Bar
from wavlink.vocabulary import unnamed

from . import vector_index
from .changes import Report, Task, compare
from .index_model import check_window_of, embedder_of, new_embedder, preprocessing_of
from .listing import Listing, list_sounds
from .location import is_remote, refuse_former
from .manifest import Manifest
from .metadata import Metadata, Row, bring_up_to_date, with_values
from .roots import change_root
from .rows import skipped_row, skipped_rows, window_rows
from .table import Table, quoted
from .table_errors import unless_preempted
from .table_place import Storage, has_table

_DIM = 48  # the smallest nested dim that is kept by default: fewer dims lower recall
_BYTES_AT_ONCE = 1 << 26  # of vectors that are in memory only


def index_sounds(
    sources: str | Sequence[str] | Listing,
    out: str | os.PathLike,
    model: str | Embedder = "",
    *,
    dim: int | None = None,
    storage: str | None = None,
    rescore_dim: int | None = None,
    window: float | None = None,
    hop: float | None = None,
    root: str = "",
    split: str = "train",
    retry: bool = False,
    metadata: str | os.PathLike | Sequence[str | os.PathLike] = (),
    tags: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
    backend: str | None = None,
    precision: str | None = None,
    commit_seconds: float = 30.0,
    progress: bool = True,
    stop: threading.Event | None = None,
    storage_options: Storage = None,
    embed: Callable[[Table, Embedder, Listing, list[Task], dict[str, Row]], bool] | None = None,
) -> Report:
    """Bring an index up to date with `sources`, or make it. After a kill, the same call goes on.

    A file is recognised by its size and its modification time. Files outside `sources` stay in the index unchanged.

    Args: those of `wavlink.Index.build`, and
        sources: see `list_sounds`, also for `root` and `split`; or the sounds already listed.
        root: another one than that of the index changes the paths of its sounds, see `change_root`.
        commit_seconds: embedded windows are written to the disk at least this often.
        stop: once it is set, what is embedded is written and the run ends.
        embed: embeds files and writes their rows, instead of this process, and returns True if it was stopped.

    Raises:
        ValueError: no sounds; an index of another model or with other options; none of the sounds can be read.
    """
    if not is_remote(out):
        check_folder(out)
    making = {"dim": dim, "storage": storage, "rescore_dim": rescore_dim, "window": window, "hop": hop}
    run = {"device": device, "dtype": dtype, "backend": backend, "precision": precision}
    described_by = Metadata([metadata] if isinstance(metadata, str | os.PathLike) else metadata, tags)
    list_now = partial(_listed, sources, root, split)
    writing, embedder, listing = _begun(out, model, list_now, described_by, making, run, storage_options)
    embed = embed or partial(_embed, commit_seconds=commit_seconds, progress=progress, stop=stop or threading.Event())
    with writing as table:
        # Sounds are listed after the lock is held: another process may have added some just before.
        listing = listing or list_now(table.manifest.root)
        change_root(table, listing.root)
        if embedder and isinstance(model, str):  # where a user has named it
            table.change(model=embedder.name)
        report = _update(table, listing, embedder, retry, described_by, run, embed)
    if not (report.sounds or report.stopped or isinstance(sources, Listing)):
        raise ValueError(none_read(report))
    return report


def _listed(sources: str | Sequence[str] | Listing, root: str, split: str, own: str = "") -> Listing:
    """List the sounds; `own` is the root of the index, if there is one."""
    if isinstance(sources, Listing):
        return sources
    sources = [sources] if isinstance(sources, str | os.PathLike) else sources
    return list_sounds([os.fspath(source) for source in sources], root or own, split)


def _begun(
    out: str | os.PathLike,
    model: str | Embedder,
    list_now: Callable[[], Listing],
    metadata: Metadata,
    making: dict[str, Any],
    run: dict[str, Any],
    storage_options: Storage,
) -> tuple[AbstractContextManager[Table], Embedder | None, Listing | None]:
    """Open the index or plan a new one: how it is held, the model and the sounds as far as they are loaded."""
    if not has_table(out, storage_options):
        refuse_former(out)
        listing, embedder = list_now(), new_embedder(model, **run)
        manifest = _new_manifest(embedder, listing.root, making)
        return Table.create(out, manifest, storage_options), embedder, listing
    table = Table.open(out, storage_options)
    _refuse_other_options(table.manifest, making | {"precision": run["precision"]})
    metadata.check_case(table.metadata_columns)
    run = own_precision(table.manifest, run)
    return table.writing(), embedder_of(table.manifest, model, **run) if model else None, None


def _update(
    table: Table,
    listing: Listing,
    embedder: Embedder | None,
    retry: bool,
    metadata: Metadata,
    run: dict[str, Any],
    embed: Callable[[Table, Embedder, Listing, list[Task], dict[str, Row]], bool],
) -> Report:
    """Write what the listing has that the table lacks, and remove what has gone."""
    changes = compare(listing, table.files(), retry)
    columns, described = bring_up_to_date(table, listing, [task.sound for task in changes.tasks], metadata)
    table.remove(changes.changed + changes.removed)
    stopped, tasks = False, _without_broken(table, changes.tasks, columns)
    if tasks:
        embedder = embedder or embedder_of(table.manifest, **own_precision(table.manifest, run))
        stopped = embed(table, embedder, listing, tasks, columns)
    if not stopped:
        table.compact()
        with unless_preempted():
            vector_index.update(table, partial(text_vectors, embedder) if embedder else None)
    known = table.files()
    report = changes.report(known, listing.unreadable, sum(file.rows for file in known.values()))
    report.stopped, report.described = stopped, described
    return report


def own_precision(manifest: Manifest, run: dict[str, Any]) -> dict[str, Any]:
    """Return how an index's model is run, in the precision of the index unless a `dtype` says otherwise."""
    if run["dtype"] == "float32" and manifest.precision in PRECISIONS:
        return run | {"precision": manifest.precision}
    return run


def _new_manifest(embedder: Embedder, root: str, options: dict) -> Manifest:
    nested = sorted(embedder.matryoshka_dims)
    dim = options["dim"] or next((dim for dim in nested if dim >= _DIM), nested[-1])
    if dim not in nested:
        raise ValueError(f"dim={dim} is none of the model's nested dims: {', '.join(map(str, nested))}")
    storage = options["storage"] or STORAGE
    if storage not in STORAGES:
        raise ValueError(f"no storage {storage!r}; there are {', '.join(STORAGES)}")
    rescore_dim = options["rescore_dim"] or 0
    if rescore_dim and (rescore_dim not in nested or rescore_dim <= dim):
        raise ValueError(f"rescore_dim={rescore_dim} must be one of the model's nested dims over {dim}: {nested}")
    window = min(WINDOW, embedder.max_seconds or WINDOW) if options["window"] is None else options["window"]
    hop = min(HOP, window) if options["hop"] is None else options["hop"]
    check_window_of(embedder, window, hop)
    times = {"window": float(window), "hop": float(hop), "sampling_rate": embedder.sampling_rate}
    run = {"backend": embedder.backend, "precision": embedder.precision, "rescore_dim": rescore_dim}
    run["preprocessing"] = preprocessing_of(embedder)
    return Manifest(embedder.name, embedder.revision, embedder.dims, nested, dim, storage, **times, **run, root=root)


def _refuse_other_options(manifest: Manifest, options: dict) -> None:
    for name, value in options.items():
        current = getattr(manifest, name)
        if value is not None and value != current:
            raise ValueError(
                f"the index has {name}={current}, not {value}: leave it out, or index into another folder"
            )


def _without_broken(table: Table, tasks: list[Task], columns: dict[str, Row]) -> list[Task]:
    """Write the errors that are known from the listing, and return the other tasks."""
    broken = [task.sound for task in tasks if task.sound.error]
    if broken:
        rows = skipped_rows(table.manifest, broken, [sound.error for sound in broken])
        table.append(with_values(rows, columns, table.schema))
    return [task for task in tasks if not task.sound.error]


def none_read(report: Report) -> str:
    """Return the words of an error for an index without any sound."""
    path, error = next(iter(report.skipped.items()))
    return f"none of {len(report.skipped)} sounds can be read; the first, {path}: {error}"


def _embed(
    table: Table,
    embedder: Embedder,
    listing: Listing,
    tasks: list[Task],
    columns: dict[str, Row],
    commit_seconds: float,
    progress: bool,
    stop: threading.Event,
) -> bool:
    """Embed files and write their rows; return True if `stop` was set."""
    bar = Bar(total=len(tasks), desc="sounds", unit="file", disable=not progress)
    rows = _Rows(table, columns, bar, commit_seconds)
    clips = _clips(listing, tasks, table.manifest, rows.events, stop)
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

    def __init__(self, table: Table, columns: dict[str, Row], bar: Bar, commit_seconds: float):
        self.table, self.columns, self.bar, self.commit_seconds = table, columns, bar, commit_seconds
        self.events = deque()
        self.windows = 0  # of all files
        self.task, self.error = None, ""  # the current file
        self.times, self.vectors = [], []  # its windows that are not in `ready`
        self.ready, self.bytes = [], 0
        self.written = time.monotonic()

    def take(self, vector: np.ndarray) -> None:
        """Take the vector of the next window."""
        self.settle()
        _, times = self.events.popleft()
        if not (np.isfinite(vector).all() and vector[: self.table.manifest.dim].any()):
            self.error = f"the model gives it a vector that is zero or not finite, from {times[0]:g} s on"
            self._forget()
        if self.error:
            return
        self.windows += 1
        self.bar.set_postfix(windows=self.windows, refresh=False)
        self.times.append(times)
        self.vectors.append(vector)
        self.bytes += vector.nbytes
        if time.monotonic() - self.written > self.commit_seconds or self.bytes > _BYTES_AT_ONCE:
            self.write()

    def settle(self) -> None:
        """Process all events before the next window."""
        while self.events and self.events[0][0] != "window":
            name, value = self.events.popleft()
            if name == "begin":
                self.task, self.error = value, ""
            else:
                self._end(value or self.error)

    def _end(self, error: str) -> None:
        if error:
            self._forget()
            self.ready.append(skipped_row(self.table.manifest, self.task.sound, error))
        elif self.task.first:  # earlier rows of the file are in the table
            self.write()
            path, windows = self.task.sound.path, self.task.first
            self.table.complete(path, windows, self._last(path))
        else:
            self._stage(len(self.times), self.times[-1][1] if self.times else None)
        self.task = None
        self.bar.update()

    def _last(self, path: str) -> float:
        """Return the end of a file's last window."""
        return max(pc.max(batch["end"]).as_py() for batch in self.table.scan(["end"], f"path = {quoted(path)}"))

    def _stage(self, windows: int = -1, duration: float | None = None) -> None:
        """Make rows of the current file's windows."""
        facts = {"first": self.task.first, "windows": windows, "duration": duration}
        self.ready.append(window_rows(self.table.manifest, self.task.sound, self.times, self.vectors, **facts))
        self.task = self.task._replace(first=self.task.first + len(self.times))
        self.times, self.vectors = [], []

    def _forget(self) -> None:
        """Discard the rows of the current file, also those that are written."""
        self.times, self.vectors = [], []
        if self.task.first:
            self.table.remove([self.task.sound.path])
            self.task = self.task._replace(first=0)

    def write(self) -> None:
        """Append the rows to the index in one commit; of the current file, the windows so far."""
        if self.task and self.times:
            self._stage()
        if self.ready:
            self.table.append(with_values(pyarrow.concat_tables(self.ready), self.columns, self.table.schema))
        self.ready, self.bytes, self.written = [], 0, time.monotonic()


def text_vectors(embedder: Embedder) -> np.ndarray:
    """Return vectors `[N, dims]` of sentences to measure a vector index with."""
    with unnamed():
        return embedder.embed_text([PROMPT.replace("{}", name) for name in COMMON_SOUNDS])
