"""Tiny CLAPs of transformers on disk, with their processor."""

import pytest
import torch
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor

from .conftest import word_level_tokenizer
from .htsat_models import AUDIO as HTSAT_AUDIO
from .htsat_models import tone

TEXT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}


AUDIO = {**HTSAT_AUDIO, "num_mel_bins": 64, "spec_size": 128}  # 201 frames on 256 x 64, folded to 128 x 128


SHORT = [tone(300, 0.3, 1), tone(900, 1.99, 2), tone(2000, 2.0, 3)]


LONG = [tone(200, 3.1, 5), tone(700, 3.1, 6), tone(1500, 5.0, 7)]


def save_clap(folder, fusion: bool, **extractor):
    torch.manual_seed(12)
    text = {**TEXT, "max_position_embeddings": 20, "initializer_factor": 5.0}
    audio = {**AUDIO, "enable_fusion": fusion, "fusion_type": "aff_2d" if fusion else None}
    clap = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=8))
    with torch.no_grad():
        batch_norm = clap.audio_model.audio_encoder.batch_norm
        batch_norm.running_mean.copy_(torch.linspace(-60, -20, 64))
        batch_norm.running_var.copy_(torch.linspace(200, 900, 64))
    clap.save_pretrained(folder)
    options = {"truncation": "fusion" if fusion else "rand_trunc", "frequency_min": 50, "max_length_s": 2}
    tokenizer = word_level_tokenizer("<s>", "</s>", "<pad>")
    ClapProcessor(ClapFeatureExtractor(64, **{**options, **extractor}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def unfused(tmp_path_factory):
    return save_clap(tmp_path_factory.mktemp("unfused"), False)
