"""Vectors of a whole split, clip by clip: what cannot be read is named, what was done is not done again."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from transformers.utils import logging

from modeling_wavlink.losses_wavlink import gather
from processing.audio import clip_name
from processing.collator import caption_key
from processing.datasets.load import captions_of, durations
from wavlink.atomic_files import atomic_file, write_text
from wavlink.embedder import Embedder
from wavlink.progress import Bar

from .metrics import Correspondence

logger = logging.get_logger(__name__)

_BATCHES_A_PART = 8


@dataclass
class EmbeddedAudio:
    """`vectors [clips, D]` fp32 of the clips that could be read, `rows`, and of the others why not."""

    vectors: torch.Tensor
    rows: list[int]
    unreadable: dict[int, str] = field(default_factory=dict)
    windowed: int = 0  # clips over the window, whose windows' vectors were averaged


def embed_audio(
    model,
    processor,
    rows,
    lengths: Sequence[float],
    batch_size: int = 32,
    progress=True,
    shared=False,
    store: Path | None = None,
) -> EmbeddedAudio:
    """Embeds each row's clip, in the order of `rows`, by an `Embedder`, whose batches hold a minute of sound at most.

    Clips of like length share a batch, which changes the cost but no vector. A clip over the model's window (30 s) is
    cut into as few windows as cover it, evenly placed, and has their mean.

    Args:
        rows: rows with `audio` (see `processing.audio.load_column`), by index.
        lengths: of each clip, in any unit.
        batch_size: clips or windows that a batch holds at most, however short they are.
        shared: the processes divide the clips and all get all vectors; all must call it.
        store: a folder for what is done, from which the same call goes on; the caller removes it.
    """
    order = np.argsort(lengths, kind="stable")
    mine = _share(order) if shared else order
    kind = _InStep if shared and isinstance(model, FSDPModule) else Embedder
    embedder = kind.borrowing(model, processor, batch_size)
    size = batch_size * _BATCHES_A_PART
    parts = []
    with Bar(total=len(mine), desc="sounds", unit="clip", disable=not progress) as bar:
        for number, start in enumerate(range(0, len(mine), size)):
            path = store / f"part-{number:06d}.safetensors" if store else None
            if path and path.is_file():
                parts.append(_read_part(path))
            else:
                parts.append(_embed_part(embedder, rows, mine[start : start + size], bar.update))
                if path:
                    _write_part(path, *parts[-1])
            bar.n = start + len(parts[-1][0])
            bar.refresh()
    vectors = torch.cat([part for part, _ in parts])  # NaN where a clip cannot be read
    notes = {name: {k: v for _, note in parts for k, v in note[name].items()} for name in ("unreadable", "windowed")}
    if shared:
        vectors, notes = _from_all(vectors, notes, len(order))
    return _in_order(vectors.cpu()[np.argsort(order)], notes, rows)


def _embed_part(embedder: Embedder, rows, indices, update) -> tuple[torch.Tensor, dict]:
    """`[len(indices), D]` with NaN for what cannot be read, and `{"unreadable": {index: why}, "windowed": {...}}`."""
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
    """Of a model cut over processes (FSDP2): each forward is a gather of all, so all compute equally many batches."""

    def _in_step(self, batches: Iterator) -> Iterator:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        while True:
            batch = next(batches, None)
            left = torch.tensor(batch is not None, dtype=torch.int32, device=device)
            dist.all_reduce(left, op=dist.ReduceOp.MAX)
            if not left:
                return
            if batch is None:  # another process still has some
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
    """Every n-th for one of n processes, equally many for each: the last is repeated to fill up."""
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
    everyone, _ = gather(vectors.to(device))  # (processes * share, D)
    everyones_notes = [None] * dist.get_world_size()
    dist.all_gather_object(everyones_notes, notes)
    merged = {name: {k: v for note in everyones_notes for k, v in note[name].items()} for name in notes}
    return everyone.view(-1, *vectors.shape).transpose(0, 1).flatten(0, 1)[:clips], merged


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


def embed_text(model, processor, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
    """`[texts, D]` fp32, L2-normalised. Texts of like length share a batch."""
    return torch.from_numpy(Embedder.borrowing(model, processor).embed_text(texts, batch_size))


def open_store(folder: Path, key: dict) -> Path:
    """`folder` for parts of the work that `key` tells; parts of other work in it are thrown away, with a warning."""
    written = folder / "key.json"
    if written.is_file():
        if json.loads(written.read_text(encoding="utf-8")) != key:
            logger.warning(f"{folder} holds parts of another model or data set: they are thrown away")
            remove_store(folder)
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(
            f"{folder} holds something else than parts of an evaluation: move it, or name another --output"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(written, json.dumps(key, indent=2) + "\n")
    return folder


def remove_store(folder: Path) -> None:
    """Removes what a store has, and the folder where it holds nothing else."""
    for path in (*folder.glob("part-*.safetensors"), *folder.glob(".*.unfinished"), folder / "key.json"):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def fingerprint(dataset) -> str:
    """16 hexadecimal digits of a split: its captions, labels, and the names and contents of its sounds, in order."""
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
    """A split, embedded: `audio [clips, D]`, `text [texts, D]`, and who belongs to whom."""

    audio: torch.Tensor
    text: torch.Tensor
    captions: list[list[str]]  # of each clip
    texts: list[str]
    correspondence: Correspondence  # [clips, texts]
    rows: list[int]  # of the split, the clips that could be read
    sounds: EmbeddedAudio


def embed_dataset(
    model,
    processor,
    dataset,
    columns: Sequence[str],
    progress=True,
    shared=False,
    share_captions=True,
    batch_size: int = 32,
    store: Path | None = None,
) -> Embedded:
    """Embeds clips and their captions.

    Args:
        columns: with captions; without any, no texts are embedded.
        shared, store: see `embed_audio`.
        share_captions: equal captions (of one `caption_key`, as in training) are one text, in the first of its
            spellings, and the clips that have it answer for each other. False, the
            protocol of AudioCaps and Clotho: each caption is a text of its own, with its clip as the only hit.
    """
    was_training = model.training
    model.eval()
    sounds = embed_audio(model, processor, dataset, durations(dataset), batch_size, progress, shared, store)
    captions = [captions_of(row, columns) for row in dataset.select(sounds.rows).remove_columns("audio")]
    texts, answers = _texts(captions, share_captions)
    captions = [[texts[index] for index in row] for row in answers]
    distinct = sorted({*texts})
    text = torch.empty(0, sounds.vectors.shape[1])
    if texts:
        place = {text: index for index, text in enumerate(distinct)}
        text = embed_text(model, processor, distinct)[[place[text] for text in texts]]
    model.train(was_training)
    return Embedded(sounds.vectors, text, captions, texts, Correspondence(answers, len(texts)), sounds.rows, sounds)


def _texts(captions: Iterable[list[str]], share_captions: bool) -> tuple[list[str], list[list[int]]]:
    """The texts, and of each clip the indices of its own."""
    if share_captions:
        spelling = {}
        for text in (text for row in captions for text in row):
            spelling.setdefault(caption_key(text), text)
        texts = sorted(spelling.values())
        place = {caption_key(text): index for index, text in enumerate(texts)}
        return texts, [list(dict.fromkeys(place[caption_key(text)] for text in row)) for row in captions]
    texts = [text for row in captions for text in row]
    ends = np.cumsum([len(row) for row in captions])
    return texts, [list(range(end - len(row), end)) for row, end in zip(captions, ends.tolist(), strict=True)]
