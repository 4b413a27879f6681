"""Labels of zero-shot classification as texts: their words, in prompts, and the vectors of these."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from processing.prompts import PROMPT, checked_prompt, prompted

from .vectors import normalized

CLEAN_UPS = {"spaces": lambda label: label.replace("_", " "), "none": lambda label: label}


def label_texts(
    labels: Sequence[str], clean_up: str = "spaces", renames: Mapping[str, str] | None = None
) -> list[str]:
    """Return the text of each label in a prompt; arguments are as for `wavlink.evaluation.zero_shot.zero_shot_scores`.

    Raises:
        ValueError: an unknown `clean_up` or label in `renames`, a label without words, or two with the same words.
    """
    if clean_up not in CLEAN_UPS:
        raise ValueError(f"clean_up must be one of {', '.join(CLEAN_UPS)}, got {clean_up!r}")
    where = "" if renames is None else " in renames"  # which not every caller takes
    renames = renames or {}
    if unknown := [label for label in renames if label not in labels]:
        raise ValueError(f"renames hold {unknown[0]!r}, which is no label here: correct it or take it out")
    texts = {label: renames.get(label, CLEAN_UPS[clean_up](label)) for label in labels}
    first = {}
    for label, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"the label {label!r} needs words, got {text!r}: give it some{where}")
        if text in first:
            raise ValueError(
                f"the labels {first[text]!r} and {label!r} both read {text!r}: give them different words{where}, or "
                "use clean_up='none'"
            )
        first[text] = label
    return list(texts.values())


def words_of_labels(
    labels: Sequence[str | None], clean_up: str = "spaces", renames: Mapping[str, str] | None = None
) -> list[str | None]:
    """Return the text of each clip's label, None without one; arguments and errors are those of `label_texts`.

    `renames` may hold labels that no clip has.
    """
    names = sorted({*filter(None, labels)})
    known = {label: text for label, text in (renames or {}).items() if label in names}
    texts = dict(zip(names, label_texts(names, clean_up, known), strict=True))
    return [texts.get(label) for label in labels]


def embed_prompted(texts: Sequence[str], prompts: Sequence[str], embed_texts: Callable[[list[str]], Any]) -> Any:
    """Embed each label's words in each prompt: `[labels, prompts, D]`, an array or a tensor as `embed_texts` gives."""
    text_embeds = embed_texts([prompted(prompt, text) for text in texts for prompt in prompts])
    return text_embeds.reshape(len(texts), len(prompts), -1)


def ensemble(text_embeds: Any, dim: int) -> Any:
    """Average the prompts' vectors, cut and L2-normalised: `[labels, prompts, D]` -> `[labels, dim]`, normalised.

    A tensor stays a tensor. See CLIP, arXiv 2103.00020, section 3.1.4.
    """
    return normalized(normalized(text_embeds[..., :dim]).mean(1))


def checked_prompts(prompts: list[str]) -> list[str]:
    """Return the prompts if there are any and each has one `{}`; raise a ValueError otherwise."""
    if not prompts:
        raise ValueError(f"give at least one prompt, such as {PROMPT!r}")
    return [checked_prompt(prompt) for prompt in prompts]
