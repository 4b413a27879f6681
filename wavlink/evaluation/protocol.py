"""The evaluation protocol: compute every score that a split has the columns for."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from processing.audio import clip_name
from processing.collator import caption_key
from processing.datasets.cells import kind_of
from processing.datasets.load import captions_of, label_names
from processing.prompts import PROMPT, prompts_of
from wavlink.labels import words_of_labels
from wavlink.probability import checked_calibration

from .calibration_scores import calibration_scores
from .embed_split import Embedded, embed_dataset, embed_text
from .moment_scores import moment_scores
from .multiple_choice import multiple_choice_scores
from .questions import (
    AIR_BENCH_GROUPS,
    TEXT,
    Question,
    checked_choice_text,
    choices_from_labels,
    questions_of,
    text_reader,
)
from .retrieval import language_scores, retrieval_scores
from .robustness import K, robustness_scores
from .zero_shot import checked_prompts, named_labels, zero_shot_scores

logger = logging.get_logger(__name__)

QUESTION = "What is this sound?"
NO_LABELS = "the split has no labels"
MOMENTS = "moments"  # column of the queries of recordings


@dataclass(frozen=True)
class Protocol:
    """The settings of an evaluation; they are written beside the scores.

    Args:
        prompts: of zero-shot labels; the vectors of several are averaged. None: those that the model brings.
        clean_up, renames, candidates: see `zero_shot_scores`.
        share_captions: clips that share a caption are hits for each other (see `embed_dataset`).
        group_column: clips are also scored by the values of this column, if the split has it.
        choices: of a multiple-choice question made from labels; 0 makes none.
        question, choice_text: its words, and how a question and a choice become one text.
        seed: of the choices drawn, and of what robustness draws.
        calibration: whether probabilities of matches are scored (see `calibration_scores`).
        robustness: whether retrieval is scored with changed sounds and queries as well (see `robustness_scores`).
    """

    prompts: tuple[str, ...] = ()
    clean_up: str = "spaces"
    renames: dict[str, str] = dataclasses.field(default_factory=dict)
    candidates: tuple[str, ...] = ()
    share_captions: bool = True
    group_column: str = "group"
    choices: int = 4
    question: str = QUESTION
    choice_text: str = TEXT
    seed: int = 0
    calibration: bool = True
    robustness: bool = False

    def with_prompts_of(self, model: PreTrainedModel) -> "Protocol":
        """Return the protocol with the prompts that a model brings, if it has none of its own."""
        return self if self.prompts else dataclasses.replace(self, prompts=tuple(prompts_of(model.config)))


def evaluate_dataset(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    columns: Sequence[str] = (),
    protocol: Protocol = Protocol(),
    progress: bool = True,
    batch_size: int = 32,
    store: Path | None = None,
) -> dict:
    """Compute every score that the split has the columns for.

    They are captions, `label`, `question` with `choices` and `answer`, or `moments` (see `moment_scores`) alone.

    Args:
        columns: with captions.
        store: see `embed_audio`.

    Raises:
        ValueError: there is nothing to score (see `refuse_unscorable`); this is checked before anything is embedded.
    """
    refuse_unscorable(dataset, columns, protocol)
    if MOMENTS in dataset.column_names:
        return moment_scores(model, processor, dataset, _dims(model), progress, store)
    questions, clips = [], dataset
    if "question" in dataset.column_names:
        questions, rows = questions_of(dataset)
        clips = dataset.select(rows)  # each clip once
    embedded = embed_dataset(
        model,
        processor,
        clips,
        columns,
        progress,
        share_captions=protocol.share_captions,
        batch_size=batch_size,
        store=store,
    )
    scores = scores_of(embedded, model, processor, clips, protocol, questions)
    if protocol.robustness and "text_to_audio" not in scores:
        logger.warning(f"robustness is not scored: {why_no_retrieval(embedded.captions)}")
    elif protocol.robustness:
        if len(embedded.rows) <= K:
            logger.warning(f"among {len(embedded.rows)} clips R@{K} is 100 %, whatever robustness changes")
        labels, no_labels = labels_to_score(clips, protocol)
        labels = [None] * len(clips) if no_labels else labels
        settings = {"clean_up": protocol.clean_up, "renames": protocol.renames, "seed": protocol.seed}
        work = {"batch_size": batch_size, "progress": progress, "store": store}
        scores["robustness"] = robustness_scores(embedded, model, processor, clips, labels, **settings, **work)
    return scores


def refuse_unscorable(dataset: datasets.Dataset, columns: Sequence[str] = (), protocol: Protocol = Protocol()) -> None:
    """Refuse a split that has nothing to score by, or that every model scores 100 % on.

    Raises:
        ValueError: no clips, a prompt or `choice_text` that cannot be filled in, candidates or renames that do not fit
            the labels, groups that are none, neither questions, nor two clips with different captions, nor two
            different labels, or robustness without two clips with such captions.
    """
    if not len(dataset):
        raise ValueError("the split is empty: name another --split")
    checked_prompts(list(protocol.prompts or (PROMPT,)))
    checked_choice_text(protocol.choice_text)
    captions = [captions_of(row, columns) for row in dataset.select_columns(list(columns))] if columns else []
    no_retrieval, (_, no_zero_shot) = why_no_retrieval(captions), labels_to_score(dataset, protocol)
    group_names(dataset, protocol.group_column)
    if no_zero_shot not in ("", NO_LABELS) and (protocol.candidates or protocol.renames):
        raise ValueError(no_zero_shot)
    if no_retrieval and no_zero_shot and not {"question", MOMENTS} & {*dataset.column_names}:
        raise ValueError(f"there is nothing to score: {no_retrieval}; {no_zero_shot}")
    if protocol.robustness and no_retrieval:
        raise ValueError(f"robustness is that of retrieval, and {no_retrieval}: leave it out")


def refuse_unsearchable(dataset: datasets.Dataset, columns: Sequence[str], split: str) -> None:
    """Refuse a validation split whose captions do not allow retrieval (see `why_no_retrieval`)."""
    if reason := why_no_retrieval([captions_of(row, columns) for row in dataset.select_columns(list(columns))]):
        raise ValueError(f"the split {split!r} cannot be validated on: {reason}")


def why_no_retrieval(captions: Sequence[Sequence[str]]) -> str:
    """Return why the clips' captions do not allow retrieval; "" if they do."""
    clips, texts = sum(map(bool, captions)), {caption_key(text) for row in captions for text in row}
    if not texts:
        return "the split has no captions"
    if clips > 1 and len(texts) > 1:
        return ""
    return (
        f"with {clips} clips and {len(texts)} different captions every model finds all: give two clips or more with "
        "different captions"
    )


