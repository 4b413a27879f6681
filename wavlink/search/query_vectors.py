"""The vectors of texts and sounds that a query names."""

import os
from collections.abc import Callable, Sequence

import numpy as np

from processing.audio import AudioSource
from processing.windows import stream_windows
from wavlink.embedder import Embedder, mean_direction

from .listing import file_of
from .manifest import Manifest
from .scoring import truncated


def embedded(
    manifest: Manifest,
    root: str,
    texts: Sequence[str],
    sounds: Sequence[AudioSource],
    load: Callable[[], Embedder],
) -> list[np.ndarray]:
    """Return a vector `[dims]` of norm 1 for each text, then for each sound, by the model of an index.

    Args:
        root: the folder that holds the sounds of the index.
        sounds: also paths of the index. The vector of one is the normalised mean of its windows' vectors.
        load: returns the model; called if there is a text or a sound.

    Raises:
        ValueError: a text that is empty or no string, or a sound that cannot be read.
    """
    if any(isinstance(text, str) and not text.strip() for text in texts):
        raise ValueError("a text to search by is empty")
    if not (texts or sounds):
        return []
    embedder = load()
    vectors = [*embedder.embed_text(texts)] if texts else []
    return vectors + [_of_sound(embedder, manifest, root, sound) for sound in sounds]


def cut(vectors: list[np.ndarray], manifest: Manifest) -> list[np.ndarray]:
    """Return vectors at the dims that an index stores, of norm 1."""
    return [truncated(vector[None], manifest.rescore_dim or manifest.dim)[0] for vector in vectors]


def _of_sound(embedder: Embedder, manifest: Manifest, root: str, file: AudioSource) -> np.ndarray:
    if isinstance(file, str | os.PathLike) and not os.path.exists(file):  # a path of the results?
        stored = file_of(root, os.fspath(file))
        file = stored if stored and os.path.exists(stored) else file
    windows = stream_windows(file, manifest.window, manifest.hop, manifest.sampling_rate)
    return mean_direction(list(embedder.embed_clips(window.samples for window in windows)))
