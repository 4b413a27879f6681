"""Workers of a Ray cluster that embed files and write their rows, and a record of those that die over one."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow

from processing.windows import stream_windows
from wavlink.embedder import Embedder

from .listing import Sound
from .metadata import with_values
from .rows import skipped_row, window_rows
from .table import Storage, Table

TRIES = 2  # how often a worker may die over one file alone
_FAULTS = (Exception, SystemExit)  # that a file may raise


class FileEmbedder(Embedder):
    """Ray actor that embeds files, and writes their rows to an index.

    Args:
        model, revision, device, dtype, backend, precision: of `Embedder`.
        index, storage_options: of `Table`.
        expected: the revision that the weights must have on every machine.
        journal: Ray's handle of a `Journal`, which outlives this process.
    """

    def __init__(
        self,
        model: str,
        *,
        index: str,
        expected: str,
        storage_options: Storage = None,
        journal: Any = None,
        **options: Any,
    ):
        super().__init__(model, **options)
        self.journal = journal
        if self.revision != expected:
            raise ValueError(f"{model} is at {self.revision} on this machine, not at {expected}: copy it anew")
        self.table = Table.unverified(index, storage_options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Embed a batch of files, and write their rows without a commit.

        Args:
            batch: the fields of `Sound`, with the full path of each file as bytes, and its metadata as JSON.

        Returns:
            `written`, one JSON text: `paths` of the files, and the `fragments` that hold their rows; or the `error`
            of writing. A file that cannot be embedded to its end has one row, with the reason.
        """
        columns = (batch[name].tolist() for name in ("path", "size", "version", "source"))
        sounds = [Sound(*facts, os.fsdecode(file)) for *facts, file in zip(*columns, strict=True)]
        metadata = {sound.path: json.loads(text) for sound, text in zip(sounds, batch["columns"], strict=True)}
        rows = with_values(self._embedded(sounds), metadata, self.table.schema)
        written: dict[str, Any] = {"paths": [sound.path for sound in sounds]}
        try:
            written["fragments"] = [fragment.to_json() for fragment in self.table.write(rows)]
        except (OSError, ValueError) as error:  # of the storage, not of the files
            written = {"error": str(error)}
        return {"written": np.array([json.dumps(written)], dtype=object)}

    def _embedded(self, sounds: list[Sound]) -> pyarrow.Table:
        if self._deaths(*(sound.path for sound in sounds)) == 0:
            with suppress(*_FAULTS):
                return self._rows(sounds)
        return pyarrow.concat_tables([self._alone(sound) for sound in sounds])

    def _alone(self, sound: Sound) -> pyarrow.Table:
        """Return the rows of a file that is embedded by itself, which alone can be the cause of an error."""
        path = sound.path
        if self._deaths("alone", path) >= TRIES:
            why = f"its worker died {TRIES} times while it embedded {path} alone; --retry tries again"
            return skipped_row(self.table.manifest, sound, why)
        try:
            rows = self._rows([sound])
        except _FAULTS as error:
            rows = skipped_row(self.table.manifest, sound, _reason(error))
        if self.journal:
            self.journal.end.remote(("alone", path))
        return rows

    def _deaths(self, *names: str) -> int:
        """Return how many workers have died over these files, and note that this one begins with them."""
        if not self.journal:
            return 0
        import ray

        return ray.get(self.journal.begin.remote(names))

    def _rows(self, sounds: list[Sound]) -> pyarrow.Table:
        """Return the rows of files that are embedded together; an error of the model is raised."""
        times: list[tuple[int, float, float]] = []
        errors: dict[int, str] = {}
        vectors = list(self.embed_clips(self._windows(sounds, times, errors)))
        found: list[list[int]] = [[] for _ in sounds]
        for row, ((number, start, _), vector) in enumerate(zip(times, vectors, strict=True)):
            found[number].append(row)
            if not (np.isfinite(vector).all() and vector[: self.table.manifest.dim].any()):
                why = f"the model gives it a vector that is zero or not finite, from {start:g} s on"
                errors.setdefault(number, why)
        tables = []
        for number, (sound, numbers) in enumerate(zip(sounds, found, strict=True)):
            error = errors.get(number, "" if numbers else "it has no windows")
            if error:
                tables.append(skipped_row(self.table.manifest, sound, error))
                continue
            spans, made = [times[row][1:] for row in numbers], np.stack([vectors[row] for row in numbers])
            facts = {"windows": len(spans), "duration": spans[-1][1]}
            tables.append(window_rows(self.table.manifest, sound, spans, made, **facts))
        return pyarrow.concat_tables(tables)

    def _windows(self, sounds: list[Sound], times: list, errors: dict) -> Iterator[np.ndarray]:
        """Yield the samples of each window; append (number of the file in the batch, start, end) to `times`."""
        manifest = self.table.manifest
        for number, sound in enumerate(sounds):
            try:
                for window in stream_windows(
                    sound.source, manifest.window, manifest.hop, self.sampling_rate, sound.path
                ):
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
