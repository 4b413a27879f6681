"""Tiny WavLinks of every tower, and batches for them."""

import torch

from modeling_wavlink import WavLinkModel
from processing import WavLinkProcessor

from .conftest import RATE, tone

SENTENCES = ["a dog barks", "the bell rings", "low rain is falls"]


def audio_embeds(model, processor, clips, **kwargs):
    inputs = processor(audio=clips, sampling_rate=RATE, return_tensors="pt", **kwargs)
    with torch.no_grad():
        return model.get_audio_features(**inputs).pooler_output


def batch_of(processor, sentences=SENTENCES, clips=3):
    sounds = [tone(300 + 200 * i, 0.2 + 0.11 * i, seed=i) for i in range(clips)]
    return processor(text=sentences, audio=sounds, sampling_rate=RATE, return_tensors="pt")


def build(request, tower, **config):
    """A fresh model of the tiny Whisper and a tiny text tower, and its processor."""
    folders = [str(request.getfixturevalue(f"{name}_folder")) for name in ("whisper", tower)]
    torch.manual_seed(0)
    model = WavLinkModel.from_audio_text_pretrained(*folders, **config).eval()
    return model, WavLinkProcessor.from_audio_text_pretrained(*folders)


HTSAT = {
    "window_size": 4,
    "num_mel_bins": 16,
    "spec_size": 64,
    "patch_stride": [4, 4],
    "hidden_size": 32,
    "patch_embeds_hidden_size": 16,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
}
