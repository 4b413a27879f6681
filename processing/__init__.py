"""Everything before the model: decoding, features, text, and data sets."""

from .feature_extraction_wavlink import WavLinkClapFeatureExtractor, WavLinkFeatureExtractor
from .processing_wavlink import WavLinkProcessor

__all__ = ["WavLinkClapFeatureExtractor", "WavLinkFeatureExtractor", "WavLinkProcessor"]
