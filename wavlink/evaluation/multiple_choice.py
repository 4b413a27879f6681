"""Multiple choice: of the texts made of a question and each of its choices, which is most like the clip.

Everything is a function of the clips' embeddings, the questions, and a way to embed texts.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from modeling_wavlink.configuration_wavlink import text_max_length
from processing.datasets.cells import kind_of

from .metrics import Correspondence, figure, percent

TEXT = "{question} {choice}"  # one text of the question and a choice, as in the WavLink paper
OTHER = "other"
_BLOCK = 1 << 12  # questions at once

# AIR-Bench Foundation (arXiv 2402.07729): the tasks as its Foundation_meta.json spells them, mistakes included, with
# the groups, names and order of the table in github.com/OFA-Sys/AIR-Bench. That repository shows no `task_name` but
# Audio_Grounding; the others are those of the data's folders, `<task_name>_<dataset_name>`, that the AIR-Bench adapter
# of github.com/modelscope/evalscope lists.
AIR_BENCH_TASKS = {
    "Speech_Grounding": ("speech", "Speech grounding"),
    "Spoken_Language_Identification": ("speech", "Spoken language identification"),
    "Speaker_Gender_Recognition": ("speech", "Speaker gender recognition"),
    "Speaker_Emotion_Recontion": ("speech", "Emotion recognition"),
    "Speaker_Age_Prediction": ("speech", "Speaker age prediction"),
    "Speech_Entity_Reconition": ("speech", "Speech entity recognition"),
    "Speaker_Intent_Classification": ("speech", "Intent classification"),
    "Speaker_Number_Verification": ("speech", "Speaker number verification"),
    "Synthesized_Voice_Detection": ("speech", "Synthesized voice detection"),
    "Audio_Grounding": ("sound", "Audio grounding"),
    "vocal_sound_classification": ("sound", "Vocal sound classification"),
    "Acoustic_Scene_Classification": ("sound", "Acoustic scene classification"),
    "Sound_AQA": ("sound", "Sound question answering"),
    "Music_Instruments_Classfication": ("music", "Music instruments classification"),
    "Music_Genre_Recognition": ("music", "Music genre classification"),
    "Music_Midi_Pitch_Analysis": ("music", "Music note analysis, pitch"),
    "Music_Midi_Velocity_Analysis": ("music", "Music note analysis, velocity"),
    "Music_AQA": ("music", "Music question answering"),
    "Music_Mood_Recognition": ("music", "Music emotion detection"),
}
AIR_BENCH_GROUPS = {task: group for task, (group, _) in AIR_BENCH_TASKS.items()}


@dataclass(frozen=True)
class Question:
    """A question on the clip of index `clip`, its choices and the index of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int
    clip: int
    task: str = ""


def questions_of(dataset) -> tuple[list[Question], list[int]]:
    """The questions of a data set as `processing.datasets.air_bench` loads it, and the rows of its clips.

    A clip is the first row of each distinct sound: questions that share one count as one for the intervals.
    """
    if missing := [name for name in ("choices", "answer") if name not in dataset.column_names]:
        raise ValueError(f"the columns of a question are question, choices and answer; there is no {missing[0]}")
    rows, questions = {}, []
    for index, row in enumerate(dataset):
        audio = row["audio"]
        clip = rows.setdefault((audio["path"], audio["bytes"]), (len(rows), index))[0]
        _check_question(row, index)
        task = row.get("task") or ""
        questions.append(Question(row["question"], tuple(row["choices"]), row["answer"], clip, task))
    return questions, [index for _, index in rows.values()]


def _check_question(row: dict, index: int) -> None:
    choices, answer = row["choices"], row["answer"]
    if (
        not isinstance(row["question"], str)
        or kind_of(choices) != "a list of text"
        or not (kind_of(answer) == "a number" and answer in range(len(choices)))
        or not isinstance(row.get("task") or "", str)
    ):
        raise ValueError(
            f"row {index + 1} is no question: it needs a text in column question, a list of texts in choices, and in "
            f"answer the index of the right one, from 0; got {kind_of(row['question']) or 'nothing'}, "
            f"{kind_of(choices) or 'nothing'} and {answer!r}"
        )


