"""The texts that a text encoder is distilled on, and those that are held out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import datasets
import numpy as np

from processing.datasets.load import caption_columns, captions_of, label_names, load_split, with_captions
from processing.prompt_templates import TEMPLATES
from processing.prompts import prompted

MOST_WORDS = 18_000  # of the teacher's vocabulary, in sentences
MOST_HELD_OUT = 1000  # of these sentences
# Sentences for words, so that the student knows more words than the captions have.
_SENTENCES = (
    *("{}", "the sound of {}", "a recording of {}", "someone hears {}"),
    *("{} and {}", "a {} near a {}", "the {} is {}"),
)


@dataclass
class Texts:
    """Texts, each once.

    Attributes:
        captions: of the training split.
        labels: of the training split, in prompts.
        sentences: with words of the teacher's vocabulary.
        held_out_captions, held_out_sentences: equal to no other text, also but for case and spaces.
    """

    captions: list[str]
    labels: list[str]
    sentences: list[str]
    held_out_captions: list[str]
    held_out_sentences: list[str]

    @property
    def training(self) -> list[str]:
        return [*self.captions, *self.labels, *self.sentences]


def gather(
    data: str, split: str, held_out: Sequence[str], columns: Sequence[str], words: Sequence[str], seed: int
) -> Texts:
    """Gather the texts.

    Args:
        data: as `load_split` takes it.
        split: whose captions and labels are trained on.
        held_out: splits whose captions measure the student.
        columns: that hold captions; by default all that are named so.
        words: of which sentences are made, the most frequent first.
        seed: of these sentences.

    Raises:
        ValueError: no such data or split, no captions, or no held-out captions that differ from the training texts.
    """
    dataset = load_split(data, split)
    captions = _captions(dataset, columns)
    names = sorted({label.replace("_", " ") for label in label_names(dataset) if label})
    labels = _new([prompted(template, name) for name in names for template in TEMPLATES], captions)
    sentences = _new(_sentences(words[:MOST_WORDS], seed), captions + labels)
    measured = min(MOST_HELD_OUT, len(sentences) // 10)
    sentences, held_out_sentences = sentences[measured:], sentences[:measured]
    others = [caption for name in held_out for caption in _captions(load_split(data, name), columns)]
    held_out_captions = _new(others, [*captions, *labels, *sentences])
    if not held_out_captions:
        raise ValueError(
            f"every caption of {', '.join(held_out) or 'no split'} is a training text too: name a held-out split with "
            "captions of its own"
        )
    return Texts(captions, labels, sentences, held_out_captions, held_out_sentences)


def _captions(dataset: datasets.Dataset, columns: Sequence[str]) -> list[str]:
    """Return a split's captions, each once.

    Raises:
        ValueError: there are none.
    """
    columns = caption_columns(dataset, columns)
    rows = with_captions(dataset, columns).select_columns(columns)
    return _new((caption for row in rows for caption in captions_of(row, columns)), ())


def _sentences(words: Sequence[str], seed: int) -> list[str]:
    """Return a sentence for each word, with other words where a template has two places, in random order."""
    rng = np.random.default_rng(seed)
    sentences = []
    for number in rng.permutation(len(words)):
        template = _SENTENCES[rng.integers(len(_SENTENCES))]
        sentences.append(template.format(words[number], words[rng.integers(len(words))]))
    return sentences


def _new(texts: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return texts, each once, without those that are known."""
    seen = {_key(text) for text in known}
    by_key: dict[str, str] = {}
    for text in texts:
        if (key := _key(text)) not in seen:
            by_key.setdefault(key, text)
    return list(by_key.values())


def _key(text: str) -> str:
    return " ".join(text.casefold().split())
