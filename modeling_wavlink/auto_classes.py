"""WavLink's classes for transformers' Auto classes, so that the code a checkpoint ships is not needed and not run."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor

from processing.feature_extraction_wavlink import WavLinkClapFeatureExtractor, WavLinkFeatureExtractor
from processing.processing_wavlink import WavLinkProcessor

from .configuration_wavlink import WavLinkConfig
from .modeling_wavlink import WavLinkModel


class _HtsatKey(WavLinkConfig):
    """Registers the second feature extractor: a config class has one, but a saved one is found by its own name."""


def register() -> None:
    """Make AutoConfig, AutoModel, AutoFeatureExtractor and AutoProcessor return this package's classes for a WavLink.

    They then do so for every folder and Hub id with `model_type` "wavlink", also where it ships code of its own:
    transformers prefers a registered class, whatever `trust_remote_code` says. Calling it again changes nothing.
    """
    AutoConfig.register("wavlink", WavLinkConfig, exist_ok=True)
    AutoModel.register(WavLinkConfig, WavLinkModel, exist_ok=True)
    AutoFeatureExtractor.register(WavLinkConfig, WavLinkFeatureExtractor, exist_ok=True)
    AutoFeatureExtractor.register(_HtsatKey, WavLinkClapFeatureExtractor, exist_ok=True)
    AutoProcessor.register(WavLinkConfig, WavLinkProcessor, exist_ok=True)
