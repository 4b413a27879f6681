"""A collection embedded by a Ray cluster: an `Embedder` an actor, Ray Data between them, rows of parquet at the end.

    python -m wavlink.search.ray SOUNDS --model your-name/wavlink-base --out FOLDER --address auto

The same command again goes on where it was killed, and takes in what has been added, changed and removed. A file that
cannot be embedded, because it is broken or because it makes its worker die, is noted with the reason and left out from
then on; `--retry` tries such files again. `datasets.load_dataset("parquet", data_files="FOLDER/*.parquet")`
reads the rows; `python -m wavlink.search.lance load FOLDER` takes them into a vector database.

Sounds and model are read by the workers: both must be there under the same name on every machine (a shared disk, a
Hub id), and this package installed. The rows come to the machine that the command runs on.
"""

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from processing.windows import check_window, stream_windows
from wavlink import options as of
from wavlink.compat import map_batches
from wavlink.embedder import Embedder
from wavlink.progress import Bar
from wavlink.sanitize import printable

from .build import HOP, WINDOW
from .embedded_rows import Report, failed, fixed_size_list, parts_of  # noqa: F401 - for those who read the rows
from .embedded_rows import Rows as _Rows
from .listing import Sound, list_sounds

_TRIES = 2  # of a file alone whose worker dies
_FAULTS = (Exception, SystemExit)  # what may come of a file


