"""Tokens of texts: how a processor truncates and pads them."""

_UNLIMITED = int(1e20)  # transformers' `LARGE_INTEGER`: a tokenizer without a limit has int(1e30)


class TextInputs:
    """Mixin of a processor. A subclass has a `tokenizer` and defines `_note_once`, which shows a message once."""

    def _tokenize(self, text, return_tensors=None, padding=None, truncation=None, max_length=None, **kwargs) -> dict:
        several = hasattr(text, "__iter__") and not isinstance(text, (str, dict))
        texts = list(text) if several else [text]
        if not texts or not all(isinstance(sentence, str) for sentence in texts):
            raise ValueError("text must be a string or a list of at least one string")
        for number, sentence in enumerate(texts):
            if has_half_pair(sentence):
                raise ValueError(
                    f"text {number} {ascii(sentence[:80])} holds half of a surrogate pair, which is no character: "
                    "decode it anew, for example with errors='replace'"
                )
        if max_length is not None and max_length < 0:
            raise ValueError(f"max_length must be a number of tokens, got {max_length}")
        defaults = self.tokenizer.init_kwargs  # options that the tokenizer was loaded with
        padding = defaults.get("padding", True) if padding is None else padding
        if padding == "max_length" and max_length is None:
            max_length = defaults.get("max_length")
        limit = min(max_length or _UNLIMITED, self.tokenizer.model_max_length)
        limited = limit < _UNLIMITED
        if padding == "max_length" and not limited:
            padding = "longest"
        truncation = "longest_first" if truncation in (None, True) else truncation
        truncation = truncation if limited else False
        cut = truncation not in (False, "do_not_truncate")
        options = {"padding": padding, "truncation": truncation, "max_length": limit if cut else max_length}
        tokens = self.tokenizer(texts, **options, **kwargs)
        longest = max(len(ids) for ids in tokens["input_ids"])
        if cut and longest == limit and (max_length is None or max_length > limit):
            self._warn_if_truncated(texts, limit)
        return tokens.convert_to_tensors(return_tensors)

    def _warn_if_truncated(self, texts: list[str], limit: int) -> None:
        if max(len(ids) for ids in self.tokenizer(texts, verbose=False)["input_ids"]) > limit:
            # The message holds nothing of the batch, so that it is the same each time.
            self._note_once(f"texts over the text tower's limit of {limit} tokens are truncated (shown once)")


def has_half_pair(text: str) -> bool:
    """Whether a text holds one half of a surrogate pair, which is no character by itself."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)
