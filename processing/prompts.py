"""Texts with a place for a label."""

PROMPT = "This is a sound of {}."  # of transformers' zero-shot audio pipeline


def checked_prompt(prompt: str) -> str:
    """The prompt as it is, a ValueError if it has not exactly one `{}` and no other brace."""
    if not isinstance(prompt, str) or prompt.count("{}") != 1 or set("{}") & set(prompt.replace("{}", "")):
        raise ValueError(
            f"a prompt has exactly one {{}}, where the label goes, and no other braces, as in {PROMPT!r}; got "
            f"{prompt!r}"
        )
    return prompt


def prompted(prompt: str, label: str) -> str:
    """The prompt with the label in its place."""
    return checked_prompt(prompt).replace("{}", label)
