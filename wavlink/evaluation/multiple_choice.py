"""Multiple choice: of the texts made of a question and each of its choices, choose the most similar to the clip.

Everything is a function of the clips' embeddings, the questions, and a way to embed texts.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from .metrics import Correspondence, figure
from .questions import AIR_BENCH_GROUPS, TEXT, Question, checked_choice_text
from .questions import AIR_BENCH_TASKS as AIR_BENCH_TASKS
from .questions import choices_from_labels as choices_from_labels
from .questions import questions_of as questions_of
from .questions import text_reader as text_reader

OTHER = "other"
_BLOCK = 1 << 12  # questions at once


def multiple_choice_scores(
    audio_embeds: torch.Tensor,
    questions: Sequence[Question],
    embed_texts: Callable[[list[str]], torch.Tensor],
    dims: Sequence[int],
    text: str = TEXT,
    groups: Mapping[str, str] | None = AIR_BENCH_GROUPS,
    rows: Sequence[int] | None = None,
    read: Callable | None = None,
    counts: Mapping[str, int] | None = None,
) -> dict:
    """Compute accuracies, with their intervals over clips, and counts; all values are fit for JSON.

    A right choice that is no more similar than a wrong one is an error. So is one whose tokens are those of a wrong
    one, because truncation removed where they differ. `same_text` counts all questions whose right choice has the
    tokens of another one, `over_long` those with a truncated text, and `over_long_ties` those with both.

    Every question counts once. The WavLink paper's totals agree with that (42.0, where the groups' mean is 43.5). On
    AIR-Bench's leaderboard a group's score is the mean of its tasks, and the total the mean of its groups:
    `task_means`.

    Args:
        audio_embeds: `[clips, D]`.
        embed_texts: n texts to `[n, D]`; each distinct text is embedded once.
        dims: nested dims; vectors are cut and normalised again.
        text: what is embedded of a question and a choice.
        groups: task -> group; other tasks are in the group `other` and listed in `unknown_tasks`. None: no groups.
        rows: the clip of each vector, where some could not be embedded; questions on others are counted as
            `unreadable` and left out. Default: all clips in order.
        read: see `text_reader`; without it texts are compared by their words, and none counts as over long.
        counts: more numbers to report, such as `AirBenchReport.counts()`.

    Returns:
        `{"questions", "clips", "text", "chance", "counts", "unknown_tasks", "groups", "tasks", dim: {"total": figure,
        "groups": {name: figure}, "tasks": {name: figure}, "ties", "task_means"}}`; the outer `groups` and `tasks` hold
        the number of questions and clips of each, its chance level, and a task's group.
    """
    kept, clips = _on_clips(questions, len(audio_embeds), rows)
    texts, choices, readings = _choice_texts(kept, checked_choice_text(text), read)
    text_embeds = _as_matrix(embed_texts(texts), len(texts))
    answers = np.array([question.answer for question in kept])
    number = np.array([len(question.choices) for question in kept])
    parts = _parts(kept, groups)
    unknown = sorted({question.task for question in kept if question.task and question.task not in (groups or {})})
    scores = {
        **{"questions": len(kept), "clips": len(np.unique(clips)), "text": text, "chance": float((1 / number).mean())},
        "counts": {**(counts or {}), "unreadable": len(questions) - len(kept), **_counts(kept), **readings},
        "unknown_tasks": [] if groups is None else unknown,
        **{kind: {name: _about(clips, number, part) for name, part in of.items()} for kind, of in parts.items()},
    }
    for name, about in scores["tasks"].items():
        about["group"] = (groups or {}).get(name, OTHER)
    for dim in sorted(dims, reverse=True):
        audio, text_vectors = (F.normalize(x[:, :dim].float(), dim=-1) for x in (audio_embeds, text_embeds))
        hits, ties = _hits(audio, text_vectors, clips, choices, answers)
        scores[str(dim)] = {"total": _figure(hits, clips), "ties": int(ties.sum())} | {
            kind: {name: _figure(hits[part], clips[part]) for name, part in of.items()} for kind, of in parts.items()
        }
        if groups:
            scores[str(dim)]["task_means"] = _task_means(scores[str(dim)]["tasks"], groups)
    return scores


def _on_clips(questions: Sequence[Question], vectors: int, rows) -> tuple[list[Question], np.ndarray]:
    """The questions whose clip has a vector, and the index of that vector, `[questions]`."""
    positions = {clip: index for index, clip in enumerate(range(vectors) if rows is None else rows)}
    if len(positions) != vectors:
        raise ValueError(f"rows must name one clip for each of {vectors} vectors, got {len(positions)} distinct ones")
    for question in questions:
        if not 0 <= question.answer < len(question.choices) or len(question.choices) < 2:
            raise ValueError(f"a question needs two choices and one of them as its answer, got {question}")
        if rows is None and question.clip not in positions:
            raise ValueError(f"there are {vectors} clips, but a question on clip {question.clip}: {question}")
    kept = [question for question in questions if question.clip in positions]
    if not kept:
        raise ValueError(f"none of {len(questions)} questions is on a clip that was embedded")
    return kept, np.array([positions[question.clip] for question in kept])


def _choice_texts(questions: Sequence[Question], text: str, read) -> tuple[list[str], np.ndarray, dict]:
    """Distinct texts, their indices `[questions, choices]` (-1 where a question has fewer), and counts.

    Texts with the same tokens are one.
    """
    worded = [[text.format(question=q.question, choice=choice) for choice in q.choices] for q in questions]
    distinct = list(dict.fromkeys(choice for row in worded for choice in row))
    tokens, truncated = read(distinct) if read else (distinct, np.zeros(len(distinct), dtype=bool))
    first = {}  # of each sequence of tokens, the first text
    for choice, ids in zip(distinct, tokens, strict=True):
        first.setdefault(ids, choice)
    texts, positions = list(first.values()), {ids: index for index, ids in enumerate(first)}
    index = {choice: positions[ids] for choice, ids in zip(distinct, tokens, strict=True)}
    choices = np.full((len(worded), max(map(len, worded))), -1)
    for number, row in enumerate(worded):
        choices[number, : len(row)] = [index[choice] for choice in row]
    same = _same_text(choices, np.array([question.answer for question in questions]))
    over_long = {choice for choice, cut in zip(distinct, truncated, strict=True) if cut}
    over = np.array([not over_long.isdisjoint(row) for row in worded])
    readings = {"same_text": int(same.sum())}
    if read:
        readings |= {"over_long": int(over.sum()), "over_long_ties": int((over & same).sum())}
    return texts, choices, readings


def _same_text(choices: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """bool `[questions]`: whether another choice has the right one's text."""
    return (choices == np.take_along_axis(choices, answers[:, None], 1)).sum(1) > 1


