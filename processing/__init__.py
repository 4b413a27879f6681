"""Everything before the model: decoding, features, text, and data sets."""

from . import audio_inputs_wavlink
from .audio import load_audio
from .feature_extraction_wavlink import WavLinkClapFeatureExtractor, WavLinkFeatureExtractor
from .processing_wavlink import WavLinkProcessor

__all__ = ["WavLinkClapFeatureExtractor", "WavLinkFeatureExtractor", "WavLinkProcessor"]

audio_inputs_wavlink.reader = load_audio  # the shipped reader reads less