def labels_to_score(clips: datasets.Dataset, protocol: Protocol) -> tuple[list[str | None], str]:
    """Return the label of each clip, and why they do not allow classification; "" if they do."""
    try:
        labels = label_names(clips)
    except ValueError as error:
        return [None] * len(clips), str(error)
    names = {label for label in labels if label}
    if not names:
        return labels, NO_LABELS
    if len({*names, *protocol.candidates}) < 2:
        return labels, (
            f"{names.pop()!r} is the only label, every model is right: give clips of two labels or more (a folder for "
            "each, or a column `label`), or other labels to choose from (candidates)"
        )
    try:
        named_labels(labels, protocol.clean_up, protocol.renames, protocol.candidates or None)
    except ValueError as error:
        return labels, str(error)
    return labels, ""


def group_names(clips: datasets.Dataset, column: str) -> list[str | None]:
    """Return a column's value of each clip, as text; None where it is empty, or the column is missing.

    Raises:
        ValueError: a value that is neither a text nor a number.
    """
    if column not in clips.column_names:
        return [None] * len(clips)
    names = getattr(clips.features[column], "names", None)
    values = clips[column]
    if names:
        values = [names[x] if x is not None and x >= 0 else None for x in values]
    if odd := next((kind for value in values if (kind := kind_of(value)) not in ("", "text", "a number")), None):
        raise ValueError(f"column {column!r} holds {odd}: a group is a text, name another --group_column")
    return [None if value in (None, "") else str(value) for value in values]


