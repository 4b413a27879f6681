"""Everything before the model: decoding, features, text, and data sets.

Importing it registers WavLink's classes with transformers' Auto classes, see `processing.auto_classes`.
"""

from . import audio_inputs_wavlink, former_paths
from .audio import load_audio
from .auto_classes import register
from .feature_extraction_wavlink import WavLinkClapFeatureExtractor, WavLinkFeatureExtractor
from .passt_features_wavlink import WavLinkPasstFeatureExtractor
from .processing_wavlink import WavLinkProcessor

register()
former_paths.install()

__all__ = [
    "WavLinkClapFeatureExtractor",
    "WavLinkFeatureExtractor",
    "WavLinkPasstFeatureExtractor",
    "WavLinkProcessor",
]

audio_inputs_wavlink.reader = load_audio  # the shipped reader reads less
