"""What was tried on top of a recipe, one change at a time, at equal budgets; see docs/design-findings.md.

    python benchmarks/variants.py VARIANT[,VARIANT] RECIPE [--OPTION VALUE ...]

A variant is one of those below, or `none`; recipe and options are those of `train.py`. What helps beyond its interval
belongs in the recipe, so everything here is a change that does not.
"""

import argparse
import functools
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from modeling_wavlink import WavLinkModel
from modeling_wavlink.losses_wavlink import false_negatives
from processing.collator import CaptionedAudio
from wavlink.training import loop
from wavlink.training.command import parse_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", help=f"one or several of none, {', '.join(VARIANTS)}")
    options, rest = parser.parse_known_args()
    for name in options.variants.split(","):
        if name != "none":
            if name not in VARIANTS:
                parser.error(f"no variant {name!r}: none, {', '.join(VARIANTS)}")
            VARIANTS[name]()
    recipe = parse_recipe(rest)
    print(f"done: {loop.train(recipe)}, {Path(recipe.output_dir).name} with {options.variants}")


def token_rate(factor: float = 10.0) -> None:
    """The global token learns at 10 times the learning rate."""
    parameter_groups = loop.parameter_groups

    def with_token(model, weight_decay, *head):
        groups = parameter_groups(model, weight_decay, *head)
        token = model.audio_model.global_token
        for group in groups:
            group["params"] = [p for p in group["params"] if p is not token]
        return [*groups, {"params": [token], "weight_decay": 0.0, "lr": 1e-4 * factor}]

    loop.parameter_groups = with_token


def mixing(share: float = 0.25) -> None:
    """A quarter of the clips sound over another one, at -5 to 5 dB, and have both captions joined."""
    item = CaptionedAudio.__getitem__

    def mixed(self, key):
        row = item(self, key)
        rng = np.random.default_rng((self.seed, *key, 1)) if isinstance(key, tuple) else None
        if not self.shuffle or rng is None or rng.random() > share:
            return row
        other = item(self, (key[0], int(rng.integers(len(self)))))
        first, second = (x["audio"]["array"] for x in (row, other))
        level = np.sqrt(np.mean(first**2) / max(np.mean(second**2), 1e-12)) * 10 ** (rng.uniform(-5, 5) / 20)
        both = first + np.pad(level * second, (0, max(len(first) - len(second), 0)))[: len(first)]
        row["audio"]["array"] = (both / max(1.0, np.abs(both).max())).astype(np.float32)
        row["captions"] = [f"{row['captions'][0].rstrip('.')}, and {other['captions'][0]}"]
        return row

    CaptionedAudio.__getitem__ = mixed


def rooms(share: float = 0.5, rate: int = 16000) -> None:
    """Half of the clips are played 12 dB louder to 12 dB softer, in a room of 0.1 to 0.6 s (decaying noise)."""
    item = CaptionedAudio.__getitem__

    def played(self, key):
        row = item(self, key)
        rng = np.random.default_rng((self.seed, *key, 2)) if isinstance(key, tuple) else None
        if not self.shuffle or rng is None or rng.random() > share:
            return row
        clip, seconds = row["audio"]["array"], rng.uniform(0.1, 0.6)
        decay = np.exp(-math.log(1000) * np.arange(int(seconds * rate)) / (seconds * rate))  # 60 dB over `seconds`
        room = rng.normal(size=len(decay)) * decay * 0.05
        room[0] = 1
        size = 1 << (len(clip) + len(room)).bit_length()
        wet = np.fft.irfft(np.fft.rfft(clip, size) * np.fft.rfft(room, size), size)[: len(clip)]
        wet *= 10 ** (rng.uniform(-12, 12) / 20)
        row["audio"]["array"] = (wet / max(1.0, np.abs(wet).max())).astype(np.float32)
        return row

    CaptionedAudio.__getitem__ = played


def frame_loss(weight: float = 0.5, sharpness: float = 10.0) -> None:
    """A second InfoNCE in which each text attends to frames by itself: its cosines with a clip's frames,
    averaged by their own softmax over time (as FILIP, arXiv 2111.07783, with a soft maximum)."""
    forward, encode = WavLinkModel.forward, WavLinkModel.get_audio_features

    def with_frames(self, *args, **options):
        return encode(self, *args, **options | {"output_frames": self.training})

    @functools.wraps(forward)  # with its signature, which Trainer and `train.py` read
    def forward_with_frames(self, **batch):
        output = forward(self, **batch)
        if not self.training:
            return output
        frames = self.audio_projection(output.audio_model_output.last_hidden_state).float()
        cosines = torch.einsum("bld,td->btl", F.normalize(frames, dim=-1), output.text_embeds.float())
        places = 2 * torch.arange(cosines.shape[-1])
        silent = batch["input_features_mask"][:, None, places] == 0
        attended = (sharpness * cosines).masked_fill(silent, -torch.inf).softmax(-1)
        logits = self.scale.float() * (attended * cosines).sum(-1)
        no_clip, no_text = false_negatives(batch["caption_ids"], batch["caption_ids"])
        pairs = torch.arange(len(logits))
        losses = F.cross_entropy(logits.masked_fill(no_clip, -torch.inf), pairs)
        losses = losses + F.cross_entropy(logits.T.masked_fill(no_text, -torch.inf), pairs)
        output["loss"] = output.loss + weight * losses / 2
        return output

    WavLinkModel.get_audio_features, WavLinkModel.forward = with_frames, forward_with_frames


VARIANTS = {variant.__name__: variant for variant in (token_rate, mixing, rooms, frame_loss)}

if __name__ == "__main__":
    main()
