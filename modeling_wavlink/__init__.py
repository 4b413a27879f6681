"""The WavLink model and its losses: what ships to the Hub.

Its classes are registered with transformers' Auto classes as soon as one of them is imported from here, or at once
where transformers is loaded already, see `processing.auto_classes`.
"""

import importlib
import sys

from . import former_paths

_HOMES = {
    "WavLinkAudioModel": "whisper_audio_wavlink",
    "WavLinkClapAudioModel": "clap_audio_wavlink",
    "WavLinkConfig": "configuration_wavlink",
    "WavLinkModel": "modeling_wavlink",
    "WavLinkOutput": "modeling_wavlink",
    "truncate_embeddings": "losses_wavlink",
}
__all__ = [*_HOMES]


former_paths.install()


def __getattr__(name: str):
    """Imported when first asked for, so that the command line answers before torch is loaded."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module("processing")  # registers them
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


if "transformers" in sys.modules:
    importlib.import_module("processing")
