"""Facts that a plan of a training needs and must not download: cards, towers and data sets.

The command line reads this module for its help: it imports neither torch nor transformers.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A GPU by its vendor's figures: dense TFLOPS (half of those "with sparsity"), and GB of memory."""

    bf16: float  # of the tensor cores, fp16 likewise, with fp32 accumulation
    fp32: float  # without tensor cores, since torch does not use TF32 by default
    memory: float


# NVIDIA's data sheets (H200, H100 and A100 SXM, L40S, L4) and white papers (Ada for RTX 4090, GA102 for RTX 3090).
CARDS = {
    "h200": Card(989, 67, 141),
    "h100": Card(989, 67, 80),
    "a100": Card(312, 19.5, 80),
    "l40s": Card(362, 91.6, 48),
    "rtx4090": Card(165, 82.6, 24),
    "rtx3090": Card(71, 35.6, 24),
    "l4": Card(121, 30.3, 24),
}
MEASURED = ("this", "cpu")  # devices that are measured: this machine's accelerator or else its CPU; its CPU
DEVICES = (*CARDS, *MEASURED)
UTILIZATION = 0.3  # of a card's TFLOPS; an assumption, see docs/train.md
WORDS = 20  # of the longest caption of a chunk of these data sets: the limit of Clotho's (arXiv 1910.09387)
TOKENS_A_WORD = 1.3  # of the vocabularies of CLIP and BERT, roughly


@dataclass(frozen=True)
class Source:
    """A data set's training split."""

    clips: int
    seconds: float  # of a clip, on average
    longest: float
    captions: int = 1  # of a clip


# AudioCaps: rows of OpenSound/AudioCaps as its viewer rounds them (45.2k; version 2 of the captions has 91,256 by
# github.com/cdjkim/audiocaps). Clotho: the development split of Zenodo 4783391, CLAPv2/Clotho's train (3.84k rows).
# Mean seconds of both: github.com/Labbeti/aac-datasets (126.7 h of 46,230 clips, 24.0 h of 3,839). Auto-ACD and
# AudioSetCaps: about 1.9M and 6,117,099 captions by their cards, of clips of 10 s.
SOURCES = {
    "audiocaps": Source(45_200, 9.9, 10.0),
    "clotho": Source(3_839, 22.5, 30.0, 5),
    "auto_acd": Source(1_900_000, 10.0, 10.0),
    "audiosetcaps": Source(6_117_099, 10.0, 10.0),
}
SOURCES |= {
    "OpenSound/AudioCaps": SOURCES["audiocaps"],
    "CLAPv2/Clotho": SOURCES["clotho"],
    "Loie/Auto-ACD": SOURCES["auto_acd"],
    "baijs/AudioSetCaps": SOURCES["audiosetcaps"],
}


def _whisper(width: int, layers: int, heads: int, vocabulary: int, mel_bins: int = 80) -> dict:
    """Table 1 of arXiv 2212.04356; the feed-forward width is four times the width."""
    return {
        "model_type": "whisper",
        "d_model": width,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "num_mel_bins": mel_bins,
        "vocab_size": vocabulary,
    }


def _clip(width: int, heads: int) -> dict:
    """The text half of a CLIP (arXiv 2103.00020, Table 20), which is all of it that a WavLink uses."""
    return {
        "model_type": "clip_text_model",
        "hidden_size": width,
        "num_hidden_layers": 12,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "projection_dim": width,
    }


_SIZES = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12), "medium": (1024, 24, 16)}
# Configs of the recipes' towers and of their sizes beside, with the fields that differ from transformers' defaults.
TOWERS = {
    **{f"openai/whisper-{name}.en": _whisper(*size, 51864) for name, size in _SIZES.items()},
    **{f"openai/whisper-{name}": _whisper(*size, 51865) for name, size in _SIZES.items()},
    "openai/whisper-large": _whisper(1280, 32, 20, 51865),
    "openai/whisper-large-v2": _whisper(1280, 32, 20, 51865),
    "openai/whisper-large-v3": _whisper(1280, 32, 20, 51866, 128),
    "openai/whisper-large-v3-turbo": _whisper(1280, 32, 20, 51866, 128),
    "openai/clip-vit-base-patch32": _clip(512, 8),
    "openai/clip-vit-base-patch16": _clip(512, 8),
    "openai/clip-vit-large-patch14": _clip(768, 12),
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
