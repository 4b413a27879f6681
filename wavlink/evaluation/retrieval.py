"""Retrieval in both directions, at every nested dim, with confidence intervals over clips."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F
from transformers import EvalPrediction

from .metrics import (
    KS,
    Correspondence,
    Ranked,
    Similarities,
    chance_recall,
    figure,
    members_of,
    ranked,
    recall_at_k,
)

RANKED = (*(f"R@{k}" for k in KS), "mAP@10")
DIRECTIONS = {"text_to_audio": "text → audio", "audio_to_text": "audio → text"}


def retrieval_scores(
    audio_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    correspondence: Correspondence,
    dims: Sequence[int],
    groups: Sequence[str | None] = (),
) -> dict:
    """Compute R@1, R@5, R@10, mAP@10 and the median rank.

    Args:
        audio_embeds: `[clips, D]`; text_embeds: `[texts, D]`.
        correspondence: `[clips, texts]`; a clip without texts is a candidate, but no query.
        dims: nested dims; vectors are cut and normalised again.
        groups: of each clip; scores are then also computed by group, at the largest dim and among all candidates.

    Returns:
        `{"text_to_audio": {dim: {"R@1": figure, ...}}, "audio_to_text": ..., "chance": ...}`, with several dims
        `"difference"`, the smallest minus the largest on the same draws of clips, and with `groups` `"groups"`.

    Raises:
        ValueError: fewer than two clips with texts, or fewer than two texts: every score would be 100 %.
    """
    asking = np.flatnonzero(correspondence.counts)
    if len(asking) < 2 or len(text_embeds) < 2:
        raise ValueError(
            f"{len(asking)} clips with captions and {len(text_embeds)} different captions are nothing to search in: "
            "score a split with two of each or more"
        )
    answers = {"text_to_audio": correspondence.T, "audio_to_text": correspondence.select(asking)}
    clips = {
        "text_to_audio": correspondence.T,
        "audio_to_text": Correspondence(asking[:, None], len(audio_embeds)),
    }  # of each query
    results = {way: {} for way in DIRECTIONS}
    for dim in sorted(dims, reverse=True):
        audio, text = (F.normalize(x[:, :dim].float(), dim=-1) for x in (audio_embeds, text_embeds))
        results["text_to_audio"][dim] = ranked(Similarities(text, audio), answers["text_to_audio"])
        results["audio_to_text"][dim] = ranked(Similarities(audio[asking], text), answers["audio_to_text"])
    scores = {way: {str(dim): _figures(x, clips[way]) for dim, x in results[way].items()} for way in DIRECTIONS}
    scores["chance"] = {way: {f"R@{k}": chance_recall(answers[way], k) for k in KS} for way in DIRECTIONS}
    largest, smallest = max(dims), min(dims)
    if smallest < largest:
        change = {way: _difference(results[way][smallest], results[way][largest], clips[way]) for way in DIRECTIONS}
        scores["difference"] = {"dims": [smallest, largest], **change}
    if any(groups):
        scores["groups"] = {
            name: {way: _figures(results[way][largest], clips[way], members) for way in DIRECTIONS}
            for name, members in members_of(groups).items()
            if correspondence.counts[members].any()
        }
    return scores


def language_scores(
    audio_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    languages: Mapping[str, Sequence[Sequence[int]]],
    dim: int,
) -> dict[str, dict]:
    """Compute `retrieval_scores` in each language, with its texts alone, among all clips.

    Args:
        audio_embeds: `[clips, D]`; text_embeds: `[texts, D]`.
        languages: the texts of each clip, by index.
        dim: of the vectors, which are cut and normalised again.

    Returns:
        For each language `{"clips": int, "captions": int, "text_to_audio": {"R@1": figure, ...}, "audio_to_text": ...,
        "chance": ...}`; none for a language with fewer than two clips or texts.
    """
    scores = {}
    for language, answers in sorted(languages.items()):
        chosen = sorted({index for row in answers for index in row})
        clips = sum(map(bool, answers))
        if clips < 2 or len(chosen) < 2:
            continue
        position = {index: number for number, index in enumerate(chosen)}
        correspondence = Correspondence([[position[index] for index in row] for row in answers], len(chosen))
        found = retrieval_scores(audio_embeds, text_embeds[chosen], correspondence, [dim])
        ways = {way: found[way][str(dim)] for way in DIRECTIONS}
        scores[language] = {"clips": clips, "captions": len(chosen), **ways, "chance": found["chance"]}
    return scores


def _values(results: Ranked) -> dict[str, np.ndarray]:
    return {**{f"R@{k}": results.first <= k for k in KS}, "mAP@10": results.average_precision}


def _figures(results: Ranked, clips: Correspondence, only: np.ndarray | None = None) -> dict[str, dict]:
    figures = {name: figure(values, clips, only) for name, values in _values(results).items()}
    return {**figures, "median_rank": figure(results.first, clips, only, median=True)}


def _difference(small: Ranked, large: Ranked, clips: Correspondence) -> dict[str, dict]:
    pairs = zip(_values(small).items(), _values(large).values(), strict=True)
    return {name: figure(less.astype(float) - more, clips) for (name, less), more in pairs}


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Compute R@K in both directions, at full width, of the pairs that `transformers.Trainer` evaluated.

    With `label_names=["caption_ids"]` in the TrainingArguments, clips that share a caption are hits for each other.
    Without labels Trainer computes a loss and metrics where `trainer.can_return_loss` is True, as in `WavLinkTrainer`.
    """
    audio_embeds, text_embeds = prediction.predictions[:2]
    ids = np.asarray(prediction.label_ids if prediction.label_ids is not None else [])
    if ids.ndim == 2 and len(ids) == len(audio_embeds):
        ids = np.where(ids < 0, -1, ids)
        correspondence = np.stack([(row[:, None] == ids[None, :, 0]).any(0) for row in ids])  # (clips, texts)
    else:
        correspondence = np.eye(len(audio_embeds), dtype=bool)
    audio, text = (torch.from_numpy(np.asarray(x, np.float32)) for x in (audio_embeds, text_embeds))
    similarities = Similarities(audio, text)[:]
    return {
        f"{way}_R@{k}": recall_at_k(rows, relevant, k)
        for way, rows, relevant in (
            ("text_to_audio", similarities.T, correspondence.T),
            ("audio_to_text", similarities, correspondence),
        )
        for k in KS
    }