def scores_of(
    embedded: Embedded,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    clips: datasets.Dataset,
    protocol: Protocol = Protocol(),
    questions: Sequence[Question] = (),
) -> dict:
    """Compute the scores of `evaluate_dataset` from embeddings.

    Args:
        embedded: of `clips`.
        questions: on `clips`.

    Raises:
        ValueError: there is nothing to score.
    """
    protocol = protocol.with_prompts_of(model)
    was_training = model.training
    model.eval()
    dims = _dims(model)
    names = {clip_name(clips[row]["audio"], row): why for row, why in embedded.sounds.unreadable.items()}
    scores = {
        "clips": len(embedded.rows),
        "captions": len(embedded.texts),
        "unreadable": {"count": len(names), "clips": names},
        "windowed": embedded.sounds.windowed,
    }
    labels, no_zero_shot = labels_to_score(clips, protocol)
    no_retrieval = why_no_retrieval(embedded.captions)
    if no_retrieval and no_zero_shot and not questions:
        raise ValueError(f"there is nothing to score: {no_retrieval}; {no_zero_shot}")
    groups = group_names(clips, protocol.group_column)
    embedded_groups = [groups[row] for row in embedded.rows]
    texts = partial(embed_text, model, processor)
    if not no_retrieval:
        scores |= _retrieval(embedded, labels, dims, embedded_groups, model, protocol)
    elif embedded.texts:
        logger.warning(f"captions are not scored: {no_retrieval}")
    if not no_zero_shot:
        scores["zero_shot"] = _zero_shot(embedded, labels, texts, dims, embedded_groups, protocol)
    elif no_zero_shot != NO_LABELS:
        logger.warning(f"labels are not scored: {no_zero_shot}")
    task_groups = AIR_BENCH_GROUPS if questions else None
    if questions := questions or ([] if no_zero_shot else _from_labels(labels, groups, protocol)):
        scores["multiple_choice"] = multiple_choice_scores(
            embedded.audio,
            questions,
            texts,
            dims,
            protocol.choice_text,
            rows=embedded.rows,
            read=text_reader(processor, model.config.text_config),
            groups=task_groups,
        )
    model.train(was_training)
    return scores


def _dims(model: PreTrainedModel) -> list[int]:
    return sorted({model.config.projection_dim, *model.config.matryoshka_dims}, reverse=True)


def _retrieval(
    embedded: Embedded, labels: Sequence[str | None], dims: Sequence[int], groups, model, protocol: Protocol
) -> dict:
    """Return the scores of retrieval, those by language if there are several, and those of probabilities."""
    pairs = embedded.audio, embedded.text, embedded.correspondence, dims
    scores = retrieval_scores(*pairs, groups)
    if by_language := language_scores(embedded.audio, embedded.text, embedded.languages, dims[0]):
        scores["by_language"] = by_language
    if protocol.calibration:
        fit, embedded_labels = checked_calibration(model.config), [labels[row] for row in embedded.rows]
        if (calibration := calibration_scores(*pairs, fit, embedded_labels)) is not None:
            scores["calibration"] = calibration
    return scores


def _zero_shot(
    embedded: Embedded, labels: Sequence[str | None], embed_texts, dims: Sequence[int], groups, protocol: Protocol
) -> dict:
    return zero_shot_scores(
        embedded.audio,
        [labels[row] for row in embedded.rows],
        embed_texts,
        dims,
        protocol.prompts,
        protocol.clean_up,
        protocol.renames,
        protocol.candidates or sorted({label for label in labels if label}),
        groups if any(groups) else None,
    )


def _from_labels(labels: Sequence[str | None], groups: Sequence[str | None], protocol: Protocol) -> list[Question]:
    """Make a question on the label of each clip, if there are enough labels."""
    if not 2 <= protocol.choices <= len({*filter(None, labels)}):
        return []
    worded = words_of_labels(labels, protocol.clean_up, protocol.renames)
    return choices_from_labels(worded, protocol.choices, protocol.seed, protocol.question, groups)
