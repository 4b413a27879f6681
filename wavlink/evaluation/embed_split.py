"""Embed a whole split: unreadable clips are named, and finished parts are kept for the same call after a kill."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from modeling_wavlink.losses_wavlink import gather
from processing.audio import clip_name
from processing.collator import caption_key
from processing.datasets.load import captions_of, columns_by_language, durations
from wavlink.atomic_files import atomic_file, write_text
from wavlink.embedder import Embedder
from wavlink.progress import Bar

from .metrics import Correspondence

logger = logging.get_logger(__name__)

_BATCHES_A_PART = 8


@dataclass
class EmbeddedAudio:
    """`vectors [clips, D]` fp32 of the readable clips, their `rows`, and the errors of the unreadable ones."""

    vectors: torch.Tensor
    rows: list[int]
    unreadable: dict[int, str] = field(default_factory=dict)
    windowed: int = 0  # clips over the window, whose windows' vectors were averaged


def embed_audio(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Sequence[dict] | datasets.Dataset,
    lengths: Sequence[float],
    batch_size: int = 32,
    progress: bool = True,
    shared: bool = False,
    store: Path | None = None,
) -> EmbeddedAudio:
    """Embed each row's clip, in the order of `rows`, by `Embedder.embed_whole`.

    A batch holds clips of similar length, a minute of sound at most; that changes the cost but no vector. A clip over
    the model's window (30 s) is cut into as few evenly spaced windows as cover it, and its vector is their mean.

    Args:
        rows: rows with `audio` (see `processing.audio.load_column`), by index.
        lengths: of each clip, in any unit.
        batch_size: clips or windows that a batch holds at most, however short they are.
        shared: the processes divide the clips and all get all vectors; all must call it.
        store: a folder for finished parts, from which the same call goes on; the caller removes it.

    Raises:
        ValueError: no clip can be read, or the model gives NaN or infinite values.
    """
    order = np.argsort(lengths, kind="stable")
    share = _share(order) if shared else order
    kind = _InStep if shared and isinstance(model, FSDPModule) else Embedder
    embedder = kind.borrowing(model, processor, batch_size)
    size = batch_size * _BATCHES_A_PART
    parts = []
    with Bar(total=len(share), desc="sounds", unit="clip", disable=not progress) as bar:
        for number, start in enumerate(range(0, len(share), size)):
            path = store / f"part-{number:06d}.safetensors" if store else None
            if path and path.is_file():
                parts.append(_read_part(path))
            else:
                parts.append(_embed_part(embedder, rows, share[start : start + size], bar.update))
                if path:
                    _write_part(path, *parts[-1])
            bar.n = start + len(parts[-1][0])
            bar.refresh()
    vectors = torch.cat([part for part, _ in parts])  # NaN where a clip cannot be read
    notes = {name: {k: v for _, note in parts for k, v in note[name].items()} for name in ("unreadable", "windowed")}
    if shared:
        vectors, notes = _from_all(vectors, notes, len(order))
    return _in_order(vectors.cpu()[np.argsort(order)], notes, rows)


def _embed_part(
    embedder: Embedder, rows, indices: np.ndarray, update: Callable[[int], Any]
) -> tuple[torch.Tensor, dict]:
    """`[len(indices), D]`, NaN if unreadable, and notes: `{"unreadable": {index: error}, "windowed": {...}}`."""
    vectors = torch.full((len(indices), embedder.dims), torch.nan)
    notes = {"unreadable": {}, "windowed": {}}
    sounds = (rows[index]["audio"] for index in indices.tolist())
    with closing(embedder.embed_whole(sounds)) as results:
        for position, (index, result) in enumerate(zip(indices.tolist(), results, strict=True)):
            if isinstance(result, ValueError):
                notes["unreadable"][str(index)] = str(result)
            else:
                vector, windows = result
                vectors[position] = torch.from_numpy(vector)
                if windows > 1:
                    notes["windowed"][str(index)] = windows
            update(1)
    return vectors, notes


class _InStep(Embedder):
    """For a model sharded over processes (FSDP2): every forward gathers from all, so all have equally many batches."""

    def _in_step(self, batches: Iterator) -> Iterator:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        while True:
            batch = next(batches, None)
            remaining = torch.tensor(batch is not None, dtype=torch.int32, device=device)
            dist.all_reduce(remaining, op=dist.ReduceOp.MAX)
            if not remaining:
                return
            if batch is None:  # another process still has batches
                self._vectors(self._inputs([np.zeros(self.sampling_rate // 10, np.float32)]))
            else:
                yield batch


def _write_part(path: Path, vectors: torch.Tensor, notes: dict) -> None:
    with atomic_file(path) as unfinished:
        try:
            save_file({"vectors": vectors.contiguous()}, unfinished, metadata={"notes": json.dumps(notes)})
        except SafetensorError as error:  # of a full disk
            raise OSError(str(error)) from error


def _read_part(path: Path) -> tuple[torch.Tensor, dict]:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("vectors"), json.loads(file.metadata()["notes"])


def _share(order: np.ndarray) -> np.ndarray:
    """This process's share: every n-th clip of n processes. The last clip is repeated so that shares are equal."""
    if not (dist.is_available() and dist.is_initialized()):
        return order
    processes = dist.get_world_size()
    filled = np.concatenate([order, np.repeat(order[-1:], -len(order) % processes)])
    return filled[dist.get_rank() :: processes]