def choices_from_labels(
    labels: Sequence[str | None],
    number: int = 4,
    seed: int = 0,
    question: str = "What is this sound?",
    tasks: Sequence[str | None] | None = None,
) -> list[Question]:
    """A question for each labelled clip: its label among `number` - 1 others, in any order.

    What is drawn for a clip depends on the seed, its index and the set of labels alone. A clip without a label (None
    or "") has no question, but its index.

    Args:
        tasks: of each clip, such as the column `group` of a data set; scores are then given by task too.
    """
    names = sorted({label for label in labels if label})
    if not 2 <= number <= len(names):
        raise ValueError(f"number of choices must be between 2 and {len(names)}, the distinct labels, got {number}")
    if tasks is not None and len(tasks) != len(labels):
        raise ValueError(f"give a task for each of {len(labels)} clips, got {len(tasks)}")
    position = {name: index for index, name in enumerate(names)}
    questions = []
    for clip, label in enumerate(labels):
        if label:
            rng = np.random.default_rng((seed, clip))
            wrong = rng.choice(len(names) - 1, number - 1, replace=False)
            wrong += wrong >= position[label]  # past the right one
            drawn = rng.permutation([position[label], *wrong])
            answer = int(np.flatnonzero(drawn == position[label])[0])
            task = (tasks[clip] if tasks is not None else None) or ""
            questions.append(Question(question, tuple(names[i] for i in drawn), answer, clip, task))
    return questions


def text_reader(processor, text_config) -> Callable[[list[str]], tuple[list[tuple[int, ...]], np.ndarray]]:
    """A function from n texts to the tokens the text tower gets of each, and which of them were cut, bool `[n]`.

    Args:
        processor: a WavLinkProcessor, which truncates; text_config: of the model's text tower, which sets the limit.
    """
    limits = [limit for limit in (processor.tokenizer.model_max_length, text_max_length(text_config)) if limit]
    limit = min(limits)

    def read(texts: list[str]) -> tuple[list[tuple[int, ...]], np.ndarray]:
        whole = processor.tokenizer(texts, verbose=False)["input_ids"]
        cut = np.array([len(ids) > limit for ids in whole])
        if cut.any():
            whole = processor.tokenizer(texts, truncation=True, max_length=limit, verbose=False)["input_ids"]
        return [tuple(ids) for ids in whole], cut

    return read


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
    """Accuracies with their intervals over clips, and what they rest on; all of it fit for JSON.

    A right choice no more similar than a wrong one is an error. So is one that the tower cannot tell from a wrong
    one, since truncation cut both where they still agreed: `over_long` counts the questions with a text that was cut,
    `over_long_ties` those of them, and `same_text` all whose right choice reads like another.

    Every question counts once. The WavLink paper's totals fit that (42.0, where the groups' mean would be 43.5). On
    AIR-Bench's leaderboard a group has the mean of its tasks, and the total is the mean of the groups: `task_means`.

    Args:
        audio_embeds: `[clips, D]`.
        embed_texts: n texts to `[n, D]`; each distinct text is embedded once.
        dims: nested dims; vectors are cut and normalised again.
        text: what is embedded of a question and a choice.
        groups: task -> group; tasks it does not name are in the group `other` and listed in `unknown_tasks`. None: no
            groups.
        rows: the clip of each vector, where some could not be embedded; questions on others are counted as
            `unreadable` and left out. Default: all clips in order.
        read: see `text_reader`; without it texts are told apart by their words, and none counts as over long.
        counts: more numbers to report, such as `AirBenchReport.counts()`.

    Returns:
        `{"questions", "clips", "text", "chance", "counts", "unknown_tasks", "groups", "tasks", dim: {"total": figure,
        "groups": {name: figure}, "tasks": {name: figure}, "ties", "task_means"}}`; the outer `groups` and `tasks` say
        how many questions and clips each has, its chance, and a task's group.
    """
    kept, clips = _on_clips(questions, len(audio_embeds), rows)
    texts, choices, readings = _choice_texts(kept, checked_choice_text(text), read)
    said = _as_matrix(embed_texts(texts), len(texts))
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
        audio, spoken = (F.normalize(x[:, :dim].float(), dim=-1) for x in (audio_embeds, said))
        hits, ties = _hits(audio, spoken, clips, choices, answers)
        scores[str(dim)] = {"total": _figure(hits, clips), "ties": int(ties.sum())} | {
            kind: {name: _figure(hits[part], clips[part]) for name, part in of.items()} for kind, of in parts.items()
        }
        if groups:
            scores[str(dim)]["task_means"] = _task_means(scores[str(dim)]["tasks"], groups)
    return scores


