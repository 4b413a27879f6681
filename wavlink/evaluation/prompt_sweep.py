"""The command `wavlink prompts`: find the prompts with which a model names the sounds of a validation split best.

wavlink prompts runs/my/best --data my_sounds --store
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from processing.datasets.load import durations, load_split
from processing.prompt_templates import TEMPLATES
from wavlink.config_file import own_folder, write_field
from wavlink.console import stdout_for
from wavlink.loading import load_for_evaluation
from wavlink.sanitize import printable

from .embed_split import embed_audio, embed_text
from .metrics import Similarities, figure, percent, ranks
from .protocol import Protocol, labels_to_score
from .report import Table
from .zero_shot import checked_prompts, embed_prompted, ensemble, label_texts


def sweep(
    audio_embeds: torch.Tensor,
    labels: Sequence[str],
    embed_texts: Callable[[list[str]], torch.Tensor],
    prompts: Sequence[str] = TEMPLATES,
    most: int = 7,
    clean_up: str = "spaces",
) -> dict[str, Any]:
    """Score prompts by zero-shot accuracy, one by one, and choose a set of them whose vectors are averaged.

    The set starts with the best prompt. The prompt that raises the accuracy most is added, as long as one does
    (forward selection). Of equal ones the first counts.

    Args:
        audio_embeds: `[clips, D]`.
        labels: of each clip.
        embed_texts: n texts to `[n, D]`.
        prompts: two or more, to choose from.
        most: prompts in the set.
        clean_up: as for `zero_shot_scores`.

    Returns:
        `clips`, `labels` (their number), and two lists of `{"prompt", "value", "interval"}`: `single`, the best prompt
        first, and `selected`, with the accuracy of the set so far.

    Raises:
        ValueError: a prompt without one `{}`, equal prompts, fewer than two labels, or `most` below 1.
    """
    prompts = _checked(prompts, most)
    names = sorted(set(labels))
    if len(names) < 2:
        raise ValueError(f"give clips of two labels or more, got {', '.join(names) or 'none'}")
    targets = np.searchsorted(names, labels)
    audio, width = F.normalize(audio_embeds.float(), dim=-1), audio_embeds.shape[1]
    vectors = embed_prompted(label_texts(names, clean_up), prompts, embed_texts).float()  # (labels, prompts, D)

    def hits(chosen: Sequence[int]) -> np.ndarray:
        similarities = Similarities(audio, ensemble(vectors[:, list(chosen)], width))
        return ranks(similarities, np.arange(len(names)) == targets[:, None]) <= 1

    single = [hits([number]) for number in range(len(prompts))]
    order = sorted(range(len(prompts)), key=lambda number: -single[number].mean())
    chosen, selected = [order[0]], [single[order[0]]]
    while len(chosen) < min(most, len(prompts)):
        candidates = {number: hits([*chosen, number]) for number in range(len(prompts)) if number not in chosen}
        best = max(candidates, key=lambda number: candidates[number].mean())
        if candidates[best].mean() <= selected[-1].mean():
            break
        chosen.append(best)
        selected.append(candidates[best])
    return {
        "clips": len(labels),
        "labels": len(names),
        "single": [{"prompt": prompts[number], **figure(single[number])} for number in order],
        "selected": [{"prompt": prompts[n], **figure(x)} for n, x in zip(chosen, selected, strict=True)],
    }


def _checked(prompts: Sequence[str], most: int) -> list[str]:
    """Return the prompts as a list, or raise `sweep`'s ValueError for prompts or `most`."""
    prompts = checked_prompts(list(prompts))
    if len(set(prompts)) < len(prompts):
        raise ValueError("give each prompt once")
    if most < 1:
        raise ValueError(f"most must be 1 prompt or more, got {most}")
    return prompts


def run(options: argparse.Namespace) -> None:
    """Score the prompts, print them, and with --store write the chosen ones into the model's config.json."""
    with stdout_for(options.as_json) as print_json:
        folder = own_folder(options.model) if options.store else None
        prompts = _checked(options.prompt or TEMPLATES, options.most)
        dataset = load_split(options.data, options.split)
        labels, reason = labels_to_score(dataset, Protocol(clean_up=options.clean_up))
        if reason:
            raise ValueError(f"the split {options.split!r} cannot choose prompts: {reason}")
        dataset = dataset.select([row for row, label in enumerate(labels) if label])
        labels = [label for label in labels if label]
        model, processor = load_for_evaluation(options.model, "cuda" if torch.cuda.is_available() else "cpu")
        sounds = embed_audio(model, processor, dataset, durations(dataset), options.batch_size)
        result = sweep(
            *(sounds.vectors, [labels[row] for row in sounds.rows], lambda texts: embed_text(model, processor, texts)),
            *(prompts, options.most, options.clean_up),
        )
        print(report(result))
        chosen = [row["prompt"] for row in result["selected"]]
        if folder:
            write_field(folder, "label_prompts", chosen)
            print(f"written to {folder / 'config.json'}")
        print_json(
            {"model": options.model, "data": options.data, "split": options.split, **result, "stored": bool(folder)}
        )


def report(result: dict[str, Any]) -> str:
    """Render the accuracy of each prompt, and of the growing set of averaged ones."""
    head = f"zero-shot accuracy on {result['clips']} clips of {result['labels']} labels"
    rows = [["one by one"], *([printable(row["prompt"]), percent(row)] for row in result["single"])]
    rows += [["averaged, each added to those above"]]
    rows += [[printable(row["prompt"]), percent(row)] for row in result["selected"]]
    return f"{head}\n{Table(['', 'top-1'], rows)}"
