"""The WavLink model, its losses, recipes, evaluation and search."""

import importlib

_HOMES = {
    "WavLinkAudioModel": "whisper_audio_wavlink",
    "WavLinkClapAudioModel": "clap_audio_wavlink",
    "WavLinkConfig": "configuration_wavlink",
    "WavLinkModel": "modeling_wavlink",
    "WavLinkOutput": "modeling_wavlink",
    "truncate_embeddings": "losses_wavlink",
}
__all__ = [*_HOMES]


def __getattr__(name: str):
    """Imported when first asked for, so that the command line answers before torch is loaded."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
