"""Everything before the model: decoding, features, text, and data sets."""

from .feature_extraction_wavlink import WavLinkFeatureExtractor
from .processing_wavlink import WavLinkProcessor

__all__ = ["WavLinkFeatureExtractor", "WavLinkProcessor"]
