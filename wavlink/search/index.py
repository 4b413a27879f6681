"""Search an index by texts and by similar sounds, and away from unwanted ones."""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow

from processing.audio import AudioSource
from processing.audio_inputs_wavlink import is_source
from processing.windows import stream_windows
from wavlink.console import print_json
from wavlink.embedder import Embedder, mean_direction
from wavlink.probability import Calibration, background_of, calibration_of, check_probability
from wavlink.sanitize import clean

from .index_model import embedder_of
from .listing import file_of
from .manifest import Manifest
from .nearest import nearest
from .scoring import truncated, unit, vectors_of
from .table import Storage, Table

WEIGHT = 0.5  # of the unwanted direction beside the wanted one
_SAMPLE = 4096  # windows at most, evenly spaced, that a query's background is taken from


@dataclass(frozen=True)
class Hit:
    """A window of a sound: `score` is the cosine with the query, `start` and `end` are in seconds."""

    path: str  # relative to the index's root
    score: float
    start: float
    end: float
    file: str | None = None  # the full path; None if the index's root is not known on this machine
    missing: bool = False  # the file has gone
    changed: bool = False  # the file is not the one that was embedded: index it again
    probability: float | None = None  # of a match with a query of one text (see `Index.query`)
    calibration: str | None = None  # where that is from: "model", or "index", its own cosines
    metadata: dict[str, Any] = field(default_factory=dict)  # columns of the index that describe the sound


