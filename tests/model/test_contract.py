"""What transformers and PEFT ask of a model: outputs on request, embeddings, towers by themselves, errors that name
what is at fault. `make test-common` asks the rest."""

import json

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel, TrainingArguments, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from modeling_wavlink import WavLinkAudioModel, WavLinkClapAudioModel, WavLinkConfig, WavLinkModel
from modeling_wavlink.configuration_wavlink import WavLinkAudioConfig, WavLinkClapAudioConfig
from tests.conftest import RATE, tone
from tests.passt_models import AUDIO as PASST
from tests.tiny_models import HTSAT, batch_of, build
from wavlink.training.trainer import WavLinkTrainer

TOWERS = [("clip", "eos"), ("modernbert", "cls"), ("bert", "mean")]
BOTH = {"output_hidden_states": True, "output_attentions": True}


@pytest.mark.parametrize(("tower", "pooling"), TOWERS)
@torch.no_grad()
def test_hidden_states_and_attentions_on_request(tower, pooling, request):
    model, processor = build(request, tower, text_pooling=pooling)
    model.set_attn_implementation("eager")
    inputs = batch_of(processor)
    plain, output = model.eval()(**inputs), model(**inputs, **BOTH)
    torch.testing.assert_close(output.audio_embeds, plain.audio_embeds, atol=5e-6, rtol=0)
    assert torch.equal(output.text_embeds, plain.text_embeds)
    assert plain.audio_model_output.hidden_states is None and plain.text_model_output.attentions is None
    frames = -(-inputs["input_features"].shape[2] // 2) + 1  # and the token
    for found, length in (
        (output.audio_model_output, frames),
        (output.text_model_output, inputs["input_ids"].shape[1]),
    ):
        assert [state.shape for state in found.hidden_states] == [(3, length, 32)] * 3
        assert [weights.shape for weights in found.attentions] == [(3, 4, length, length)] * 2
    audio = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"], **BOTH)
    assert torch.equal(audio.hidden_states[2], output.audio_model_output.hidden_states[2])
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"], **BOTH)
    assert torch.equal(text.attentions[1], output.text_model_output.attentions[1])
    model.config.audio_config.output_hidden_states = model.config.text_config.output_hidden_states = True
    asked = model(**inputs)
    assert len(asked.audio_model_output.hidden_states) == len(asked.text_model_output.hidden_states) == 3
    refused = model(**inputs, output_hidden_states=False)
    assert refused.audio_model_output.hidden_states is None


@torch.no_grad()
def test_hidden_states_are_whispers_bit_for_bit(whisper_folder, bert_folder):
    model = WavLinkModel.from_audio_text_pretrained(str(whisper_folder), str(bert_folder)).eval()
    whisper = WhisperModel.from_pretrained(whisper_folder).encoder.eval()
    for one in (model, whisper):
        one.set_attn_implementation("eager")
    features = torch.randn(1, 80, 3000)
    found = model.audio_model(features, use_global_token=False, **BOTH)
    expected = whisper(features, **BOTH)
    for name in ("hidden_states", "attentions"):
        states = getattr(expected, name)
        assert len(states) == len(getattr(found, name)) > 1
        assert all(torch.equal(a, b) for a, b in zip(getattr(found, name), states, strict=True))


@pytest.mark.parametrize("layers", [1, [0, 1]])
@torch.no_grad()
def test_hidden_states_of_pooled_frames(layers, sharp_model, processor):
    sharp_model.config.audio_config.frame_pooling = 2
    sharp_model.config.audio_config.frame_pooling_layer = layers
    inputs = processor(audio=[tone(300, 0.4)], sampling_rate=RATE, return_tensors="pt")
    found = sharp_model.audio_model(**inputs, output_hidden_states=True)
    lengths = [state.shape[1] for state in found.hidden_states]
    assert lengths == ([21, 21, 11] if layers == 1 else [11, 11, 6])
    assert torch.equal(found.hidden_states[-1][:, :-1], found.last_hidden_state)
    assert torch.equal(found.hidden_states[-1][:, -1], found.pooler_output)


@torch.no_grad()
def test_hidden_states_of_htsat_are_of_its_windows():
    tower = WavLinkClapAudioModel(WavLinkClapAudioConfig(**HTSAT)).eval()
    mask = torch.tensor([[1, 0], [1, 1]])
    found = tower(torch.randn(2, 2, 100, 16), mask, **BOTH)
    assert [tuple(state.shape) for state in found.hidden_states] == [(3, 16, 16, 16), (3, 32, 8, 8), (3, 32, 8, 8)]
    assert len(found.attentions) == 2 and found.last_hidden_state.shape[0] == 2


@torch.no_grad()
def test_return_dict_comes_as_an_argument_or_from_the_config(model, processor):
    inputs = batch_of(processor)
    expected = model.eval()(**inputs)
    for found in (model(**inputs, return_dict=False), model(**inputs, return_dict=None)):
        assert torch.equal(found[1], expected.logits_per_audio)
    model.config.return_dict = model.audio_model.config.return_dict = False
    for one in (model(**inputs), model.get_text_features(inputs["input_ids"]), model.audio_model(**sound(inputs))):
        assert isinstance(one, tuple)
    assert model(**inputs, return_dict=True).logits_per_audio.shape == (3, 3)


def sound(inputs) -> dict:
    return {name: value for name, value in inputs.items() if name.startswith("input_features")}


@pytest.mark.parametrize(("tower", "pooling"), TOWERS)
def test_token_embeddings_are_replaced_and_resized(tower, pooling, request):
    model, processor = build(request, tower, text_pooling=pooling)
    inputs, size = batch_of(processor), model.config.text_config.vocab_size
    expected = model.eval()(**inputs).text_embeds
    model.resize_token_embeddings(size + 5)
    assert model.get_input_embeddings().num_embeddings == model.config.text_config.vocab_size == size + 5
    assert torch.equal(model(**inputs).text_embeds, expected)
    new = nn.Embedding(size, 32)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new is model.text_model.get_input_embeddings()
    assert model.main_input_name == "input_ids" and model.audio_model.main_input_name == "input_features"


@pytest.mark.parametrize("kind", ["whisper", "htsat", "passt"])
@torch.no_grad()
def test_a_tower_is_saved_and_loaded_by_itself(kind, model, tmp_path):
    if kind == "htsat":
        model = WavLinkModel(WavLinkConfig({"model_type": "clap_audio_model", **HTSAT}, model.config.text_config, 16))
    if kind == "passt":
        model = WavLinkModel(WavLinkConfig({"model_type": "passt", **PASST}, model.config.text_config, 16))
    tower, config = model.audio_model.eval(), model.config.audio_config
    inputs = (torch.randn({"whisper": (2, 80, 60), "htsat": (2, 1, 100, 16), "passt": (2, 128, 60)}[kind]),)
    expected = tower(*inputs).pooler_output
    tower.save_pretrained(tmp_path)
    assert tower.config is config and config.model_type in (
        "whisper",
        "clap_audio_model",
        "passt",
    )  # not changed by that
    saved = json.loads((tmp_path / "config.json").read_text())
    own = {"whisper": "wavlink_audio_model", "htsat": "wavlink_clap_audio_model", "passt": "passt"}[kind]
    assert saved["model_type"] == own and saved["architectures"] == [type(tower).__name__]
    assert saved["auto_map"]["AutoModel"].endswith(type(tower).__name__)
    loaded = type(tower).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(*inputs).pooler_output, expected)
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["model_type"] == own
    whole = WavLinkConfig(loaded.config, model.config.text_config, 16)  # a tower's config fits into a WavLink's
    assert whole.audio_config.model_type == config.model_type and type(whole.audio_config) is type(config)
    assert torch.equal(
        AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()(*inputs).pooler_output, expected
    )


