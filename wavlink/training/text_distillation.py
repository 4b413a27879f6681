"""A smaller text tower, made out of a sentence encoder.

The student has some of the teacher's layers and a part of its vocabulary, and learns to give a text the teacher's
vector.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeling_wavlink.losses_wavlink import truncate_embeddings
from wavlink.atomic_files import new_folder
from wavlink.destinations import folder_destination
from wavlink.evaluation.calibrate import data_name
from wavlink.evaluation.metrics import bootstrap
from wavlink.evaluation.report import Table
from wavlink.loading import revision
from wavlink.sanitize import printable

from .distillation_texts import Texts, gather
from .sentence_encoder import SentenceEncoder, kept_layers, load_teacher, make_student
from .tokenizer_pruning import WordPiece

RECORD = "distillation.json"
_WARM_UP = 50  # steps
_SORTED = 8  # batches whose texts are sorted by length


@dataclass(frozen=True)
class Distillation:
    """What is distilled, and how.

    Attributes:
        teacher: folder or Hub id of a BERT with a WordPiece tokenizer; with `translations` of a WavLink.
        data: folder or Hub id of a data set with captions.
        out: folder to write, new or empty.
        layers: of the teacher, from 0, in their order; empty: every second one and the last.
        vocabulary: tokens of the student at most.
        max_length: tokens of a text at most, special tokens included.
        steps, batch_size, learning_rate, seed: of the training.
        split: whose captions are trained on.
        held_out: splits whose captions measure the student.
        caption_columns: default: every column named like a caption.
        translations: tables of texts by language, or Hub ids of such data sets; with them the teacher is a WavLink
            (see `multilingual_distillation`).
        language: the column of the texts that the teacher knows.
        student: with translations, a folder or Hub id of a multilingual sentence encoder; empty: a new one.
        device: such as cpu or cuda; on a CPU, equal seeds give equal weights.

    Raises:
        ValueError: a number out of its range.
    """

    teacher: str
    data: str
    out: str
    layers: tuple[int, ...] = ()
    vocabulary: int = 10_600
    max_length: int = 128
    steps: int = 3000
    batch_size: int = 192
    learning_rate: float = 3e-4
    seed: int = 0
    split: str = "train"
    held_out: Sequence[str] = ("validation",)
    caption_columns: Sequence[str] = ()
    translations: Sequence[str] = ()
    language: str = "en"
    student: str = ""
    device: str = "cpu"

    def __post_init__(self):
        for name, least in (("max_length", 3), ("steps", 1), ("batch_size", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.split in self.held_out:
            raise ValueError(f"the split {self.split!r} is trained on: name another held-out split")
        if self.student and not self.translations:
            raise ValueError("a student is taught by translations: give --translations too, or leave --student out")
        if self.student and self.layers:
            raise ValueError("layers are the teacher's, of which a student is made: leave out --layers or --student")


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute 1 - the mean cosine, plus twice the mean squared difference of the similarities within the batch.

    Args:
        student, teacher: `[B, D]`, of length 1.
    """
    apart = 1 - (student * teacher).sum(-1).mean()
    return apart + 2 * (student @ student.T - teacher @ teacher.T).square().mean()


def _nested_loss(student: Tensor, teacher: Tensor, dims: Sequence[int]) -> Tensor:
    """Compute the mean of `distillation_loss` over nested dims, the largest first."""
    cut = [(truncate_embeddings(student, dim), truncate_embeddings(teacher, dim)) for dim in dims[1:]]
    return torch.stack([distillation_loss(*pair) for pair in [(student, teacher), *cut]]).mean()


