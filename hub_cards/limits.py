"""A card's words about what a model cannot: words that its vocabulary lacks, changes of sounds and queries."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from wavlink.evaluation.report import excluded_lines, robustness_falls
from wavlink.sanitize import escape
from wavlink.vocabulary import unknown_words

from .metadata import data_name

_RARE = "\ua66e \U0001f415 \u72d7"  # letters that a vocabulary lacks unless it falls back to bytes
_MOST_LABELS = 20


def vocabulary_limits(tokenizer: PreTrainedTokenizerBase, scores: Sequence[dict]) -> list[str]:
    """Return sentences about the vocabulary, and the labels that hold words it lacks.

    Args:
        scores: as `wavlink eval` writes them; those with zero-shot labels are compared.
    """
    size = f"Its vocabulary has {len(tokenizer):d} tokens"
    if not unknown_words(tokenizer, [_RARE]):
        return [f"{size}, and makes any text of them, in the end of its bytes."]
    rule = "Words that it lacks are all read as one unknown token; `wavlink` names them in a warning"
    sentences = [f"{size}. {rule}."]
    for score in scores:
        labels = score.get("zero_shot", {}).get("confusion", {}).get("labels", [])
        texts = score.get("zero_shot", {}).get("label_text", {})
        lacking = [label for label in labels if unknown_words(tokenizer, [texts.get(label, label)])]
        if labels:
            named = ", ".join(escape(label) for label in lacking[:_MOST_LABELS])
            named += f" and {len(lacking) - _MOST_LABELS} more" if len(lacking) > _MOST_LABELS else ""
            which = (
                f"{len(lacking)} hold words that it lacks: {named}" if lacking else "none holds a word that it lacks"
            )
            sentences.append(f"Of the {len(labels)} labels of {escape(data_name(score))}, {which}.")
    return sentences


def robustness_limits(scores: Sequence[dict]) -> list[str]:
    """Return sentences about the changes of sounds and queries that cost recall, and about exclusions.

    Args:
        scores: as `wavlink eval` writes them; those with `robustness` are named.
    """
    sentences = []
    for score in scores:
        if not (found := score.get("robustness")):
            continue
        found = found | {
            part: {escape(name): row for name, row in found[part].items()} for part in ("changes", "falls")
        }
        recall = f"R@{found['k']:d} falls by more than {100 * found['limit']:g} points"
        falls = "; ".join(robustness_falls(found))
        which = f"with: {falls}" if falls else "with none of the changed sounds and queries above"
        sentences.append(f"On {escape(data_name(score))}, {recall} {which}.")
        sentences += [f"{line}." for line in excluded_lines(found)]
    return sentences