def test_a_tower_without_its_weights_is_refused(whisper_folder, tmp_path):
    """A Whisper has no global token, and its names are others."""
    with pytest.raises(ValueError, match="do not fit: missing .*global_token"):
        WavLinkAudioModel.from_pretrained(whisper_folder)
    with pytest.raises(ValueError, match="frame_pooling must be a whole number"):
        WavLinkAudioModel(WavLinkAudioConfig(frame_pooling=1.5))


def test_a_new_tower_on_meta_starts_as_whisper_does():
    """Its positions are sinusoids, whatever way its weights are made."""
    config = WavLinkAudioConfig(d_model=32, encoder_layers=1, encoder_attention_heads=4, num_mel_bins=8)
    with torch.device("meta"):
        tower = WavLinkAudioModel(config)
    tower.to_empty(device="cpu").init_weights()
    assert torch.equal(tower.encoder.embed_positions.weight, WhisperEncoder(config).embed_positions.weight)
    assert 0 < tower.global_token.std() < 0.1


@pytest.mark.parametrize("load", [WavLinkModel, AutoModel], ids=lambda load: load.__name__)
def test_errors_of_a_call_are_not_blamed_on_the_weights(load, wavlink_folder):
    cases = [
        ({"attn_implementation": "no_such_attention"}, (ValueError, ImportError), "no_such_attention"),
        ({"attn_implementation": "flash_attention_2"}, ImportError, "[Ff]lash"),
        ({"no_such_argument": 1}, TypeError, "no_such_argument"),
    ]
    for options, kind, message in cases:
        with pytest.raises(kind, match=message) as raised:
            load.from_pretrained(wavlink_folder, **options)
        assert "weights of" not in str(raised.value)
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta device context manager"):
        load.from_pretrained(wavlink_folder)