def _from_all(vectors: torch.Tensor, notes: dict, clips: int) -> tuple[torch.Tensor, dict]:
    """The vectors and notes of all processes, in the order that `_share` divided."""
    if not (dist.is_available() and dist.is_initialized()):
        return vectors, notes
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    gathered, _ = gather(vectors.to(device))  # (processes * share, D)
    gathered_notes = [None] * dist.get_world_size()
    dist.all_gather_object(gathered_notes, notes)
    merged = {name: {k: v for note in gathered_notes for k, v in note[name].items()} for name in notes}
    return gathered.view(-1, *vectors.shape).transpose(0, 1).flatten(0, 1)[:clips], merged


def _in_order(vectors: torch.Tensor, notes: dict, rows) -> EmbeddedAudio:
    unreadable = {int(index): why for index, why in notes["unreadable"].items()}
    kept = [index for index in range(len(vectors)) if index not in unreadable]
    if not kept:
        raise ValueError(f"none of the {len(vectors)} clips can be read; the first: {next(iter(unreadable.values()))}")
    if not vectors[kept].isfinite().all():
        bad = kept[int((~vectors[kept].isfinite().all(1)).int().argmax())]
        raise ValueError(f"the model gives {clip_name(rows[bad]['audio'], bad)} a vector with NaN or infinite values")
    for index, why in sorted(unreadable.items()):
        logger.warning(f"{clip_name(rows[index]['audio'], index)} is left out of the scores: {why}")
    return EmbeddedAudio(vectors[kept], kept, unreadable, len(notes["windowed"]))


def embed_text(
    model: PreTrainedModel, processor: ProcessorMixin, texts: Sequence[str], batch_size: int = 256
) -> torch.Tensor:
    """Embed texts by `Embedder.embed_text`: `[texts, D]` fp32, L2-normalised."""
    return torch.from_numpy(Embedder.borrowing(model, processor).embed_text(texts, batch_size))


