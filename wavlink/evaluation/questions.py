"""Multiple-choice questions on clips: from a data set, or made from labels.

The tasks of AIR-Bench Foundation are named here too.
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
from transformers import PretrainedConfig, ProcessorMixin

from modeling_wavlink.configuration_wavlink import text_max_length
from processing.datasets.cells import kind_of

TEXT = "{question} {choice}"  # one text of the question and a choice, as in the WavLink paper

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
    """A question on the clip of index `clip`, its choices, and the index of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int
    clip: int
    task: str = ""


def questions_of(dataset: datasets.Dataset) -> tuple[list[Question], list[int]]:
    """Return the questions of a data set as `processing.datasets.air_bench` loads it, and the rows of its clips.

    A clip is the first row of each distinct sound. For intervals, questions on one sound count as one.

    Raises:
        ValueError: a missing column, or a row that is no question.
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
    """Make a question of each labelled clip: its label among `number` - 1 others, in random order.

    The choices of a clip depend on the seed, its index and the set of labels alone. A clip without a label (None or
    "") has no question, but keeps its index.

    Args:
        tasks: of each clip, such as the column `group` of a data set; scores are then reported by task too.
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


def text_reader(
    processor: ProcessorMixin, text_config: PretrainedConfig
) -> Callable[[list[str]], tuple[list[tuple[int, ...]], np.ndarray]]:
    """Return a function from n texts to the tokens of each, and which were truncated, bool `[n]`.

    Args:
        processor: a WavLinkProcessor, which truncates.
        text_config: of the model's text tower, which sets the limit.
    """
    limits = [limit for limit in (processor.tokenizer.model_max_length, text_max_length(text_config)) if limit]
    limit = min(limits)

    def read(texts: list[str]) -> tuple[list[tuple[int, ...]], np.ndarray]:
        tokens = processor.tokenizer(texts, verbose=False)["input_ids"]
        truncated = np.array([len(ids) > limit for ids in tokens])
        if truncated.any():
            tokens = processor.tokenizer(texts, truncation=True, max_length=limit, verbose=False)["input_ids"]
        return [tuple(ids) for ids in tokens], truncated

    return read


def checked_choice_text(text: str) -> str:
    """Return the text if it is made of `{choice}`, perhaps `{question}`, and words; raise a ValueError otherwise."""
    try:
        fields = [(name, form, how) for _, name, form, how in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ValueError(f"the text may hold {{question}} and {{choice}} alone, got {text!r}: {error}") from error
    if any(name not in ("question", "choice") or form or how for name, form, how in fields):
        raise ValueError(f"the text may hold {{question}} and {{choice}} alone, got {text!r}")
    if "choice" not in [name for name, _, _ in fields]:
        raise ValueError(f"the text must say where the choice goes, as in {TEXT!r}, got {text!r}")
    return text