class FileEmbedder(Embedder):
    """The `Embedder` that all else uses, as Ray's actor: takes files, gives a row a window.

    Args:
        model, revision, device, dtype: of `Embedder`.
        window, hop: in seconds, see `processing.windows.stream_windows`.
        expected: the revision that the weights must have, on whatever machine this is.
        journal: Ray's handle of a `Journal`, which outlives this process.
    """

    def __init__(self, model: str, *, window: float, hop: float, expected: str, journal=None, **options):
        super().__init__(model, **options)
        self.window, self.hop, self.journal = window, hop, journal
        if self.revision != expected:
            raise ValueError(f"{model} is at {self.revision} on this machine, not at {expected}: copy it anew")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """
        Args:
            batch: `path` is what the rows call a file, `place` where it is, as bytes.

        Returns:
            `path`, `start` and `end` in seconds, `embedding` `[rows, dims]` fp32, `error`, and `windows`: how many
            rows the file has. One that cannot be embedded to its end has one row, of NaN, and the error.
        """
        if self._deaths(*batch["path"]) == 0:
            with suppress(*_FAULTS):
                return self._rows(batch)
        files = ({name: column[n : n + 1] for name, column in batch.items()} for n in range(len(batch["path"])))
        alone = [self._alone(file) for file in files]
        return {name: np.concatenate([rows[name] for rows in alone]) for name in alone[0]}

    def _alone(self, file: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The rows of a batch of one file: the fault is its own."""
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
        """How many workers have died over this; from now on this one is at it."""
        if not self.journal:
            return 0
        import ray

        return ray.get(self.journal.begin.remote(names))

    def _rows(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same, of files that are embedded together: a fault of the model is one of them all."""
        taken, errors = [], {}
        vectors = list(self.embed_clips(self._windows(batch, taken, errors)))
        for (number, *_), vector in zip(taken, vectors, strict=True):
            if not np.isfinite(vector).all():
                errors.setdefault(number, f"the model gives {batch['path'][number]} a vector that is not finite")
        rows = [(*window, vector) for window, vector in zip(taken, vectors, strict=True) if window[0] not in errors]
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

    def _windows(self, batch: dict, taken: list, errors: dict) -> Iterator[np.ndarray]:
        """Of each file, whose number in the batch and times go to `taken`, the windows' samples."""
        for number, (path, place) in enumerate(zip(batch["path"], batch["place"], strict=True)):
            try:
                for window in stream_windows(os.fsdecode(place), self.window, self.hop, self.sampling_rate, path):
                    taken.append((number, window.start, window.end))
                    yield window.samples
            except _FAULTS as error:
                errors[number] = _reason(error)


class Journal:
    """What workers have begun and not ended, as they may die meanwhile."""

    def __init__(self):
        self.begun = Counter()

    def begin(self, names: tuple[str, ...]) -> int:
        """How often it has been begun before."""
        self.begun[names] += 1
        return self.begun[names] - 1

    def end(self, names: tuple[str, ...]) -> None:
        self.begun[names] -= 1  # that of this worker: deaths of others still count


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
    commit_seconds: float = 30.0,
    progress: bool = True,
    retry: bool = False,
) -> Report:
    """Embeds every sound that has no rows in `out` yet, or has changed. Killed at any moment, the same call goes on.

    Rows are written by whole files. A file is known again by its size and its time of change; rows of files that are
    gone are removed. A worker that dies is replaced by Ray, and the next one embeds the files that it was at one by
    one. A file whose worker dies while it embeds this one alone, twice, has an error for a row.

    Args:
        sources: folders and files, see `list_sounds`; rows have paths below their common folder.
        model, revision, device, dtype: see `Embedder`; each actor on "cuda" has a GPU of its own.
        out: a folder of this machine, for parquet files of `path`, `start` and `end` (seconds), `embedding` (fp32
            `[dims]`, L2-normalised) and `error`, which is "" unless the file cannot be read: then it has one row, with
            null for the times and NaN for the vector.
        actors: models in the cluster.
        batch_size: files that an actor takes at a time.
        address: of the cluster, or "auto"; without, that of RAY_ADDRESS, else one is started on this machine.
        window, hop: in seconds.
        commit_seconds: what has come back is on the disk after about so long.
        retry: also files that earlier runs could not embed and that have not changed.

    Raises:
        ValueError: wrong options, no sounds, a data set, or a folder with rows of another model or other windows.
        OSError: the worker of every single file dies, and there are no rows of earlier runs.
    """
    if actors < 1 or batch_size < 1:
        raise ValueError(f"actors and batch_size must be 1 or more, got {actors} and {batch_size}")
    listing = list_sounds([sources] if isinstance(sources, str | os.PathLike) else sources)
    if listing.rows is not None:
        raise ValueError(f"{listing.root} is a data set; workers read files: save its sounds as such on a shared disk")
    model = os.path.abspath(model) if os.path.isdir(model) else model
    embedder = Embedder(model, revision=revision, device="cpu", dtype=dtype, fast_kernels=False)
    check_window(window, hop, embedder.sampling_rate)
    if embedder.max_seconds and window > embedder.max_seconds:
        raise ValueError(f"a window of {window:g} s is more than the model's {embedder.max_seconds:g} s")
    about = {"model": model, "revision": embedder.revision, "dims": embedder.dims}
    about |= {"matryoshka_dims": embedder.matryoshka_dims, "window": window, "hop": hop, "root": listing.root}
    options = {"device": device, "dtype": dtype, "window": window, "hop": hop, "expected": embedder.revision}
    if revision:
        options["revision"] = embedder.revision  # the commit that a branch was at
    with _Rows(Path(out), about, commit_seconds) as rows:
        todo = rows.compare(listing, retry)
        if todo:
            _start(address)
            with Bar(total=len(todo), desc="sounds", unit="file", disable=not progress) as bar:
                for batch in _embedded(todo, model, options, actors, batch_size):
                    bar.update(rows.take(batch))
            rows.quarantine([sound.path for sound in todo if sound.path not in rows.known])
            rows.write()
    return rows.report


def _start(address: str | None) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports home unless it is told not to
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, **({} if address else {"include_dashboard": False}))


def _embedded(sounds: list[Sound], model: str, options: dict, actors: int, batch_size: int) -> Iterator[dict]:
    """Batches of rows as `FileEmbedder` gives them, in the order in which they are ready.

    Those of a batch do not come if its workers died even more often than its files account for.
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

    files = [{"path": sound.path, "place": os.fsencode(sound.place)} for sound in sounds]
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


def main(arguments: list[str] | None = None) -> None:
    run(of.parser_of(of.ray, "wavlink ray", __doc__).parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    options = dict(vars(options))
    report = embed_with_ray(options.pop("sounds"), **options)
    print(
        f"{report.embedded} sounds embedded in {report.rows} rows ({report.changed} of them changed), "
        f"{report.there} were there, {report.removed} removed; {len(report.unreadable)} cannot be read"
    )
    for path, error in report.unreadable.items():
        print(f"  {printable(path)}: {printable(error)}")
