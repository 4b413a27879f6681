"""Retrieval between sounds and texts, both ways, from their embeddings."""

import datasets
import evaluate
import numpy as np
import torch

from wavlink.evaluation.metrics import KS, Correspondence, Similarities, ranked  # From: -e .  (in a clone of WavLink)

_MAP_AT = 10

_DESCRIPTION = """
Embeddings of clips and of texts, row by row in pairs, ranked by cosine against each other in both directions. R@k is
the share of queries with a relevant candidate among the first k (other libraries say hit rate, or accuracy@k); mAP@10
divides by min(10, relevant candidates). Ties count against the model.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`, or `[rows, D]`): embeddings of the clips.
    references (`list` of `list` of `float`, or `[rows, D]`): embeddings of the texts, each beside its clip.
    caption_ids (`[rows]` or `[rows, K]` of `int`, optional): the captions of each row's clip, the one embedded first,
        padded with negative numbers. Clips with a caption in common are hits for each other. By default no two rows
        have a caption in common.
    clip_ids (`[rows]` of `int`, optional): rows with the same number have the same clip, which is then one candidate
        with several captions. By default each row is a separate clip.
    ks (`list` of `int`, optional): of R@k, by default 1, 5 and 10.
    dim (`int`, optional): of nested embeddings, how many of the first channels to take, normalised again. By default
        all.

    `caption_ids` and `clip_ids` are given to `compute`, or, loaded as `evaluate.load(..., "ids")`, batch by batch to
    `add_batch` like predictions and references.

Returns:
    text_to_audio_R@k, audio_to_text_R@k (`float`): between 0 and 1.
    text_to_audio_mAP@10, audio_to_text_mAP@10 (`float`): between 0 and 1.
    text_to_audio_median_rank, audio_to_text_median_rank (`float`): of the best relevant candidate, from 1.

Examples:
    >>> recall = evaluate.load("evaluate_modules/retrieval_recall")
    >>> clips = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]
    >>> texts = [[0.9, 0.1], [0.1, 0.9], [0.0, 1.0]]
    >>> scores = recall.compute(predictions=clips, references=texts, ks=[1, 2])
    >>> round(scores["audio_to_text_R@1"], 3), scores["audio_to_text_R@2"]
    (0.333, 1.0)
"""

_CITATION = """
@misc{kumar2026wavlink,
  title={WavLink: Compact Audio-Text Embeddings with a Global Whisper Token},
  author={G. K. Kumar and L. Lepauloux and H. Hacid},
  eprint={2601.15118},
  archivePrefix={arXiv}
}
"""


class RetrievalRecall(evaluate.Metric):
    __doc__ = _DESCRIPTION + _KWARGS_DESCRIPTION

    def _info(self):
        embeddings = datasets.Sequence(datasets.Value("float32"))
        columns = {"predictions": embeddings, "references": embeddings}
        if self.config_name not in ("default", "ids"):
            raise ValueError(f'load this metric with the config "ids" or without one, got {self.config_name!r}')
        if self.config_name == "ids":
            ids = datasets.Value("int64")
            several = {**columns, "caption_ids": datasets.Sequence(ids), "clip_ids": ids}
            features = [datasets.Features(several), datasets.Features({**several, "caption_ids": ids})]
        else:
            features = datasets.Features(columns)
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=features,
            reference_urls=["https://arxiv.org/abs/2601.15118"],
        )

    def _compute(self, predictions, references, caption_ids=None, clip_ids=None, ks=KS, dim=None):
        if np.ndim(ks) != 1 or not len(ks) or any(k < 1 or k != int(k) for k in ks):
            raise ValueError(f"ks must be a list of whole numbers from 1 on, such as {list(KS)}, got {ks!r}")
        audio, text = _vectors(predictions, "predictions"), _vectors(references, "references")
        if audio.shape != text.shape:
            raise ValueError(
                f"predictions {list(audio.shape)} and references {list(text.shape)} must be alike, [rows, D]: give "
                "clips and texts in pairs, both of one model"
            )
        if dim is not None and not 1 <= dim <= audio.shape[1]:
            raise ValueError(f"dim must be between 1 and {audio.shape[1]}, the width of the embeddings, got {dim}")
        clips, first = _clips(clip_ids, len(audio))
        relevant = Correspondence(_answers(caption_ids, clips), len(first))  # (texts, clips)
        audio, text = (torch.nn.functional.normalize(rows[:, :dim], dim=-1) for rows in (audio[first], text))
        similarities = Similarities(text, audio)
        scores = {}
        for way, rows, answers in (
            ("text_to_audio", similarities, relevant),
            ("audio_to_text", similarities.T, relevant.T),
        ):
            results = ranked(rows, answers, _MAP_AT)
            scores |= {f"{way}_R@{k}": float((results.first <= k).mean()) for k in ks}
            scores[f"{way}_mAP@{_MAP_AT}"] = float(results.average_precision.mean())
            scores[f"{way}_median_rank"] = float(np.median(results.first))
        return scores


def _vectors(rows, name: str) -> torch.Tensor:
    widths = {len(row) for row in rows}
    if len(widths) != 1 or not min(widths):
        raise ValueError(f"{name} must be vectors of one width, [rows, D], got widths {sorted(widths)}")
    vectors = torch.tensor(rows, dtype=torch.float32)
    if not vectors.isfinite().all():
        row = int((~vectors.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"{name} hold NaN or infinite values, first in row {row}: check the model's output for it")
    return vectors


def _clips(clip_ids, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The clip of each row, counted from 0, and the first row of each clip."""
    if clip_ids is None:
        return np.arange(rows), np.arange(rows)
    if np.shape(clip_ids) != (rows,):
        raise ValueError(f"clip_ids must be one number a row, [{rows}], got shape {list(np.shape(clip_ids))}")
    _, first, clips = np.unique(clip_ids, return_index=True, return_inverse=True)
    return clips, first


def _answers(caption_ids, clips: np.ndarray) -> list[list[int]]:
    """The clips that have each row's text among their captions."""
    if caption_ids is None or not len(caption_ids):  # Trainer's label_ids are () where there are none
        return [[clip] for clip in clips]
    captions = [np.atleast_1d(row) for row in caption_ids]
    if len(captions) != len(clips) or not all(row.ndim == 1 and len(row) and row[0] >= 0 for row in captions):
        raise ValueError(
            f"caption_ids must be [rows] or [rows, K], {len(clips)} rows, the caption of the row's text first and "
            "negative numbers only as padding"
        )
    holders = {}
    for clip, row in zip(clips, captions, strict=True):
        for caption in row[row >= 0]:
            holders.setdefault(int(caption), set()).add(int(clip))
    return [sorted(holders[int(row[0])]) for row in captions]
