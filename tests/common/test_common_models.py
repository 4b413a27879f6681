"""ModelTesterMixin over WavLinkModel, with each of its towers, and over both audio towers alone."""

import copy
import tempfile
import unittest
from dataclasses import dataclass
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import set_seed
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_wavlink import (
    WavLinkAudioModel,
    WavLinkClapAudioModel,
    WavLinkConfig,
    WavLinkModel,
    WavLinkPasstConfig,
    WavLinkPasstModel,
)
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
    "projection_dim": WIDTH,
}
PASST = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 2 * WIDTH,
    "num_mel_bins": 16,
    "patch_size": 8,
    "frequency_stride": 4,
    "time_stride": 4,
    "window_frames": 60,
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
    # ClapAudioModel's hidden states end in the grid of patches, its attentions in a window's 4 x 4 patches.
    seq_length = hidden_size = HTSAT["spec_size"] // HTSAT["patch_size"]
    num_hidden_layers, num_attention_heads = len(HTSAT["depths"]), 2

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return WavLinkClapAudioConfig(**HTSAT)

    def prepare_config_and_inputs_for_common(self):
        features = torch.randn(self.batch_size, self.windows, self.frames, HTSAT["num_mel_bins"])
        mask = torch.ones(self.batch_size, self.windows, dtype=torch.long)
        return self.get_config(), {"input_features": features, "input_features_mask": mask}


class PasstTester:
    batch_size, frames, is_training = 3, 60, True
    seq_length = encoder_seq_length = 2 + 3 * 14  # two tokens, and rows by columns of patches
    hidden_size, num_hidden_layers, num_attention_heads = WIDTH, LAYERS, HEADS

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return WavLinkPasstConfig(**PASST)

    def prepare_config_and_inputs_for_common(self):
        lengths = torch.tensor([self.frames, self.frames - 7, self.frames - 20])
        mask = (torch.arange(self.frames) < lengths[:, None]).long()
        features = torch.randn(self.batch_size, PASST["num_mel_bins"], self.frames)
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


class ModelTests(common.ModelTesterMixin):
    additional_model_inputs = ["input_features"]
    test_can_init_all_missing_weights_before_2023 = (
        True  # transformers takes a file without its licence for an old one
    )

    def setUp(self):
        set_seed(0)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model_weights_reload_no_missing_tied_weights(self):
        """transformers would start the missing weights at random, and warn; a WavLink refuses them."""
        for model_class in self.all_model_classes:
            config, _ = self.model_tester.prepare_config_and_inputs_for_common()
            with tempfile.TemporaryDirectory() as folder:
                model_class(config).save_pretrained(folder)
                save_file({"no_such_weight": torch.zeros(2)}, f"{folder}/model.safetensors", metadata={"format": "pt"})
                with self.assertRaisesRegex(ValueError, "do not fit: missing .*unexpected .'no_such_weight'"):
                    model_class.from_pretrained(folder)


@dataclass
class Output(BaseModelOutputWithPooling):
    loss: torch.Tensor | None = None


class AudioTests(ModelTests):
    """An audio tower alone."""

    def training(self):
        """The tower with a loss, in whose place it is trained."""

        class Head(self.all_model_classes[0]):
            _auto_class = None

            def forward(self, *args, **kwargs):
                output = super().forward(*args, **kwargs)
                return Output(**output, loss=output.pooler_output.pow(2).mean())

        return mock.patch.object(self, "all_model_classes", (Head,))

    def test_training(self):
        with self.training():
            super().test_training()

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        with self.training():
            super().check_training_gradient_checkpointing(gradient_checkpointing_kwargs)

    def test_model_get_set_embeddings(self):
        """The input embeddings of sound are those of a convolution."""
        for model_class in self.all_model_classes:
            config, _ = self.model_tester.prepare_config_and_inputs_for_common()
            model = model_class(config)
            self.assertIsInstance(model.get_input_embeddings(), (nn.Conv1d, nn.Conv2d))
            new = copy.deepcopy(model.get_input_embeddings())
            model.set_input_embeddings(new)
            self.assertIs(model.get_input_embeddings(), new)
            self.assertIsNone(model.get_output_embeddings())


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
        self.config_tester = ConfigTester(self, config_class=WavLinkClapAudioConfig, has_text_modality=False, **HTSAT)


