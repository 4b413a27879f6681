"""Embed a collection on a Ray cluster: each actor has an `Embedder`, Ray Data distributes files, rows go to parquet.

    wavlink ray SOUNDS --model your-name/wavlink-base --out FOLDER --address auto

The same command again goes on after a kill, and follows files that were added, changed or removed. A file that cannot
be embedded, because it is broken or because it kills its worker, gets a row with the reason and is skipped from then
on; `--retry` tries such files again. `datasets.load_dataset("parquet", data_files="FOLDER/*.parquet")`
reads the rows; `wavlink lance load FOLDER` loads them into a vector database.

The workers read sounds and model: every machine needs both under the same name (a shared disk, a Hub id), and this
package. The rows are written on the machine that the command runs on.
"""

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from processing.windows import stream_windows
from wavlink import options as of
from wavlink.backends.choice import choose
from wavlink.bundled_models import DEFAULT, resolve
from wavlink.compat import map_batches
from wavlink.destinations import check_folder
from wavlink.embedder import Embedder
from wavlink.progress import Bar
from wavlink.sanitize import printable

from .build import HOP, WINDOW
from .changes import Report
from .embedded_rows import Rows as _Rows
from .embedded_rows import failed, fixed_size_list, parts_of  # noqa: F401 - for readers of the rows
from .index_model import check_window_of, portable
from .listing import Listing, Sound, list_sounds

_TRIES = 2  # how often a worker may die over one file alone
_FAULTS = (Exception, SystemExit)  # that a file may raise


