"""Endless batches from streamed shards, for training data that does not fit on disk or in memory, with exact resume.

A batch is drawn from a window of `window * share` successive examples (share: clips a process puts into a batch): they
are permuted, grouped by length, cut, and the batches shuffled. The order of the shards is drawn anew for each epoch.
Clips of different shards are therefore in the same batch only where a shard ends, so shuffle the clips when writing
shards, and write many.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

import datasets
import numpy as np
import torch
from fsspec.asyn import reset_lock
from torch.utils.data import DataLoader, get_worker_info
from transformers.utils import logging

from processing.audio import load_column
from processing.collator import AudioTextCollator, drawn_captions, drawn_crop

from .load import captions_of
from .shard_reader import DamagedShard
from .shard_reader import ShardReader as ShardReader
from .worker_processes import loader_options

logger = logging.get_logger(__name__)

NAMES_KEPT = 10  # of skipped examples, in the report


class StreamedBatches:
    """Endless batches for one process; the training loop needs a number of steps.

    Exact resume: a state is the position where the last batch's window begins and the number of its batches used. A
    resumed run reads that window again and continues with the same batches, bit for bit. Windows continue over the end
    of an epoch, so that no clip is left out and no process has fewer batches than another, whatever the sizes of the
    shards. Within a window, clips of two epochs are in different batches, except for one batch in between. The crop of
    a long clip and its first caption depend on (seed, epoch, shard, number inside the shard) only, the order of the
    batches within a window on (seed, window), the same on all processes, so that all have long clips in the same step.

    Each worker process holds one window of decoded clips: `window * share` times 64 kB a second at 16 kHz. Loading a
    state reads up to one shard again, and decodes up to one window.

    Args:
        source: as `load_stream` returns it: an `audio` column, and `columns` of captions (one or a list).
        columns: names of caption columns; may be empty with `captions_by_id`.
        collator: rows `{"audio": {"array", "sampling_rate"}, "captions": [...]}` to a batch.
        batch_size: clips in a batch over all processes; this one has `len(range(rank, batch_size, world_size))`.
        seed: of all randomness.
        rank: of this process, among `world_size`.
        world_size: number of processes.
        max_seconds: longer clips are cropped.
        window: batches read at once.
        rate: Hz.
        num_workers: processes that decode, each with its own shards and windows; batches are taken from them in turn.
            0 reads the same batches as 1, in this process. A run must be resumed with the same number.
        captions_by_id: captions (one or a list) by key: `__key__`, else the file name without its suffix. They replace
            `columns`; a clip without an entry is skipped and counted.

    Raises:
        ValueError: missing columns, or sizes without a batch for each process.
    """

    def __init__(
        self,
        source: datasets.IterableDataset,
        columns: Sequence[str],
        collator: AudioTextCollator,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        max_seconds: float = 30.0,
        window: int = 16,
        rate: int = 16000,
        num_workers: int = 1,
        captions_by_id: Mapping[str, str | Sequence[str]] | None = None,
    ):
        _check_columns(source, columns, captions_by_id)
        _check_sizes(batch_size, world_size, window, num_workers)
        readers = max(num_workers, 1)
        if source.num_shards < readers * world_size and rank == 0:
            logger.warning(
                f"{source.num_shards} shards for {world_size} processes of {readers} readers: each reads all of them "
                "and keeps its part of the examples; write more shards to read each only once"
            )
        self.num_workers = num_workers
        self._settings = {"batch_size": batch_size, "seed": seed, "rank": rank, "world_size": world_size}
        self._settings |= {"max_seconds": max_seconds, "window": window, "rate": rate, "readers": readers}
        self._settings |= {"num_shards": source.num_shards}
        share = len(range(rank, batch_size, world_size))
        rows = _Rows(list(columns), captions_by_id, seed, int(max_seconds * rate), rate)
        numbers = range(rank * readers, (rank + 1) * readers)
        self._windows = [
            _Windows(_undecoded(source), rows, collator, share, window, seed, number, readers * world_size)
            for number in numbers
        ]
        self._states = [_start() for _ in numbers]
        self._reports = [state["report"] for state in self._states]
        self._taken = 0  # batches

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield batches after the last one; iterating again continues and does not restart."""
        loader = DataLoader(
            _Readers(self._windows, list(self._states), self._taken % len(self._windows)),
            batch_size=None,
            collate_fn=_unchanged,
            **loader_options(self.num_workers),
        )
        for reader, batch, state, report in loader:
            self._states[reader], self._reports[reader] = state, report
            self._taken += 1
            yield batch

    @property
    def report(self) -> dict:
        """Counts of examples: `read`, `skipped_broken`, `skipped_without_caption`, and `names` of a few skipped ones.

        They are of this process, counted again in each epoch, up to the windows of the batches taken. A shard whose
        rest cannot be read counts once as `skipped_broken`.
        """
        total = {name: sum(report[name] for report in self._reports) for name in _start()["report"] if name != "names"}
        return {**total, "names": [name for report in self._reports for name in report["names"]][:NAMES_KEPT]}

    def state_dict(self) -> dict:
        """Return this process's position after the last batch taken, as plain values; workers may have read ahead."""
        return {
            "settings": dict(self._settings),
            "taken": self._taken,
            "places": list(self._states),
            "reports": list(self._reports),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state of `state_dict`.

        Raises:
            ValueError: it was saved with other settings.
        """
        saved = state["settings"]
        changed = [name for name in self._settings if self._settings[name] != saved.get(name)]
        if changed:
            changes = ", ".join(f"{name} was {saved.get(name)} and is now {self._settings[name]}" for name in changed)
            raise ValueError(f"this stream cannot go on from that state: {changes}; `readers` is max(num_workers, 1)")
        self._taken = state["taken"]
        self._states, self._reports = list(state["places"]), list(state["reports"])


def _start() -> dict:
    """Return the state of a reader before its first example; `used` counts the batches taken of window `window`."""
    report = {"read": 0, "skipped_broken": 0, "skipped_without_caption": 0, "names": []}
    return {"epoch": 0, "position": 0, "inside": 0, "stream": None, "window": 0, "used": 0, "report": report}


class _Windows:
    """The batches of one reader, each with the state after it."""

    def __init__(self, source, rows: "_Rows", collator, share: int, window: int, seed: int, number: int, readers: int):
        self.source = source
        self.rows = rows
        self.collator = collator
        self.share = share
        self.window = window
        self.seed = seed
        self.number = number
        self.readers = readers

    def batches(self, state: dict) -> Iterator[tuple[dict[str, torch.Tensor], dict, dict]]:
        """Yield `(batch, state after it, report after its window)` without end."""
        reader = ShardReader(self.source, self.seed, self.number, self.readers, state)
        examples = iter(reader)
        while True:
            report = {**state["report"], "names": list(state["report"]["names"])}
            clips = self._read(examples, report)
            next_state = {**reader.state_dict(), "window": state["window"] + 1, "used": 0, "report": report}
            plan = self._plan(clips, state["window"])
            for used in range(state["used"], self.window):
                batch = self.collator([clips[index][0] for index in plan[used]])
                yield batch, next_state if used + 1 == self.window else {**state, "used": used + 1}, report
            state = next_state

    def _read(self, examples: Iterator, report: dict) -> list[tuple[dict, tuple[int, int, int]]]:
        """Read the window's `(row, (epoch, shard, number))`, as many as its batches need, and count in `report`."""
        clips, skipped, needed = [], 0, self.window * self.share
        while len(clips) < needed:
            example, key = next(examples)
            if isinstance(example, DamagedShard):
                _skip_shard(example, report)
                continue
            row = self.rows.row(example, key, report)
            skipped = 0 if row else skipped + 1
            if row:
                clips.append((row, key))
            elif skipped == needed:
                raise ValueError(
                    f"not one of {skipped} successive examples has a caption and can be read ({report}): check the "
                    "captions' column or keys and the sound files; a larger `window` bears longer gaps"
                )
        different = len({key[1:] for _, key in clips})
        if different < self.share:
            raise ValueError(
                f"the stream repeats {different} different clips, {self.share} make a batch: use a smaller batch_size"
            )
        return clips

    def _plan(self, clips: list, window: int) -> np.ndarray:
        """Divide clips into batches: `[window, share]` indices."""
        order = np.random.default_rng((self.seed, window, self.number)).permutation(len(clips))
        lengths = np.array([len(row["audio"]["array"]) for row, _ in clips])
        epochs = np.array([key[0] for _, key in clips])
        batches = order[np.lexsort((lengths[order], epochs[order]))].reshape(self.window, self.share)
        return batches[np.random.default_rng((self.seed, window)).permutation(self.window)]


class _Rows:
    """Conversion of examples to the collator's rows; skipped examples are counted in the report."""

    def __init__(self, columns: list[str], captions_by_id: Mapping | None, seed: int, max_samples: int, rate: int):
        self.columns = columns
        self.captions_by_id = captions_by_id
        self.seed = seed
        self.max_samples = max_samples
        self.rate = rate

    def row(self, example: dict, key: tuple[int, int, int], report: dict) -> dict | None:
        """Return the row of an example, None where it is skipped."""
        report["read"] += 1
        try:
            captions, reason = self._captions(example), "it has no caption"
        except ValueError as error:  # the cell holds no text
            captions, reason = [], error
        if not captions:
            return self._skip(example, key, report, "skipped_without_caption", reason)
        try:
            array = load_column(example["audio"], self.rate)
        except ValueError as error:
            return self._skip(example, key, report, "skipped_broken", error)
        epoch, shard, number = key
        rng = np.random.default_rng((self.seed, epoch, shard, number))
        crop = drawn_crop(array, self.max_samples, rng)
        captions, _ = drawn_captions(captions, rng)
        array = crop.copy() if len(array) > self.max_samples else array  # a view would keep the long file in memory
        return {"audio": {"array": array, "sampling_rate": self.rate}, "captions": captions}

    def _captions(self, example: dict) -> list[str]:
        if self.captions_by_id is None:
            return captions_of(example, self.columns)
        name = _name(example)
        captions = self.captions_by_id.get(name)
        if captions is None:  # a key in a tar's folder
            captions = self.captions_by_id.get(PurePosixPath(name).name)
        return captions_of({"captions": captions}, ["captions"])

    def _skip(self, example: dict, key: tuple[int, int, int], report: dict, count: str, reason) -> None:
        report[count] += 1
        if len(report["names"]) < NAMES_KEPT:
            name = _name(example) or f"example {key[2]} of shard {key[1]}"
            report["names"].append(name)
            logger.warning(f"skipped {name}: {reason}")


def _skip_shard(shard: DamagedShard, report: dict) -> None:
    report["skipped_broken"] += 1
    if shard.name not in report["names"] and len(report["names"]) < NAMES_KEPT:
        report["names"].append(shard.name)
    logger.warning(f"skipped the rest of {shard.name}: {shard.reason}")


def _name(example: dict) -> str:
    """Return an example's key: `__key__`, else its file's name without suffix, else ""."""
    audio = example.get("audio")
    path = audio.get("path") if isinstance(audio, dict) else audio
    return example.get("__key__") or PurePosixPath(path or "").stem


class _Readers(torch.utils.data.IterableDataset):
    """The readers of a DataLoader's workers, one for each; batches are taken in turn, beginning with `first`."""

    def __init__(self, windows: list[_Windows], states: list[dict], first: int):
        self.windows = windows
        self.states = states
        self.first = first

    def __iter__(self) -> Iterator[tuple[int, dict, dict, dict]]:
        worker = get_worker_info()
        if worker is not None:
            reset_lock()  # remote files that were opened before the fork use the event loop of the other process
        reader = (self.first + (worker.id if worker else 0)) % len(self.windows)
        for batch, state, report in self.windows[reader].batches(self.states[reader]):
            yield reader, batch, state, report


def _unchanged(value):
    return value


def _check_sizes(batch_size: int, world_size: int, window: int, num_workers: int) -> None:
    if batch_size < max(2, world_size) or window < 1 or num_workers < 0:
        raise ValueError(
            f"a contrastive loss needs at least two clips in a batch and one for each process, and a window at least "
            f"one batch; got batch_size={batch_size} for {world_size} processes, window={window}, "
            f"num_workers={num_workers}"
        )


def _check_columns(source: datasets.IterableDataset, columns: Sequence[str], captions_by_id: Mapping | None) -> None:
    names = source.column_names
    if names is not None and "audio" not in names:
        raise ValueError(f"the stream has no column 'audio', only {', '.join(names)}")
    missing = [name for name in columns if names is not None and name not in names]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}; the columns are {', '.join(names)}")
    if not columns and captions_by_id is None:
        raise ValueError("name the columns that hold captions, or give captions_by_id")
    if captions_by_id is not None and not captions_by_id:
        raise ValueError("captions_by_id is empty: give captions by the key of their clip")


def _undecoded(source: datasets.IterableDataset) -> datasets.IterableDataset:
    """Return a stream without decoding by `datasets`, which needs torchcodec; the worker decodes with libsndfile."""
    feature = (source.features or {}).get("audio")
    if isinstance(feature, datasets.Audio) and feature.decode:
        return source.cast_column("audio", datasets.Audio(decode=False))
    return source
