"""`wavlink.evaluate`: the scores of a model on a benchmark."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from wavlink.embedder import Embedder, embedder_for
from wavlink.labels import checked_prompts

from .command import evaluate_models
from .protocol import QUESTION, Protocol
from .questions import TEXT


def evaluate(
    model: str | os.PathLike[str] | PreTrainedModel | Embedder | None,
    benchmark: str | os.PathLike[str],
    *,
    processor: ProcessorMixin | None = None,
    split: str = "",
    data: str | os.PathLike[str] = "",
    caption_columns: Sequence[str] = (),
    prompts: str | Sequence[str] | None = None,
    clean_up: str = "spaces",
    renames: Mapping[str, str] | None = None,
    candidates: Sequence[str] = (),
    group_column: str = "group",
    choices: int = 4,
    question: str = QUESTION,
    choice_text: str = TEXT,
    seed: int = 0,
    robustness: bool = False,
    batch_size: int = 32,
    backend: str | None = None,
    precision: str | None = None,
    output: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Evaluate a model on a benchmark: retrieval, zero-shot classification, multiple choice and moment retrieval.

    The columns of a split decide what is scored: captions, `label`, or `question`, `choices` and `answer`.

    Args:
        model: a folder or Hub id (see `Embedder`; None: the bundled `wavlink-tiny`), `random:NAME` for one with new
            weights, a loaded model (with `processor`), or an `Embedder`, which is scored as it computes. A model given
            by name is scored on a GPU where there is one.
        benchmark: `"audiocaps"`, `"clotho"`, `"esc50"`, `"us8k"`, `"vggsound"`, `"airbench"`,
            `"clotho-moment"`, `"castella"`, `"synthetic"`, the folder of an audiofolder, or a Hub data set.
        processor: of a loaded model.
        split: default: the one that the benchmark is scored on; of a folder, `test`.
        data: of a benchmark by name, the copy to read: a folder or a Hub id.
        caption_columns: default: every column named like a caption.
        prompts: texts with `{}` in place of a label; the vectors of several are averaged (default: those that the
            model brings, else `"This is a sound of {}."`).
        clean_up: `"spaces"` (underscores in labels are read as spaces) or `"none"`.
        renames: labels that read badly, and the words for them.
        candidates: the labels to choose from (default: the split's own).
        group_column: clips are also scored by the values of this column, where there is one.
        choices: of a question made from labels; 0 makes none.
        question: the words of such a question.
        choice_text: how a question and a choice become one text.
        seed: of the choices drawn, and of what `robustness` draws.
        robustness: whether R@10 is scored also with the sounds changed (level, compression, rooms, noise, cuts, speed)
            and with the queries changed (keywords, paraphrases, typing errors, exclusions, other languages). That
            takes about fifteen times as long.
        batch_size: clips encoded at once.
        backend, precision: of a model by name, see `Embedder`.
        output: a JSON file for the scores, with plots beside it. After a kill, the same call goes on where it stopped.

    Returns:
        The scores that `wavlink eval --json` prints: `model`, `benchmark`, `split`, `data`, `about`, `protocol`,
        `versions`, and of `text_to_audio`, `audio_to_text`, `by_language` (where the names of caption columns state
        languages; at the largest dim), `calibration`, `zero_shot`, `multiple_choice` and `moments` those that the
        split allows, for each nested dim, every figure as `{"value": float, "interval": [low, high], ...}` in [0, 1];
        with `robustness` also that (see `wavlink.evaluation.robustness.robustness_scores`).

    Raises:
        ValueError: no such model, benchmark or split, or a split that has nothing to be scored by, or with
            `robustness` no captions.

    Example:

    ```python
    >>> import wavlink
    >>> scores = wavlink.evaluate(model_folder, sounds_folder, choices=0)
    >>> 0 <= scores["text_to_audio"]["8"]["R@1"]["value"] <= 1
    True

    ```
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 clip or more, got {batch_size}")
    protocol = Protocol(
        prompts=_tuple_of(prompts),
        clean_up=clean_up,
        renames=dict(renames or {}),
        candidates=tuple(candidates),
        group_column=group_column,
        choices=choices,
        question=question,
        choice_text=choice_text,
        seed=seed,
        robustness=robustness,
    )
    named = isinstance(model, str | os.PathLike | None) and processor is None
    return evaluate_models(
        [os.fspath(model or "") if named else embedder_for(model, processor)],  # type: ignore[arg-type]
        os.fspath(benchmark),
        protocol,
        output=output,
        split=split,
        data=os.fspath(data),
        caption_columns=caption_columns,
        batch_size=batch_size,
        backend=backend,
        precision=precision,
        say=lambda lines: None,
    )


def _tuple_of(prompts: str | Sequence[str] | None) -> tuple[str, ...]:
    if prompts is None:
        return ()
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    return tuple(checked_prompts(prompts))
