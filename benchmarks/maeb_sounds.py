"""Tasks of mteb of every class in MAEB, made from an audiofolder: what `maeb.py --sounds FOLDER` runs.

The folder has the splits `train` and `test`, whose metadata has captions, `label` and `group`. Texts are the captions
of the test split, equal ones once; a text's answers are all clips that have it, as in `wavlink eval`. Labels are those
of five clips or more in both splits. Pairs and candidates are drawn with a seed.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
from mteb.abstasks import (
    AbsTask,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskMultilabelClassification,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskZeroShotClassification,
)
from mteb.abstasks.task_metadata import TaskMetadata
from sklearn.linear_model import LogisticRegression
from sklearn.multioutput import MultiOutputClassifier

from processing.collator import caption_key
from processing.datasets.load import caption_columns, captions_of, label_names, load_split
from processing.prompts import PROMPT, prompted
from wavlink.evaluation.embed_split import fingerprint
from wavlink.labels import label_texts

LEAST = 5  # clips of a label in each split
POSITIVES, NEGATIVES = 3, 10  # candidates of a query in reranking, as in MAEB's own task
SPLIT, TRAIN = "test", "train"


def sound_tasks(folder: str, seed: int = 0) -> list[AbsTask]:
    """The tasks that a folder gives.

    Raises:
        ValueError: the folder has no such splits or columns, or too few clips of a label.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder: name one with the splits {TRAIN} and {SPLIT} by --sounds")
    test, train = load_split(folder, SPLIT), load_split(folder, TRAIN)
    splits = {SPLIT: test, TRAIN: train}
    for name, split in splits.items():
        if missing := {"label", "group"} - {*split.column_names}:
            missed = ", ".join(sorted(missing))
            raise ValueError(f"the {name} split of {folder} has no column {missed}: add it to {name}/metadata.csv")
    labels = {name: label_names(split) for name, split in splits.items()}
    counts = [Counter(names) for names in labels.values()]
    kept = sorted(name for name in counts[0] if name and all(count[name] >= LEAST for count in counts))
    if len(kept) < 2:
        raise ValueError(
            f"{folder} has {len(kept)} labels with {LEAST} clips or more in both splits, and two are needed: "
            "give more clips of a label"
        )
    groups = sorted({*test["group"], *train["group"]}, key=str)
    known, taught = (_labelled(split, labels[name], kept, groups) for name, split in splits.items())
    rng = np.random.default_rng(seed)
    tasks = [*_captions(test), _zero_shot(test, labels[SPLIT]), *_classified(known, taught)]
    tasks += [_same_label(known), _pairs(known, rng), _reranked(known, rng)]
    source = {"path": "sounds", "revision": f"{fingerprint(test)}{fingerprint(train)}-{seed}"}
    for task in tasks:
        task.metadata = task.metadata.model_copy(update={"dataset": source})
    return tasks


def _labelled(
    split: datasets.Dataset, labels: Sequence[str | None], kept: list[str], groups: list
) -> datasets.Dataset:
    """The rows of some labels: `audio`, the numbers of its `label` and `group`, and `labels`, which has both."""
    rows = [row for row, label in enumerate(labels) if label in kept]
    split = split.select(rows)
    columns = {"label": [kept.index(labels[row]) for row in rows], "group": [*map(groups.index, split["group"])]}
    columns["labels"] = [[label, len(kept) + group] for label, group in zip(*columns.values(), strict=True)]
    split = split.select_columns("audio")
    for name, numbers in columns.items():
        split = split.add_column(name, numbers)
    return split


def _task(kind: type, name: str, type_: str, category: str, score: str, data: dict, **attributes) -> AbsTask:
    """A task of a class of mteb whose data is in memory."""
    facts = dict.fromkeys("reference date domains task_subtypes license annotations_creators dialect".split())
    metadata = TaskMetadata(
        **facts,
        name=name,
        description=f"{type_} of an audiofolder's clips",
        dataset={"path": "sounds", "revision": ""},
        type=type_,
        category=category,
        modalities=["audio", "text"] if "t" in category else ["audio"],
        eval_splits=[SPLIT],
        eval_langs=["eng-Latn"],
        main_score=score,
        sample_creation=None,
        bibtex_citation=None,
    )
    task = type(name, (kind,), {"metadata": metadata, **attributes})()
    task.dataset, task.data_loaded = data, True
    return task


def _retrieval(name: str, category: str, score: str, queries, corpus, answers: dict, ranked=None) -> AbsTask:
    """`answers`: of each query's id the ids of its documents; `ranked`: its candidates, if they are not all."""
    relevant = {query: dict.fromkeys(documents, 1) for query, documents in answers.items()}
    split = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": ranked}
    kind = "AudioReranking" if ranked else "Any2AnyRetrieval"
    return _task(AbsTaskRetrieval, name, kind, category, score, {"default": {SPLIT: split}})


def _clips(split: datasets.Dataset, rows: Sequence[int]) -> datasets.Dataset:
    rows = list(map(int, rows))
    return split.select(rows).select_columns("audio").add_column("id", [f"clip-{row}" for row in rows])


