"""Configs of the recipes' towers and of their sizes beside, which a plan needs and must not download."""

from modeling_wavlink.configuration_wavlink import clip_fields, whisper_fields

# Table 1 of arXiv 2212.04356.
_SIZES = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12), "medium": (1024, 24, 16)}
# With the fields that differ from transformers' defaults.
TOWERS = {
    **{f"openai/whisper-{name}.en": whisper_fields(*size, 80, 51864) for name, size in _SIZES.items()},
    **{f"openai/whisper-{name}": whisper_fields(*size, 80, 51865) for name, size in _SIZES.items()},
    "openai/whisper-large": whisper_fields(1280, 32, 20, 80, 51865),
    "openai/whisper-large-v2": whisper_fields(1280, 32, 20, 80, 51865),
    "openai/whisper-large-v3": whisper_fields(1280, 32, 20, 128, 51866),
    "openai/whisper-large-v3-turbo": whisper_fields(1280, 32, 20, 128, 51866) | {"decoder_layers": 4},
    "openai/clip-vit-base-patch32": clip_fields(512, 8),
    "openai/clip-vit-base-patch16": clip_fields(512, 8),
    "openai/clip-vit-large-patch14": clip_fields(768, 12),
    "sentence-transformers/all-MiniLM-L6-v2": {
        "model_type": "bert",
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
    },
    "answerdotai/ModernBERT-large": {
        "model_type": "modernbert",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "intermediate_size": 2624,
    },
}
