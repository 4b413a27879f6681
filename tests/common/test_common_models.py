"""ModelTesterMixin over WavLinkModel, with each of its towers, and over both audio towers alone."""

import copy
import unittest

import torch
from transformers import set_seed

from modeling_wavlink import WavLinkAudioModel, WavLinkClapAudioModel, WavLinkConfig, WavLinkModel
from modeling_wavlink.configuration_wavlink import WavLinkAudioConfig, WavLinkClapAudioConfig

from .sources import load

common = load("test_modeling_common")
ConfigTester = load("test_configuration_common").ConfigTester

WIDTH, HEADS, LAYERS, VOCABULARY = 32, 4, 2, 99
WHISPER = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "encoder_ffn_dim": 2 * WIDTH,
    "decoder_layers": 1,
    "decoder_attention_heads": HEADS,
    "decoder_ffn_dim": 2 * WIDTH,
    "num_mel_bins": 8,
    "max_source_positions": 50,
}
HTSAT = {
    "window_size": 4,
    "num_mel_bins": 16,
    "spec_size": 64,
    "patch_size": 4,
    "patch_stride": [4, 4],
    "hidden_size": WIDTH,
    "patch_embeds_hidden_size": WIDTH // 2,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 2 * WIDTH,
    "max_position_embeddings": 64,
}


class WhisperTester:
    batch_size, frames, is_training = 3, 60, True
    seq_length = encoder_seq_length = frames // 2 + 1  # the frames after the convolutions, and the token
    hidden_size, num_hidden_layers, num_attention_heads = WIDTH, LAYERS, HEADS

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return WavLinkAudioConfig(**WHISPER)

    def prepare_config_and_inputs_for_common(self):
        lengths = torch.tensor([self.frames, self.frames - 7, self.frames - 20])
        mask = (torch.arange(self.frames) < lengths[:, None]).long()
        features = torch.randn(self.batch_size, WHISPER["num_mel_bins"], self.frames)
        return self.get_config(), {"input_features": features, "input_features_mask": mask}


class HtsatTester:
    batch_size, windows, frames, is_training = 3, 2, 100, True
    seq_length = 16 * 16  # patches
    hidden_size, num_hidden_layers, num_attention_heads = WIDTH // 2, len(HTSAT["depths"]), 2

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return WavLinkClapAudioConfig(**HTSAT)

    def prepare_config_and_inputs_for_common(self):
        features = torch.randn(self.batch_size, self.windows, self.frames, HTSAT["num_mel_bins"])
        mask = torch.ones(self.batch_size, self.windows, dtype=torch.long)
        return self.get_config(), {"input_features": features, "input_features_mask": mask}


class TextTester:
    batch_size, seq_length, is_training = 3, 9, True
    hidden_size, num_hidden_layers, num_attention_heads = WIDTH, LAYERS, HEADS

    def __init__(self, parent):
        self.parent = parent

    def prepare_config_and_inputs_for_common(self):
        ids = torch.randint(3, VOCABULARY - 1, (self.batch_size, self.seq_length))
        ids[:, -1] = VOCABULARY - 1  # the end of text
        mask = torch.ones_like(ids)
        return None, {"input_ids": ids, "attention_mask": mask}


class WavLinkTester:
    is_training = True
    batch_size, seq_length = TextTester.batch_size, TextTester.seq_length
    hidden_size, num_hidden_layers, num_attention_heads = WIDTH, LAYERS, HEADS

    def __init__(self, parent, audio, text: dict, **fields):
        self.parent, self.fields = parent, {"projection_dim": 16, **fields}
        self.text_config = text | TEXT
        self.audio_model_tester, self.text_model_tester = audio(parent), TextTester(parent)

    def get_config(self):
        return WavLinkConfig(self.audio_model_tester.get_config(), self.text_config, **self.fields)

    def prepare_config_and_inputs_for_common(self):
        _, audio = self.audio_model_tester.prepare_config_and_inputs_for_common()
        _, text = self.text_model_tester.prepare_config_and_inputs_for_common()
        return self.get_config(), {**text, **audio, "return_loss": True}


class AudioTests(common.ModelTesterMixin):
    test_resize_embeddings = False

    def setUp(self):
        set_seed(0)

    def test_config(self):
        self.config_tester.run_common_tests()


class WavLinkAudioModelTest(AudioTests, unittest.TestCase):
    all_model_classes = (WavLinkAudioModel,)

    def setUp(self):
        super().setUp()
        self.model_tester = WhisperTester(self)
        self.config_tester = ConfigTester(self, config_class=WavLinkAudioConfig, **WHISPER)


class WavLinkClapAudioModelTest(AudioTests, unittest.TestCase):
    all_model_classes = (WavLinkClapAudioModel,)

    def setUp(self):
        super().setUp()
        self.model_tester = HtsatTester(self)
        self.config_tester = ConfigTester(
            self, config_class=WavLinkClapAudioConfig, has_text_modality=False, **HTSAT
        )


class WavLinkTests(common.ModelTesterMixin):
    all_model_classes = (WavLinkModel,)
    _is_composite = True
    audio, text, fields = WhisperTester, {"model_type": "bert"}, {}

    def setUp(self):
        set_seed(0)
        self.model_tester = WavLinkTester(self, self.audio, self.text, **self.fields)
        self.config_tester = ConfigTester(self, config_class=WavLinkConfig, has_text_modality=False, projection_dim=16)

    def test_config(self):
        self.config_tester.run_common_tests()


class WavLinkClipTest(WavLinkTests, unittest.TestCase):
    text = {"model_type": "clip_text_model", "eos_token_id": VOCABULARY - 1, "bos_token_id": 1, "pad_token_id": 1}


class WavLinkBertTest(WavLinkTests, unittest.TestCase):
    fields = {"text_pooling": "mean"}


class WavLinkModernBertTest(WavLinkTests, unittest.TestCase):
    text = {"model_type": "modernbert", "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}


class WavLinkSigmoidTest(WavLinkTests, unittest.TestCase):
    fields = {"loss_type": "sigmoid", "pooling": "token_mean"}


class WavLinkHtsatTest(WavLinkTests, unittest.TestCase):
    audio = HtsatTester
