"""Everything before the model: decoding, features, text, and data sets.

Importing it registers WavLink's classes with transformers' Auto classes, see `modeling_wavlink.auto_classes`.
"""

from modeling_wavlink.auto_classes import register

from .feature_extraction_wavlink import WavLinkClapFeatureExtractor, WavLinkFeatureExtractor
from .processing_wavlink import WavLinkProcessor

register()

__all__ = ["WavLinkClapFeatureExtractor", "WavLinkFeatureExtractor", "WavLinkProcessor"]
