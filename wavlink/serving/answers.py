"""What each route answers. These functions run in threads, many at a time, and share their batches."""

import base64
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from processing.prompts import prompts_of
from wavlink.classification import classify
from wavlink.probability import NO_MATCH, calibration_of, described
from wavlink.span_search import Limits as SpanLimits
from wavlink.span_search import find_spans, windows_of
from wavlink.vectors import truncated

from .audio_input import decode
from .batching import BatchedEmbedder, Batcher
from .errors import RequestError
from .limits import Limits
from .metrics import Metrics
from .requests import (
    ClassifyRequest,
    EmbeddingRequest,
    LocateRequest,
    SearchRequest,
    as_list,
    content_of,
    named,
    sounds_of,
    text_of,
)

if TYPE_CHECKING:
    from wavlink.search.index import Index

logger = logging.getLogger(__name__)

Files = list[tuple[str, bytes]]  # names, for errors, and contents


@dataclass(frozen=True)
class Answers:
    """The model, the index and the limits that answers depend on."""

    name: str
    batcher: Batcher
    embedder: BatchedEmbedder
    index: "Index | None"
    limits: Limits
    metrics: Metrics

    def embeddings(self, request: EmbeddingRequest, uploads: Files) -> dict[str, Any]:
        """Embed texts and sounds, in the order of `input`; uploaded files come after it."""
        dim = self._dim(request.dimensions)
        texts, files, rows = [], [], []
        for field, item in [*named(request.input, "input"), *uploads]:
            content = item if isinstance(item, bytes) else content_of(item, field)
            rows.append((content is not None, len(texts) if content is None else len(files)))
            if content is None:
                texts.append(self._text(text_of(item), field))
            else:
                files.append((field, content))
        self._count(rows, "input")
        sounds, seconds = self._decode(files)
        text_vectors, tokens = self.batcher.embed_texts(texts)
        sound_vectors = self._embed_sounds(sounds)
        vectors = np.stack([sound_vectors[n] if is_sound else text_vectors[n] for is_sound, n in rows])
        if dim < self.embedder.dims:
            vectors = truncated(vectors, dim)
        self.metrics.count_inputs(len(texts), tokens, seconds)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _encoded(vector, request.encoding_format)}
                for index, vector in enumerate(vectors)
            ],
            "model": self.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "audio_seconds": round(seconds, 3)},
        }

    def classify(self, request: ClassifyRequest, uploads: Files) -> dict[str, Any]:
        """Name sounds: the shares of the labels, and the probability that each matches."""
        dim = self._dim(request.dimensions)
        for field, text in [*named(request.labels, "labels"), *named(request.prompts or [], "prompts")]:
            self._text(text, field)
        files = [*sounds_of(request.input, "input"), *uploads]
        self._count(files, "input")
        sounds, seconds = self._decode(files)
        prompts = request.prompts or prompts_of(self.embedder.model.config)
        self._count(range(len(request.labels) * len(prompts)), "labels")
        self._count_results(len(files) * min(len(request.labels), request.top_k or len(request.labels)))
        options = {"prompts": prompts, "clean_up": request.clean_up, "dim": dim, "prior": request.prior}
        results = classify(self.embedder, sounds, request.labels, top_k=request.top_k, **options)
        for result in results:
            if "error" in result:
                raise RequestError(400, f"{result['path']}: {result['error']}", param=result["path"])
        self.metrics.count_inputs(len(request.labels) * len(prompts), 0, seconds)
        return {
            "object": "list",
            "data": [{"index": index, "labels": result["labels"]} for index, result in enumerate(results)],
            "model": self.name,
            "prompts": list(prompts),
            **described(calibration_of(self.embedder, dim, request.prior)),
        }

    def search(self, request: SearchRequest, uploads: Files) -> dict[str, Any]:
        """Find sounds of the index by texts and by sounds; uploaded files are wanted unless their field says not."""
        if self.index is None:
            raise RequestError(404, "this server has no index: start it with --index", code="no_index")
        texts = {name: as_list(getattr(request, name)) for name in ("text", "without")}
        for name in texts:
            for field, text in named(getattr(request, name), name):
                self._text(text, field)
        not_wanted = [file for file in uploads if file[0].startswith("without_sound[")]
        wanted = [*sounds_of(request.sound, "sound"), *(file for file in uploads if file not in not_wanted)]
        unwanted = [*sounds_of(request.without_sound, "without_sound"), *not_wanted]
        self._count([*texts["text"], *wanted], "text")
        self._count([*texts["text"], *wanted, *texts["without"], *unwanted], "without")
        sounds, seconds = self._decode([*wanted, *unwanted])
        names = ("weight", "top_k", "windows", "min_probability", "prior")
        options = {name: getattr(request, name) for name in names}
        try:
            query = texts["text"], sounds[: len(wanted)], texts["without"], sounds[len(wanted) :]
            hits = self.index.query(*query, **options)
        except RequestError:
            raise
        except ValueError:
            _refuse_lost(self.index)
            raise
        self.metrics.count_inputs(sum(map(len, texts.values())), 0, seconds)
        return {
            "object": "list",
            "data": [_hit(hit) for hit in hits],
            "model": self.name,
            **({} if hits else {"note": NO_MATCH.format("index")}),
        }

    def locate(self, request: LocateRequest, uploads: Files) -> dict[str, Any]:
        """Find where in one recording texts match."""
        texts = as_list(request.query)
        for field, text in named(request.query, "query"):
            self._text(text, field)
        self._count(texts, "query")
        self._count_results(len(texts) * request.top_k)
        files = [*sounds_of(request.input, "input"), *uploads]
        if len(files) != 1:
            raise RequestError(400, f"input must be one recording, got {len(files)}", param="input")
        dim = self._dim(request.dimensions)
        (sound,), seconds = self._decode(files)
        window, hop = windows_of(self.embedder, sound, request.window, request.hop)
        if seconds > hop * self.limits.max_windows:
            raise RequestError(
                400, f"hop={hop:g} s gives more than {self.limits.max_windows} windows: give a longer one", param="hop"
            )
        limits = SpanLimits(request.top_k, dim, request.min_score, request.min_probability, request.prior)
        result = find_spans(self.embedder, sound, texts, [], window, hop, limits)
        self.metrics.count_inputs(len(texts), 0, seconds)
        return {
            "object": "list",
            "data": [
                {
                    "query": match.query,
                    "spans": [asdict(span) for span in match.spans],
                    "closest": asdict(match.closest),
                    **described(match.calibration),
                    **({} if match.spans else {"note": NO_MATCH.format("recording")}),
                }
                for match in result.matches
            ],
            "model": self.name,
            "duration": result.recording.duration,
            "window": result.recording.window,
            "hop": result.recording.hop,
            "min_score": result.min_score,
        }

    def check_model(self, name: str | None) -> None:
        """Raise a RequestError unless a request names this server's model, or none."""
        if name is not None and name != self.name:
            raise RequestError(
                404, f"there is no model {name!r:.200} here, only {self.name!r}", param="model", code="model_not_found"
            )

    def _dim(self, dim: int | None) -> int:
        dims = sorted({*self.embedder.matryoshka_dims, self.embedder.dims})
        if dim not in (None, *dims):
            message = f"dimensions must be one of {', '.join(map(str, dims))}, got {dim}"
            raise RequestError(400, message, param="dimensions")
        return dim or self.embedder.dims

    def _text(self, text: str, field: str) -> str:
        if not text.strip():
            raise RequestError(400, f"{field} is empty", param=field)
        if len(text) > self.limits.max_characters:
            raise RequestError(
                400,
                f"{field} has {len(text)} characters, the most are {self.limits.max_characters}: shorten it",
                param=field,
                code="context_length_exceeded",
            )
        return text

    def _count(self, items: Sequence[Any], field: str) -> None:
        if not items:
            raise RequestError(400, f"{field} is missing: there is nothing to do", param=field)
        if len(items) > self.limits.max_items:
            message = f"{len(items)} inputs, the most are {self.limits.max_items} in a request: send several"
            raise RequestError(400, message, param=field)

    def _count_results(self, count: int) -> None:
        if count > self.limits.max_results:
            message = f"the answer may have {count} results, the most are {self.limits.max_results}: give a top_k"
            raise RequestError(400, f"{message}, or send several requests", param="top_k")

    def _decode(self, files: Files) -> tuple[list[dict[str, Any]], float]:
        return decode(files, self.embedder.sampling_rate, self.limits.max_seconds)

    def _embed_sounds(self, sounds: Sequence[dict[str, Any]]) -> list[np.ndarray]:
        vectors = []
        for sound, vector in zip(sounds, self.embedder.embed_files(sounds), strict=True):
            if isinstance(vector, ValueError):
                raise RequestError(400, f"{sound['path']}: {vector}", param=sound["path"]) from vector
            vectors.append(vector)
        return vectors


def _encoded(vector: np.ndarray, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def _refuse_lost(index: "Index") -> None:
    """Raise an error of the server if an index cannot be searched at all: the reason itself would name its paths."""
    try:
        index.nearest(np.ones(index.manifest.dims, np.float32), 1)
    except ValueError as error:
        logger.error(f"the index cannot be searched: {error}")
        message = "the index cannot be searched now; the server's log says why"
        raise RequestError(503, message, code="index_unavailable", retry_after=1) from error


def _hit(hit: Any) -> dict[str, Any]:
    """Return a hit without the paths of this machine, and its marks and its probability only where it has them."""
    fields = asdict(hit)
    fields["metadata"] = {
        name: value if isinstance(value, str | bool | int | float) else str(value)  # such as a date
        for name, value in fields["metadata"].items()
    }
    absent = {name for name, value in fields.items() if value is None or value is False or value == {}}
    return {name: value for name, value in fields.items() if name not in absent | {"file", "duration"}}
