"""Earlier import path of names in `processing.collator`, `processing.sampling` and `processing.datasets.load`."""

from .collator import AudioTextCollator, CaptionedAudio, UnreadableClip, caption_ids, caption_key
from .datasets.load import (
    add_label_captions,
    caption_columns,
    captions_of,
    durations,
    label_names,
    load_split,
    named_like_captions,
    with_captions,
)
from .sampling import BatchPlan

__all__ = [
    "AudioTextCollator",
    "BatchPlan",
    "CaptionedAudio",
    "UnreadableClip",
    "add_label_captions",
    "caption_columns",
    "caption_ids",
    "caption_key",
    "captions_of",
    "durations",
    "label_names",
    "load_split",
    "named_like_captions",
    "with_captions",
]