def test_a_model_is_made_on_meta(model):
    with torch.device("meta"):
        assert WavLinkModel(model.config).logit_scale.is_meta


def test_unknown_arguments_are_refused(model, processor):
    inputs = batch_of(processor)
    for call in (model, lambda **kwargs: model.get_text_features(inputs["input_ids"], **kwargs)):
        with pytest.raises(TypeError, match="unexpected keyword argument 'atention_mask'"):
            call(**(inputs if call is model else {}), atention_mask=inputs["attention_mask"])
    with pytest.raises(ValueError, match="inputs_embeds"):
        model(**inputs, inputs_embeds=torch.zeros(3, 4, 32))


@pytest.mark.parametrize(("tower", "pooling"), TOWERS)
def test_pefts_wrapper_for_features(tower, pooling, request, processor, tmp_path):
    """It hands on `inputs_embeds`, `output_attentions` and the like, whether or not they were given."""
    model, processor = build(request, tower, text_pooling=pooling)
    inputs = batch_of(processor)
    expected = model.eval()(**inputs).logits_per_audio
    config = LoraConfig(TaskType.FEATURE_EXTRACTION, r=2, target_modules=["q_proj", "query", "Wqkv", "conv1"])
    lora = get_peft_model(model, config).eval()
    assert torch.allclose(lora(**inputs).logits_per_audio, expected, atol=1e-5)  # an adapter starts from nothing
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    adapted = lora(**inputs, output_hidden_states=True)
    assert not torch.allclose(adapted.logits_per_audio, expected, atol=1e-3)
    assert len(adapted.audio_model_output.hidden_states) == 3
    assert torch.equal(lora(**inputs, return_dict=False)[1], lora(**inputs).logits_per_audio)
    lora(**inputs, return_loss=True).loss.backward()
    assert all(p.grad is not None for name, p in lora.named_parameters() if "lora_B" in name)
    merged = lora.merge_and_unload().eval()
    torch.testing.assert_close(merged(**inputs).logits_per_audio, lora(**inputs).logits_per_audio, atol=1e-4, rtol=0)
    merged.save_pretrained(tmp_path)
    found = WavLinkModel.from_pretrained(tmp_path).eval()(**inputs).logits_per_audio
    torch.testing.assert_close(found, merged(**inputs).logits_per_audio, atol=1e-5, rtol=0)


def test_the_registered_types_are_known():
    assert isinstance(AutoConfig.for_model("wavlink_audio_model"), WavLinkAudioConfig)


def test_trainer_computes_an_eval_loss(model, processor, tmp_path):
    batch = batch_of(processor)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(3)]
    options = {"per_device_eval_batch_size": 3, "use_cpu": True, "remove_unused_columns": False}
    arguments = TrainingArguments(tmp_path, report_to=[], **options)
    metrics = WavLinkTrainer(model, arguments, eval_dataset=rows).evaluate()
    assert metrics["eval_loss"] == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-5)
