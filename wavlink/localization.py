"""Where in a recording a sound is."""

import os
from collections.abc import Iterable
from typing import TypeAlias, overload

from transformers import PreTrainedModel, ProcessorMixin

from processing.audio import AudioSource
from processing.audio_inputs_wavlink import is_source

from .embedder import Embedder, embedder_for
from .long_recordings import Span, locate_all

Model: TypeAlias = str | os.PathLike[str] | PreTrainedModel | Embedder


@overload
def locate(
    model: Model,
    recording: AudioSource,
    query: str,
    *,
    processor: ProcessorMixin | None = None,
    window: float | None = None,
    hop: float | None = None,
    top_k: int = 5,
    dim: int | None = None,
    min_score: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> list[Span]: ...


@overload
def locate(
    model: Model,
    recording: AudioSource,
    query: list[str] | tuple[str, ...] = (),
    *,
    by_sound: AudioSource | Iterable[AudioSource] = (),
    processor: ProcessorMixin | None = None,
    window: float | None = None,
    hop: float | None = None,
    top_k: int = 5,
    dim: int | None = None,
    min_score: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> list[list[Span]]: ...


def locate(
    model: Model,
    recording: AudioSource,
    query: str | list[str] | tuple[str, ...] = (),
    *,
    by_sound: AudioSource | Iterable[AudioSource] = (),
    processor: ProcessorMixin | None = None,
    window: float | None = None,
    hop: float | None = None,
    top_k: int = 5,
    dim: int | None = None,
    min_score: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> list[Span] | list[list[Span]]:
    """Find the parts of a recording of any length that match a text, or a sound.

    The recording is encoded in overlapping windows while it is decoded, so that a day of sound needs little memory.

    Args:
        model: a folder or Hub id of a WavLink or a CLAP, a loaded model (with `processor`), or an `Embedder`.
        recording: a file's path or bytes, `{"array": samples, "sampling_rate": hertz}` with mono floats `[samples]` in
            [-1, 1], or a decoder of `datasets`.
        query: a text, or a list of texts.
        by_sound: sounds to look for, one or several, given as `recording` is.
        processor: of a loaded model.
        window: length of a window in seconds, at most the model's 30 s (default: 10; of up to 120 s 4).
        hop: seconds from the start of one window to that of the next, at most `window` (default: half of a given
            `window`; else 5, or 1 for a recording of up to 120 s).
        top_k: the most spans for each query.
        dim: compare the first `dim` numbers of the vectors, one of the nested dims (default: all).
        min_score: the least score of a span, from -1 to 1 (default: what nine of ten common sounds do not reach in
            this recording, so that a sound that is not there has no span).
        device: such as `"cuda"` (default: the CPU, or where a loaded model is).
        dtype: `"float32"` (default), `"bfloat16"` or `"float16"`.

    Returns:
        For one text, its spans, best first; they do not overlap and have `start` and `end` in seconds and `score`, a
        cosine. For a list of texts or with `by_sound`, a list of spans for each text, then for each sound.

    Raises:
        ValueError: nothing to look for, a sound that cannot be read, a window or hop that cannot be, or no such `dim`.

    Example:

    ```python
    >>> import wavlink
    >>> spans = wavlink.locate(model_folder, sounds_folder / "low.wav", "a bell rings", window=0.5, hop=0.25)
    >>> all(0 <= span.start < span.end <= 1 and -1 <= span.score <= 1 for span in spans)
    True

    ```
    """
    texts = [query] if isinstance(query, str) else list(query)
    sounds = [by_sound] if is_source(by_sound) else list(by_sound)  # type: ignore[arg-type]
    if not texts and not sounds:
        raise ValueError("nothing to look for: give a text as query, or a sound as by_sound")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"query must be a text or a list of texts that are not empty, got {query!r}")
    if top_k < 1:
        raise ValueError(f"top_k must be 1 span or more, got {top_k}")
    embedder = embedder_for(model, processor, device, dtype)
    _, _, located = locate_all(embedder, recording, texts, sounds, window, hop, top_k, dim, min_score)
    found = [spans for _, _, spans, _ in located]
    return found[0] if isinstance(query, str) and not sounds else found
