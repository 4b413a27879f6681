"""Robustness of retrieval: R@10 with sounds and queries as people have them, minus that of the split as it is.

A change of sounds is made to every clip of the split, a change of queries to every text that its rule can change. Each
is compared with the same clips and texts unchanged, so that a difference has a paired interval.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, ProcessorMixin

from processing.collator import caption_key
from processing.datasets.load import durations
from wavlink.defaults import WEIGHT
from wavlink.labels import words_of_labels

from .embed_split import Embedded, embed_audio, embed_text
from .metrics import Correspondence, Similarities, chance_recall, figure, ranked
from .retrieval import DIRECTIONS
from .robust_queries import EXCLUDED, LANGUAGES, changed_queries, translated_names, words_of
from .robust_sounds import SOUND_CHANGES, ChangedSounds

K = 10  # of the recall
LIMIT = 0.05  # a fall by more is named


@dataclass(frozen=True)
class Queries:
    """Texts before and after a change, and the clips, by index, that answer both.

    Args:
        unwanted: of each text, what it excludes and the clips of that; without any, nothing is excluded.
        by_vector: whether the unwanted texts are subtracted as `wavlink.Index.query(without=)` does it.
    """

    texts: list[str]
    changed: list[str]
    answers: list[Sequence[int]]
    unwanted: list[tuple[str, np.ndarray]] = field(default_factory=list)
    by_vector: bool = False


def robustness_scores(
    embedded: Embedded,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    clips: datasets.Dataset,
    labels: Sequence[str | None],
    *,
    clean_up: str = "spaces",
    renames: dict[str, str] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
    store: Path | None = None,
) -> dict:
    """Compute R@10 at the largest dim, in both directions, with each change of sounds and of queries.

    Args:
        embedded: of `clips`, which have captions.
        labels: of each clip; those of `embedded` are excluded from queries, and asked for in other languages.
        clean_up, renames: of the labels, see `zero_shot_scores`.
        seed: of all that is random.
        batch_size, progress, store: see `embed_audio`.

    Returns:
        `{"dims", "k", "limit", "seed", "changes": {name: row}, "falls": {name: {direction: points}}}`. A row is
        `{"kind": "sounds" | "queries", direction: {"queries": int, "chance": float, "unchanged": figure, "changed":
        figure, "difference": figure}}` with the chance level of what is changed, and where sounds are excluded
        `"excluded"`: `lower`, the share of queries that rank the best clip with the excluded label lower than before,
        and `top` with the share that has one among the first 10, as of a direction.
    """
    was_training = model.training
    model.eval()
    audio, text = (F.normalize(x[:, : model.config.projection_dim], dim=-1) for x in (embedded.audio, embedded.text))
    named = [labels[row] for row in embedded.rows]

    vectors = dict(zip(embedded.texts, text, strict=True))

    def embed(texts: Sequence[str]) -> torch.Tensor:
        if new := sorted({*texts} - {*vectors}):
            vectors.update(zip(new, embed_text(model, processor, new), strict=True))
        return torch.stack([vectors[text] for text in texts])

    rows = {}
    for name in SOUND_CHANGES:
        changed = _changed_audio(name, embedded, model, processor, clips, seed, batch_size, progress, store)
        rows[name] = _sounds_row(audio, changed, text, embedded.correspondence)
    for name, queries in _all_queries(embedded, words_of_labels(named, clean_up, renames), seed):
        rows[name] = _queries_row(audio, queries, embed)
    model.train(was_training)
    falls = {name: fallen for name, row in rows.items() if (fallen := _falls(row))}
    about = {"dims": model.config.projection_dim, "k": K, "limit": LIMIT, "seed": seed}
    return {**about, "changes": rows, "falls": falls}


def _falls(row: dict) -> dict[str, float]:
    points = {way: row[way]["difference"]["value"] for way in DIRECTIONS}
    return {way: value for way, value in points.items() if value < -LIMIT}


def _changed_audio(name, embedded, model, processor, clips, seed, batch_size, progress, store) -> torch.Tensor:
    """The vectors of the readable clips, changed: `[clips, D]`, L2-normalised."""
    if store:
        store = store / f"changed-{re.sub('[^0-9a-zA-Z+-]+', '_', name)}-{seed}"
        store.mkdir(exist_ok=True)
    readable = clips.select(embedded.rows)
    rate, least = processor.feature_extractor.sampling_rate, getattr(processor, "min_samples", 1)
    rows = ChangedSounds(readable, embedded.rows, name, rate, seed, least)
    sounds = embed_audio(model, processor, rows, durations(readable), batch_size, progress, store=store)
    if sounds.unreadable:
        raise ValueError(f"{name}: {next(iter(sounds.unreadable.values()))}")
    return F.normalize(sounds.vectors, dim=-1)


def _sounds_row(
    audio: torch.Tensor, changed: torch.Tensor, text: torch.Tensor, correspondence: Correspondence
) -> dict:
    asking = np.flatnonzero(correspondence.counts)
    texts, own = correspondence.T, Correspondence(asking[:, None], len(audio))
    sides = {
        "text_to_audio": [_hits(text, sounds, texts) for sounds in (audio, changed)],
        "audio_to_text": [_hits(sounds[asking], text, correspondence.select(asking)) for sounds in (audio, changed)],
    }
    clips = {"text_to_audio": texts, "audio_to_text": own}
    answers = {"text_to_audio": texts, "audio_to_text": correspondence.select(asking)}
    return {"kind": "sounds", **{way: _compared(*sides[way], clips[way], answers[way]) for way in DIRECTIONS}}


def _queries_row(audio: torch.Tensor, queries: Queries, embed: Callable[[Sequence[str]], torch.Tensor]) -> dict:
    before, after = embed(queries.texts), embed(queries.changed)
    if queries.by_vector:
        after = F.normalize(after - WEIGHT * embed([text for text, _ in queries.unwanted]), dim=-1)
    answers = Correspondence(queries.answers, len(audio))
    (unchanged, asking, _), (changed, _, own) = (
        _hits_by_clip(audio, vectors, texts, queries.answers)
        for vectors, texts in ((before, queries.texts), (after, queries.changed))
    )
    row = {
        "kind": "queries",
        "text_to_audio": _compared(*(_hits(vectors, audio, answers) for vectors in (before, after)), answers, answers),
        "audio_to_text": _compared(unchanged, changed, Correspondence(asking[:, None], len(audio)), own),
    }
    if queries.unwanted:
        unwanted = Correspondence([clips for _, clips in queries.unwanted], len(audio))
        first, then = (ranked(Similarities(vectors, audio), unwanted).first for vectors in (before, after))
        row["excluded"] = {
            "lower": figure(then > first, answers),
            "top": _compared(first <= K, then <= K, answers, unwanted),
        }
    return row


def _hits(queries: torch.Tensor, candidates: torch.Tensor, answers: Correspondence) -> np.ndarray:
    return ranked(Similarities(queries, candidates), answers).first <= K


def _hits_by_clip(
    audio: torch.Tensor, vectors: torch.Tensor, texts: Sequence[str], answers: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray, Correspondence]:
    """Whether each clip with texts finds one of them, which clips these are, and their texts. Equal texts are one."""
    clips_of: dict[str, set[int]] = defaultdict(set)
    first: dict[str, int] = {}
    for index, (text, clips) in enumerate(zip(texts, answers, strict=True)):
        clips_of[key := caption_key(text)].update(map(int, clips))
        first.setdefault(key, index)
    by_clip = Correspondence([sorted(clips) for clips in clips_of.values()], len(audio)).T
    asking = np.flatnonzero(by_clip.counts)
    own = by_clip.select(asking)
    return _hits(audio[asking], vectors[[first[key] for key in clips_of]], own), asking, own


def _compared(before: np.ndarray, after: np.ndarray, clips: Correspondence, answers: Correspondence) -> dict:
    shares = {"unchanged": before, "changed": after, "difference": after.astype(float) - before}
    figures = {name: figure(values, clips) for name, values in shares.items()}
    return {"queries": len(before), "chance": chance_recall(answers, K), **figures}


def _all_queries(embedded: Embedded, words: Sequence[str | None], seed: int) -> Iterator[tuple[str, Queries]]:
    """Yield the changes of queries that the split allows; two queries or more of each.

    Args:
        words: of each clip's label.
    """
    yield from _enough(_rewritten(embedded, seed))
    members = {name: np.flatnonzero([word == name for word in words]) for name in sorted({*filter(None, words)})}
    yield from _enough(_excluding(embedded, members, seed))
    yield from _enough(_translated(members))


def _enough(changes: Iterator[tuple[str, Queries]]) -> Iterator[tuple[str, Queries]]:
    return ((name, queries) for name, queries in changes if len({*map(caption_key, queries.changed)}) > 1)


def _rewritten(embedded: Embedded, seed: int) -> Iterator[tuple[str, Queries]]:
    clips_of = embedded.correspondence.T
    own = np.split(clips_of.indices, clips_of.offsets[1:-1])
    holding = _holders(embedded.texts, own)
    for name, forms in changed_queries(embedded.texts, seed).items():
        changed = [n for n, text in enumerate(embedded.texts) if caption_key(forms[n]) != caption_key(text)]
        answers = [holding(forms[n]) if "keyword" in name else own[n] for n in changed]
        yield name, Queries([embedded.texts[n] for n in changed], [forms[n] for n in changed], answers)


def _holders(texts: Sequence[str], clips: Sequence[np.ndarray]) -> Callable[[str], np.ndarray]:
    """Return a function of keywords to the clips with a caption that holds all of them."""
    texts_with: dict[str, set[int]] = defaultdict(set)
    for index, text in enumerate(texts):
        for word in words_of(text):
            texts_with[word].add(index)

    def holding(keywords: str) -> np.ndarray:
        found = set.intersection(*(texts_with[word] for word in keywords.split()))
        return np.unique(np.concatenate([clips[index] for index in sorted(found)]))

    return holding


def _excluding(embedded: Embedded, members: dict[str, np.ndarray], seed: int) -> Iterator[tuple[str, Queries]]:
    """Yield exclusions of a label, drawn for each text among those that none of its clips has."""
    clips_of = embedded.correspondence.T
    own = np.split(clips_of.indices, clips_of.offsets[1:-1])
    names, found = list(members), []
    number_of = {clip: number for number, name in enumerate(names) for clip in members[name].tolist()}
    for row, (text, clips) in enumerate(zip(embedded.texts, own, strict=True)):
        others = sorted({*range(len(names))} - {number_of.get(clip) for clip in clips.tolist()})
        if others:
            name = names[np.random.default_rng((seed, row)).choice(others)]
            found.append((text, clips, (name, members[name])))
    if not found:
        return
    texts, answers, unwanted = map(list, zip(*found, strict=True))
    for form in EXCLUDED:
        changed = [form.format(text, name) for text, (name, _) in zip(texts, unwanted, strict=True)]
        yield form.format("X", "Y"), Queries(texts, changed, answers, unwanted)
    yield "X, without=Y of the index", Queries(texts, texts, answers, unwanted, by_vector=True)


def _translated(members: dict[str, np.ndarray]) -> Iterator[tuple[str, Queries]]:
    """Yield the labels that have translations, in each language."""
    table = translated_names()
    known = {name: clips for name, clips in members.items() if name.lower() in table}
    for code, language in LANGUAGES.items():
        yield f"in {language}", Queries(list(known), [table[name.lower()][code] for name in known], [*known.values()])
