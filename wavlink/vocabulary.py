"""Words that a model's vocabulary lacks: a tokenizer may replace them all by one unknown token."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from .sanitize import clean

logger = logging.getLogger(__name__)

_MOST_NAMED = 20  # words in a warning
_named: "WeakKeyDictionary[Any, set[str]]" = WeakKeyDictionary()
_quiet = ContextVar("unknown_words_are_not_named", default=False)


def unknown_words(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Return the words of texts that a tokenizer replaces by its unknown token, each once, in order.

    A word of which a part is replaced counts as well. Tokenizers that fall back to bytes or letters replace none.

    Args:
        tokenizer: of transformers, a `FastTokenizer`, or None.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or not texts:
        return []
    if not tokenizer.is_fast:
        words = dict.fromkeys(word for text in texts for word in text.split())
        return [word for word in words if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    encoded = tokenizer(list(texts), **options)
    spans = zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    words: dict[str, None] = {}
    for text, ids, all_offsets in spans:
        end = -1  # of the word before, of which further parts may be unknown
        for token, (first, last) in zip(ids, all_offsets, strict=True):
            if token == unknown and last > end:
                start, end = _word_around(text, first, last)
                words[text[start:end].strip()] = None
    words.pop("", None)  # an unknown space
    return list(words)


def warn_of_unknown_words(tokenizer: Any, texts: Sequence[str], model: str) -> None:
    """Name the words that the vocabulary lacks in a warning, each once for a tokenizer.

    Args:
        tokenizer: None for a model that has none of transformers'.
        model: its name, for the warning.
    """
    if tokenizer is None or _quiet.get():
        return
    known = _named.setdefault(tokenizer, set())
    words = [word for word in unknown_words(tokenizer, texts) if word not in known]
    if words:
        known.update(words)
        logger.warning(f"{clean(model, 200)} {describe(words)}")


def describe(words: Sequence[str]) -> str:
    """Return a clause that names unknown words, to follow the model's name."""
    named = ", ".join(repr(clean(word, 50)) for word in words[:_MOST_NAMED])
    more = f" and {len(words) - _MOST_NAMED} more" if len(words) > _MOST_NAMED else ""
    plural = "words" if len(words) > 1 else "word"
    return f"does not know the {plural} {named}{more}: its vocabulary reads every unknown word as the same token"


@contextmanager
def unnamed() -> Iterator[None]:
    """Name no unknown words within this context: those of texts that no user has given."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def _word_around(text: str, start: int, end: int) -> tuple[int, int]:
    """Return where the word around the characters from `start` to `end` starts and ends."""
    while start > 0 and text[start].isalnum() and text[start - 1].isalnum():
        start -= 1
    while 0 < end < len(text) and text[end - 1].isalnum() and text[end].isalnum():
        end += 1
    return start, end
