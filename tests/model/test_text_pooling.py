"""How texts are pooled: sentence-transformers folders, ends of text, padding, and which text towers are known."""

import json
import shutil

import pytest
import torch
import transformers
from torch import nn

from modeling_wavlink import WavLinkConfig, WavLinkModel
from modeling_wavlink.pooling_wavlink import masked_mean, sentence_transformers_pooling

WHISPER = {
    "model_type": "whisper",
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "num_mel_bins": 8,
    "vocab_size": 10,
}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
FLAGS = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def module(index: int, name: str, path: str = "") -> dict:
    return {"idx": index, "name": str(index), "path": path or f"{index}_{name}", "type": f"some.package.{name}"}


def legacy(*active: str) -> dict:
    return {f"pooling_mode_{name}": name in active for name in FLAGS}


def write(folder, pooling: dict | None, modules: list | None = None, path: str = "1_Pooling"):
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps({"embedding_dimension": 16, **pooling}))
    return str(folder)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"pooling_mode": "MEAN"}, "mean"),
        ({"pooling_mode": "cls", **legacy("mean_tokens")}, "cls"),
        (legacy("mean_tokens"), "mean"),
        (legacy("cls_token"), "cls"),
        (legacy(), "mean"),  # sentence-transformers' own default
        ({}, "mean"),
    ],
)
@pytest.mark.parametrize("modules", [None, [TRANSFORMER, POOLING]])
def test_poolings_of_sentence_transformers_are_read(pooling, expected, modules, tmp_path):
    assert sentence_transformers_pooling(write(tmp_path, pooling, modules)) == expected


@pytest.mark.parametrize(
    "pooling",
    [{"pooling_mode": name} for name in ("max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens", "new_mode", 3)]
    + [{"pooling_mode": ["cls", "mean"]}, {"pooling_mode": []}, legacy("cls_token", "mean_tokens")]
    + [legacy(name) for name in FLAGS if name not in ("cls_token", "mean_tokens")],
)
def test_other_poolings_are_refused_by_name(pooling, tmp_path):
    active = [name for name in FLAGS if pooling.get(f"pooling_mode_{name}")]
    named = active[0].split("_token")[0] if active else str(pooling["pooling_mode"] or "none").strip("[]'")[:3]
    with pytest.raises(ValueError, match=f"(?s){named}.*text_pooling"):
        sentence_transformers_pooling(write(tmp_path, pooling, [TRANSFORMER, POOLING]))


def test_the_pooling_module_has_the_folder_that_modules_json_names(tmp_path):
    write(tmp_path, {"pooling_mode": "cls"})  # one that no module uses
    modules = [{**POOLING, "path": "2_Pooling"}, {**module(2, "Normalize"), "idx": 3}, TRANSFORMER]
    assert sentence_transformers_pooling(write(tmp_path, {"pooling_mode": "mean"}, modules, "2_Pooling")) == "mean"


def test_a_folder_of_another_library_has_no_pooling(tmp_path):
    assert sentence_transformers_pooling(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([TRANSFORMER, POOLING, module(2, "Dense"), module(3, "Normalize")], "2_Dense"),
        ([TRANSFORMER, POOLING, module(2, "LayerNorm")], "2_LayerNorm"),
        ([TRANSFORMER, module(1, "WordWeights"), {**POOLING, "idx": 2}], "1_WordWeights"),
        ([TRANSFORMER, module(1, "SpladePooling")], "1_SpladePooling"),
        ([module(0, "StaticEmbedding")], "0_StaticEmbedding"),
        ([{**TRANSFORMER, "path": "0_Transformer"}, POOLING], "0_Transformer"),
        ([TRANSFORMER], "no Pooling"),
        ([{**TRANSFORMER, "type": "custom_st.Transformer"}, POOLING], "custom_st.Transformer"),
        ([TRANSFORMER, {**POOLING, "type": "custom_st.Pooling"}], "custom_st.Pooling"),
        ([TRANSFORMER, {**POOLING, "path": "../elsewhere"}], "elsewhere"),
        ([TRANSFORMER, {**POOLING, "path": "missing"}], "missing"),
        ({}, "modules.json"),
        ([1], "modules.json"),
    ],
)
def test_modules_that_would_be_left_out_are_refused_by_name(modules, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sentence_transformers_pooling(write(tmp_path, {"pooling_mode": "mean"}, modules))


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json"])
def test_a_broken_file_is_named(name, tmp_path):
    write(tmp_path, {"pooling_mode": "mean"}, [TRANSFORMER, POOLING])
    (tmp_path / name).write_text("{")
    with pytest.raises(ValueError, match=name):
        sentence_transformers_pooling(str(tmp_path))


def test_a_given_pooling_needs_no_module(whisper_folder, bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path, dirs_exist_ok=True)
    towers = str(whisper_folder), write(tmp_path, {"pooling_mode": "max"}, [TRANSFORMER, POOLING, module(2, "Dense")])
    with pytest.raises(ValueError, match="2_Dense"):
        WavLinkModel.config_from_audio_text(*towers)
    assert WavLinkModel.config_from_audio_text(*towers, text_pooling="cls").text_pooling == "cls"


PROMPTS = {"query": "query: ", "document": "", "passage": None}


@pytest.mark.parametrize("modules", [None, [TRANSFORMER, POOLING]])
@pytest.mark.parametrize("default", [None, "document", "passage"])
@pytest.mark.parametrize("prompts", [PROMPTS, {"document": "", "passage": None}])
def test_prompts_that_no_text_gets_by_default_change_nothing(prompts, default, modules, tmp_path):
    config = {"prompts": prompts, "default_prompt_name": default, "similarity_fn_name": "cosine"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(config))
    assert sentence_transformers_pooling(write(tmp_path, {"pooling_mode": "mean"}, modules)) == "mean"


@pytest.mark.parametrize("modules", [None, [TRANSFORMER, POOLING]])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prompts": PROMPTS, "default_prompt_name": "query"}, "'query: '.*default_prompt_name.*null.*text_pooling"),
        ({"prompts": {}, "default_prompt_name": "query"}, "'query'.*default_prompt_name"),  # refused there, too
        ({"default_prompt_name": "query"}, "'query'.*default_prompt_name"),
        ({"prompts": ["query: "]}, "config_sentence_transformers.json.*text_pooling"),
        (["query: "], "config_sentence_transformers.json.*text_pooling"),
    ],
)
def test_a_default_prompt_is_refused_by_name(config, message, modules, whisper_folder, bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(config))
    towers = str(whisper_folder), write(tmp_path, {"pooling_mode": "mean"}, modules)
    with pytest.raises(ValueError, match=message):
        WavLinkModel.from_audio_text_pretrained(*towers)
    assert WavLinkModel.config_from_audio_text(*towers, text_pooling="mean").text_pooling == "mean"