def open_store(folder: Path, key: dict) -> Path:
    """Open a folder for the parts of an evaluation, which `key` identifies; parts of another one are removed.

    Raises:
        ValueError: the folder holds other files.
    """
    written = folder / "key.json"
    if written.is_file():
        if json.loads(written.read_text(encoding="utf-8")) != key:
            logger.warning(f"{folder} holds parts of another model or data set: they are removed")
            remove_store(folder)
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(
            f"{folder} holds something else than parts of an evaluation: move it, or name another --output"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(written, json.dumps(key, indent=2) + "\n")
    return folder


def remove_store(folder: Path) -> None:
    """Remove the parts of a store, also of changed sounds, and its folders if they hold nothing else."""
    changed = [path for path in folder.glob("changed-*") if path.is_dir()]
    for part in (*changed, folder):
        parts = (path for kind in ("safetensors", "json") for path in part.glob(f"part-*.{kind}"))
        for path in (*parts, *part.glob(".*.unfinished"), part / "key.json"):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            part.rmdir()


def fingerprint(dataset: Iterable[dict]) -> str:
    """Compute 16 hexadecimal digits of a split's captions, labels, and names and contents of sounds, in order."""
    digest = hashlib.sha256()
    for row in dataset:
        audio = row["audio"] if isinstance(row["audio"], dict) else {"path": row["audio"]}
        path, content = audio.get("path"), audio.get("bytes")
        others = {name: value for name, value in row.items() if name != "audio"}
        digest.update(repr((os.path.basename(path or ""), sorted(others.items()))).encode())
        if content is not None:
            digest.update(len(content).to_bytes(8, "big") + content)
        elif os.path.isfile(path or ""):
            digest.update(os.path.getsize(path).to_bytes(8, "big"))
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]


@dataclass
class Embedded:
    """An embedded split: `audio [clips, D]`, `text [texts, D]`, and the texts of each clip."""

    audio: torch.Tensor
    text: torch.Tensor
    captions: list[list[str]]  # of each clip
    texts: list[str]
    correspondence: Correspondence  # [clips, texts]
    rows: list[int]  # of the split, of the readable clips
    sounds: EmbeddedAudio
    languages: dict[str, list[list[int]]] = field(default_factory=dict)  # the texts of each clip, by index


def embed_dataset(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    columns: Sequence[str],
    progress: bool = True,
    shared: bool = False,
    share_captions: bool = True,
    batch_size: int = 32,
    store: Path | None = None,
) -> Embedded:
    """Embed clips and their captions.

    Args:
        columns: with captions; without any, no texts are embedded. Those whose name states a language (see
            `columns_by_language`) are also kept apart.
        shared, store: see `embed_audio`.
        share_captions: equal captions (by `caption_key`, as in training) are one text, in its first spelling, whose
            hits are all clips that have it. False, the protocol of AudioCaps and Clotho: every caption is a separate
            text, with its clip as the only hit.
    """
    was_training = model.training
    model.eval()
    sounds = embed_audio(model, processor, dataset, durations(dataset), batch_size, progress, shared, store)
    clips = dataset.select(sounds.rows).remove_columns("audio")
    captions = [captions_of(row, columns) for row in clips]
    texts, answers = _texts(captions, share_captions)
    languages = {
        language: _texts_of(clips, named, texts, answers) for language, named in columns_by_language(columns).items()
    }
    captions = [[texts[index] for index in row] for row in answers]
    distinct = sorted({*texts})
    text = torch.empty(0, sounds.vectors.shape[1])
    if texts:
        position = {text: index for index, text in enumerate(distinct)}
        text = embed_text(model, processor, distinct)[[position[text] for text in texts]]
    model.train(was_training)
    correspondence = Correspondence(answers, len(texts))
    return Embedded(sounds.vectors, text, captions, texts, correspondence, sounds.rows, sounds, languages)


def _texts_of(
    clips: datasets.Dataset, columns: Sequence[str], texts: Sequence[str], answers: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Of the texts of each clip, those that some columns hold."""
    keys = [{caption_key(text) for text in captions_of(row, columns)} for row in clips.select_columns(columns)]
    return [
        [index for index in row if caption_key(texts[index]) in known]
        for row, known in zip(answers, keys, strict=True)
    ]


def _texts(captions: Iterable[list[str]], share_captions: bool) -> tuple[list[str], list[list[int]]]:
    """The texts, and the indices of each clip's texts."""
    if share_captions:
        spelling = {}
        for text in (text for row in captions for text in row):
            spelling.setdefault(caption_key(text), text)
        texts = sorted(spelling.values())
        position = {caption_key(text): index for index, text in enumerate(texts)}
        return texts, [list(dict.fromkeys(position[caption_key(text)] for text in row)) for row in captions]
    texts = [text for row in captions for text in row]
    ends = np.cumsum([len(row) for row in captions])
    return texts, [list(range(end - len(row), end)) for row, end in zip(captions, ends.tolist(), strict=True)]
