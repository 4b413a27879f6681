"""Audio moment retrieval: find the windows of a recording that a sentence tells of, as `wavlink.locate` does."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from wavlink.atomic_files import write_text
from wavlink.embedder import Embedder
from wavlink.frame_head import Fitted
from wavlink.long_recordings import encode_recording, locate
from wavlink.progress import Bar
from wavlink.span_search import frame_head_of, steps_of, windows_of

from .moment_metrics import FOUND, moment_figures

logger = logging.get_logger(__name__)


def moment_scores(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    dims: Sequence[int],
    progress: bool = True,
    store: Path | None = None,
) -> dict:
    """Score a split of `processing.datasets.moments.load_moments`.

    Each query's spans, up to `FOUND` of any score, are those of `wavlink.locate` with its defaults: at full width by
    the model's frame head, if it has one, else in windows.

    Args:
        dims: nested dims to score.
        store: a folder for the spans of finished recordings, from which the same call goes on; the caller removes it.

    Returns:
        `{"clips", "captions", "unreadable", "windowed", "moments": {"windows": {"10/5": recordings}, "frames":
        whether there is a frame head, dim: figures}}` with the figures of `moment_figures`; fit for JSON.

    Raises:
        ValueError: no recording can be read, or the model gives NaN or infinite values.
    """
    was_training = model.training
    model.eval()
    embedder = Embedder.borrowing(model, processor)
    fitted = frame_head_of(embedder)
    texts = sorted({moment["query"] for moments in dataset["moments"] for moment in moments})
    vectors = dict(zip(texts, embedder.embed_text(texts), strict=True))
    results = []
    with Bar(total=len(dataset), desc="recordings", unit="recording", disable=not progress) as bar:
        for number, row in enumerate(dataset):
            path = store / f"part-{number:06d}.json" if store else None
            if path and path.is_file():
                results.append(json.loads(path.read_text(encoding="utf-8")))
            else:
                results.append(_find(embedder, fitted, row, vectors, dims))
                if path:
                    write_text(path, json.dumps(results[-1]))
            bar.update(1)
    model.train(was_training)
    scores = _scores(dataset, results, dims)
    scores["moments"]["frames"] = fitted is not None
    return scores


def _find(
    embedder: Embedder, fitted: Fitted | None, row: Mapping, vectors: Mapping[str, np.ndarray], dims: Sequence[int]
) -> dict:
    """The windows and, of each dim and query, the spans of a recording; or the error why it cannot be read."""
    sound = row["audio"]["bytes"] or row["audio"]["path"]
    try:
        window, hop = windows_of(embedder, sound, None, None)
        recordings = dict.fromkeys(dims, encode_recording(embedder, sound, window, hop))
        if fitted is not None:
            recordings[embedder.dims] = steps_of(embedder, fitted, sound)
    except ValueError as error:
        return {"error": str(error)}
    spans = {
        str(dim): [
            [(span.start, span.end) for span in locate(recording, vectors[moment["query"]], FOUND, dim)]
            for moment in row["moments"]
        ]
        for dim, recording in recordings.items()
    }
    return {"windows": f"{window:g}/{hop:g}", "spans": spans}


def _scores(dataset: datasets.Dataset, results: Sequence[Mapping], dims: Sequence[int]) -> dict:
    unreadable = {}
    for number, result in enumerate(results):
        if "error" in result:
            unreadable[vid := dataset[number]["vid"]] = result["error"]
            logger.warning(f"{vid} is left out of the scores: {result['error']}")
    kept = [number for number, result in enumerate(results) if "error" not in result]
    if not kept:
        raise ValueError(f"none of {len(results)} recordings can be read; the first: {results[0]['error']}")
    moments = [(number, moment) for number in kept for moment in dataset[number]["moments"]]
    relevant, recordings = [moment["windows"] for _, moment in moments], [number for number, _ in moments]
    windows = [results[number]["windows"] for number in kept]
    scores = {"windows": {name: windows.count(name) for name in sorted({*windows})}}
    for dim in sorted(dims, reverse=True):
        found = [spans for number in kept for spans in results[number]["spans"][str(dim)]]
        scores[str(dim)] = moment_figures(found, relevant, recordings)
    return {
        "clips": len(kept),
        "captions": len(moments),
        "unreadable": {"count": len(unreadable), "clips": unreadable},
        "windowed": 0,
        "moments": scores,
    }
