"""Prompts: texts with `{}` for a label."""

PROMPT = "This is a sound of {}."  # of transformers' zero-shot audio pipeline


def prompts_of(config: object) -> list[str]:
    """Return the prompts for labels that a WavLink's config brings (`label_prompts`), or else `PROMPT` alone."""
    is_wavlink = getattr(config, "model_type", "") == "wavlink"  # whose config is checked
    return list((getattr(config, "label_prompts", None) if is_wavlink else None) or [PROMPT])


def checked_prompt(prompt: str) -> str:
    """Return the prompt unchanged.

    Raises:
        ValueError: it does not have exactly one `{}`, or it has other braces.
    """
    if not isinstance(prompt, str) or prompt.count("{}") != 1 or set("{}") & set(prompt.replace("{}", "")):
        raise ValueError(
            f"a prompt has exactly one {{}}, where the label goes, and no other braces, as in {PROMPT!r}; got "
            f"{prompt!r}"
        )
    return prompt


def prompted(prompt: str, label: str) -> str:
    """Return the prompt with the label.

    Raises:
        ValueError: see `checked_prompt`.
    """
    return checked_prompt(prompt).replace("{}", label)