@pytest.mark.parametrize(
    ("lower", "name", "tokenizer", "fits"),
    [
        (False, "tokenizer_config.json", {}, True),
        (True, "tokenizer_config.json", {"do_lower_case": True}, True),
        (True, "tokenizer_config.json", {"do_lower_case": False}, False),
        (True, "tokenizer.json", {"normalizer": {"type": "BertNormalizer", "lowercase": True}}, True),
        (True, "tokenizer.json", {"normalizer": {"type": "BertNormalizer", "lowercase": False}}, False),
        (True, "tokenizer.json", {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}}, True),
        (True, "tokenizer.json", {"normalizer": None}, False),
    ],
)
def test_texts_made_lower_case_before_the_tokenizer_are_refused(lower, name, tokenizer, fits, tmp_path):
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9, "do_lower_case": lower}))
    (tmp_path / name).write_text(json.dumps(tokenizer))
    source = write(tmp_path, {"pooling_mode": "mean"}, [TRANSFORMER, POOLING])
    if fits:
        assert sentence_transformers_pooling(source) == "mean"
    else:
        with pytest.raises(ValueError, match="do_lower_case.*text_pooling"):
            sentence_transformers_pooling(source)


def test_what_sentence_transformers_writes_is_read(bert_folder, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(bert_folder), device="cpu")
    for mode in ("mean", "cls"):
        model[1] = type(model[1])(32, pooling_mode=mode)
        model.save_pretrained(str(tmp_path / mode))
        assert sentence_transformers_pooling(str(tmp_path / mode)) == mode
    model.prompts["query"], model.default_prompt_name = "query: ", "query"
    model.save_pretrained(str(tmp_path / "prompt"))
    with pytest.raises(ValueError, match="'query: '.*default_prompt_name"):
        sentence_transformers_pooling(str(tmp_path / "prompt"))


def tower(model_type: str, text_pooling: str, **fields) -> WavLinkModel:
    text = {"model_type": model_type, "vocab_size": 50, **SIZES, **fields}
    torch.manual_seed(0)
    return WavLinkModel(WavLinkConfig(WHISPER, text, 16, text_pooling=text_pooling)).eval()


def pooled_at(model: WavLinkModel, ids, mask, positions) -> None:
    """Asserts that the vectors are those of the states at `positions`."""
    ids, mask = torch.tensor(ids), None if mask is None else torch.tensor(mask)
    with torch.no_grad():
        output = model.get_text_features(ids, mask)
        states = output.last_hidden_state[torch.arange(len(ids)), positions]
        expected = nn.functional.normalize(model.text_projection(states), dim=-1)
    assert torch.equal(output.pooler_output, expected)


ROBERTA = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 20}


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "camembert", "mpnet"])
def test_an_end_of_text_with_id_2_is_looked_for_by_its_id(model_type):
    pooled_at(
        tower(model_type, "eos", **ROBERTA), [[0, 9, 40, 8, 2], [0, 30, 2, 1, 1]], [[1] * 5, [1] * 3 + [0] * 2], [4, 2]
    )


def test_clips_configs_from_before_have_the_highest_id_at_the_end():
    pooled_at(tower("clip_text_model", "eos", eos_token_id=2), [[48, 2, 5, 49], [48, 7, 49, 49]], None, [3, 2])


