"""Regimes and scopes: the parameters that learn; LoRA merged, as an adapter, in chunks, or resumed is one model."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

import train
from modeling_wavlink import WavLinkConfig, WavLinkModel
from processing.collator import AudioTextCollator
from tests.conftest import RATE, tone
from tests.htsat_models import AUDIO as HTSAT
from tests.model_gradients import gradients, without_chance
from tests.tone_runs import folder  # noqa: F401
from wavlink.compat import enable_checkpointing
from wavlink.training.finetuning import describe, lora_config, merged_state_dict, save_adapter, set_trainable

CAPTIONS = ["a dog", "the cat", "the bell rings", "low rain", "a loud sound"]
PROJECTIONS = {"audio_projection.weight", "text_projection.weight", "logit_scale"}
TOKEN = {"audio_model.global_token"}
REGIMES = [(regime, scope) for regime in ("projector", "lora", "full") for scope in ("audio", "both")]


def of_layers(prefix: str, *names: str) -> set[str]:
    return {f"{prefix}.{layer}.{name}" for layer in (0, 1) for name in names}


# Every linear map in the layers of the tiny towers, by hand.
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
SELF = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
MAPS = {
    "whisper": of_layers("audio_model.encoder.layers", *ATTENTION, "fc1", "fc2"),
    "clip": of_layers("text_model.encoder.layers", *ATTENTION, "mlp.fc1", "mlp.fc2"),
    "bert": of_layers("text_model.encoder.layer", *SELF, "intermediate.dense", "output.dense"),
    "modernbert": of_layers("text_model.layers", "attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"),
    "htsat": of_layers("audio_model.audio_encoder.layers.0.blocks", *SELF, "intermediate.dense", "output.dense")
    | of_layers("audio_model.audio_encoder.layers.1.blocks", *SELF, "intermediate.dense", "output.dense")
    | {"audio_model.audio_encoder.layers.0.downsample.reduction"},
}


@pytest.fixture(params=["clip", "bert", "modernbert"])
def towers(request, whisper_folder) -> tuple[WavLinkModel, set[str], set[str]]:
    """A model, and the linear maps in the layers of its audio and its text tower."""
    text = request.getfixturevalue(f"{request.param}_folder")
    torch.manual_seed(0)
    model = WavLinkModel.from_audio_text_pretrained(str(whisper_folder), str(text))
    return model, MAPS["whisper"], MAPS[request.param]


@pytest.fixture
def batch(processor) -> dict[str, torch.Tensor]:
    """Five clips of different lengths."""
    rows = [
        {"audio": {"array": tone(200 * (i + 1), 0.2 + 0.07 * i, i), "sampling_rate": RATE}, "captions": [caption]}
        for i, caption in enumerate(CAPTIONS)
    ]
    return AudioTextCollator(processor)(rows)


def learned(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def all_of(model, *prefixes: str) -> set[str]:
    """The towers' parameters, but for Whisper's sinusoids, which are constants."""
    names = {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    return names - {"audio_model.encoder.embed_positions.weight"}


def adapters(maps: set[str]) -> set[str]:
    return {f"{name}.lora_{part}.default.weight" for name in maps for part in "AB"}


def with_random_lora(model, scope: str = "both", **options) -> WavLinkModel:
    """LoRA starts as a no-op (B = 0); this is one that has learned."""
    set_trainable(model, "lora", scope, **options)
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def embeds(model, batch) -> torch.Tensor:
    with torch.no_grad():
        output = model.eval()(**batch)
    return torch.cat([output.audio_embeds, output.text_embeds, output.loss.expand(1, output.audio_embeds.shape[1])])


@pytest.mark.parametrize("regime, scope", REGIMES)
def test_exactly_the_selected_parameters_learn(towers, regime, scope):
    model, audio, text = towers
    in_scope = ("audio_model.",) if scope == "audio" else ("audio_model.", "text_model.")
    expected = {
        "projector": set(),
        "lora": adapters(audio if scope == "audio" else audio | text),
        "full": all_of(model, *in_scope),
    }[regime]
    assert set_trainable(model, regime, scope) is model
    assert learned(model) == expected | PROJECTIONS | TOKEN


@pytest.mark.parametrize("regime, scope", REGIMES)
def test_htsat_learns_as_whisper_does_but_has_no_token(regime, scope):
    text = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = WavLinkConfig({"model_type": "clap_audio_model", **HTSAT}, {**text, "intermediate_size": 64}, 16)
    with torch.device("meta"):
        model = set_trainable(WavLinkModel(config), regime, scope)
    in_scope = ("audio_model.",) if scope == "audio" else ("audio_model.", "text_model.")
    maps = MAPS["htsat"] if scope == "audio" else MAPS["htsat"] | MAPS["bert"]
    expected = {"projector": set(), "lora": adapters(maps), "full": all_of(model, *in_scope)}[regime]
    assert learned(model) == expected | PROJECTIONS


@pytest.mark.parametrize("regime", ["projector", "lora", "full"])
def test_the_bias_learns_with_siglip_alone(model, regime):
    model.config.loss_type = "sigmoid"
    assert "logit_bias" in learned(set_trainable(model, regime))


def test_wrong_names_are_refused(model):
    with pytest.raises(ValueError, match="regime must be one of .*'frozen' and 'both'"):
        set_trainable(model, "frozen")
    with pytest.raises(ValueError, match="scope one of .*'full' and 'text'"):
        set_trainable(model, "full", "text")


@pytest.mark.parametrize("rank", [None, 3])
def test_the_rank_is_in_every_shape(towers, rank):
    model = set_trainable(towers[0], "lora", **({} if rank is None else {"lora_rank": rank}))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name in towers[1] | towers[2]:
        out, into = shapes[f"{name}.base_layer.weight"]
        assert shapes[f"{name}.lora_A.default.weight"] == (rank or 8, into)
        assert shapes[f"{name}.lora_B.default.weight"] == (out, rank or 8)


def test_targets_choose_and_unknown_ones_are_refused(model):
    chosen = of_layers("audio_model.encoder.layers", "self_attn.q_proj", "self_attn.v_proj")
    with pytest.raises(ValueError, match="LoRA targets k, query match nothing; .* fc1, fc2, k_proj, .*--lora_targets"):
        lora_config(model, "audio", targets=("q_proj", "query", "k"))
    set_trainable(model, "lora", "audio", targets=("q_proj", "v_proj"))
    assert learned(model) == adapters(chosen) | PROJECTIONS | TOKEN


def test_the_description_names_what_learns(model):
    """32 wide, 64 inside: a map of attention has 8 (32 + 32) LoRA parameters, one of the feed-forward 8 (32 + 64)."""
    total = sum(parameter.numel() for parameter in model.parameters())
    lora = 2 * (4 * 8 * 64 + 2 * 8 * 96)
    assert describe(set_trainable(model, "lora")) == (
        f"{total + 2 * lora:,} parameters, of which {2 * lora + 32 + 2 * 32 * 32 + 1:,} "
        f"({100 * (2 * lora + 32 + 2048 + 1) / (total + 2 * lora):.1f} %) learn: logit_scale 1, "
        f"audio_model.global_token 32, audio_model LoRA {lora:,}, text_model LoRA {lora:,}, audio_projection 1,024, "
        "text_projection 1,024"
    )


@pytest.mark.parametrize("alpha", [16, 5])
def test_merged_weights_are_pefts_own(towers, alpha):
    model = with_random_lora(towers[0], lora_alpha=alpha)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    merged = merged_state_dict(model)
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in before.items())
    plain = merged_by_peft(model)
    assert merged.keys() == plain.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(merged[name], weight, atol=1e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    changed = [name for name in plain if f"{name.removesuffix('.weight')}.base_layer.weight" in before]
    assert len(changed) == len(towers[1] | towers[2])
    assert not any(torch.equal(merged[n], before[f"{n.removesuffix('.weight')}.base_layer.weight"]) for n in changed)


def merged_by_peft(model) -> dict[str, torch.Tensor]:
    """What `merge_and_unload` makes of a copy that loaded the adapter's LoRA weights through peft."""
    plain = WavLinkModel(model.config)
    state = {n.replace(".base_layer.", "."): w for n, w in model.state_dict().items() if ".lora_" not in n}
    plain.load_state_dict(state)
    wrapped = get_peft_model(plain, model.peft_config["default"])
    lora = {f"base_model.model.{n}": w for n, w in model.state_dict().items() if ".lora_" in n}
    assert not wrapped.load_state_dict(lora, strict=False).unexpected_keys
    return wrapped.merge_and_unload().state_dict()


