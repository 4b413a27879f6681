"""A WordPiece tokenizer with fewer tokens, which splits texts into the tokens that are left as before."""

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

_SPECIAL = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token", "bos_token", "eos_token")


class WordPiece:
    """The vocabulary of a WordPiece tokenizer.

    Args:
        tokenizer: a fast tokenizer of transformers.

    Attributes:
        state: what the library `tokenizers` saves of it.
        vocab: ids by token, added tokens included.
        required: ids of the tokens that stay in every pruned vocabulary: special and added tokens, and every single
            character, at the beginning of a word and within one.
        reachable: ids of the tokens that a text can become. Others, such as `[unused1]`, are never needed.

    Raises:
        ValueError: a tokenizer of another kind, one without a vocabulary, or one whose vocabulary lacks the unknown
            token or a character of one of its tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} is no tokenizer of the library tokenizers, whose WordPiece is needed"
            )
        self.state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        if (kind := self.state["model"]["type"]) != "WordPiece":
            raise ValueError(f"the tokenizer is a {kind}; only the vocabulary of a WordPiece can be pruned")
        self.prefix = self.state["model"]["continuing_subword_prefix"]
        added = {token["content"]: token["id"] for token in self.state["added_tokens"]}
        self.vocab: dict[str, int] = self.state["model"]["vocab"] | added
        if (unknown := self.state["model"]["unk_token"]) not in self.vocab:
            raise ValueError(f"the vocabulary has no {unknown!r}, the tokenizer's unknown token")
        single = {token for token in self.state["model"]["vocab"] if len(self._bare(token)) == 1 or len(token) == 1}
        self.required = {self.vocab[token] for token in single | set(added) | {unknown}}
        words = [token for token in self.state["model"]["vocab"] if token not in added]  # added ones are no WordPieces
        if not words:  # transformers makes an empty one where a checkpoint has none
            raise ValueError("the tokenizer has special tokens alone: its tokenizer.json or vocab.txt is missing")
        readings = [reading for token in words for reading in self._readings(token)]
        self.reachable = {self.vocab[token] for token, _ in readings}
        self._refuse_unspelled(readings, single)

    def _bare(self, token: str) -> str:
        """Return the text that a token stands for."""
        return token[len(self.prefix) :] if self._continues(token) else token

    def _continues(self, token: str) -> bool:
        return token.startswith(self.prefix) and len(token) > len(self.prefix)

    def _readings(self, token: str) -> list[tuple[str, list[str]]]:
        """Return a token with the single characters that spell it, for each way in which a text can hold it."""
        readings = []
        if self._is_word(token):
            readings.append((token, [token[0], *(self.prefix + letter for letter in token[1:])]))
        if self._continues(token) and self._is_word(bare := self._bare(token)):
            readings.append((token, [self.prefix + letter for letter in bare]))
        return readings

    def _is_word(self, text: str) -> bool:
        """Return whether a text is a single word to the tokenizer, and none of its characters is changed."""
        backend = self.tokenizer.backend_tokenizer
        normalized = backend.normalizer.normalize_str(text) if backend.normalizer else text
        if not backend.pre_tokenizer:
            return normalized == text
        return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)] == [text]

    def _refuse_unspelled(self, readings: list[tuple[str, list[str]]], single: set[str]) -> None:
        """Refuse a token with a character that is no token: without it, texts would become unknown tokens.

        WordPiece takes the longest token that fits. Where every character is a token, one always fits.
        """
        for token, letters in readings:
            if missing := set(letters) - single:
                raise ValueError(
                    f"the vocabulary has {token!r} but not {min(missing)!r}: without that character, a text that a "
                    "smaller vocabulary splits further would become an unknown token"
                )

    def words(self) -> list[str]:
        """Return the English words of three letters or more that are tokens, by id: in a BERT, the frequent first."""
        tokens = sorted(self.vocab, key=self.vocab.__getitem__)
        return [t for t in tokens if self.vocab[t] in self.reachable and t.isalpha() and t.isascii() and len(t) > 2]

    def used_by(self, texts: Iterable[str]) -> set[int]:
        """Return the ids of the tokens of texts, special tokens included."""
        return {token for text in texts for token in self.tokenizer(text, verbose=False)["input_ids"]}

    def select(self, texts: Iterable[str], size: int) -> list[int]:
        """Return the ids of a smaller vocabulary, sorted.

        It holds the required tokens, those of `texts`, and then the first reachable ones by id: the most frequent
        ones in a BERT's vocabulary.

        Raises:
            ValueError: `size` is below the number of tokens that must stay.
        """
        kept = self.required | self.used_by(texts)
        if size < len(kept):
            raise ValueError(
                f"vocabulary must be at least {len(kept)}, got {size}: special tokens, single characters and the "
                "tokens of the training captions and labels stay"
            )
        rest = sorted(self.reachable - kept)
        return sorted([*kept, *rest[: size - len(kept)]])

    def pruned(self, kept: list[int], max_length: int) -> PreTrainedTokenizerFast:
        """Return a tokenizer whose token `i` is this one's `kept[i]`.

        A text whose tokens are all kept has the same tokens. A text without an unknown token has none.

        Args:
            kept: ids, sorted, as `select` returns them.
            max_length: tokens of a text at most, special tokens included.
        """
        new = {old: index for index, old in enumerate(kept)}
        state = json.loads(json.dumps(self.state))
        vocab = state["model"]["vocab"]
        state["model"]["vocab"] = {token: new[old] for token, old in vocab.items() if old in new}
        for token in state["added_tokens"]:
            token["id"] = new[token["id"]]
        state["post_processor"] = _renumbered(state["post_processor"], new)
        state["padding"] = state["truncation"] = None  # transformers sets both at each call
        named = {name: token for name in _SPECIAL if (token := getattr(self.tokenizer, name, None)) is not None}
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(state)),
            model_max_length=max_length,
            padding_side=self.tokenizer.padding_side,
            model_input_names=self.tokenizer.model_input_names,
            **named,
        )


def _renumbered(step: dict[str, Any] | None, new: dict[int, int]) -> dict[str, Any] | None:
    """Return what adds special tokens, with new ids.

    Raises:
        ValueError: a step that is not known.
    """
    if step is None:
        return None
    if step["type"] == "Sequence":
        return {**step, "processors": [_renumbered(inner, new) for inner in step["processors"]]}
    if step["type"] == "TemplateProcessing":
        tokens = {
            name: {**token, "ids": [new[old] for old in token["ids"]]}
            for name, token in step["special_tokens"].items()
        }
        return {**step, "special_tokens": tokens}
    if step["type"] == "BertProcessing":
        return {**step, **{name: [step[name][0], new[step[name][1]]] for name in ("sep", "cls")}}
    raise ValueError(f"the tokenizer adds special tokens by {step['type']}, which cannot be renumbered")
