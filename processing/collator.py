"""Decoding of a data set's rows to clips, and of clips to batches."""

import hashlib
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from processing.audio import clip_name, load_column
from processing.datasets.load import captions_of
from processing.sampling import BatchPlan

logger = logging.get_logger(__name__)

MOST_UNREADABLE = 100  # clips in a row; after more the disk or the data set is at fault, not a clip


def drawn_crop(array: np.ndarray, max_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a random crop of at most `max_samples` of a clip `[samples]`, or so many frames of a log-mel `[F, T]`."""
    start = rng.integers(max(array.shape[-1] - max_samples, 0) + 1)
    return array[..., start : start + max_samples]


def drawn_captions(
    captions: list[str], rng: np.random.Generator, wordings: Sequence[str] = (), share: float = 0.0
) -> tuple[list[str], list[str]]:
    """Shuffle a clip's captions, with one of the wordings of its label among them.

    Args:
        captions: of the clip, without wordings of its label.
        rng: of the draws.
        wordings: of its label; none without a label.
        share: chance that the wording comes first; 0: that of each caption.

    Returns:
        The captions with that wording, and the other wordings.
    """
    if not wordings:
        return [captions[position] for position in rng.permutation(len(captions))], []
    # A single wording takes no draw, so that runs with one prompt stay what they were.
    chosen = int(rng.integers(len(wordings))) if len(wordings) > 1 else 0
    others = [*wordings[:chosen], *wordings[chosen + 1 :]]
    if not share:
        captions = [*captions, wordings[chosen]]
        return [captions[position] for position in rng.permutation(len(captions))], others
    first = rng.random() < share
    shuffled = [captions[position] for position in rng.permutation(len(captions))]
    return ([wordings[chosen], *shuffled] if first else [*shuffled, wordings[chosen]]), others


class UnreadableClip(ValueError):
    """The sound of a row cannot be decoded."""


def _decoded(audio, rate: int) -> np.ndarray:
    """Decode a row's sound; an error is an `UnreadableClip`, except for arrays, where the caller is at fault."""
    try:
        return load_column(audio, rate)
    except ValueError as error:
        if isinstance(audio, dict) and audio.get("array") is not None:
            raise
        raise UnreadableClip(str(error)) from error


class CaptionedAudio(torch.utils.data.Dataset):
    """Decoded rows `{"audio": {"array", "sampling_rate"}, "captions": [...]}`, the caption to train on first.

    With a `label_column` a row's captions hold one of the wordings of its label, and `wordings` the others.

    The key of an item is `(epoch, index)` or `index`. Which caption comes first and, for clips over `max_seconds`,
    which part is used depend on (seed, epoch, index) only, so that a resumed run trains on the same as an
    uninterrupted one. With `shuffle=False` captions keep their order, and a clip over `max_seconds` is an error.

    Where `features` holds a clip's log-mel, an item has a crop of it as `input_features` `[F, T]` in place of `audio`.

    A single item whose sound cannot be decoded raises `UnreadableClip`. A DataLoader takes batches (`__getitems__`):
    there such a clip is noted in `unreadable`, logged, and replaced by a substitute of `plan`, a `BatchPlan`, so that
    all processes have the same number of clips; without a plan it is left out.

    Args:
        dataset: rows with `audio` and captions, by index.
        columns: names of the caption columns.
        max_seconds: length of the longest clip or crop.
        seed: of crops and the order of captions.
        shuffle: whether to crop and to shuffle captions.
        rate: of the samples, in Hz.
        label_column: one of `columns`, with the wordings of a clip's label (`add_label_captions`).
        label_share: see `drawn_captions`.
    """

    def __init__(
        self,
        dataset: Any,
        columns: Sequence[str],
        max_seconds: float = 30.0,
        seed: int = 0,
        shuffle: bool = False,
        rate: int = 16000,
        label_column: str = "",
        label_share: float = 0.0,
    ):
        self.dataset = dataset
        self.columns = list(columns)
        self.max_seconds = max_seconds
        self.seed = seed
        self.shuffle = shuffle
        self.rate = rate
        self.label_column = label_column
        self.label_share = label_share
        self.plan: BatchPlan | None = None
        self.features: Any = None  # `KeptFeatures`, or None
        self.frame = 0  # samples of a frame of `features`
        self.unreadable: dict[str, str] = {}  # clip -> error, of this process; each worker has its own

    @property
    def max_samples(self) -> int:
        """`max_seconds` in samples at `rate`, which may be set later."""
        return int(self.max_seconds * self.rate)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        row = self.dataset[int(index)]
        captions = captions_of(row, [name for name in self.columns if name != self.label_column])
        wordings = captions_of(row, [self.label_column]) if self.label_column else []
        if not captions and not wordings:
            raise ValueError(f"row {index} ({self.name(index)}) has no caption in {', '.join(self.columns)}")
        kept = self.features[int(index)] if self.shuffle and self.features is not None else None
        array = _decoded(row["audio"], self.rate) if kept is None else kept
        if self.shuffle:
            rng = np.random.default_rng((self.seed, epoch, index))
            longest = self.max_samples if kept is None else max(self.max_samples // self.frame, 1)
            array = drawn_crop(array, longest, rng)
            captions, wordings = drawn_captions(captions, rng, wordings, self.label_share)
        elif len(array) > self.max_samples:
            raise ValueError(
                f"{self.name(index)} lasts {len(array) / self.rate:.2f} s, the limit is "
                f"{self.max_samples / self.rate:g} s: cut it into windows"
            )
        else:
            captions, wordings = [*captions, *wordings[:1]], wordings[1:]
        sound = {"audio": {"array": array, "sampling_rate": self.rate}}
        item = {**(sound if kept is None else {"input_features": np.array(array)}), "captions": captions}
        return {**item, "wordings": wordings} if self.label_column else item

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[dict]:
        rows = [row for key in keys if (row := self._readable(key)) is not None]
        if not rows:
            raise ValueError(f"none of the {len(keys)} clips of a batch can be read: {self._last_unreadable()}")
        return rows

    def _readable(self, key: int | tuple[int, int]) -> dict | None:
        """Return the row, or the first of its substitutes that can be read; None without a plan."""
        planned = self.plan is not None and isinstance(key, tuple)
        substitutes = self.plan.substitutes(*key) if planned else ()
        for candidate in chain([key], islice(substitutes, MOST_UNREADABLE)):
            try:
                return self[candidate]
            except UnreadableClip as error:
                name = self.name(candidate[1] if isinstance(candidate, tuple) else candidate)
                if name not in self.unreadable:
                    self.unreadable[name] = str(error)
                    instead = "replaced by another clip" if planned else "left out"
                    logger.warning(f"{name} cannot be read and is {instead} ({len(self.unreadable)} so far): {error}")
        if not planned:
            return None
        raise ValueError(f"no other clip can take the place of one that cannot be read: {self._last_unreadable()}")

    def _last_unreadable(self) -> str:
        name, why = next(reversed(self.unreadable.items()))
        return f"{len(self.unreadable)} cannot be read so far, the last is {name} ({why}); repair or remove them"

    def name(self, index: int) -> str:
        """Return the name of a row in messages."""
        return clip_name(self.dataset[int(index)]["audio"], index)


class AudioTextCollator:
    """Collator of rows to the model's inputs, for `transformers.Trainer` (with `remove_unused_columns=False`) too.

    A row holds `audio` (a path, bytes, a dict or a decoder, see `processing.audio.load_column`) and captions, of which
    the first is the text. `caption_ids` `[B, K]` mark clips that share a caption, for the loss. A row may also hold
    `wordings`, further texts of its label that are no texts of the batch: clips that share one share a caption.

    With `all_captions` all of a clip's captions are its texts, clip by clip, and `text_owner` `[B_text]` int64 holds
    the row of each text's clip. Trainer's `compute_metrics` expects one text a clip.

    A row whose file or bytes cannot be read is left out of its batch, noted in `unreadable` and logged.

    Args:
        processor: a `WavLinkProcessor`.
        columns: names of the caption columns.
        padding: of audio; default: the processor's.
        with_caption_ids: whether to return `caption_ids`.
        all_captions: see above.
        with_bank_ids: whether to return `bank_ids`, equal to `caption_ids`, for a `CaptionBank`.

    Raises:
        ValueError: a row without caption, or a batch of which nothing can be read.
    """

    def __init__(
        self,
        processor: Any,
        columns: Sequence[str] = ("captions",),
        padding: str | None = None,
        with_caption_ids: bool = True,
        all_captions: bool = False,
        with_bank_ids: bool = False,
    ):
        self.processor = processor
        self.with_caption_ids = with_caption_ids
        self.columns = list(columns)
        self.padding = padding
        self.all_captions = all_captions
        self.with_bank_ids = with_bank_ids
        self.unreadable: dict[str, str] = {}  # clip -> error, of this process; each worker has its own

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        rate = self.processor.feature_extractor.sampling_rate
        rows, clips = self._read(rows, rate)
        captions = [captions_of(row, self.columns) for row in rows]
        if not all(captions):
            raise ValueError(f"a row without caption in {', '.join(self.columns)}; it has {', '.join(rows[0])}")
        texts_per_clip = captions if self.all_captions else [texts[:1] for texts in captions]
        batch = self._inputs([text for texts in texts_per_clip for text in texts], clips, rate)
        ids = caption_ids([[*texts, *row.get("wordings", ())] for texts, row in zip(captions, rows, strict=True)])
        wanted = {"caption_ids": self.with_caption_ids, "bank_ids": self.with_bank_ids}
        extra = {name: ids for name, is_wanted in wanted.items() if is_wanted}
        if self.all_captions:
            counts = torch.tensor([len(texts) for texts in texts_per_clip])
            extra["text_owner"] = torch.arange(len(rows)).repeat_interleave(counts)
        return {**batch, **extra}

    def _inputs(self, texts: list[str], clips: list[np.ndarray], rate: int) -> dict:
        """Make inputs of texts, and of clips that are samples `[samples]` or log-mels `[F, T]`."""
        audio_kwargs = {} if self.padding is None else {"padding": self.padding}
        options = {"sampling_rate": rate, "audio_kwargs": audio_kwargs, "return_tensors": "pt"}
        if all(clip.ndim == 1 for clip in clips):
            return self.processor(text=texts, audio=clips, **options)
        extractor = self.processor.feature_extractor
        features = [
            clip if clip.ndim > 1 else extractor(clip, sampling_rate=rate, padding=False)["input_features"][0]
            for clip in clips
        ]
        padded = extractor.pad({"input_features": features}, return_tensors="pt", **audio_kwargs)
        return {**self.processor(text=texts, return_tensors="pt"), **padded}

    def _read(self, rows: Sequence[dict], rate: int) -> tuple[list[dict], list[np.ndarray]]:
        """Return the rows that can be read, and their samples or log-mels."""
        read, clips, name, why = [], [], "", ""
        for number, row in enumerate(rows):
            try:
                clips.append(row["input_features"] if "input_features" in row else _decoded(row["audio"], rate))
                read.append(row)
            except UnreadableClip as error:
                why = str(error)
                name = clip_name(row["audio"], number)
                if name not in self.unreadable:
                    self.unreadable[name] = str(error)
                    logger.warning(f"{name} cannot be read and is left out ({len(self.unreadable)} so far): {error}")
        if not read:
            raise ValueError(f"none of the {len(rows)} clips of a batch can be read, such as {name} ({why})")
        return read, clips


def caption_ids(captions: Sequence[Sequence[str]]) -> torch.Tensor:
    """Return ids `[B, K]` int64, the same for captions with the same `caption_key`; -1 pads shorter rows."""
    ids = torch.full((len(captions), max(map(len, captions))), -1)
    for row, texts in enumerate(captions):
        ids[row, : len(texts)] = torch.tensor([_caption_id(text) for text in texts])
    return ids


def caption_key(text: str) -> str:
    """Return a caption in lower case without outer space; captions with the same key count as equal."""
    return text.strip().lower()


def _caption_id(text: str) -> int:
    digest = hashlib.blake2b(caption_key(text).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # non-negative in int64
