"""A saved tokenizer by the `tokenizers` package alone, called like those of transformers."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

_SETTINGS, _TOKENIZER = "tokenizer_config.json", "tokenizer.json"


class Tokens(dict):
    """Lists of tokens, by name."""

    def convert_to_tensors(self, kind: str | None = None) -> "Tokens":
        """Return numpy arrays of int64 for `"np"`, these lists for None.

        Raises:
            ValueError: another kind.
        """
        if kind not in (None, "np"):
            raise ValueError(f"return_tensors={kind!r} needs transformers: give 'np'")
        return self if kind is None else Tokens({name: np.array(rows, np.int64) for name, rows in self.items()})


class FastTokenizer:
    """A tokenizer of transformers that was saved with `tokenizer.json`.

    Args:
        folder: with `tokenizer.json` and `tokenizer_config.json`.

    Attributes:
        init_kwargs: what `tokenizer_config.json` holds.
        model_max_length: of a text in tokens.
        unk_token_id: None if unknown words have no token.

    Raises:
        ValueError: a file is missing or damaged.
    """

    is_fast = True

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        try:
            self.init_kwargs: dict[str, Any] = {**json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))}
            self._tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
        except Exception as error:  # tokenizers raises plain ones
            raise ValueError(f"the tokenizer of {folder} cannot be read: {error}") from error
        self.model_max_length = self.init_kwargs.get("model_max_length") or int(1e30)
        self.unk_token_id = self._id("unk_token")
        self._padding_id = self._id("pad_token") or 0
        self._left = self.init_kwargs.get("padding_side") == "left"
        self._truncated_side = self.init_kwargs.get("truncation_side", "right")
        self._lock = threading.Lock()  # the limit belongs to the tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def _id(self, name: str) -> int | None:
        token = self.init_kwargs.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        return self._tokenizer.token_to_id(token) if isinstance(token, str) else None

    def __call__(
        self,
        texts: Sequence[str] | str,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        return_offsets_mapping: bool = False,
        verbose: bool = True,
    ) -> Tokens:
        """Tokenize texts; the arguments are those of transformers' tokenizers.

        Returns:
            `input_ids` and `attention_mask`, and with `return_offsets_mapping` `offset_mapping`, a list each for each
            text, or for the one text.
        """
        cut = truncation not in (False, "do_not_truncate")
        with self._lock:
            if cut:
                limit = self.model_max_length if max_length is None else max_length
                self._tokenizer.enable_truncation(limit, direction=self._truncated_side)
            try:
                several = [texts] if isinstance(texts, str) else list(texts)
                encodings = self._tokenizer.encode_batch(several, add_special_tokens=add_special_tokens)
            finally:
                self._tokenizer.no_truncation()
        ids = [encoding.ids for encoding in encodings]
        length = 0
        if padding in (True, "longest"):
            length = max(map(len, ids))
        elif padding == "max_length":
            length = self.model_max_length if max_length is None else max_length
        tokens = Tokens(
            input_ids=[self._padded(row, self._padding_id, length) for row in ids],
            attention_mask=[self._padded([1] * len(row), 0, length) for row in ids],
        )
        if return_offsets_mapping:
            tokens["offset_mapping"] = [encoding.offsets for encoding in encodings]
        return Tokens({name: rows[0] for name, rows in tokens.items()}) if isinstance(texts, str) else tokens

    def _padded(self, row: list[int], value: int, length: int) -> list[int]:
        padding = [value] * (length - len(row))
        return [*padding, *row] if self._left else [*row, *padding]
