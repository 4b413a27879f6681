"""Registration of WavLink's classes with transformers' Auto classes, so that a checkpoint's own code is not run."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor

from modeling_wavlink.clap_audio_wavlink import WavLinkClapAudioModel
from modeling_wavlink.configuration_wavlink import WavLinkConfig
from modeling_wavlink.modeling_wavlink import WavLinkModel
from modeling_wavlink.passt_audio_wavlink import WavLinkPasstModel
from modeling_wavlink.passt_configuration_wavlink import WavLinkPasstConfig
from modeling_wavlink.whisper_audio_wavlink import WavLinkAudioModel

from . import audio_inputs_wavlink
from .audio import load_audio
from .feature_extraction_wavlink import WavLinkClapFeatureExtractor, WavLinkFeatureExtractor
from .passt_features_wavlink import WavLinkPasstFeatureExtractor
from .processing_wavlink import WavLinkProcessor


class _HtsatKey(WavLinkConfig):
    """Key of the second feature extractor: a config class has only one, but a saved extractor is found by its name."""


def register() -> None:
    """Make AutoConfig, AutoModel, AutoFeatureExtractor and AutoProcessor return this package's classes for a WavLink.

    They then do so for every folder and Hub id with the `model_type` of a WavLink or one of its audio towers, also
    where it ships code of its own: transformers prefers a registered class, whatever `trust_remote_code` says. Calling
    it again changes nothing.
    """
    for model in (WavLinkModel, WavLinkAudioModel, WavLinkClapAudioModel, WavLinkPasstModel):
        AutoConfig.register(model.config_class.model_type, model.config_class, exist_ok=True)
        AutoModel.register(model.config_class, model, exist_ok=True)
    AutoFeatureExtractor.register(WavLinkConfig, WavLinkFeatureExtractor, exist_ok=True)
    AutoFeatureExtractor.register(_HtsatKey, WavLinkClapFeatureExtractor, exist_ok=True)
    AutoFeatureExtractor.register(WavLinkPasstConfig, WavLinkPasstFeatureExtractor, exist_ok=True)
    AutoProcessor.register(WavLinkConfig, WavLinkProcessor, exist_ok=True)
    audio_inputs_wavlink.reader = load_audio  # the shipped reader reads less
