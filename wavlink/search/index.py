"""Search an index by texts and by similar sounds, and away from unwanted ones."""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from processing.audio import AudioSource, sounds_of
from wavlink.defaults import WEIGHT as WEIGHT
from wavlink.embedder import Embedder, mean_direction
from wavlink.probability import Calibration, check_probability

from .duplicates import MIN_SCORE, duplicates
from .filters import checked
from .hit_probabilities import calibration, with_probabilities
from .hits import Hit as Hit
from .hits import hit_of
from .manifest import Manifest
from .nearest import nearest
from .open_index import OpenIndex, dim_of
from .query_vectors import cut, embedded
from .repair import refuse_mixed
from .stored import stored_vector
from .table import Storage, Table


class Index(OpenIndex):
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

    @classmethod
    def build(
        cls,
        sounds: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        folder: str | os.PathLike[str],
        model: str | os.PathLike[str] | Embedder = "",
        *,
        dim: int | None = None,
        storage: str | None = None,
        rescore_dim: int | None = None,
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
        storage_options: Storage = None,
    ) -> "Index":
        """Bring an index up to date with `sounds`, or make it, and open it. After a kill, the same call goes on.

        Files that have not changed are not embedded again. Files that cannot be read are skipped: the index's
        `skipped` says why, by path.

        Args:
            sounds: folders, files, `@list.txt` or one data set (a Hub id).
            folder: of the index, or its address in object storage.
            model: a folder or Hub id (see `Embedder`), or an `Embedder` (default of a new index: the bundled
                `wavlink-tiny`).
            dim: one of the nested dims, for a new index (default: the smallest from 48 on).
            storage: for a new index, fp32 or fp16 (default: fp16).
            rescore_dim: for a new index, nested dims of a second vector that orders the candidates (default: none).
            window: seconds embedded at once, for a new index (default: 10).
            hop: seconds from window to window, for a new index (default: 5).
            split: of a data set.
            retry: embed files too that earlier runs skipped.
            metadata: CSV, JSON lines or parquet with a column `file_name`; the others become columns of the index.
            tags: keep title, artist, album, genre, date and comment of the sound files as columns.
            device: such as `"cuda"`.
            dtype: `"float32"`, `"bfloat16"` or `"float16"`.
            backend, precision: see `Embedder`.
            progress: show a progress bar.
            storage_options: of an index in object storage, see Lance's `storage_options`.

        Raises:
            ValueError: no sounds, none that can be read, an index of another model or with other options.
        """
        from .build import index_sounds  # needs packages that searching does not

        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        options = {"dim": dim, "storage": storage, "window": window, "hop": hop, "split": split, "retry": retry}
        run = {"device": device, "dtype": dtype, "backend": backend, "precision": precision}
        options |= {"metadata": metadata, "tags": tags, "rescore_dim": rescore_dim, "storage_options": storage_options}
        report = index_sounds(sounds, folder, model, **options, **run, progress=progress)
        index = cls.open(folder, model, **run, storage_options=storage_options)
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
            folder: of the index, or an address in object storage.
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
        dim_of(table.manifest, dim)
        return cls(table, dim, options, os.path.abspath(root) if root else "")

    def query(
        self,
        text: str | Sequence[str] = (),
        sound: AudioSource | Sequence[AudioSource] = (),
        without: str | Sequence[str] = (),
        without_sound: AudioSource | Sequence[AudioSource] = (),
        *,
        like: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
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
            like: paths of the index, whose stored vectors are wanted; these sounds are not among the results. Where
                nothing else is asked for, no model is loaded and no sound is read.
            weight: 0 or more.
            top_k: the number of results, fewer if the index has fewer.
            windows: rank every window; otherwise each file appears once, with its best window.
            where: an SQL expression over the index's columns that every result meets, such as
                `"label = 'dog' and duration < 5"`.
            exact: score every window, also of an index that is large enough for a vector index.
            min_probability: drop hits of a lower probability, so that none may be left; of a query of one text.
            prior: the share of windows that a text matches (default: the one that the model was calibrated at).

        Returns:
            Hits with the attributes `path` and `file`, `score` (the cosine), `start` and `end` of the window and
            `duration` of the file in seconds, `probability` and `calibration` (see above, otherwise None), `metadata`
            (columns of the index by name), and `missing` or `changed`, true of a file that is not as it was indexed.

        Raises:
            ValueError: an empty index, nothing wanted, a sound that cannot be read, top_k under 1, no probabilities
                to compare with `min_probability`, or a prior for a model without a calibration.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be 1 or more, got {top_k}")
        if not 0 <= weight < math.inf:
            raise ValueError(f"the weight of what is unwanted must be 0 or more, and finite, got {weight}")
        check_probability("min_probability", min_probability)
        # Lists, since an index that changes meanwhile is read again.
        like = [like] if isinstance(like, str | os.PathLike) else list(like)
        given = [list(sounds_of(each)) for each in (text, sound, without, without_sound)]
        of = {"where": where, "exact": exact, "windows": windows}

        def read(table: Table) -> list[Hit]:
            if not table.has_windows():
                raise ValueError("the index holds no sounds yet: index some")
            if where is not None:
                checked(table, where)
            liked = dict(stored_vector(table, path) for path in like)
            wanted = [*self._embed(table.manifest, *given[:2]), *(vector for vector, _ in liked.values())]
            unwanted = self._embed(table.manifest, *given[2:])
            if not wanted:
                raise ValueError("say what to find: a text, or a similar sound")
            one_text = len(wanted) == 1 and bool(given[0]) and not unwanted
            if not one_text and (min_probability, prior) != (None, None):
                raise ValueError(
                    "probabilities are of a query of one text alone: leave the other texts and sounds out, or "
                    "min_probability and prior"
                )
            if liked:
                wanted, unwanted = (cut(vectors, table.manifest) for vectors in (wanted, unwanted))
            scale = max(1, weight)  # of a sum whose direction counts: a large weight stays within fp32
            vector = mean_direction(wanted)
            if unwanted:
                vector = (1 / scale) * vector - weight / scale * mean_direction(unwanted)
            more = sum(count for _, count in liked.values()) if windows else len(liked)
            hits = self._nearest(table, vector, top_k + more, **of)
            hits = [hit for hit in hits if hit.path not in liked][:top_k]
            return self._with_probabilities(table, hits, vector, min_probability, prior) if one_text else hits

        return self._reading(read)

    def duplicates(self, min_score: float = MIN_SCORE, *, any_duration: bool = False) -> list[list[Hit]]:
        """Find groups of files that are nearly the same, the largest first; no model is loaded.

        Args:
            min_score: the least cosine of two files' vectors.
            any_duration: compare also files whose durations differ by more than 10 %.

        Returns:
            Of each group its files in the order of their paths, with the cosine with the first as the score.

        Raises:
            ValueError: `min_score` is not from -1 to 1.
        """
        return self._reading(lambda table: duplicates(table, min_score, any_duration, self._root))

    def calibration(self, vector: np.ndarray, prior: float | None = None) -> Calibration | None:
        """Return what tells probabilities from the cosines of a text's vector `[dims]`: the model's, or the index's.

        None if the model has no calibration at the index's dims, and the index has too few windows.
        """
        return self._reading(lambda table: self._calibration(table, vector, prior))

    def _calibration(self, table: Table, vector: np.ndarray, prior: float | None) -> Calibration | None:
        embedder = self._embedder_of(table.manifest)
        return calibration(table, embedder, vector, self._dim_of(table), self._windows_of(table), prior)

    def with_probabilities(
        self, hits: list[Hit], vector: np.ndarray, min_probability: float | None = None, prior: float | None = None
    ) -> list[Hit]:
        """Return the hits of a text's vector `[dims]` with probabilities, without those below `min_probability`.

        Raises:
            ValueError: see `query`.
        """
        return self._with_probabilities(self.table, hits, vector, min_probability, prior)

    def _with_probabilities(
        self, table: Table, hits: list[Hit], vector: np.ndarray, min_probability: float | None, prior: float | None
    ) -> list[Hit]:
        fit = self._calibration(table, vector, prior)
        return with_probabilities(hits, fit, min_probability, table.manifest.model, self._windows_of(table))

    def nearest(
        self,
        vector: np.ndarray,
        top_k: int = 10,
        windows: bool = False,
        *,
        where: str | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """Find the sounds nearest to a query's vector `[dims]` of `embedder`, of any norm but zero; see `query`.

        Raises:
            ValueError: the index has another model since `embedder` was loaded.
        """
        options = {"windows": windows, "where": where, "exact": exact}

        def read(table: Table) -> list[Hit]:
            if table.manifest.revision != self._revision:
                raise ValueError(f"{table.index} is of another model now, {table.manifest.model}: open it again")
            return self._nearest(table, vector, top_k, **options)

        return self._reading(read)

    def _nearest(self, table: Table, vector: np.ndarray, top_k: int, **options: Any) -> list[Hit]:
        dim = self._dim_of(table)
        if not vector[:dim].any():
            raise ValueError("what is wanted and what is not cancel out: ask for something else")
        if self._unmixed != (table, table.dataset.version):
            refuse_mixed(table)
            self._unmixed = table, table.dataset.version
        rows, scores = nearest(table, vector, top_k, dim=dim, **options)
        return [
            hit_of(table, row, score, self._root) for row, score in zip(rows.to_pylist(), scores.tolist(), strict=True)
        ]

    def _embed(self, manifest: Manifest, texts, sounds) -> list[np.ndarray]:
        return embedded(manifest, self._root or manifest.root, texts, sounds, lambda: self._embedder_of(manifest))