@pytest.mark.parametrize("eos", [49, 2])
def test_padding_may_be_the_end_of_text_on_either_side(eos):
    clip = tower("clip_text_model", "eos", eos_token_id=eos, pad_token_id=49)
    pooled_at(clip, [[49, 49, 48, 5, 49], [48, 5, 49, 49, 49]], [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], [4, 2])


def test_several_ends_count_from_the_first():
    pooled_at(tower("roberta", "eos", **ROBERTA), [[0, 9, 2, 8, 2]], [[1] * 5], [2])


def test_a_text_without_an_end_has_its_last_token():
    ids, mask = [[0, 9, 2, 1], [0, 9, 8, 1], [1, 0, 9, 8]], [[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 1]]
    pooled_at(tower("roberta", "eos", **ROBERTA), ids, mask, [2, 2, 3])


def test_the_first_token_is_that_of_the_text_with_padding_on_the_left():
    model = tower("bert", "cls")
    pooled_at(model, [[0, 0, 3, 4, 5], [3, 7, 8, 9, 5]], [[0, 0, 1, 1, 1], [1] * 5], [2, 0])
    pooled_at(model, [[3, 4, 5]], None, [0])


@pytest.mark.parametrize(
    "model_type", ["t5", "mt5", "umt5", "bart", "siglip", "siglip_text_model", "siglip2", "clap_text_model", "vit"]
)
def test_towers_that_cannot_encode_text_are_refused_at_once(model_type):
    with pytest.raises(ValueError, match=f"{model_type}.*clip_text_model, bert, .*modernbert"):
        WavLinkConfig(WHISPER, {"model_type": model_type}, text_pooling="mean")


@pytest.mark.parametrize("model_type", ["t5", "siglip", "siglip_text_model"])
def test_a_folder_of_such_a_tower_is_refused_before_its_weights_are_read(model_type, whisper_folder, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=f"{model_type}.*clip_text_model, bert"):
        WavLinkModel.from_audio_text_pretrained(str(whisper_folder), str(tmp_path))


@pytest.mark.parametrize("mask", [None, torch.ones(2, 3000, dtype=torch.long)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mean_in_half_precision_does_not_overflow(dtype, mask):
    states = torch.full((2, 3000, 4), 100.0, dtype=dtype)
    assert torch.equal(masked_mean(states, mask), torch.full((2, 4), 100.0, dtype=dtype))


def test_the_encoder_of_a_t5_alone_is_refused_before_its_weights_are_read(whisper_folder, tmp_path):
    fields = {"model_type": "t5", "is_encoder_decoder": False}  # as T5EncoderModel saves it
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="t5.*clip_text_model, bert"):
        WavLinkModel.from_audio_text_pretrained(str(whisper_folder), str(tmp_path))
    with pytest.raises(ValueError, match="t5.*clip_text_model, bert"):
        WavLinkConfig(WHISPER, fields, text_pooling="mean")


@pytest.mark.parametrize(
    "head",
    ["BertForPreTraining", "RobertaForMaskedLM", "MPNetForMaskedLM", "ModernBertForMaskedLM", "DebertaV2ForMaskedLM"]
    + ["DistilBertForMaskedLM", "DistilBertForSequenceClassification", "ElectraForPreTraining", "ElectraForMaskedLM"]
    + ["AlbertForPreTraining", "DebertaForMaskedLM"],
)
def test_heads_of_a_text_checkpoint_are_left_out(head, whisper_folder, tmp_path):
    kind = getattr(transformers, head)
    sizes = {**SIZES, "vocab_size": 50, "max_position_embeddings": 20, "embedding_size": 16}
    if head.startswith("DistilBert"):
        sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50}
    config = kind.config_class(pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, **sizes)
    saved = kind(config).eval()
    saved.save_pretrained(tmp_path)
    model = WavLinkModel.from_audio_text_pretrained(str(whisper_folder), str(tmp_path), text_pooling="mean").eval()
    ids = torch.tensor([[1, 9, 40, 8, 2]])
    with torch.no_grad():
        assert torch.equal(model.text_model(ids).last_hidden_state, saved.base_model(ids).last_hidden_state)


@pytest.mark.parametrize("fields", [{"model_type": "gpt2"}, {"model_type": "qwen3"}, {"model_type": "bert"}])
def test_the_first_token_of_a_decoder_is_refused(fields):
    """It would give every text that begins alike one vector."""
    decoder = {**fields, "vocab_size": 50, "is_decoder": fields["model_type"] == "bert"}
    for pooling in (None, "cls"):
        with pytest.raises(ValueError, match=f"text_pooling='cls'.*{fields['model_type']}.*mean"):
            WavLinkConfig(WHISPER, decoder, text_pooling=pooling)
    assert WavLinkConfig(WHISPER, decoder, text_pooling="mean").text_pooling == "mean"
    both_ways = {"model_type": "gemma3_text", "use_bidirectional_attention": True}
    assert WavLinkConfig(WHISPER, both_ways, 16).text_pooling == "cls"
