"""Embedder: fast embeddings of clips, files and texts in one process."""

import itertools
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from processing.audio import load_column, sounds_of
from processing.audio_inputs_wavlink import is_source, to_numpy
from processing.text_inputs_wavlink import has_half_pair
from wavlink.backends.choice import precision_of

from .batching import cover, cut_batches, mean_direction, refuse_other_samples
from .bundled_models import name_of
from .opening import check_tower, open_model
from .prefetch import prefetch
from .vectors import normalized
from .vocabulary import warn_of_unknown_words

if TYPE_CHECKING:
    from .loading import Model, Processor

# Seconds of sound in a batch, padding included. Base gains nothing from more, and little from more than 10.
_BATCH_SECONDS = 60
_FIRST_SECONDS = 20  # sorted for the first batches; then twice as many each time
_NO_DIRECTION = "the model gives {} a vector that is zero or holds NaN or infinite values"
_BATCHES_AHEAD = 2  # ready for the model
_BATCHES_SORTED = 10  # the most sound that is sorted at once, however large the lookahead

_PACKING = threading.Lock()  # of a text tower, which the first texts need
_TOKENIZING = threading.Lock()  # padding and truncation are settings of a tokenizer of transformers


class Embedder:
    """Embed many sounds and texts, fast, with a model and its processor.

    Sounds are decoded and their log-mels computed in a thread beside the model. Clips of similar length share a batch.
    Neither changes a vector: it equals that of the clip alone (fp32: to 1e-5).

    Args:
        model: a folder or Hub id of a WavLink, of a CLAP, PE-Audio or EmbeddingGemma 2 of transformers, or of a
            SentenceTransformer that encodes audio and text; the bare name of a bundled model (default: `wavlink-tiny`,
            see `wavlink.bundled`); or a loaded model, which is copied.
        processor: of a loaded model, and only then.
        revision: of a Hub id: a branch, tag or commit.
        local_files_only: whether a Hub id is looked up in the local cache alone.
        backend: `"torch"`, or on a CPU `"openvino"` or `"onnx"` (onnxruntime), for a WavLink with a Whisper. Default:
            torch, unless the model's folder carries an export in this precision (see `wavlink.backends.choice`).
        precision: `"fp32"` (default), `"bf16"` or `"int8"`, which needs an export (`wavlink export`); the vectors are
            always fp32. fp32 and bf16 are converted on first use into a cache beside the Hub's.
        device: such as `"cpu"` or `"cuda"`, of torch.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`, of torch's weights and states, in place of `precision`; it is
            taken also where the processor is slow in it.
        fast_kernels: whether to use, on a CPU, packed weights for linear layers (oneDNN), where that is faster (see
            `wavlink.backends.torch_cpu`).

    Attributes:
        model: for inference alone.
        processor: of the model.
        backend, precision: that it runs in.
        name: of the model that was loaded.
        folder: of the model, as an absolute path; "" for a Hub id.
        revision: the Hub's commit, or a digest of the weights (see `wavlink.loading.revision`).
        parameters: number of the model's parameters.
        sampling_rate: of clips, in Hz.
        dims: of the vectors.
        matryoshka_dims: the nested dims that were trained.
        max_seconds: the longest clip that the model takes; None if it has no limit (a CLAP takes 10 s of it).

    Raises:
        ValueError: another model, an unknown name, a backend that is not installed or does not run this model, an
            export of another model, or bf16 on a processor that has none.

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
        model: "str | os.PathLike[str] | Model | None" = None,
        processor: "Processor | None" = None,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        backend: str | None = None,
        precision: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        fast_kernels: bool = True,
    ):
        model = os.fspath(model or "") if isinstance(model, os.PathLike | None) else model
        hub = {"revision": revision, "local_files_only": local_files_only}
        run = {"backend": backend, "precision": precision, "device": device, "dtype": dtype}
        opened = open_model(model, processor, **hub, **run, fast_kernels=fast_kernels)
        self._source, self._arguments = model if isinstance(model, str) else None, opened.arguments
        self.model, self.processor, self._pack_text = opened.model, opened.processor, opened.pack_text
        self.name, self.revision, self.parameters = opened.name, opened.revision, opened.parameters
        self._batch_size, self._keeps_graph = None, False
        self._read_properties()

    @classmethod
    def borrowing(cls, model: "Model", processor: "Processor", batch_size: int | None = None) -> "Embedder":
        """Return an embedder that shares a model, to score it between steps of its training.

        Args:
            model: it is neither copied nor changed.
            processor: of the model.
            batch_size: the most clips in a batch (default: no limit).
        """
        embedder = cls.__new__(cls)
        embedder.model, embedder.processor, embedder._batch_size = model, processor, batch_size
        embedder.name = name_of(getattr(model, "name_or_path", "")) or "the model"
        embedder._keeps_graph, embedder._pack_text = True, None
        embedder._read_properties()
        return embedder

    def _read_properties(self) -> None:
        """Set the attributes that the model and the processor state."""
        extractor, config = self.processor.feature_extractor, self.model.config
        self.backend, self.precision = getattr(self.model, "backend", "torch"), precision_of(self.model)
        self._tensors = getattr(self.model, "tensors", "pt")
        check_tower(self.name, extractor, config)
        source = getattr(self.model, "name_or_path", "")
        self.folder = os.path.abspath(source) if os.path.isdir(source) else ""
        self.sampling_rate = extractor.sampling_rate
        self.dims, self.matryoshka_dims = config.projection_dim, list(config.matryoshka_dims)
        self._limit = getattr(self.processor, "max_samples", None) or getattr(extractor, "n_samples", None)
        self._least = getattr(self.processor, "min_samples", 1)
        # A processor that borrows numpy's global generator must not run beside the caller's thread.
        self._overlaps = not getattr(self.processor, "seeded", False)
        self.max_seconds = self._limit and self._limit / self.sampling_rate
        self.kept_head: tuple[int, Any] | None = None  # see `wavlink.span_search.frame_head_of`
        self._loaded = frozenset(vars(self)) | {"_loaded"}

    def embed_clips(self, clips: Iterable, lookahead: int = 256) -> Iterator[np.ndarray]:
        """Embed clips, in order, while they are read.

        Args:
            clips: mono `[samples]` of floats in [-1, 1] at `sampling_rate`, or values of an `audio` column (see
                `processing.audio.load_column`). They are read lazily, in a thread.
            lookahead: the most clips, of ten minutes together, that are sorted by length. Memory holds at most about
                twice as many.

        Yields:
            The vector of each clip, in order, `[dims]` fp32, L2-normalised.

        Raises:
            ValueError: a clip that is empty, not mono, not of finite floats or longer than `max_seconds`, or a sound
                that cannot be read. Errors that `clips` raises are raised unchanged.
        """
        if lookahead < 1:
            raise ValueError(f"lookahead must be 1 clip or more, got {lookahead}")
        clips = sounds_of(clips)
        with closing(prefetch(lambda taken: self._batches(taken, lookahead), clips, _BATCHES_AHEAD)) as batches:
            waiting, index = {}, 0
            for indices, batch in self._in_step(batches):
                inputs = batch if self._overlaps else self._inputs(batch)
                waiting.update(zip(indices, self._vectors(inputs), strict=True))
                while index in waiting:
                    yield waiting.pop(index)
                    index += 1

    def embed_files(self, files: Iterable) -> Iterator[np.ndarray | ValueError]:
        """Embed sound files of any length, in order, while they are read.

        Args:
            files: paths or bytes, or other values of an `audio` column (see `processing.audio.load_column`).

        Yields:
            The vector of each file, in order, `[dims]` fp32, or the error why it cannot be read. A file over
            `max_seconds` is cut into the fewest windows that cover it, evenly spaced, whose vectors are averaged.
        """
        with closing(self.embed_whole(files)) as results:
            for result in results:
                if isinstance(result, ValueError):
                    yield result
                else:
                    yield result[0] if _has_direction(result[0]) else ValueError(_NO_DIRECTION.format("this sound"))

    def embed_whole(self, files: Iterable) -> Iterator[tuple[np.ndarray, int] | ValueError]:
        """Embed like `embed_files`, but yield any vector, also zero, NaN or infinite, with the number of windows."""
        files = sounds_of(files)
        counts = deque()  # of each file that was read: the number of its windows, or the error

        def windows():
            for file in files:
                try:
                    clip = load_column(file, self.sampling_rate)
                    self._refuse_short(clip, "the sound")
                    parts = cover(clip, self._limit)
                except ValueError as error:
                    counts.append(error)
                    continue
                counts.append(len(parts))
                yield from parts

        with closing(self.embed_clips(windows())) as vectors:
            for vector in vectors:
                while isinstance(counts[0], ValueError):
                    yield counts.popleft()
                count = counts.popleft()
                yield mean_direction([vector, *itertools.islice(vectors, count - 1)]), count
            yield from counts

    def embed_text(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        """Embed texts. Texts of similar length share a batch.

        Words that the model's vocabulary lacks are named in a warning, each once.

        Returns:
            `[texts, dims]` fp32, L2-normalised.

        Raises:
            ValueError: no list of strings, half of a surrogate pair in one (text that was not UTF-8), a `batch_size`
                below 1, or a vector that is zero or not finite.
        """
        texts = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, str) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("texts must be a list of strings")
        if broken := next(filter(has_half_pair, texts), None):
            raise ValueError(
                f"the text {ascii(broken[:80])} holds half of a surrogate pair, which is no character: give it as "
                "UTF-8, or decode it anew, for example with errors='replace'"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 text or more, got {batch_size}")
        with _TOKENIZING:
            warn_of_unknown_words(getattr(self.processor, "tokenizer", None), texts, self.name)
        with _PACKING:
            if self._pack_text:
                self._pack_text()
            self._pack_text = None
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        embeds = np.empty((len(texts), self.dims), dtype=np.float32)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            with _TOKENIZING:
                inputs = self.processor(text=[texts[index] for index in batch], return_tensors=self._tensors)
            embeds[batch] = self._vectors(inputs, "get_text_features")
        for text, vector in zip(texts, embeds, strict=True):
            if not _has_direction(vector):
                raise ValueError(_NO_DIRECTION.format(f"the text {text!r:.80}"))
        return embeds

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Embed a batch, for `map_batches` of Ray Data and `map(batched=True)` of datasets.

        Args:
            batch: with a column `audio` (paths, bytes, or decoders of datasets) or else `path`.

        Returns:
            The batch with `embedding` `[B, dims]` fp32, NaN for a sound that cannot be read, and `error`, which says
            why (`""` for the others).

        Raises:
            ValueError: neither column.
        """
        column = "audio" if "audio" in batch else "path"
        if column not in batch:
            raise ValueError(f"the batch needs a column 'path' or 'audio', it has {', '.join(batch) or 'none'}")
        results = list(self.embed_files(batch[column]))
        errors = [str(value) if isinstance(value, ValueError) else "" for value in results]
        embedding = np.full((len(results), self.dims), np.nan, dtype=np.float32)
        for row, value in enumerate(results):
            if not errors[row]:
                embedding[row] = value
        return {**batch, "embedding": embedding, "error": np.array(errors, dtype=str)}

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Pickle the arguments, so that another process (or `datasets`, which hashes it) gets a name, not weights.

        The revision is among them: `datasets` keeps what it has computed by this hash, also after a new training.
        """
        if self._source is None:
            return super().__reduce_ex__(protocol)
        added = {name: value for name, value in vars(self).items() if name not in self._loaded or name == "name"}
        return _reopened, (type(self), self._source, self._arguments, self.revision), added

    def _batches(self, clips: Iterator[np.ndarray], lookahead: int) -> Iterator[tuple[list[int], dict | list]]:
        """Yield the indices of a batch's clips and the model's inputs, or the clips if inputs are computed later."""
        checked = (self._check(clip, index) for index, clip in enumerate(clips))
        budget, start = _BATCH_SECONDS * self.sampling_rate, 0
        room = _FIRST_SECONDS * self.sampling_rate
        while window := self._take(checked, lookahead, room):
            for batch in cut_batches([self._cost(clip) for clip in window], budget, most=self._batch_size):
                taken = [window[index] for index in batch]
                yield [start + index for index in batch], self._inputs(taken) if self._overlaps else taken
            start += len(window)
            room = min(2 * room, _BATCHES_SORTED * budget)

    def _in_step(self, batches: Iterator) -> Iterator:
        """Return the batches; a subclass makes all processes compute equally many."""
        return batches

    def _take(self, clips: Iterator[np.ndarray], most: int, cost: int) -> list[np.ndarray]:
        taken = []
        while cost > 0 and len(taken) < most and (clip := next(clips, None)) is not None:
            taken.append(clip)
            cost -= self._cost(clip)
        return taken

    def _inputs(self, clips: list[np.ndarray]) -> dict:
        return self.processor(audio=clips, sampling_rate=self.sampling_rate, return_tensors=self._tensors)

    def _check(self, clip, index: int) -> np.ndarray:
        clip = load_column(clip, self.sampling_rate) if is_source(clip) else to_numpy(clip)
        refuse_other_samples(clip, index)
        self._refuse_short(clip, f"clip {index}")
        if self._limit and len(clip) > self._limit:
            raise ValueError(
                f"clip {index} has {len(clip) / self.sampling_rate:.2f} s, the limit is {self.max_seconds:g} s: cut "
                "it into windows and embed each, or use embed_files"
            )
        return clip.astype(np.float32, copy=False)

    def _refuse_short(self, clip: np.ndarray, name: str) -> None:
        if len(clip) < self._least:
            least, rate = self._least, self.sampling_rate
            raise ValueError(f"{name} has {len(clip)} samples at {rate} Hz, the model takes {least} or more")

    def _cost(self, clip: np.ndarray) -> int:
        """Return how many samples the model processes for a clip: its own at native length, else full windows."""
        extractor = self.processor.feature_extractor
        if getattr(extractor, "padding", None) == "max_length":
            return extractor.n_samples
        window = getattr(extractor, "nb_max_samples", 1)  # a CLAP's
        return -(-len(clip) // window) * window

    def _vectors(self, inputs: dict, method: str = "get_audio_features") -> np.ndarray:
        """Run the model on a batch: `[B, dims]` fp32."""
        if self._tensors == "np":
            return normalized(getattr(self.model, method)(**inputs).pooler_output)
        from .backends.torch_model import vectors_of

        return vectors_of(self.model, inputs, method, self._keeps_graph)


def embedder_for(
    model: "str | os.PathLike[str] | Model | Embedder | None",
    processor: "Processor | None" = None,
    device: str | None = None,
    dtype: str | None = None,
    backend: str | None = None,
    precision: str | None = None,
) -> Embedder:
    """Return an embedder unchanged, or the embedder of another model.

    Args:
        model: an embedder, or what `Embedder` takes.
        processor: of a loaded model, and only then.
        device: default: that of a loaded model, else the CPU.
        dtype: default: float32.
        backend, precision: see `Embedder`.

    Raises:
        ValueError: `Embedder`'s, or an embedder with any of the other arguments.
    """
    if isinstance(model, Embedder):
        if any(given is not None for given in (processor, device, dtype, backend, precision)):
            raise ValueError(
                "an Embedder has its own processor, device, dtype, backend and precision: leave these arguments out"
            )
        return model
    if not isinstance(model, str | os.PathLike | None):
        device = device or str(getattr(model, "device", "cpu"))
    run = {"backend": backend, "precision": precision}
    return Embedder(model, processor, device=device or "cpu", dtype=dtype or "float32", **run)


def _has_direction(vector: np.ndarray) -> bool:
    return bool(np.isfinite(vector).all() and vector.any())


def _reopened(kind: type, source: str, arguments: dict, revision: str) -> Embedder:
    """Return an `Embedder`, or one of a subclass, whose added attributes pickle restores.

    Raises:
        ValueError: its weights are not of this revision.
    """
    embedder = kind.__new__(kind)
    Embedder.__init__(embedder, source, **arguments)
    if embedder.revision != revision:
        raise ValueError(
            f"{embedder.name} holds other weights now, {embedder.revision}, than when the Embedder was pickled, "
            f"{revision}: make a new one"
        )
    return embedder