class Index:
    """Index of sounds, made by `Index.build` or opened by `Index.open`.

    `len(index)` is its number of windows. Its sounds are found by text, by similar sounds, or both. Each query sees
    the latest version, also where another process adds sounds.

    Attributes:
        manifest: model, dims, storage, window and hop in seconds.
        embedder: the model that the index was made with, loaded when it is first needed.
        skipped: after `build`, why files were skipped, by path.

    Raises:
        ValueError: no index, or a damaged one.

    Example:

    ```python
    >>> from wavlink import Index
    >>> index = Index.build(sounds_folder, output_folder / "index", model_folder, progress=False)
    >>> hits = index.query("a low sound", top_k=2)
    >>> len(hits), hits[0].score >= hits[1].score, hits[0].path.endswith(".wav")
    (2, True, True)
    >>> len(Index.open(output_folder / "index")) == len(index)
    True

    ```
    """

    def __init__(self, table: Table, dim: int, options: dict, root: str = ""):
        self.table, self._dim, self._options, self._root = table, dim, options, root
        self._embedder: Embedder | None = None
        self._windows: tuple[int, int] | None = None  # of a version of the table
        self.skipped: dict[str, str] = {}

    @property
    def manifest(self) -> Manifest:
        """How the index was made."""
        return self.table.manifest

    @classmethod
    def build(
        cls,
        sounds: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        folder: str | os.PathLike[str],
        model: str | os.PathLike[str] | Embedder = "",
        *,
        dim: int | None = None,
        storage: str | None = None,
        window: float | None = None,
        hop: float | None = None,
        split: str = "train",
        retry: bool = False,
        metadata: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        tags: bool = False,
        device: str = "cpu",
        dtype: str = "float32",
        backend: str | None = None,
        precision: str | None = None,
        progress: bool = True,
    ) -> "Index":
        """Bring an index up to date with `sounds`, or make it, and open it. After a kill, the same call goes on.

        Files that have not changed are not embedded again. Files that cannot be read are skipped: the index's
        `skipped` says why, by path.

        Args:
            sounds: folders, files, `@list.txt` or one data set (a Hub id).
            folder: of the index.
            model: a folder or Hub id (see `Embedder`), or an `Embedder` (default of a new index: the bundled
                `wavlink-tiny`).
            dim: one of the nested dims, for a new index (default: the smallest from 48 on).
            storage: for a new index, fp32 or fp16 (default: fp16).
            window: seconds embedded at once, for a new index (default: 10).
            hop: seconds from window to window, for a new index (default: 5).
            split: of a data set.
            retry: embed files too that earlier runs skipped.
            metadata: CSV files or JSON lines with a column `file_name`; the others become columns of the index.
            tags: keep title, artist, album, genre, date and comment of the sound files as columns.
            device: such as `"cuda"`.
            dtype: `"float32"`, `"bfloat16"` or `"float16"`.
            backend, precision: see `Embedder`.
            progress: show a progress bar.

        Raises:
            ValueError: no sounds, none that can be read, an index of another model or with other options.
        """
        from .build import index_sounds  # needs packages that searching does not

        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        options = {"dim": dim, "storage": storage, "window": window, "hop": hop, "split": split, "retry": retry}
        options |= {"metadata": metadata, "tags": tags}
        report = index_sounds(
            *(sounds, folder, model),
            **options,
            device=device,
            dtype=dtype,
            backend=backend,
            precision=precision,
            progress=progress,
        )
        index = cls.open(folder, model, device=device, dtype=dtype, backend=backend, precision=precision)
        index.skipped = report.skipped
        return index

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        model: str | os.PathLike[str] | Embedder = "",
        *,
        dim: int | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        backend: str | None = None,
        precision: str | None = None,
        root: str | os.PathLike[str] = "",
        storage_options: Storage = None,
    ) -> "Index":
        """Open an index that `Index.build` has made.

        Args:
            folder: of the index.
            model: the model that the index was made with, where this machine does not have it under the name in the
                index (see `embedder_of`); loaded at the first query.
            dim: one of the nested dims, fewer than the index's (default: all that it has).
            device, dtype, backend, precision: see `Embedder`.
            root: the folder that holds the sounds, where it is not the one in the index.
            storage_options: of an index in object storage, see Lance's `storage_options`.

        Raises:
            ValueError: no index, a damaged one (of up to 64 MB every file's checksum is verified; of a larger one
                `wavlink verify` does that), or no such dim.
        """
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        run = {"device": device, "dtype": dtype, "backend": backend, "precision": precision}
        options = {"model": model, **run}
        table = Table.reading(folder, lambda table: table, storage_options)
        manifest = table.manifest
        nested = [nested for nested in manifest.matryoshka_dims if nested <= manifest.dim]
        if dim not in (None, *nested):
            raise ValueError(f"dim={dim}: the index can be searched at {', '.join(map(str, nested))}")
        return cls(table, dim or manifest.dim, options, os.path.abspath(root) if root else "")

    def __len__(self) -> int:
        """The number of windows."""
        version = self.table.dataset.version
        if self._windows is None or self._windows[0] != version:
            self._windows = self.table.latest(lambda: (self.table.dataset.version, self.table.windows()))
        return self._windows[1]

    @property
    def embedder(self) -> Embedder:
        """The model that the index was made with, loaded when it is first needed."""
        if self._embedder is None or self._embedder.revision != self.manifest.revision:  # after a migration
            self._embedder = embedder_of(self.manifest, **self._options)
        return self._embedder

    def query(
        self,
        text: str | Sequence[str] = (),
        sound: AudioSource | Sequence[AudioSource] = (),
        without: str | Sequence[str] = (),
        without_sound: AudioSource | Sequence[AudioSource] = (),
        *,
        weight: float = WEIGHT,
        top_k: int = 10,
        windows: bool = False,
        where: str | None = None,
        exact: bool = False,
        min_probability: float | None = None,
        prior: float | None = None,
    ) -> list[Hit]:
        """Find the nearest sounds, best first.

        The query is the direction of p - weight * n. p is the normalised mean of the vectors of all wanted texts and
        sounds, n that of the unwanted ones. The vector of a sound is the normalised mean of its windows' vectors.

        The hits of a query of one text alone have a probability of a match: by the model's calibration at the index's
        dims, or where the model has none, that a hit stands out from the text's cosines with the index (see
        `wavlink.probability.Background`). Other queries have none, since only texts and sounds are calibrated.

        Args:
            text, sound: what is wanted, one or several; sounds are files, paths of the index, or whatever an `audio`
                column holds (bytes, dicts, decoders).
            without, without_sound: what is not wanted.
            weight: 0 or more.
            top_k: the number of results, fewer if the index has fewer.
            windows: rank every window; otherwise each file appears once, with its best window.
            where: an SQL expression over the index's columns that every result meets, such as
                `"label = 'dog' and duration < 5"`.
            exact: score every window, also of an index that is large enough for a vector index.
            min_probability: drop hits of a lower probability, so that none may be left; of a query of one text.
            prior: the share of windows that a text matches (default: the one that the model was calibrated at).

        Raises:
            ValueError: an empty index, nothing wanted, a sound that cannot be read, top_k under 1, no probabilities
                to compare with `min_probability`, or a prior for a model without a calibration.
        """
        if not self.table.latest(self.table.has_windows):
            raise ValueError("the index holds no sounds yet: index some")
        if top_k < 1:
            raise ValueError(f"top_k must be 1 or more, got {top_k}")
        if not weight >= 0:
            raise ValueError(f"the weight of what is unwanted must be 0 or more, got {weight}")
        check_probability("min_probability", min_probability)
        wanted, unwanted = self._embed(text, sound), self._embed(without, without_sound)
        if not len(wanted):
            raise ValueError("say what to find: a text, or a similar sound")
        vector = mean_direction(wanted) - (weight * mean_direction(unwanted) if len(unwanted) else 0)
        one_text = len(wanted) == 1 and bool(text) and not len(unwanted)
        if not one_text and (min_probability, prior) != (None, None):
            raise ValueError(
                "probabilities are of a query of one text alone: leave the other texts and sounds out, or "
                "min_probability and prior"
            )
        hits = self.nearest(vector, top_k, windows, where=where, exact=exact)
        return self.with_probabilities(hits, vector, min_probability, prior) if one_text else hits

    def calibration(self, vector: np.ndarray, prior: float | None = None) -> Calibration | None:
        """Return what tells probabilities from the cosines of a text's vector `[dims]`: the model's, or the index's.

        None if the model has no calibration at the index's dims, and the index has too few windows.
        """
        model = calibration_of(self.embedder, self._dim, prior)
        if model is not None:
            return model
        sample = self.table.latest(self._sample)
        query = truncated(vector[None], self._dim)[0]
        return background_of(unit(vectors_of(sample)[:, : self._dim]) @ query, len(self))

    def _sample(self) -> pyarrow.ChunkedArray:
        """Return vectors of windows at even distances."""
        count = self.table.rows()
        rows = np.arange(0, count, -(-count // _SAMPLE))
        return self.table.take(rows.tolist(), ["embedding"])["embedding"].drop_null()

    def with_probabilities(
        self, hits: list[Hit], vector: np.ndarray, min_probability: float | None = None, prior: float | None = None
    ) -> list[Hit]:
        """Return the hits of a text's vector `[dims]` with probabilities, without those below `min_probability`.

        Raises:
            ValueError: see `query`.
        """
        calibration = self.calibration(vector, prior)
        if calibration is None:
            if min_probability is not None:
                raise ValueError(
                    f"there are no probabilities: {self.embedder.name} has no calibration (`wavlink calibrate` fits "
                    f"one), and {len(self)} windows are too few, or too alike, to tell what stands out"
                )
            return hits
        matches = calibration.probability(np.array([hit.score for hit in hits])).tolist()
        return [
            replace(hit, probability=match, calibration=calibration.kind)
            for hit, match in zip(hits, matches, strict=True)
            if min_probability is None or match >= min_probability
        ]

    def nearest(
        self,
        vector: np.ndarray,
        top_k: int = 10,
        windows: bool = False,
        *,
        where: str | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """Find the sounds nearest to a query's vector `[dims]`, of any norm but zero; see `query`."""
        if not vector[: self._dim].any():
            raise ValueError("what is wanted and what is not cancel out: ask for something else")
        options = {"windows": windows, "where": where, "exact": exact}
        rows, scores = self.table.latest(lambda: nearest(self.table, vector, top_k, dim=self._dim, **options))
        self._refuse_mixed(set(rows["revision"].to_pylist()))
        return [self._hit(row, score) for row, score in zip(rows.to_pylist(), scores.tolist(), strict=True)]

    def _refuse_mixed(self, revisions: set[str]) -> None:
        if self._embedder is not None and self._embedder.revision != self.manifest.revision:
            raise ValueError(f"{self.table.index} has just changed to another model, {self.manifest.model}: ask again")
        if revisions - {self.manifest.revision}:
            raise ValueError(
                f"{self.table.index} holds vectors of several models, which do not compare: `wavlink verify "
                f"{self.table.index} --drop` removes those of others"
            )

    def _hit(self, row: dict[str, Any], score: float) -> Hit:
        path, times = row["path"], (row["start"], row["end"])
        metadata = {name: row[name] for name in self.table.metadata_columns if row[name] is not None}
        file = file_of(self._root or self.manifest.root, path)
        if file is None:
            return Hit(path, score, *times, metadata=metadata)
        try:
            status = os.stat(file)
        except OSError:
            return Hit(path, score, *times, file, missing=True, metadata=metadata)
        changed = [row["size"], row["version"]] != [status.st_size, status.st_mtime_ns]
        return Hit(path, score, *times, file, changed=changed, metadata=metadata)

    def _embed(self, texts, sounds) -> list[np.ndarray]:
        texts, sounds = ([each] if is_source(each) else list(each) for each in (texts, sounds))
        if any(not text.strip() for text in texts):
            raise ValueError("a text to search by is empty")
        return [*(self.embedder.embed_text(texts) if texts else []), *map(self._sound, sounds)]

    def _sound(self, file) -> np.ndarray:
        manifest = self.manifest
        if isinstance(file, str | os.PathLike) and not os.path.exists(file):  # a path of the results?
            file = file_of(self._root or manifest.root, os.fspath(file)) or file
        windows = stream_windows(file, manifest.window, manifest.hop, manifest.sampling_rate)
        return mean_direction(list(self.embedder.embed_clips(window.samples for window in windows)))


def as_dict(hit: Hit) -> dict:
    """Return a hit for JSON, with the marks only where they are true, and a probability only where it has one."""
    left_out = {"probability", "calibration"} if hit.probability is None else set()
    left_out |= set() if hit.metadata else {"metadata"}
    return {name: value for name, value in asdict(hit).items() if value is not False and name not in left_out}


def print_hits(hits: Sequence[Hit], as_json: bool, note: str = "") -> None:
    """Print hits as JSON or as a table; `note` says why there are none."""
    if as_json:
        print_json([as_dict(hit) for hit in hits], **({"note": note} if note else {}))
        return
    if note:
        print(note)
    if any(hit.calibration == "index" for hit in hits):
        print("the model has no calibration: % is how surely a result stands out from this index", file=sys.stderr)
    for hit in hits:
        mark = "  (missing)" * hit.missing + "  (changed)" * hit.changed
        match = "" if hit.probability is None else f"{100 * hit.probability:5.1f} %  "
        print(
            f"{hit.score:6.3f}  {match}{hit.start:8.2f} - {hit.end:8.2f} s  {clean(hit.path, 1000)}{mark}{_described(hit)}"
        )


def _described(hit: Hit) -> str:
    """Return a hit's metadata as text."""
    return "".join(f"  {clean(name, 80)}={clean(value, 200)}" for name, value in hit.metadata.items())