class WavLinkPasstModelTest(AudioTests, unittest.TestCase):
    all_model_classes = (WavLinkPasstModel,)

    def setUp(self):
        super().setUp()
        self.model_tester = PasstTester(self)
        self.config_tester = ConfigTester(self, config_class=WavLinkPasstConfig, has_text_modality=False, **PASST)


class WavLinkTests(ModelTests):
    """The whole model, whose hidden states and attentions are in its towers' outputs."""

    all_model_classes = (WavLinkModel,)
    _is_composite = True
    audio, text, fields = WhisperTester, {"model_type": "bert"}, {}

    def setUp(self):
        super().setUp()
        self.model_tester = WavLinkTester(self, self.audio, self.text, **self.fields)
        self.config_tester = ConfigTester(self, config_class=WavLinkConfig, has_text_modality=False, projection_dim=16)

    def _audio_features_prepare_config_and_inputs(self):
        config, inputs = super()._audio_features_prepare_config_and_inputs()
        return config, inputs | {"output_frames": True}

    def both_ways(self, name: str):
        """The outputs of both towers, with their testers, for `name` as an argument and then in the config."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config._attn_implementation = "eager"
        in_config = copy.deepcopy(config)
        for one in (in_config, in_config.audio_config, in_config.text_config):
            setattr(one, name, True)
        for one, options in ((config, {name: True}), (in_config, {})):
            for model_class in self.all_model_classes:
                output = model_class(one).eval()(**inputs, **options)
                yield output.audio_model_output, self.model_tester.audio_model_tester
                yield output.text_model_output, self.model_tester.text_model_tester

    def test_hidden_states_output(self):
        for output, tester in self.both_ways("output_hidden_states"):
            self.assertEqual(len(output.hidden_states), tester.num_hidden_layers + 1)
            self.assertEqual(output.hidden_states[0].shape[-2:], (tester.seq_length, tester.hidden_size))

    def test_attention_outputs(self):
        for output, tester in self.both_ways("output_attentions"):
            self.assertEqual(len(output.attentions), tester.num_hidden_layers)
            shape = (tester.num_attention_heads, tester.seq_length, tester.seq_length)
            self.assertEqual(output.attentions[0].shape[-3:], shape)

    def test_retain_grad_hidden_states_attentions(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config._attn_implementation = "eager"
        model = self.all_model_classes[0](config)
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
        towers = [output.audio_model_output, output.text_model_output]
        kept = [state for tower in towers for state in (tower.hidden_states[0], tower.attentions[0])]
        for state in kept:
            state.retain_grad()
        output.loss.backward()
        for state in kept:
            self.assertIsNotNone(state.grad)


class WavLinkClipTest(WavLinkTests, unittest.TestCase):
    text = {"model_type": "clip_text_model", "eos_token_id": VOCABULARY - 1, "bos_token_id": 1, "pad_token_id": 1}


class WavLinkBertTest(WavLinkTests, unittest.TestCase):
    fields = {"text_pooling": "mean"}


class WavLinkModernBertTest(WavLinkTests, unittest.TestCase):
    text = {"model_type": "modernbert", "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}


class WavLinkSigmoidTest(WavLinkTests, unittest.TestCase):
    fields = {"loss_type": "sigmoid", "pooling": "token_mean"}


class WavLinkWithHtsat(WavLinkModel):
    """A WavLink says this of itself once it has an HTS-AT; these tests ask its class."""

    supports_gradient_checkpointing = False
    _auto_class = None


class WavLinkHtsatTest(WavLinkTests, unittest.TestCase):
    all_model_classes = (WavLinkWithHtsat,)
    audio = HtsatTester


class WavLinkPasstTest(WavLinkTests, unittest.TestCase):
    audio = PasstTester
