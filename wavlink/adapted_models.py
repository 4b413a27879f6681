"""The models of transformers that are used like a WavLink, by model type; their classes are imported when needed."""

import transformers

ADAPTED = ("pe_audio", "pe_audio_video", "embedding_gemma2")  # model types of transformers


def adapted_classes(kind: str) -> tuple[type, type]:
    """Return the classes of a model and its processor.

    Args:
        kind: one of `ADAPTED`.

    Raises:
        ValueError: a model that the installed transformers is too old for.
    """
    try:
        if kind == "embedding_gemma2":
            from .embedding_gemma import EmbeddingGemma2Embedder, EmbeddingGemma2TextAudioProcessor

            return EmbeddingGemma2Embedder, EmbeddingGemma2TextAudioProcessor
        from .pe_audio import PeAudioEmbedder, PeAudioTextProcessor

        return PeAudioEmbedder, PeAudioTextProcessor
    except ImportError as error:
        raise ValueError(
            f"transformers {transformers.__version__} has no {kind!r} models: install a newer one"
        ) from error