def _as_matrix(embeds: torch.Tensor, texts: int) -> torch.Tensor:
    if embeds.ndim != 2 or len(embeds) != texts:
        raise ValueError(f"embed_texts must give [{texts}, D] for {texts} texts, got {list(embeds.shape)}")
    return embeds


def _counts(questions: Sequence[Question]) -> dict[str, int]:
    choices = [question.choices for question in questions]
    return {
        "no_third_choice": sum(len(row) < 3 for row in choices),
        "no_fourth_choice": sum(len(row) < 4 for row in choices),
        "duplicate_choices": sum(len(set(row)) < len(row) for row in choices),
    }


def _parts(questions: Sequence[Question], groups: Mapping[str, str] | None) -> dict[str, dict[str, np.ndarray]]:
    """Which questions are in each group and task, by index; in AIR-Bench's order, then by name."""
    tasks = [question.task for question in questions]
    order = {task: number for number, task in enumerate(groups or {})}
    names = sorted({task for task in tasks if task}, key=lambda task: (order.get(task, len(order)), task))
    of_group = [(groups or {}).get(task, OTHER) for task in tasks]
    known = [name for name in dict.fromkeys([*(groups or {}).values(), OTHER]) if groups is not None]
    members = {name: np.flatnonzero([group == name for group in of_group]) for name in known}
    return {
        "groups": {name: part for name, part in members.items() if len(part)},
        "tasks": {name: np.flatnonzero([task == name for task in tasks]) for name in names},
    }


def _about(clips: np.ndarray, number: np.ndarray, part: np.ndarray) -> dict:
    return {
        "questions": len(part),
        "clips": len(np.unique(clips[part])),
        "chance": float((1 / number[part]).mean()),
    }


def _hits(audio, text, clips, choices, answers) -> tuple[np.ndarray, np.ndarray]:
    """bool `[questions]` each: whether the right choice is strictly the most similar, and whether it ties for that.

    Args:
        audio: `[clips, D]`; text: `[texts, D]`; normalised.
        clips: `[questions]`; choices: `[questions, C]`, indices of texts or -1; answers: `[questions]`.
    """
    right, wrong = np.empty(len(clips), np.float32), np.empty(len(clips), np.float32)
    for start in range(0, len(clips), _BLOCK):
        part = slice(start, start + _BLOCK)
        vectors = text[torch.from_numpy(np.maximum(choices[part], 0))]  # (questions, C, D)
        cosines = (audio[torch.from_numpy(clips[part])][:, None] * vectors).sum(-1).numpy()
        if not np.isfinite(cosines).all():
            raise ValueError("similarities hold NaN or infinite values")
        cosines[choices[part] < 0] = -np.inf
        at = np.arange(len(cosines)), answers[part]
        right[part], cosines[at] = cosines[at], -np.inf
        wrong[part] = cosines.max(1)
    same = _same_text(choices, answers) & (right >= wrong)
    return (right > wrong) & ~same, (right == wrong) | same


def _figure(hits: np.ndarray, clips: np.ndarray) -> dict:
    names, of_question = np.unique(clips, return_inverse=True)
    return figure(hits, Correspondence(of_question[:, None], len(names)))


def _task_means(tasks: Mapping[str, dict], groups: Mapping[str, str]) -> dict:
    """The mean of each group's tasks, and the mean of these: AIR-Bench's leaderboard has 57.8 for 63.4, 61.0, 48.9."""
    means = {}
    for group in dict.fromkeys(groups.values()):
        values = [task["value"] for name, task in tasks.items() if groups.get(name) == group]
        if values:
            means[group] = float(np.mean(values))
    return {"total": float(np.mean(list(means.values()))) if means else None, "groups": means}
