"""The WavLink model and its losses: what ships to the Hub.

Importing it registers its classes with transformers' Auto classes, see `processing.registration`. Its names are
imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
_HOMES = {
    "WavLinkAudioModel": "whisper_audio_wavlink",
    "WavLinkClapAudioModel": "clap_audio_wavlink",
    "WavLinkConfig": "configuration_wavlink",
    "WavLinkModel": "modeling_wavlink",
    "WavLinkOutput": "modeling_wavlink",
    "WavLinkPasstConfig": "passt_configuration_wavlink",
    "WavLinkPasstModel": "passt_audio_wavlink",
    "truncate_embeddings": "losses_wavlink",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return globals()[name]


importlib.import_module("processing")  # which registers the classes, and makes earlier import paths work
