"""Zero-shot classification: choose the label that, put into a prompt, is most similar to the clip.

Everything is a function of the clips' embeddings, their labels, and a way to embed texts.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import logging

from processing.prompts import PROMPT
from wavlink.labels import CLEAN_UPS as CLEAN_UPS
from wavlink.labels import checked_prompts, embed_prompted, ensemble, label_texts

from .metrics import RESAMPLES, Similarities, figure, members_of, ranks

logger = logging.get_logger(__name__)
_EXAMPLES = 10  # of the labels that are no candidates


def zero_shot_scores(
    audio_embeds: torch.Tensor,
    labels: Sequence[str | None],
    embed_texts: Callable[[list[str]], torch.Tensor],
    dims: Sequence[int],
    prompts: str | Sequence[str] = PROMPT,
    clean_up: str = "spaces",
    renames: Mapping[str, str] | None = None,
    candidates: Sequence[str] | None = None,
    groups: Sequence[str | None] | None = None,
) -> dict:
    """Compute accuracies, and count the clips left out; all values are fit for JSON.

    At each dim there are `accuracy`, `top-5` (with more than five labels), `macro`, the mean of the classes'
    accuracies, and the accuracy in each of the `groups`. At the largest dim there are `per_class` and the `confusion`,
    whose `counts` are `[label, predicted label, clips]`, labels by index. A tie with another label is an error, as in
    `metrics.ranks`.

    Args:
        audio_embeds: `[clips, D]`.
        labels: of each clip; clips with None or "" are left out and counted as `unlabelled`.
        embed_texts: n texts to `[n, D]`.
        dims: the nested dims.
        prompts: texts with one `{}`, where the label goes; the embeddings of several are averaged (see `ensemble`).
        clean_up: "spaces" to replace underscores in labels, or "none".
        renames: label -> the words used instead of it.
        candidates: the labels to choose from, by default those of the clips. Clips of another label are left out
            and counted as `absent`; a candidate without clips counts in the chance level, not in `macro`.
        groups: of each clip, such as "music"; None or "" is no group and counted as `ungrouped`.

    Raises:
        ValueError: no clip has one of the labels, there is one label only, or a prompt has no `{}` or several.
    """
    for name, column in {"labels": labels, "groups": groups}.items():
        if column is not None and len(column) != len(audio_embeds):
            raise ValueError(f"give {name} for each of the {len(audio_embeds)} clips, got {len(column)}")
    prompts = checked_prompts([prompts] if isinstance(prompts, str) else list(prompts))
    names, texts = named_labels(labels, clean_up, renames, candidates)
    position = {name: index for index, name in enumerate(names)}
    absent = Counter(label for label in labels if label and label not in position)
    rows = [index for index, label in enumerate(labels) if label in position]
    text_embeds = embed_prompted(texts, prompts, embed_texts).float()  # (labels, prompts, D)
    _warn_of_equal(text_embeds, names)
    targets = np.array([position[labels[row]] for row in rows])
    groups = None if groups is None else [groups[row] for row in rows]
    return {
        **({"prompt": prompts[0]} if len(prompts) == 1 else {"prompts": prompts}),
        **{"labels": len(names), "clips": len(rows), "chance": 1 / len(names), "clean_up": clean_up},
        "label_text": {name: text for name, text in zip(names, texts, strict=True) if text != name},
        "unlabelled": sum(not label for label in labels),
        "absent": {"clips": absent.total(), "labels": len(absent), "examples": dict(absent.most_common(_EXAMPLES))},
        **({} if groups is None else {"ungrouped": sum(not group for group in groups)}),
        **_at_each_dim(audio_embeds[rows].float(), text_embeds, targets, names, dims, groups),
    }


def named_labels(
    labels: Sequence[str | None],
    clean_up: str = "spaces",
    renames: Mapping[str, str] | None = None,
    candidates: Sequence[str] | None = None,
) -> tuple[list[str], list[str]]:
    """Return the labels to choose from, and the text of each; arguments and errors are those of `zero_shot_scores`."""
    names = sorted({label for label in labels if label}) if candidates is None else list(dict.fromkeys(candidates))
    absent = Counter(label for label in labels if label and label not in names)
    if not any(label in names for label in labels if label):
        raise ValueError(_nothing_to_score(len(labels), absent, names))
    if len(names) < 2:
        raise ValueError(
            f"{names[0]!r} is the only label, so that every clip would be right: give the data set clips of other "
            "labels, or name the labels to choose from (candidates)"
        )
    of_others = {*labels} - {*names}  # these may have words too
    return names, label_texts(names, clean_up, {k: v for k, v in (renames or {}).items() if k not in of_others})


def _nothing_to_score(clips: int, absent: Counter, names: Sequence[str]) -> str:
    if not absent:
        return f"none of {clips} clips has a label: give the data set a column of labels"
    return (
        f"none of {clips} clips has a label among the {len(names)} candidates ({', '.join(names[:3])}): give "
        f"candidates as the data set spells them, such as {', '.join(list(absent)[:3])}"
    )


def _warn_of_equal(text: torch.Tensor, names: Sequence[str]) -> None:
    """Name labels with the same vectors `[labels, prompts, D]`, such as `DOG` and `dog` where a model has no capitals.

    Between them every clip is a tie.
    """
    same: dict[bytes, list[str]] = {}
    for name, vectors in zip(names, text.cpu().numpy(), strict=True):
        same.setdefault(vectors.tobytes(), []).append(name)
    groups = [group for group in same.values() if len(group) > 1]
    if groups:
        logger.warning(
            f"the model gives {sum(map(len, groups))} labels the vector of another one, such as {groups[0][0]!r} and "
            f"{groups[0][1]!r}: their clips count as wrong; give both the same label, or different words in renames"
        )


def _at_each_dim(audio, text, targets: np.ndarray, names: Sequence[str], dims: Sequence[int], groups) -> dict:
    """
    Args:
        audio: `[clips, D]`; text: `[labels, prompts, D]`; targets: `[clips]`, the index of the label.
    """
    answers = {dim: _classified(audio[:, :dim], ensemble(text, dim), targets) for dim in sorted(dims, reverse=True)}
    members = members_of(groups or ())
    scores, per_class = {}, {}
    for dim, (label_ranks, _) in answers.items():
        classes, macro = _class_figures(label_ranks <= 1, targets)
        per_class = per_class or {names[label]: row for label, row in classes.items()}
        scores[str(dim)] = {"accuracy": figure(label_ranks <= 1), "macro": macro}
        if len(names) > 5:
            scores[str(dim)]["top-5"] = figure(label_ranks <= 5)
        if groups is not None:
            hits = {name: label_ranks[clips] <= 1 for name, clips in members.items()}
            scores[str(dim)]["groups"] = {name: {"clips": len(x), **figure(x)} for name, x in hits.items()}
    cells, counts = np.unique(np.stack([targets, answers[max(dims)][1]]), axis=1, return_counts=True)
    triples = np.concatenate([cells, counts[None]]).T.tolist()
    return scores | {"per_class": per_class, "confusion": {"labels": list(names), "counts": triples}}


def _classified(audio: torch.Tensor, text: torch.Tensor, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each clip the rank of its label, from 1, and the predicted label; in a tie, that is a wrong one."""
    similarities = Similarities(F.normalize(audio, dim=-1), text)[:]
    label_ranks = ranks(similarities, np.arange(len(text)) == targets[:, None])
    similarities[np.arange(len(targets)), targets] = -np.inf
    return label_ranks, np.where(label_ranks == 1, targets, similarities.argmax(1))


def _class_figures(hits: np.ndarray, targets: np.ndarray) -> tuple[dict[int, dict], dict]:
    """The accuracy of each class that has clips, and the mean of these, with 95 % bootstrap intervals over clips.

    Clips are resampled within each class. The number of hits among n clips drawn from n is binomial, so that number is
    drawn directly.
    """
    classes, clips = np.unique(targets, return_counts=True)
    shares = np.bincount(targets, hits)[classes] / clips
    drawn = np.random.default_rng(0).binomial(clips, shares, (RESAMPLES, len(classes))) / clips
    means = np.concatenate([drawn, drawn.mean(1, keepdims=True)], axis=1)  # the last is of all classes
    *intervals, all_classes = np.percentile(means, [2.5, 97.5], axis=0).T.tolist()
    rows = zip(classes.tolist(), clips.tolist(), shares.tolist(), intervals, strict=True)
    figures = {label: {"clips": n, "value": share, "interval": interval} for label, n, share, interval in rows}
    return figures, {"value": float(shares.mean()), "interval": all_classes}