class FileEmbedder(Embedder):
    """Ray actor that embeds files, and returns a row per window.

    Args:
        model, revision, device, dtype, backend, precision: of `Embedder`.
        window, hop: in seconds, see `processing.windows.stream_windows`.
        expected: the revision that the weights must have on every machine.
        journal: Ray's handle of a `Journal`, which outlives this process.
    """

    def __init__(self, model: str, *, window: float, hop: float, expected: str, journal: Any = None, **options: Any):
        super().__init__(model, **options)
        self.window, self.hop, self.journal = window, hop, journal
        if self.revision != expected:
            raise ValueError(f"{model} is at {self.revision} on this machine, not at {expected}: copy it anew")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Embed a batch of files.

        Args:
            batch: `path`, the name of each file in the rows, and `file`, its full path as bytes.

        Returns:
            `path`, `start` and `end` in seconds, `embedding` `[rows, dims]` fp32, `error`, and `windows`: how many
            rows the file has. A file that cannot be embedded to its end has one row, of NaN, and the error.
        """
        if self._deaths(*batch["path"]) == 0:
            with suppress(*_FAULTS):
                return self._rows(batch)
        files = ({name: column[n : n + 1] for name, column in batch.items()} for n in range(len(batch["path"])))
        results = [self._alone(file) for file in files]
        return {name: np.concatenate([rows[name] for rows in results]) for name in results[0]}

    def _alone(self, file: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the rows of a batch of one file, which alone can be the cause of an error."""
        path = file["path"][0]
        if self._deaths("alone", path) >= _TRIES:
            why = f"its worker died {_TRIES} times while it embedded {path} alone; --retry tries again"
            return failed(path, why, self.dims)
        try:
            rows = self._rows(file)
        except _FAULTS as error:
            rows = failed(path, _reason(error), self.dims)
        if self.journal:
            self.journal.end.remote(("alone", path))
        return rows

    def _deaths(self, *names: str) -> int:
        """Return how many workers have died over these files, and note that this one begins with them."""
        if not self.journal:
            return 0
        import ray

        return ray.get(self.journal.begin.remote(names))

    def _rows(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the rows of files that are embedded together; an error of the model is raised."""
        times, errors = [], {}
        vectors = list(self.embed_clips(self._windows(batch, times, errors)))
        for (number, *_), vector in zip(times, vectors, strict=True):
            if not np.isfinite(vector).all():
                errors.setdefault(number, f"the model gives {batch['path'][number]} a vector that is not finite")
        rows = [(*window, vector) for window, vector in zip(times, vectors, strict=True) if window[0] not in errors]
        rows += [(number, np.nan, np.nan, np.full(self.dims, np.nan, np.float32)) for number in errors]
        numbers, starts, ends, vectors = zip(*rows, strict=True)
        return {
            "path": batch["path"][list(numbers)],
            "start": np.array(starts, np.float64),
            "end": np.array(ends, np.float64),
            "embedding": np.stack(vectors),
            "error": np.array([errors.get(number, "") for number in numbers], dtype=str),
            "windows": np.bincount(numbers)[list(numbers)],
        }

    def _windows(self, batch: dict, times: list, errors: dict) -> Iterator[np.ndarray]:
        """Yield the samples of each window; append (number of the file in the batch, start, end) to `times`."""
        for number, (path, file) in enumerate(zip(batch["path"], batch["file"], strict=True)):
            try:
                for window in stream_windows(os.fsdecode(file), self.window, self.hop, self.sampling_rate, path):
                    times.append((number, window.start, window.end))
                    yield window.samples
            except _FAULTS as error:
                errors[number] = _reason(error)


class Journal:
    """Record of the files that workers have begun and not finished: a worker may die over them."""

    def __init__(self) -> None:
        self.begun = Counter()

    def begin(self, names: tuple[str, ...]) -> int:
        """Note that a worker begins with these files, and return how many have begun and not finished before."""
        self.begun[names] += 1
        return self.begun[names] - 1

    def end(self, names: tuple[str, ...]) -> None:
        """Note that this worker has finished; deaths of others still count."""
        self.begun[names] -= 1


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def embed_with_ray(
    sources: str | Sequence[str],
    model: str,
    out: str | os.PathLike,
    *,
    actors: int = 2,
    batch_size: int = 64,
    address: str | None = None,
    window: float = WINDOW,
    hop: float = HOP,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    backend: str | None = None,
    precision: str | None = None,
    commit_seconds: float = 30.0,
    progress: bool = True,
    retry: bool = False,
) -> Report:
    """Embed every sound that has no rows in `out` yet or has changed. After a kill, the same call goes on.

    A file is recognised by its size and its modification time. The rows of files that have gone are removed. Ray
    replaces a worker that dies; the next one embeds the files of that batch one by one. A file over which a worker has
    died twice, embedding this file alone, gets an error.

    Args:
        sources: folders and files, see `list_sounds`; paths in the rows are relative to their common folder.
        model, revision, device, dtype, backend, precision: see `Embedder`; on "cuda" each actor has one GPU.
        out: a folder of this machine, for parquet files of `path`, `start` and `end` (seconds), `embedding` (fp32
            `[dims]`, L2-normalised) and `error`, which is "" unless the file cannot be read: then it has one row, with
            null for the times and NaN for the vector.
        actors: models in the cluster.
        batch_size: files that an actor takes at a time.
        address: of the cluster, or "auto" (default: RAY_ADDRESS; without it, Ray is started on this machine).
        window, hop: in seconds.
        commit_seconds: rows that have come back are written to the disk about this often.
        retry: embed files too that earlier runs could not embed.

    Raises:
        ValueError: wrong options, no sounds, a data set, or a folder with rows of another model or other windows.
        OSError: the workers of all files die, and no earlier run has written rows.
    """
    if actors < 1 or batch_size < 1:
        raise ValueError(f"actors and batch_size must be 1 or more, got {actors} and {batch_size}")
    listing = list_sounds([sources] if isinstance(sources, str | os.PathLike) else sources)
    if listing.rows is not None:
        raise ValueError(f"{listing.root} is a data set; workers read files: save its sounds as such on a shared disk")
    check_folder(out)
    model = portable(model or DEFAULT)
    run = {"backend": backend, "precision": precision}
    if device.partition(":")[0] != "cpu":  # of the workers; this process looks at the model on its CPU
        choose(**run, folder=Path(resolve(model)), device=device, dtype=dtype)
        embedder = Embedder(model, revision=revision, dtype=dtype, fast_kernels=False)
    else:
        embedder = Embedder(model, revision=revision, dtype=dtype, fast_kernels=False, **run)
    check_window_of(embedder, window, hop)
    options = {"device": device, "dtype": dtype, "window": window, "hop": hop, "expected": embedder.revision, **run}
    if revision:
        options["revision"] = embedder.revision  # the commit that a branch was at
    about = _about(embedder, model, window, hop, listing)
    if precision not in (None, "fp32"):
        about["precision"] = precision
    with _Rows(Path(out), about, commit_seconds) as rows:
        changes = rows.compare(listing, retry)
        sounds = [task.sound for task in changes.tasks]
        if sounds:
            _start(address)
            with Bar(total=len(sounds), desc="sounds", unit="file", disable=not progress) as bar:
                for batch in _embedded(sounds, model, options, actors, batch_size):
                    bar.update(rows.take(batch))
            rows.quarantine([sound.path for sound in sounds if sound.path not in rows.known])
            rows.write()
        return rows.report(changes, listing)


def _about(embedder: Embedder, model: str, window: float, hop: float, listing: Listing) -> dict:
    """Describe how rows are made; rows of one folder must agree in all of it."""
    about = {"model": model, "revision": embedder.revision, "dims": embedder.dims}
    return about | {"matryoshka_dims": embedder.matryoshka_dims, "window": window, "hop": hop, "root": listing.root}


def _start(address: str | None) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray sends usage reports
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, **({} if address else {"include_dashboard": False}))


def _embedded(sounds: list[Sound], model: str, options: dict, actors: int, batch_size: int) -> Iterator[dict]:
    """Yield batches of `FileEmbedder`'s rows, in the order in which they are ready.

    A batch is missing if its workers died more often than its files account for.
    """
    import ray.data

    options = options | {"journal": ray.remote(num_cpus=0)(Journal).remote()}

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    with ray.data.DataContext.current(context):
        yield from _batches(sounds, model, options, actors, batch_size)


def _batches(sounds: list[Sound], model: str, options: dict, actors: int, batch_size: int) -> Iterator[dict]:
    import ray.data

    files = [{"path": sound.path, "file": os.fsencode(sound.source)} for sound in sounds]
    blocks = -(-len(files) // batch_size)
    embedded = map_batches(
        ray.data.from_items(files, override_num_blocks=blocks),
        FileEmbedder,
        fn_constructor_args=(model,),
        fn_constructor_kwargs=options,
        batch_size=batch_size,
        # one at a time: a worker that dies has no other batch
        compute=ray.data.ActorPoolStrategy(size=min(actors, blocks), max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=int(options["device"].startswith("cuda")),
        max_restarts=-1,
        max_task_retries=1 + (_TRIES + 1) * batch_size,
    )
    return embedded.iter_batches(batch_size=None, batch_format="numpy")


def run(options: argparse.Namespace) -> None:
    """Embed, and print what was done."""
    options = dict(vars(options))
    report = embed_with_ray(options.pop("sounds"), **options)
    print(report)
    for path, error in report.skipped.items():
        print(f"  {printable(path)}: {printable(error)}")


main = of.main_of("wavlink ray", of.ray, run)
