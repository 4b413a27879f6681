"""The WavLink model and its losses: what ships to the Hub.

Importing it registers its classes with transformers' Auto classes, see `processing.auto_classes`.
"""

import importlib

import transformers  # noqa: F401  before the modules below, which `wavlink` has registered as soon as it is imported

from .clap_audio_wavlink import WavLinkClapAudioModel
from .configuration_wavlink import WavLinkConfig
from .losses_wavlink import truncate_embeddings
from .modeling_wavlink import WavLinkModel, WavLinkOutput
from .passt_audio_wavlink import WavLinkPasstModel
from .passt_configuration_wavlink import WavLinkPasstConfig
from .whisper_audio_wavlink import WavLinkAudioModel

__all__ = [
    "WavLinkAudioModel",
    "WavLinkClapAudioModel",
    "WavLinkConfig",
    "WavLinkModel",
    "WavLinkOutput",
    "WavLinkPasstConfig",
    "WavLinkPasstModel",
    "truncate_embeddings",
]

importlib.import_module("processing")  # which registers them, and makes earlier import paths work
