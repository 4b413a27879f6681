"""WavLink: short embeddings of sounds and sentences in one space.

    >>> import wavlink
    >>> wavlink.classify(model_folder, sounds_folder / "low.wav", ["a low sound", "a high sound"])[0]["labels"]
    [{'label': ...}, {'label': ...}]

The names of `__all__` are the public API; each is imported when it is first used. WavLink's classes are registered
with transformers' Auto classes, so that `AutoModel.from_pretrained(folder)` needs no `trust_remote_code`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import packages

if TYPE_CHECKING:
    from modeling_wavlink.configuration_wavlink import WavLinkConfig
    from modeling_wavlink.modeling_wavlink import WavLinkModel
    from processing.audio import load_audio
    from processing.feature_extraction_wavlink import WavLinkFeatureExtractor
    from processing.processing_wavlink import WavLinkProcessor
    from wavlink.evaluation.evaluate import evaluate
    from wavlink.evaluation.mteb_models import register_mteb
    from wavlink.search.index import Index
    from wavlink.training.loop import train
    from wavlink.training.recipes import load_recipe
    from wavlink.training.trainer import WavLinkTrainer

    from .bundled_models import bundled
    from .classification import classify
    from .embedder import Embedder
    from .localization import locate

__version__ = "0.1.0"
__all__ = [
    "WavLinkConfig",
    "WavLinkModel",
    "WavLinkProcessor",
    "WavLinkFeatureExtractor",
    "WavLinkTrainer",
    "Embedder",
    "Index",
    "classify",
    "locate",
    "evaluate",
    "train",
    "load_audio",
    "load_recipe",
    "bundled",
    "register_mteb",
]
# Where each name lives, and the extra that brings what its module imports.
_HOMES = {
    "WavLinkConfig": ("modeling_wavlink.configuration_wavlink", ""),
    "WavLinkModel": ("modeling_wavlink.modeling_wavlink", ""),
    "WavLinkProcessor": ("processing.processing_wavlink", ""),
    "WavLinkFeatureExtractor": ("processing.feature_extraction_wavlink", ""),
    "WavLinkTrainer": ("wavlink.training.trainer", "train"),
    "Embedder": ("wavlink.embedder", ""),
    "Index": ("wavlink.search.index", "search"),
    "classify": ("wavlink.classification", ""),
    "locate": ("wavlink.localization", ""),
    "evaluate": ("wavlink.evaluation.evaluate", "eval"),
    "train": ("wavlink.training.loop", "train"),
    "load_audio": ("processing.audio", ""),
    "load_recipe": ("wavlink.training.recipes", ""),
    "bundled": ("wavlink.bundled_models", ""),
    "register_mteb": ("wavlink.evaluation.mteb_models", ""),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, extra = _HOMES[name]
    try:
        value = getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if packages.is_own(error.name or ""):
            raise
        from .installing import install_hint

        hint = install_hint(error.name or "a package", extra)
        raise ImportError(f"wavlink.{name} cannot be used: {hint}", name=error.name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


packages.refuse_shadowed()
importlib.import_module("processing")  # which registers them
