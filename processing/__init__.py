"""Everything before the model: decoding, features, text, and data sets.

Importing it registers WavLink's classes with transformers' Auto classes, see `processing.registration`. Its names are
imported when they are first used, so that decoding needs neither transformers nor torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import former_paths, registration

if TYPE_CHECKING:
    from .feature_extraction_wavlink import WavLinkClapFeatureExtractor, WavLinkFeatureExtractor
    from .passt_features_wavlink import WavLinkPasstFeatureExtractor
    from .processing_wavlink import WavLinkProcessor

__all__ = [
    "WavLinkClapFeatureExtractor",
    "WavLinkFeatureExtractor",
    "WavLinkPasstFeatureExtractor",
    "WavLinkProcessor",
]
_HOMES = {
    "WavLinkClapFeatureExtractor": "feature_extraction_wavlink",
    "WavLinkFeatureExtractor": "feature_extraction_wavlink",
    "WavLinkPasstFeatureExtractor": "passt_features_wavlink",
    "WavLinkProcessor": "processing_wavlink",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return globals()[name]


registration.register_with_transformers()
former_paths.install()