def checked_choice_text(text: str) -> str:
    """The text as it is, a ValueError if it is not made of `{choice}`, perhaps `{question}`, and words."""
    try:
        fields = [(name, form, how) for _, name, form, how in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ValueError(f"the text may hold {{question}} and {{choice}} alone, got {text!r}: {error}") from error
    if any(name not in ("question", "choice") or form or how for name, form, how in fields):
        raise ValueError(f"the text may hold {{question}} and {{choice}} alone, got {text!r}")
    if "choice" not in [name for name, _, _ in fields]:
        raise ValueError(f"the text must say where the choice goes, as in {TEXT!r}, got {text!r}")
    return text


def _on_clips(questions: Sequence[Question], vectors: int, rows) -> tuple[list[Question], np.ndarray]:
    """The questions whose clip has a vector, and the index of that vector, `[questions]`."""
    place = {clip: index for index, clip in enumerate(range(vectors) if rows is None else rows)}
    if len(place) != vectors:
        raise ValueError(f"rows must name one clip for each of {vectors} vectors, got {len(place)} distinct ones")
    for question in questions:
        if not 0 <= question.answer < len(question.choices) or len(question.choices) < 2:
            raise ValueError(f"a question needs two choices and one of them as its answer, got {question}")
        if rows is None and question.clip not in place:
            raise ValueError(f"there are {vectors} clips, but a question on clip {question.clip}: {question}")
    kept = [question for question in questions if question.clip in place]
    if not kept:
        raise ValueError(f"none of {len(questions)} questions is on a clip that was embedded")
    return kept, np.array([place[question.clip] for question in kept])


def _choice_texts(questions: Sequence[Question], text: str, read) -> tuple[list[str], np.ndarray, dict]:
    """Distinct texts, `[questions, choices]` their indices (-1 where a question has fewer), and counts of readings.

    Texts of which the tower gets the same tokens are one.
    """
    asked = [[text.format(question=q.question, choice=choice) for choice in q.choices] for q in questions]
    distinct = list(dict.fromkeys(said for row in asked for said in row))
    tokens, cut = read(distinct) if read else (distinct, np.zeros(len(distinct), dtype=bool))
    index, texts, was_cut = {}, [], dict(zip(distinct, cut, strict=True))
    for said, ids in zip(distinct, tokens, strict=True):
        if ids not in index:
            index[ids] = len(texts)
            texts.append(said)
    place = {said: index[ids] for said, ids in zip(distinct, tokens, strict=True)}
    choices = np.full((len(asked), max(map(len, asked))), -1)
    for number, row in enumerate(asked):
        choices[number, : len(row)] = [place[said] for said in row]
    same = _same_text(choices, np.array([question.answer for question in questions]))
    over = np.array([any(was_cut[said] for said in row) for row in asked])
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
    found = {name: np.flatnonzero([group == name for group in of_group]) for name in known}
    return {
        "groups": {name: part for name, part in found.items() if len(part)},
        "tasks": {name: np.flatnonzero([task == name for task in tasks]) for name in names},
    }


def _about(clips: np.ndarray, number: np.ndarray, part: np.ndarray) -> dict:
    return {
        "questions": len(part),
        "clips": len(np.unique(clips[part])),
        "chance": float((1 / number[part]).mean()),
    }


def _hits(audio, spoken, clips, choices, answers) -> tuple[np.ndarray, np.ndarray]:
    """bool `[questions]` each: whether the right choice is strictly the most similar, and whether it ties for that.

    Args:
        audio: `[clips, D]`; spoken: `[texts, D]`; normalised.
        clips: `[questions]`; choices: `[questions, C]`, texts' indices or -1; answers: `[questions]`.
    """
    right, wrong = np.empty(len(clips), np.float32), np.empty(len(clips), np.float32)
    for start in range(0, len(clips), _BLOCK):
        part = slice(start, start + _BLOCK)
        vectors = spoken[torch.from_numpy(np.maximum(choices[part], 0))]  # (questions, C, D)
        found = (audio[torch.from_numpy(clips[part])][:, None] * vectors).sum(-1).numpy()
        if not np.isfinite(found).all():
            raise ValueError("similarities hold NaN or infinite values")
        found[choices[part] < 0] = -np.inf
        at = np.arange(len(found)), answers[part]
        right[part], found[at] = found[at], -np.inf
        wrong[part] = found.max(1)
    same = _same_text(choices, answers) & (right >= wrong)
    return (right > wrong) & ~same, (right == wrong) | same


def _figure(hits: np.ndarray, clips: np.ndarray) -> dict:
    names, of_question = np.unique(clips, return_inverse=True)
    return figure(hits, Correspondence(of_question[:, None], len(names)))


def _task_means(tasks: Mapping[str, dict], groups: Mapping[str, str]) -> dict:
    """The mean of each group's tasks, and of these means: AIR-Bench's leaderboard has 57.8 for 63.4, 61.0, 48.9."""
    means = {}
    for group in dict.fromkeys(groups.values()):
        values = [task["value"] for name, task in tasks.items() if groups.get(name) == group]
        if values:
            means[group] = float(np.mean(values))
    return {"total": float(np.mean(list(means.values()))) if means else None, "groups": means}


def table(scores: dict) -> str:
    """The scores of `multiple_choice_scores` for a person, in percent: tasks within their groups, averages, total."""
    dims = [key for key in scores if key.isdigit()]
    lines = [f"{scores['questions']} questions on {scores['clips']} clips, asked as {scores['text']!r}"]
    lines.append(f"{'':36}{'questions':>10}{'chance':>8}" + "".join(f"{f'{dim} dims':>22}" for dim in dims))
    left = dict(scores["tasks"])
    for group in scores["groups"]:
        lines.append(group.capitalize())
        mine = [task for task in left if left[task]["group"] == group]
        lines += [_line(scores, dims, "tasks", task, left.pop(task)) for task in mine]
        lines.append(_line(scores, dims, "groups", group, scores["groups"][group], f"all {group}"))
        means = [scores[dim]["task_means"]["groups"].get(group) for dim in dims]
        lines += [_means(means, "mean of its tasks")] if None not in means else []
    lines += [_line(scores, dims, "tasks", task, about) for task, about in left.items()]
    total = "".join(f"{percent(scores[dim]['total']):>22}" for dim in dims)
    lines.append(f"{'Total':36}{scores['questions']:>10}{100 * scores['chance']:>8.1f}{total}")
    means = [scores[dim].get("task_means", {}).get("total") for dim in dims]
    lines += [_means(means, "mean of the groups' means")] if None not in means else []
    counts = {name: n for name, n in scores["counts"].items() if n and name not in ("rows", "questions", "clips")}
    lines += ["; ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())] if counts else []
    lines += [f"tasks in no group: {', '.join(scores['unknown_tasks'])}"] if scores["unknown_tasks"] else []
    return "\n".join(lines)


def _line(scores: dict, dims: Sequence[str], kind: str, name: str, about: dict, title: str = "") -> str:
    title = title or AIR_BENCH_TASKS.get(name, ("", name))[1]
    values = "".join(f"{percent(scores[dim][kind][name]):>22}" for dim in dims)
    return f"  {title:34}{about['questions']:>10}{100 * about['chance']:>8.1f}{values}"


def _means(values: Sequence[float], title: str) -> str:
    return f"  {title:34}{'':18}" + "".join(f"{100 * value:>22.1f}" for value in values)
