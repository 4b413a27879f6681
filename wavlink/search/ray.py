"""Index a collection on a Ray cluster: Ray Data distributes files, each actor has an `Embedder` and writes its rows.

    wavlink ray SOUNDS --model your-name/wavlink-base --out s3://bucket/index --address auto

The index is the one of `wavlink index`, and `wavlink query` searches it. Actors write fragments of Lance's table, of
complete files; the driver commits many of them at once. What a killed process has written counts for nothing. The same
command again goes on, and follows files that were added, changed or removed. A file that cannot be embedded, since it
is broken or kills its worker, is skipped by name from then on; `--retry` tries such files again.

The workers read sounds and model, and write to the index: every machine needs these under the same names (a shared
disk, object storage, a Hub id), and this package.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute as pc
from lance.fragment import FragmentMetadata

from wavlink.backends.choice import choose
from wavlink.bundled_models import DEFAULT, resolve
from wavlink.compat import map_batches
from wavlink.embedder import Embedder
from wavlink.options import indexes as of
from wavlink.parsing import main_of
from wavlink.progress import Bar
from wavlink.sanitize import printable

from .build import index_sounds
from .changes import Report, Task
from .concurrent_writes import rewritten
from .index_model import is_commit, new_embedder
from .listing import Listing, Sound, is_data_set
from .metadata import Row, with_values
from .ray_actors import TRIES, FileEmbedder, Journal
from .rows import skipped_row
from .table import Storage, Table

_FRAGMENTS_AT_ONCE = 1000  # at most, of one commit


def embed_with_ray(
    sources: str | Sequence[str],
    model: str,
    out: str | os.PathLike,
    *,
    actors: int = 2,
    batch_size: int = 64,
    address: str | None = None,
    dim: int | None = None,
    storage: str | None = None,
    rescore_dim: int | None = None,
    window: float | None = None,
    hop: float | None = None,
    root: str = "",
    retry: bool = False,
    metadata: str | os.PathLike | Sequence[str | os.PathLike] = (),
    tags: bool = False,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    backend: str | None = None,
    precision: str | None = None,
    commit_seconds: float = 30.0,
    progress: bool = True,
    storage_options: Storage = None,
) -> Report:
    """Bring an index up to date on a Ray cluster, or make it, as `index_sounds` does.

    Ray replaces a worker that dies; the next one embeds the files of that batch one by one. A file over which a worker
    has died twice, embedding this file alone, is skipped.

    Args:
        sources: folders and files, see `list_sounds`.
        model, revision, device, dtype, backend, precision: see `Embedder`; on "cuda" each actor has one GPU.
        out: the index: a folder that all machines share, or its address in object storage.
        actors: models in the cluster.
        batch_size: files that an actor takes at a time; their rows are one fragment of the table.
        address: of the cluster, or "auto" (default: RAY_ADDRESS; without it, Ray is started on this machine).
        dim, storage, rescore_dim, window, hop, root, retry, metadata, tags, storage_options: see `index_sounds`.
        commit_seconds: what the workers have written is committed about this often.

    Raises:
        ValueError: wrong options, a data set, or what `index_sounds` raises.
        OSError: the workers cannot write, or those of all files die, and the index has held no rows before.
    """
    if actors < 1 or batch_size < 1:
        raise ValueError(f"actors and batch_size must be 1 or more, got {actors} and {batch_size}")
    sources = [os.fspath(each) for each in ([sources] if isinstance(sources, str | os.PathLike) else sources)]
    if sources and is_data_set(sources):
        raise ValueError(
            f"{sources[0]} is no file or folder here; workers read files: save a data set's sounds on a shared disk"
        )
    given = {"backend": backend, "precision": precision}
    run: dict[str, Any] = dict(given)
    if device.partition(":")[0] != "cpu":  # of the workers; this process looks at the model on its CPU
        choose(**given, folder=Path(resolve(model or DEFAULT)), device=device, dtype=dtype)
        run = dict.fromkeys(given)
    here: str | Embedder = new_embedder(model, "cpu", dtype, revision, **run) if revision else model
    workers = {"device": device, "dtype": dtype, **given}
    cluster = {"actors": actors, "batch_size": batch_size, "address": address, "workers": workers}
    embed = partial(_embed, **cluster, commit_seconds=commit_seconds, progress=progress)
    new = {"dim": dim, "storage": storage, "rescore_dim": rescore_dim, "window": window, "hop": hop}
    files = {"root": root, "retry": retry, "metadata": metadata, "tags": tags}
    run |= {"dtype": dtype, "storage_options": storage_options}
    return index_sounds(sources, out, here, **new, **files, **run, embed=embed)


def _embed(
    table: Table,
    embedder: Embedder,
    listing: Listing,
    tasks: list[Task],
    columns: dict[str, Row],
    *,
    actors: int,
    batch_size: int,
    address: str | None,
    workers: dict[str, str | None],
    commit_seconds: float,
    progress: bool,
) -> bool:
    """Embed files on the cluster, and commit their rows; see `index_sounds`."""
    table.remove([task.sound.path for task in tasks if task.first])  # workers write complete files
    options = {**workers, "index": table.index, "storage_options": table.storage_options}
    options["expected"] = embedder.revision
    if workers["device"] == "cpu":
        options |= {"backend": embedder.backend, "precision": embedder.precision}
    if is_commit(embedder.revision) and not os.path.isdir(embedder.name):
        options["revision"] = embedder.revision  # the commit that a branch was at
    sounds = [task.sound for task in tasks]
    written = _Written(table, commit_seconds)
    _start(address)
    with Bar(total=len(sounds), desc="sounds", unit="file", disable=not progress) as bar:
        for result in _embedded(files_of(sounds, columns), embedder.name, options, actors, batch_size):
            bar.update(written.take(json.loads(result)))
    written.commit()
    _quarantine(table, [sound for sound in sounds if sound.path not in written.paths], columns)
    return False


class _Written:
    """Fragments that workers have written and that are not committed yet.

    Attributes:
        paths: of all files whose rows have come.
    """

    def __init__(self, table: Table, commit_seconds: float):
        self.table, self.commit_seconds = table, commit_seconds
        self.paths: set[str] = set()
        self.fragments: list[FragmentMetadata] = []
        self.committed = time.monotonic()

    def take(self, written: dict[str, Any]) -> int:
        """Take a result of `FileEmbedder`, and return how many files are complete with it.

        Raises:
            OSError: the worker could not write.
            ValueError: it has written to a disk of its own.
        """
        if "error" in written:
            raise OSError(f"a worker cannot write: {written['error']}")
        fragments = [FragmentMetadata.from_json(json.dumps(fragment)) for fragment in written["fragments"]]
        self._refuse_other_disk(fragments)
        again = self.paths.intersection(written["paths"])  # a task done again
        if again:
            names = pyarrow.array(sorted(again), pyarrow.string())
            fragments = rewritten(
                self.table, fragments, lambda rows: ~pc.is_in(rows["path"], names).to_numpy().astype(bool)
            )
        self.paths.update(written["paths"])
        self.fragments += fragments
        if len(self.fragments) >= _FRAGMENTS_AT_ONCE or time.monotonic() - self.committed > self.commit_seconds:
            self.commit()
        return len(written["paths"]) - len(again)

    def commit(self) -> None:
        """Let all that has come count, in one commit."""
        if self.fragments:
            self.table.commit(self.fragments)
        self.fragments, self.committed = [], time.monotonic()

    def _refuse_other_disk(self, fragments: list[FragmentMetadata]) -> None:
        names = [file.path for fragment in fragments for file in fragment.files]
        if self.table.checksums and not all((Path(self.table.uri) / "data" / name).exists() for name in names):
            raise ValueError(
                f"a worker has written to a disk of its own: {self.table.index} must be one that all share"
            )


def _quarantine(table: Table, sounds: list[Sound], columns: dict[str, Row]) -> None:
    """Write an error for files of which no row has come back.

    Raises:
        OSError: no file has ever been embedded into this index, so that the files are hardly the cause.
    """
    if not sounds:
        return
    if len(sounds) > 1 and not table.windows():
        raise OSError(f"the workers of all {len(sounds)} files have died, such as of {sounds[0].path}: see Ray's logs")
    why = "its worker died again and again; --retry tries again"
    rows = pyarrow.concat_tables([skipped_row(table.manifest, sound, why) for sound in sounds])
    table.append(with_values(rows, columns, table.schema))


def _start(address: str | None) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray sends usage reports
    if not ray.is_initialized():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "lance is not fork-safe")  # Ray starts programs in what it forks
            ray.init(address=address, log_to_driver=False, include_dashboard=None if address else False)


def _embedded(files: list[dict[str, Any]], model: str, options: dict, actors: int, batch_size: int) -> Iterator[str]:
    """Yield the results of `FileEmbedder`, in the order in which they are ready.

    A batch is missing if its workers died more often than its files account for.
    """
    import ray.data

    options = options | {"journal": ray.remote(num_cpus=0)(Journal).remote()}

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    with ray.data.DataContext.current(context):
        for results in _batches(files, model, options, actors, batch_size):
            yield from results["written"].tolist()


def files_of(sounds: Sequence[Sound], columns: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Return sounds as rows of Ray Data, for `FileEmbedder`.

    Args:
        columns: of metadata, by path.
    """
    return [
        {
            "path": sound.path,
            "size": sound.size,
            "version": sound.version,
            "source": os.fsencode(str(sound.source)),
            "columns": json.dumps(columns.get(sound.path, {})),
        }
        for sound in sounds
    ]


def _batches(files: list[dict[str, Any]], model: str, options: dict, actors: int, batch_size: int) -> Iterator[dict]:
    import ray.data

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
        max_task_retries=1 + (TRIES + 1) * batch_size,
    )
    return embedded.iter_batches(batch_size=None, batch_format="numpy")


def run(options: argparse.Namespace) -> None:
    """Embed, and print what was done."""
    options = dict(vars(options))
    report = embed_with_ray(options.pop("sounds"), **options)
    print(report)
    for path, error in report.skipped.items():
        print(f"  {printable(path)}: {printable(error)}")


main = main_of("wavlink ray", of.ray, run)
