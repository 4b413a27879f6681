"""A WavLink whose text tower knows more languages, taught by the text tower of another WavLink, without sound.

    wavlink distill wavlink-tiny --translations pairs.tsv --data my_sounds --out runs/multilingual

The student learns to give a text and its translations the vector that the teacher gives the text (Reimers and Gurevych
2020, arXiv 2004.09813). The audio tower stays as it is, so that sounds are found in all these languages.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig

from modeling_wavlink import WavLinkModel
from processing import WavLinkProcessor
from processing.hub_names import needs_cache
from wavlink.atomic_files import new_folder
from wavlink.bundled_models import name_of, resolve
from wavlink.destinations import folder_destination
from wavlink.evaluation.calibrate import data_name
from wavlink.evaluation.metrics import bootstrap, percent
from wavlink.evaluation.report import Table
from wavlink.loading import revision

from .distillation_texts import gather
from .multilingual_students import TextTower, fit_projection, new_student, published_student
from .text_distillation import RECORD, Distillation, cosine, record_of_training, similarity, train_student
from .translations import Translation, hold_out, load_translations

_MOST_HELD_OUT = 500  # texts with translations


def distill_multilingual(task: Distillation, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Make a WavLink with a multilingual text tower, write it atomically, and return what `distillation.json` holds.

    Raises:
        ValueError: `out` holds something, a teacher that is no WavLink, or translations, a student or data that cannot
            be used.
    """
    folder_destination(task.out)
    translations = load_translations(task.translations, task.language, task.split)
    wavlink, processor = _load_wavlink(task.teacher, task.device)
    teacher = TextTower(wavlink, processor.tokenizer)
    texts = gather(task.data, task.split, task.held_out, task.caption_columns, (), task.seed)
    known = [*texts.captions, *texts.labels]
    training, measured = hold_out(translations, [*known, *texts.held_out_captions], _MOST_HELD_OUT)
    own = list(dict.fromkeys([*known, *(pair.source for pair in training)]))
    pairs = [*((text, text) for text in own), *((pair.source, pair.text) for pair in training)]
    student = _student(teacher, task, [text for _, text in pairs])
    say(f"{len(training)} translations into {len({pair.language for pair in training})} languages, {len(own)} texts")
    tokens, targets = _targets(student, teacher, pairs)
    captions = _targets(student, teacher, [(text, text) for text in texts.held_out_captions])
    if task.student:
        fit_projection(student, tokens, targets, task.seed)
    train_student(student, tokens, targets, task, say)
    scores: dict[str, Any] = {"captions": similarity(student.embed(captions[0]), captions[1])}
    scores["by_language"] = _language_scores(student, teacher, measured)
    record = _record(task, student, teacher, training) | {"similarity": scores}
    record["texts"] = {"own": len(own), "too_long": len(pairs) - len(tokens)}
    with new_folder(task.out) as folder:
        student.wavlink.save_pretrained(folder)
        WavLinkProcessor(processor.feature_extractor, student.tokenizer).save_pretrained(folder)
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def _load_wavlink(source: str, device: str) -> tuple[WavLinkModel, WavLinkProcessor]:
    """Load the teacher, frozen.

    Raises:
        ValueError: there is no such model, or it is no WavLink.
    """
    folder = resolve(source)
    needs_cache(folder)
    if (kind := AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type) != "wavlink":
        raise ValueError(
            f"{source} is a {kind}: with --translations the teacher is a WavLink, whose sounds are to be found in "
            "more languages"
        )
    model = WavLinkModel.from_pretrained(folder, dtype=torch.float32)
    return model.eval().requires_grad_(False).to(device), WavLinkProcessor.from_pretrained(folder)


def _student(teacher: TextTower, task: Distillation, texts: Sequence[str]) -> TextTower:
    if task.student:
        return published_student(teacher, task.student, task.max_length, task.seed)
    return new_student(teacher, texts, task.vocabulary, task.max_length, task.layers, task.seed)