def batches(lengths: np.ndarray, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield rows in random batches of similar length, epoch after epoch.

    Args:
        lengths: `[texts]`, their tokens.
    """
    rng, chunk = np.random.default_rng(seed), batch_size * _SORTED
    while True:
        order = rng.permutation(len(lengths))
        for start in range(0, len(order), chunk):
            rows = order[start : start + chunk]
            rows = rows[np.argsort(lengths[rows], kind="stable")]
            parts = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
            yield from (parts[number] for number in rng.permutation(len(parts)))


def train_student(
    student: SentenceEncoder, tokens: Sequence[Tensor], targets: Tensor, task: Distillation, say: Callable[[str], None]
) -> None:
    """Train the student, in place and without dropout.

    Args:
        tokens: of each text.
        targets: `[texts, D]`, the teacher's vectors.

    Raises:
        ValueError: the loss is not finite.
    """
    parameters = student.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=task.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / _WARM_UP) * (1 + math.cos(math.pi * step / task.steps)) / 2
    )
    rows = batches(np.array([len(ids) for ids in tokens]), task.batch_size, task.seed)
    for step in range(1, task.steps + 1):
        batch = next(rows)
        vectors = student([tokens[row] for row in batch])
        loss = _nested_loss(vectors, targets[batch].to(vectors.device), student.dims)
        if not torch.isfinite(loss):
            raise ValueError(f"the loss of step {step} is {loss.item()}: lower the learning_rate")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == task.steps:
            say(f"step {step} of {task.steps}: loss {loss.item():.4f}")


def similarity(student: Tensor, teacher: Tensor) -> dict[str, Any]:
    """Return the cosines of a student's vectors with the teacher's, with 95 % bootstrap intervals over texts.

    Args:
        student, teacher: `[texts, D]`, of length 1.

    Returns:
        `texts`, their number, and `mean` and `quantile_5` as `{"value", "interval"}`. `quantile_5` is the least cosine
        that 5 % of the texts do not exceed.
    """
    cosines = np.sort((student.double() * teacher.double()).sum(-1).numpy())

    def quantile(drawn: np.ndarray) -> np.ndarray:
        reached = np.cumsum(drawn, axis=1)
        return cosines[(reached >= 0.05 * reached[:, -1:]).argmax(1)]

    every = np.arange(len(cosines)), len(cosines)
    mean = bootstrap(lambda drawn: drawn @ cosines / drawn.sum(1), *every)
    return {"texts": len(cosines), "mean": mean, "quantile_5": bootstrap(quantile, *every)}


def distill(task: Distillation, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Make a student, train it, write it to `task.out` atomically, and return what `distillation.json` holds.

    Args:
        say: called with lines of progress.

    Raises:
        ValueError: `out` holds something, a teacher or data that cannot be used, or numbers that do not suit them.
    """
    folder_destination(task.out)
    teacher = load_teacher(task.teacher, task.device, task.seed)
    config = teacher.model.config
    layers = kept_layers(task.layers, config.num_hidden_layers)
    if task.max_length > config.max_position_embeddings:
        raise ValueError(
            f"max_length must be at most the teacher's {config.max_position_embeddings}, got {task.max_length}"
        )
    vocabulary = WordPiece(teacher.tokenizer)
    texts = gather(task.data, task.split, task.held_out, task.caption_columns, vocabulary.words(), task.seed)
    kept = vocabulary.select([*texts.captions, *texts.labels], task.vocabulary)
    student = make_student(teacher, layers, kept, task.max_length)
    say(f"{len(kept)} tokens, layers {', '.join(map(str, layers))}, {len(texts.training)} training texts")
    training = _targets(student, teacher, texts.training, task.max_length)
    held_out = {"captions": texts.held_out_captions, "sentences": texts.held_out_sentences}
    measured = {name: _targets(student, teacher, few, task.max_length) for name, few in held_out.items() if few}
    train_student(student, *training, task, say)
    scores = {name: similarity(student.embed(tokens), targets) for name, (tokens, targets) in measured.items()}
    record = _record(task, teacher, student, layers, texts) | {"similarity": scores}
    record["texts"]["too_long"] = len(texts.training) - len(training[0])
    with new_folder(task.out) as folder:
        student.save(folder)
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def _targets(
    student: SentenceEncoder, teacher: SentenceEncoder, texts: Sequence[str], max_length: int
) -> tuple[list[Tensor], Tensor]:
    """Return the student's tokens and the teacher's vectors of the texts that fit both.

    Raises:
        ValueError: no text does.
    """
    both = zip(student.tokenize(texts), teacher.tokenize(texts), strict=True)
    fitting = [pair for pair in both if max(map(len, pair)) <= max_length]
    if not fitting:
        raise ValueError(f"no text of {len(texts)} has at most max_length {max_length} tokens, such as {texts[0]!r}")
    return [tokens for tokens, _ in fitting], teacher.embed([tokens for _, tokens in fitting])


def _record(
    task: Distillation, teacher: SentenceEncoder, student: SentenceEncoder, layers: Sequence[int], texts: Texts
) -> dict[str, Any]:
    """Return what was distilled and how, without paths of this machine."""
    return {
        "teacher": data_name(task.teacher),
        "teacher_revision": revision(teacher.model),
        "data": data_name(task.data),
        "split": task.split,
        "held_out": list(task.held_out),
        "layers": list(layers),
        "vocabulary": student.model.config.vocab_size,
        "max_length": task.max_length,
        **record_of_training(task, teacher, student),
        "texts": {name: len(getattr(texts, name)) for name in ("captions", "labels", "sentences")},
    }


def record_of_training(task: Distillation, teacher: SentenceEncoder, student: SentenceEncoder) -> dict[str, Any]:
    """Return what every record says of the two models and of the training."""
    return {
        "pooling": student.pooling,
        "parameters": student.model.num_parameters(),
        "teacher_parameters": teacher.model.num_parameters(),
        **{name: getattr(task, name) for name in ("steps", "batch_size", "learning_rate", "seed")},
    }


def report(record: dict[str, Any]) -> str:
    """Render the similarity of a student to its teacher."""
    rows = [
        [f"{scores['texts']} held-out {name}", *(cosine(scores[figure]) for figure in ("mean", "quantile_5"))]
        for name, scores in record["similarity"].items()
        if "mean" in scores
    ]
    counts = f"{record['parameters']:,} of its {record['teacher_parameters']:,} parameters"
    head = f"cosine to {printable(record['teacher'])}, {counts}"
    return f"{head}\n{Table(['', 'mean', '5 % quantile'], rows)}"


def cosine(figure: dict[str, Any]) -> str:
    """Format a cosine with its interval."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(figure["value"], *figure["interval"])
