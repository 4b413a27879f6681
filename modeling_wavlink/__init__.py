"""The WavLink model, its losses, recipes, evaluation and search."""

from .clap_audio_wavlink import WavLinkClapAudioModel
from .configuration_wavlink import WavLinkConfig
from .losses_wavlink import truncate_embeddings
from .modeling_wavlink import WavLinkModel, WavLinkOutput
from .whisper_audio_wavlink import WavLinkAudioModel

__all__ = [
    "WavLinkAudioModel",
    "WavLinkClapAudioModel",
    "WavLinkConfig",
    "WavLinkModel",
    "WavLinkOutput",
    "truncate_embeddings",
]
