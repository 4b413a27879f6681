"""Embedder: clips, files and texts to the model's own vectors, as fast as one process can."""

import copy
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, ProcessorMixin

from processing.audio import load_column
from processing.audio_inputs_wavlink import is_source, to_numpy
from wavlink.backends.torch_cpu import pack_layers

from .loading import RepeatableClapProcessor, load_for_evaluation, revision
from .prefetch import made_ahead

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Seconds of sound a batch holds, padding included. Base gains nothing from more, and little from more than 10.
_BATCH_SECONDS = 60
_FIRST_SECONDS = 20  # before the first batch; each window that is sorted holds twice the last
_NO_DIRECTION = "the model gives {} a vector that is zero or holds NaN or infinite values"
_BATCHES_AHEAD = 2  # ready for the model
_BATCHES_SORTED = 10  # hold no more sound than this, however large the lookahead


class Embedder:
    """Model and processor that embed many sounds and texts, fast.

    Sounds are decoded and their log-mels computed in a thread beside the model. Clips of like length share a batch, of
    as many as `_BATCH_SECONDS` holds. Neither changes a vector: a clip has that of the model alone (fp32: to 1e-5).

    Args:
        model: a folder or Hub id of a WavLink or of a CLAP of transformers; or such a model, which stays as it is: it
            is copied, and what becomes of it later does not reach this copy.
        processor: of a model that is given, and only then.
        revision: of a Hub id, a branch, tag or commit.
        local_files_only: of a Hub id, what has been downloaded before, and nothing is asked of the Hub.
        device: such as `"cpu"` or `"cuda"`.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`, of weights and states; the vectors are always fp32.
        fast_kernels: on a CPU, linear layers by oneDNN with packed weights and attention without copies, where that is
            faster (see `cpu_kernels`).

    Attributes:
        model, processor: `model` computes, and is not for training.
        name, revision: what was loaded, and the Hub's commit or a digest of the weights (see `peers.revision`).
        parameters: how many the model has.
        sampling_rate: of clips, in Hz.
        dims, matryoshka_dims: of the vectors, and the nested ones that were trained.
        max_seconds: the longest clip that the model takes; None where it has no limit (a CLAP takes 10 s of it).

    Raises:
        ValueError: a model that is neither, or an unknown dtype.

    Example:

    ```python
    >>> from wavlink import Embedder
    >>> embedder = Embedder(model_folder)
    >>> vectors = list(embedder.embed_files([sounds_folder / "low.wav", sounds_folder / "high.wav"]))
    >>> vectors[0].shape, embedder.embed_text(["a low sound", "a high sound"]).shape
    ((32,), (2, 32))

    ```
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | PreTrainedModel,
        processor: ProcessorMixin | RepeatableClapProcessor | None = None,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        device: str = "cpu",
        dtype: str = "float32",
        fast_kernels: bool = True,
    ):
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        hub = {"revision": revision, "local_files_only": local_files_only}
        self._arguments = {**hub, "device": device, "dtype": dtype, "fast_kernels": fast_kernels}
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        self._source = model if isinstance(model, str) else None
        self._batch_size = None
        model, self.processor = _load(model, processor, revision, local_files_only)
        self.name, self.revision = model.name_or_path or type(model).__name__, _revision(model)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.model = model.to(device, DTYPES[dtype]).eval()
        if fast_kernels and torch.device(device).type == "cpu":
            pack_layers(self.model.audio_model)
            pack_layers(self.model.text_model)
        self._gradients = torch.inference_mode
        self._use_facts()

    @classmethod
    def borrowing(cls, model: PreTrainedModel, processor, batch_size: int | None = None) -> "Embedder":
        """One that computes with `model` itself, as it is now: for scoring a model between steps of its training.

        Args:
            batch_size: clips that a batch holds at most, however short they are.
        """
        embedder = cls.__new__(cls)
        embedder.model, embedder.processor, embedder._batch_size = model, processor, batch_size
        embedder._gradients = torch.no_grad  # what inference_mode has touched cannot be trained on
        embedder._use_facts()
        return embedder

    def _use_facts(self) -> None:
        """What the model and the processor say of themselves."""
        extractor, config = self.processor.feature_extractor, self.model.config
        self.sampling_rate = extractor.sampling_rate
        self.dims, self.matryoshka_dims = config.projection_dim, list(config.matryoshka_dims)
        self._limit = getattr(extractor, "n_samples", None)
        # A CLAP's processor borrows numpy's global generator, which belongs to the caller's thread.
        self._overlaps = not isinstance(self.processor, RepeatableClapProcessor)
        self.max_seconds = self._limit and self._limit / self.sampling_rate
        self._loaded = frozenset(vars(self)) | {"_loaded"}

    def embed_clips(self, clips: Iterable, lookahead: int = 256) -> Iterator[np.ndarray]:
        """Embed clips, in order, as they come.

        Args:
            clips: mono `[samples]` of floats in [-1, 1] at `sampling_rate`, or what an `audio` column holds (see
                `processing.audio.load_column`), taken lazily, in a thread of their own.
            lookahead: up to how many clips, of ten minutes together, are sorted by length. About twice as many are in
                memory at most.

        Yields:
            Of each clip, in order, its vector, `[dims]` fp32, L2-normalised.

        Raises:
            ValueError: a clip that is empty, not mono, not of finite floats or longer than `max_seconds`, or a sound
                that cannot be read. Whatever `clips` raises is raised as it is.
        """
        if lookahead < 1:
            raise ValueError(f"lookahead must be 1 clip or more, got {lookahead}")
        with closing(made_ahead(lambda taken: self._batches(taken, lookahead), clips, _BATCHES_AHEAD)) as batches:
            waiting, place = {}, 0
            for places, heard in self._in_step(batches):
                inputs = heard if self._overlaps else self._inputs(heard)
                waiting.update(zip(places, self._vectors(inputs), strict=True))
                while place in waiting:
                    yield waiting.pop(place)
                    place += 1

    def embed_files(self, files: Iterable) -> Iterator[np.ndarray | ValueError]:
        """Embed sound files of any length, in order, as they come.

        Args:
            files: paths or bytes, or what else an `audio` column holds (see `processing.audio.load_column`).

        Yields:
            Of each file, in order, its vector `[dims]` fp32, or the error why it cannot be read. A file over
            `max_seconds` is cut into as few windows as cover it, evenly placed, and has their mean.
        """
        with closing(self.embed_whole(files)) as results:
            for result in results:
                if isinstance(result, ValueError):
                    yield result
                else:
                    yield result[0] if _has_direction(result[0]) else ValueError(_NO_DIRECTION.format("this sound"))

    def embed_whole(self, files: Iterable) -> Iterator[tuple[np.ndarray, int] | ValueError]:
        """As `embed_files`, but with the number of windows beside the vector, which may be zero, NaN or infinite."""
        counts = deque()  # of each file taken: its windows, or the error

        def windows():
            for file in [files] if is_source(files) else files:
                try:
                    heard = cover(load_column(file, self.sampling_rate), self._limit)
                except ValueError as error:
                    counts.append(error)
                    continue
                counts.append(len(heard))
                yield from heard

        with closing(self.embed_clips(windows())) as vectors:
            for vector in vectors:
                while isinstance(counts[0], ValueError):
                    yield counts.popleft()
                count = counts.popleft()
                yield mean_direction([vector, *itertools.islice(vectors, count - 1)]), count
            yield from counts

    def embed_text(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        """Embed texts: `[texts, dims]` fp32, L2-normalised. Texts of like length share a batch.

        Raises:
            ValueError: no list of strings, or a vector that is zero or not finite.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError("texts must be a list of strings")
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        found = np.empty((len(texts), self.dims), dtype=np.float32)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = self.processor(text=[texts[place] for place in batch], return_tensors="pt")
            found[batch] = self._vectors(inputs, "get_text_features")
        for text, vector in zip(texts, found, strict=True):
            if not _has_direction(vector):
                raise ValueError(_NO_DIRECTION.format(f"the text {text!r:.80}"))
        return found

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """For `map_batches` of Ray Data and `map(batched=True)` of datasets.

        Args:
            batch: with a column `audio` (paths, bytes, or what datasets has there, decoders too) or else `path`.

        Returns:
            The batch with `embedding` `[B, dims]` fp32, NaN where a sound cannot be read, and `error`, which says why
            (`""` where it can).
        """
        column = "audio" if "audio" in batch else "path"
        if column not in batch:
            raise ValueError(f"the batch needs a column 'path' or 'audio', it has {', '.join(batch) or 'none'}")
        found = list(self.embed_files(batch[column]))
        errors = [str(value) if isinstance(value, ValueError) else "" for value in found]
        embedding = np.full((len(found), self.dims), np.nan, dtype=np.float32)
        for row, value in enumerate(found):
            if not errors[row]:
                embedding[row] = value
        return {**batch, "embedding": embedding, "error": np.array(errors, dtype=str)}

    def __reduce_ex__(self, protocol):
        """By its arguments, so that another process (or `datasets`, which hashes it) gets no weights but a name."""
        if self._source is None:
            return super().__reduce_ex__(protocol)
        added = {name: value for name, value in vars(self).items() if name not in self._loaded or name == "name"}
        return _reopened, (type(self), self._source, self._arguments), added

    def _batches(self, clips: Iterator[np.ndarray], lookahead: int) -> Iterator[tuple[list[int], dict | list]]:
        """The places of a batch's clips, and the model's inputs, or where that does not overlap the clips."""
        checked = (self._check(clip, place) for place, clip in enumerate(clips))
        budget, start = _BATCH_SECONDS * self.sampling_rate, 0
        room = _FIRST_SECONDS * self.sampling_rate
        while window := self._take(checked, lookahead, room):
            for batch in cut_batches([self._cost(clip) for clip in window], budget, most=self._batch_size):
                heard = [window[place] for place in batch]
                yield [start + place for place in batch], self._inputs(heard) if self._overlaps else heard
            start += len(window)
            room = min(2 * room, _BATCHES_SORTED * budget)

    def _in_step(self, batches: Iterator) -> Iterator:
        """For a subclass whose processes must compute equally many batches."""
        return batches

    def _take(self, clips: Iterator[np.ndarray], most: int, cost: int) -> list[np.ndarray]:
        taken = []
        while cost > 0 and len(taken) < most and (clip := next(clips, None)) is not None:
            taken.append(clip)
            cost -= self._cost(clip)
        return taken

    def _inputs(self, clips: list[np.ndarray]) -> dict:
        return self.processor(audio=clips, sampling_rate=self.sampling_rate, return_tensors="pt")

    def _check(self, clip, place: int) -> np.ndarray:
        clip = load_column(clip, self.sampling_rate) if is_source(clip) else to_numpy(clip)
        if clip.ndim != 1 or not len(clip) or clip.dtype.kind != "f" or not np.isfinite(clip).all():
            raise ValueError(
                f"clip {place} must be mono, [samples], of finite floats in [-1, 1] and not empty, got "
                f"{list(clip.shape)} of {clip.dtype}"
            )
        if self._limit and len(clip) > self._limit:
            raise ValueError(
                f"clip {place} has {len(clip) / self.sampling_rate:.2f} s, the limit is {self.max_seconds:g} s: cut "
                "it into windows and embed each, or use embed_files"
            )
        return clip.astype(np.float32, copy=False)

    def _cost(self, clip: np.ndarray) -> int:
        """Samples that the model processes for a clip: its own at native length, else whole windows."""
        extractor = self.processor.feature_extractor
        if getattr(extractor, "padding", None) == "max_length":
            return extractor.n_samples
        window = getattr(extractor, "nb_max_samples", 1)  # a CLAP's
        return -(-len(clip) // window) * window

    def _vectors(self, inputs: dict, method: str = "get_audio_features") -> np.ndarray:
        """`[B, dims]` fp32."""
        model = self.model
        inputs = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        with self._gradients():
            return F.normalize(getattr(model, method)(**inputs).pooler_output.float(), dim=-1).cpu().numpy()


def embedder_for(
    model: str | os.PathLike[str] | PreTrainedModel | Embedder,
    processor: ProcessorMixin | RepeatableClapProcessor | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Embedder:
    """Return an embedder as it is, and one of any other model that `Embedder` takes.

    Args:
        processor: of a loaded model, and only then.
        device, dtype: default: the CPU, or where a loaded model is, and float32.

    Raises:
        ValueError: `Embedder`'s, or an embedder with any of the other arguments.
    """
    if isinstance(model, Embedder):
        if (processor, device, dtype) != (None, None, None):
            raise ValueError("an Embedder has its own processor, device and dtype: leave these arguments out")
        return model
    if isinstance(model, PreTrainedModel):
        device = device or str(model.device)
    return Embedder(model, processor, device=device or "cpu", dtype=dtype or "float32")


def cover(clip: np.ndarray, limit: int | None) -> list[np.ndarray]:
    """As few windows of `limit` samples as cover a clip `[samples]`, evenly placed; one of at most `limit` is its own
    only window."""
    count = -(-len(clip) // (limit or len(clip)))
    starts = [number * (len(clip) - limit) // (count - 1) for number in range(count)] if count > 1 else [0]
    return [clip[start : start + limit] for start in starts] if count > 1 else [clip]


def mean_direction(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of a file's windows, L2-normalised; of one window its vector as it is."""
    if len(vectors) == 1:
        return vectors[0]
    return F.normalize(torch.from_numpy(np.sum(vectors, axis=0)), dim=-1).numpy()


def _has_direction(vector: np.ndarray) -> bool:
    return bool(np.isfinite(vector).all() and vector.any())


def cut_batches(costs: Sequence[int], budget: int, padding: float = 0.25, most: int | None = None) -> list[list[int]]:
    """Indices in batches, shortest first, of at most `most` clips, of which none costs (clips x longest) more than
    `budget`, unless it is one clip alone, nor pads its shortest clip to more than 1 + `padding` of its length."""
    batches = []
    for index in sorted(range(len(costs)), key=costs.__getitem__):
        batch = batches[-1] if batches else []
        fits = 0 < len(batch) < (most or len(costs)) and (len(batch) + 1) * costs[index] <= budget
        if fits and costs[index] <= (1 + padding) * costs[batch[0]]:
            batch.append(index)
        else:
            batches.append([index])
    return batches


def _reopened(kind: type, source: str, arguments: dict) -> Embedder:
    """An `Embedder` or one of its subclasses, whose own attributes pickle brings back."""
    embedder = kind.__new__(kind)
    Embedder.__init__(embedder, source, **arguments)
    return embedder


def _load(model, processor, revision: str | None, local_files_only: bool):
    if isinstance(model, str):
        if processor is not None:
            raise ValueError(f"{model} brings its own processor: leave processor out, or give the loaded model")
        return load_for_evaluation(model, revision=revision, local_files_only=local_files_only)
    if processor is None:
        raise ValueError("a loaded model needs its processor: Embedder(model, processor)")
    if revision is not None:
        raise ValueError(f"revision={revision!r} is of a Hub id, not of a loaded model")
    return copy.deepcopy(model), processor


def _revision(model: PreTrainedModel) -> str:  # the constructor's argument has that name
    return revision(model)
