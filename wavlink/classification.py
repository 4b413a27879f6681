"""Zero-shot classification of sounds."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from processing.audio import AudioSource
from processing.audio_inputs_wavlink import as_list, is_source
from processing.prompts import PROMPT

from .classify_command import classify as classify_files
from .embedder import Embedder, embedder_for


def classify(
    model: str | os.PathLike[str] | PreTrainedModel | Embedder,
    sounds: AudioSource | Iterable[AudioSource],
    labels: Sequence[str],
    *,
    processor: ProcessorMixin | None = None,
    prompts: str | Sequence[str] = PROMPT,
    clean_up: str = "spaces",
    dim: int | None = None,
    top_k: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> list[dict[str, Any]]:
    """Classify sounds of any length by labels the model was not trained for.

    A label's score is the softmax of its logits among the labels. A sound longer than the model's 30 s is encoded in
    windows, whose vectors are averaged.

    Args:
        model: a folder or Hub id of a WavLink or a CLAP, a loaded model (with `processor`), or an `Embedder`, which
            saves loading the model at each call.
        sounds: one or several: a file's path, a folder (all sound files below it), bytes,
            `{"array": samples, "sampling_rate": hertz}` with mono floats `[samples]` in [-1, 1], or a decoder of
            `datasets`.
        labels: two or more, all different.
        processor: of a loaded model.
        prompts: texts with `{}` in place of the label; the vectors of several are averaged.
        clean_up: `"spaces"` (underscores in labels are read as spaces) or `"none"`.
        dim: compare the first `dim` numbers of the vectors, one of the nested dims (default: all).
        top_k: how many labels of each sound are returned (default: all).
        device: such as `"cuda"` (default: the CPU, or where a loaded model is).
        dtype: `"float32"` (default), `"bfloat16"` or `"float16"`.

    Returns:
        For each sound, in order, `{"path": str, "labels": [{"label": str, "score": float, "cosine": float}, ...]}`,
        best label first; for a sound that cannot be read `{"path": str, "error": str}`. The path of a sound without
        one is its row.

    Raises:
        ValueError: no sounds, samples without a sampling rate, fewer than two different labels, a prompt without one
            `{}`, no such `dim`, or a model that cannot be loaded.

    Example:

    ```python
    >>> import wavlink
    >>> results = wavlink.classify(model_folder, sounds_folder / "low.wav", ["a low sound", "a high sound"])
    >>> sorted(answer["label"] for answer in results[0]["labels"])
    ['a high sound', 'a low sound']
    >>> round(sum(answer["score"] for answer in results[0]["labels"]), 3)
    1.0

    ```
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be 1 label or more, got {top_k}")
    listed = as_list(sounds if is_source(sounds) else list(sounds))  # type: ignore[arg-type]
    for number, sound in enumerate(listed):
        if not is_source(sound):
            raise ValueError(
                f"sound {number} is a {type(sound).__name__}: give a path, bytes, or samples as "
                "{'array': samples, 'sampling_rate': hertz}"
            )
    embedder = embedder_for(model, processor, device, dtype)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    rows = classify_files(embedder, listed, labels, texts, clean_up, dim)
    return [{**row, "labels": row["labels"][:top_k]} if "labels" in row else row for row in rows]
