"""Facts that a plan of a training needs and must not download: cards and data sets.

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