def _captions(split: datasets.Dataset) -> list[AbsTask]:
    """Texts to sounds and sounds to texts."""
    columns, spelling, clips = caption_columns(split), {}, {}
    for number, row in enumerate(split.remove_columns("audio")):
        for text in captions_of(row, columns):
            spelling.setdefault(caption_key(text), text)
            clips.setdefault(caption_key(text), {})[f"clip-{number}"] = None
    ids = {key: f"text-{number}" for number, key in enumerate(clips)}
    texts = datasets.Dataset.from_dict({"id": list(ids.values()), "text": [spelling[key] for key in ids]})
    answers = {ids[key]: list(found) for key, found in clips.items()}
    turned = {}
    for text, found in answers.items():
        for clip in found:
            turned.setdefault(clip, []).append(text)
    sounds = _clips(split, [int(clip.removeprefix("clip-")) for clip in turned])
    return [
        _retrieval("SoundsT2ARetrieval", "t2a", "hit_rate_at_10", texts, sounds, answers),
        _retrieval("SoundsA2TRetrieval", "a2t", "hit_rate_at_10", sounds, texts, turned),
    ]


def _same_label(split: datasets.Dataset) -> AbsTask:
    """Sounds to sounds of their label: of each label every second clip is a query, the others are documents."""
    places = {label: np.flatnonzero(np.array(split["label"]) == label) for label in sorted({*split["label"]})}
    answers = {
        f"clip-{row}": [f"clip-{other}" for other in rows[::2]] for rows in places.values() for row in rows[1::2]
    }
    halves = [sorted(np.concatenate([rows[start::2] for rows in places.values()])) for start in (1, 0)]
    queries, corpus = (_clips(split, half) for half in halves)
    return _retrieval("SoundsA2ARetrieval", "a2a", "hit_rate_at_10", queries, corpus, answers)


def _reranked(split: datasets.Dataset, rng: np.random.Generator) -> AbsTask:
    """For every clip a few of its label among more of others."""
    labels, ranked, answers = np.array(split["label"]), {}, {}
    for row, label in enumerate(labels):
        same = np.setdiff1d(np.flatnonzero(labels == label), [row])
        other = np.flatnonzero(labels != label)
        drawn = [
            rng.choice(rows, min(most, len(rows)), replace=False)
            for rows, most in ((same, POSITIVES), (other, NEGATIVES))
        ]
        answers[f"clip-{row}"] = [f"clip-{found}" for found in drawn[0]]
        ranked[f"clip-{row}"] = [f"clip-{found}" for found in np.sort(np.concatenate(drawn))]
    clips = _clips(split, range(len(split)))
    return _retrieval("SoundsReranking", "a2a", "map_at_1000", clips, clips, answers, ranked)


def _pairs(split: datasets.Dataset, rng: np.random.Generator) -> AbsTask:
    """Every clip with another one of its label, and with one of another label."""
    labels = np.array(split["label"])
    first, second = np.repeat(np.arange(len(labels)), 2), []
    for row, label in enumerate(labels):
        second.append(rng.choice(np.setdiff1d(np.flatnonzero(labels == label), [row])))
        second.append(rng.choice(np.flatnonzero(labels != label)))
    sides = [
        split.select(list(map(int, rows))).select_columns("audio").rename_column("audio", f"audio{number}")
        for number, rows in ((1, first), (2, second))
    ]
    pairs = datasets.concatenate_datasets(sides, axis=1).add_column("label", [1, 0] * len(labels))
    columns = {"input1_column_name": "audio1", "input2_column_name": "audio2", "label_column_name": "label"}
    data = datasets.DatasetDict({SPLIT: pairs})
    kind = "AudioPairClassification"
    return _task(AbsTaskPairClassification, "SoundsPairClassification", kind, "a2a", "max_ap", data, **columns)


def _zero_shot(split: datasets.Dataset, labels: Sequence[str | None]) -> AbsTask:
    """A clip's label among all of the split."""
    names = sorted({label for label in labels if label})
    rows = [row for row, label in enumerate(labels) if label]
    clips = split.select(rows).select_columns("audio")
    clips = clips.add_column("label", [names.index(labels[row]) for row in rows])
    columns = {"input_column_name": "audio", "label_column_name": "label"}
    texts = [prompted(PROMPT, words) for words in label_texts(names)]
    return _task(
        AbsTaskZeroShotClassification,
        "SoundsZeroshot",
        "AudioZeroshotClassification",
        "a2t",
        "accuracy",
        datasets.DatasetDict({SPLIT: clips}),
        **columns,
        get_candidate_labels=lambda task: texts,
    )


def _classified(test: datasets.Dataset, train: datasets.Dataset) -> list[AbsTask]:
    """Classifiers on the vectors, by label, by group and by both at once, and clusters by label and by group."""
    data, sounds = datasets.DatasetDict({TRAIN: train, SPLIT: test}), {"input_column_name": "audio"}
    both = {**sounds, "label_column_name": "labels", "evaluator_model": MultiOutputClassifier(LogisticRegression())}
    kind = "AudioMultilabelClassification"
    tasks = [_task(AbsTaskMultilabelClassification, "SoundsMultilabel", kind, "a2c", "lrap", data, **both)]
    for column in ("label", "group"):
        columns = {**sounds, "label_column_name": column}
        name, whole = column.capitalize(), {**columns, "max_fraction_of_documents_to_embed": None}
        of_clips = "AudioClassification", "a2c", "accuracy", data
        tasks.append(_task(AbsTaskClassification, f"Sounds{name}Classification", *of_clips, **columns))
        of_clusters = "AudioClustering", "a2c", "v_measure", datasets.DatasetDict({SPLIT: test})
        tasks.append(_task(AbsTaskClustering, f"Sounds{name}Clustering", *of_clusters, **whole))
    return tasks