def _targets(student: TextTower, teacher: TextTower, pairs: Sequence[tuple[str, str]]) -> tuple[list[Tensor], Tensor]:
    """Return the student's tokens and the teacher's vectors, of the pairs of their texts that fit both.

    Raises:
        ValueError: no pair does.
    """
    sources = list(dict.fromkeys(source for source, _ in pairs))
    limits = [encoder.tokenizer.model_max_length for encoder in (teacher, student)]
    known = {
        source: ids for source, ids in zip(sources, teacher.tokenize(sources), strict=True) if len(ids) <= limits[0]
    }
    tokens = student.tokenize([text for _, text in pairs])
    fitting = [
        (source, ids)
        for (source, _), ids in zip(pairs, tokens, strict=True)
        if source in known and len(ids) <= limits[1]
    ]
    if not fitting:
        raise ValueError(f"no text of {len(pairs)} fits in {min(limits)} tokens, such as {pairs[0][1]!r}")
    vectors = teacher.embed(list(known.values()))
    row = {source: number for number, source in enumerate(known)}
    return [ids for _, ids in fitting], vectors[[row[source] for source, _ in fitting]]


def _language_scores(
    student: TextTower, teacher: TextTower, measured: Mapping[str, Sequence[Translation]]
) -> dict[str, dict[str, Any]]:
    """Return how near translations are to their sources, by language; none where no text fits.

    Returns:
        Of each language `similarity`, and `accuracy`: how often the vector of a translation is nearer to its own
        source's than to those of all other held-out sources. `teacher_accuracy` is that of the teacher's vectors.
    """
    scores = {}
    for language, rows in measured.items():
        pairs = [(pair.source, pair.text) for pair in rows]
        try:
            tokens, targets = _targets(student, teacher, pairs)
            before, known = _targets(teacher, teacher, pairs)
        except ValueError:
            continue
        vectors = student.embed(tokens)
        scores[language] = {
            **similarity(vectors, targets),
            "accuracy": _accuracy(vectors, targets),
            "teacher_accuracy": _accuracy(teacher.embed(before), known),
        }
    return scores


def _accuracy(vectors: Tensor, targets: Tensor) -> dict[str, Any]:
    """Return how often a text's own target is the nearest, with its interval; ties are wrong."""
    similarities = vectors @ targets.T
    own = similarities.diagonal().clone()
    similarities.fill_diagonal_(-2)
    right = (own > similarities.max(1).values).double().numpy()
    return bootstrap(lambda drawn: drawn @ right / drawn.sum(1), np.arange(len(right)), len(right))


def _record(
    task: Distillation, student: TextTower, teacher: TextTower, training: Sequence[Translation]
) -> dict[str, Any]:
    """Return what was distilled and how, without paths of this machine."""
    sources, languages = task.translations, Counter(pair.language for pair in training)
    return {
        "teacher": data_name(name_of(resolve(task.teacher))),
        "teacher_revision": revision(teacher.wavlink),
        "student": data_name(task.student) or None,
        "data": data_name(task.data),
        "split": task.split,
        "held_out": list(task.held_out),
        "language": task.language,
        "translations": [os.path.basename(source) if os.path.exists(source) else source for source in sources],
        "languages": dict(sorted(languages.items())),
        "vocabulary": student.model.config.vocab_size,
        "max_length": student.tokenizer.model_max_length,
        **record_of_training(task, teacher, student),
    }


def multilingual_report(record: dict[str, Any]) -> str:
    """Render how well each language's held-out translations are understood."""
    rows = [
        [language, str(row["texts"]), cosine(row["mean"]), percent(row["accuracy"]), percent(row["teacher_accuracy"])]
        for language, row in record["similarity"]["by_language"].items()
    ]
    return str(Table(["held-out translations", "texts", "cosine", "source found", "by the teacher"], rows))