@pytest.mark.parametrize("loss_type", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_chunks_give_lora_the_gradients_of_the_whole(model, batch, loss_type, micro_batch_size):
    model.config.loss_type = loss_type
    model = without_chance(with_random_lora(model), loss_type)
    loss, expected = gradients(model, batch, 0)
    cached_loss, cached = gradients(model, batch, micro_batch_size)
    assert cached_loss == pytest.approx(loss, rel=1e-6) and set(cached) == learned(model)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-6, name
        torch.testing.assert_close(cached[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("regime", ["projector", "lora"])
def test_checkpointing_gives_the_same_gradients(towers, batch, regime):
    """Frozen embeddings give the first checkpointed layer an input without gradient, and its LoRA must learn still."""
    model, _, text = towers
    model = without_chance(with_random_lora(model) if regime == "lora" else set_trainable(model, regime), "info_nce")
    batch["input_ids"] = batch["input_ids"] % 20  # ids that all three towers know
    batch.pop("token_type_ids", None)
    _, expected = gradients(model, batch, 0)
    enable_checkpointing(model)
    calls = []
    model.audio_model.encoder.layers[0].fc1.register_forward_hook(lambda *_: calls.append(1))
    _, checkpointed = gradients(model, batch, 0)
    assert len(calls) == 2  # the layer was computed again on the way back
    assert set(checkpointed) == learned(model) and expected["audio_model.global_token"].abs().max() > 1e-6
    for name, gradient in expected.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=lambda m, n=name: f"{n}: {m}")
    if regime == "lora":
        # CLIP's pooled token is the first here: it attends to itself alone, so that queries and keys change nothing
        moved = [name for name in text if not name.endswith((".q_proj", ".k_proj"))]
        assert moved and all(checkpointed[f"{name}.lora_A.default.weight"].abs().max() > 0 for name in moved)


def test_an_adapter_fits_the_same_towers_with_any_new_parts(towers, tmp_path, whisper_folder, processor, batch):
    """What is new in a WavLink lies in the adapter, so a base of other random projections and token will do."""
    model = with_random_lora(towers[0], lora_rank=4, lora_alpha=6)
    batch["input_ids"] = batch["input_ids"] % 20
    batch.pop("token_type_ids", None)
    torch.nn.init.normal_(model.audio_model.global_token)
    save_adapter(model, tmp_path)
    base = WavLinkModel(model.config)
    frozen = {n.replace(".base_layer.", "."): w for n, w in model.state_dict().items() if ".lora_" not in n}
    base.load_state_dict({n: torch.randn_like(w) if n in PROJECTIONS | TOKEN else w for n, w in frozen.items()})
    adapted = PeftModel.from_pretrained(base, tmp_path)
    merged = WavLinkModel(model.config)
    merged.load_state_dict(merged_state_dict(model))
    torch.testing.assert_close(embeds(adapted, batch), embeds(merged, batch), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(embeds(adapted, batch), embeds(model, batch), atol=1e-6, rtol=1e-6)


def test_the_adapter_of_base_is_a_fiftieth_of_it():
    """Rank 8 on 18 layers of width 512: 4 maps 512 x 512 and 2 of 512 x 2048 each; two projections, token, scale."""
    with torch.device("meta"):
        model = set_trainable(WavLinkModel(WavLinkConfig.for_size("base")), "lora")
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert count == 18 * 8 * (4 * (512 + 512) + 2 * (512 + 2048)) + 2 * 512 * 512 + 512 + 1
    assert 45 < sum(p.numel() for p in model.parameters()) / count < 50


@pytest.fixture(scope="module")
def base(tmp_path_factory, whisper_folder, bert_folder, processor):
    """A WavLink to adapt, on disk."""
    torch.manual_seed(5)
    model = WavLinkModel.from_audio_text_pretrained(str(whisper_folder), str(bert_folder), text_pooling="mean")
    root = tmp_path_factory.mktemp("base")
    model.save_pretrained(root)
    processor.save_pretrained(root)
    return root


def lora_recipe(data, start, output):
    options = ["--regime", "lora", "--lora_rank", "4", "--learning_rate", "1e-2", "--label_prompt", ""]
    small = [
        "--batch_size",
        "4",
        "--epochs",
        "2",
        "--num_workers",
        "0",
        "--mixed_precision",
        "no",
        "--save_steps",
        "2",
    ]
    where = ["--data", str(data), "--init", str(start), "--output_dir", str(output)]
    return train.parse_recipe(["quickstart", *where, *options, *small])


@pytest.fixture(scope="module")
def lora_run(folder, base, tmp_path_factory):  # noqa: F811
    """A finished run of six steps from `base`."""
    return train.train(lora_recipe(folder, base, tmp_path_factory.mktemp("lora") / "run"))


@pytest.mark.slow
def test_a_killed_lora_run_resumes_to_the_same_weights(folder, base, lora_run, tmp_path, monkeypatch):  # noqa: F811
    recipe = lora_recipe(folder, base, tmp_path / "killed")
    learn = train.Run.learn

    def die(self, *arguments):
        if self.step == 5:  # epochs end after 3 and 6
            raise KeyboardInterrupt
        return learn(self, *arguments)

    monkeypatch.setattr(train.Run, "learn", die)
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe)
    kept = sorted(path.name for path in (tmp_path / "killed/checkpoints").iterdir())
    assert kept == ["step-00000003", "step-00000004"]
    monkeypatch.setattr(train.Run, "learn", learn)
    resumed = train.train(recipe)
    for name in ("last/model.safetensors", "last/adapter/adapter_model.safetensors"):
        expected, got = load_file(lora_run / name), load_file(resumed / name)
        assert expected.keys() == got.keys() and all(torch.equal(expected[n], got[n]) for n in expected)
    assert (lora_run / "metrics.jsonl").read_text() == (resumed / "metrics.jsonl").read_text()


def test_a_run_keeps_its_adapter_small_and_its_model_plain(lora_run, base):
    before, after = load_file(base / "model.safetensors"), load_file(lora_run / "last/model.safetensors")
    assert before.keys() == after.keys()
    maps = {f"{name}.weight" for name in MAPS["whisper"] | MAPS["bert"]}
    assert {n for n in before if not torch.equal(before[n], after[n])} == maps | PROJECTIONS | TOKEN
    adapter = load_file(lora_run / "last/adapter/adapter_model.safetensors")
    lora = {f"{name}.lora_{part}.weight" for name in MAPS["whisper"] | MAPS["bert"] for part in "AB"}
    assert {n.removeprefix("base_model.model.") for n in adapter} == lora | PROJECTIONS | TOKEN | {"logit_bias"}
    assert sum(w.numel() for w in adapter.values()) < sum(w.numel() for w in after.values()) / 5
    config = json.loads((lora_run / "last/adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 16, "LORA")
    assert config["base_model_name_or_path"] == str(base)


CLIENT = """
import json, sys, torch
sys.path.remove("")
from peft import PeftModel
from transformers import AutoModel
found, batch = {}, torch.load("BATCH", weights_only=True)
def load(source):
    return AutoModel.from_pretrained(source, trust_remote_code=True)
models = {
    "merged": load("RUN/best"), "base": load("user/base"),
    "folder": PeftModel.from_pretrained(load("BASE"), "RUN/best/adapter"),
    "hub": PeftModel.from_pretrained(load("user/base"), "user/adapter"),
}
for name, model in models.items():
    with torch.no_grad():
        output = model.eval()(**batch, return_loss=True)
    found[name] = output.audio_embeds.tolist(), output.text_embeds.tolist(), output.loss.item()
clean = "modeling_wavlink" not in sys.modules
sys.path.insert(0, "")
import train
output = train.train(train.parse_recipe(ARGUMENTS))
adapter = json.load(open(output / "last/adapter/adapter_config.json"))
print(json.dumps([clean, found, adapter["base_model_name_or_path"]]))
"""


@pytest.fixture(scope="module")
def client(hub, base, lora_run, folder, processor, tmp_path_factory):  # noqa: F811
    """What a fresh process saw of the Hub: whether it was clean, everybody's vectors and loss, the next run's base."""
    root = tmp_path_factory.mktemp("client")
    hub.add_repo("user/base", base, "model")
    hub.add_repo("user/adapter", lora_run / "best/adapter", "model")
    rows = [
        {"audio": {"array": tone(300 * (i + 1), 0.3, i), "sampling_rate": RATE}, "captions": [caption]}
        for i, caption in enumerate(CAPTIONS)
    ]
    torch.save(AudioTextCollator(processor)(rows), root / "batch.pt")
    small = ["--batch_size", "4", "--max_steps", "1", "--num_workers", "0", "--mixed_precision", "no"]
    where = ["--data", str(folder), "--init", "user/base", "--output_dir", str(root / "next"), "--regime", "lora"]
    code = CLIENT.replace("BATCH", str(root / "batch.pt")).replace("RUN", str(lora_run)).replace("BASE", str(base))
    code = code.replace("ARGUMENTS", repr(["quickstart", *where, *small]))
    return json.loads(hub.run(code, root / "home", OMP_NUM_THREADS="1").splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "hub"])
def test_stock_peft_puts_the_adapter_on_its_base_in_a_clean_process(client, source):
    clean, results, _ = client
    assert clean
    for got, expected, base in zip(results[source], results["merged"], results["base"], strict=True):
        torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), atol=1e-6, rtol=0)
        assert (torch.tensor(got) - torch.tensor(base)).abs().max() > 1e-2


@pytest.mark.slow
def test_a_run_starts_from_a_hub_id_which_its_adapter_names(client):
    assert client[2] == "user/base"
