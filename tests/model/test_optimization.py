"""One rule of weight decay, a scale that stays within its bound, validation in the precision of training, and which
rows `WavLinkTrainer` takes of a subset."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils.data import ConcatDataset, Subset
from transformers import TrainerCallback, TrainingArguments

import train
from modeling_wavlink import WavLinkConfig, WavLinkModel
from processing.collator import AudioTextCollator, CaptionedAudio
from processing.datasets import loaders as feeds
from processing.datasets.synthetic import synthetic_dataset
from tests.conftest import RATE, tone
from wavlink.training import loop
from wavlink.training.finetuning import clamp_scale, parameter_groups, set_trainable
from wavlink.training.trainer import WavLinkTrainer

WHISPER = {
    "model_type": "whisper",
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "num_mel_bins": 80,
    "vocab_size": 10,
}
HTSAT = {
    "model_type": "clap_audio_model",
    "num_mel_bins": 16,
    "spec_size": 64,
    "window_size": 2,
    "patch_embeds_hidden_size": 8,
    "depths": [1, 1],
    "num_attention_heads": [1, 2],
    "hidden_size": 16,
    "enable_fusion": False,
    "projection_hidden_size": 16,
}
PASST = {
    "model_type": "passt",
    "num_mel_bins": 32,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def small(audio: dict, text: str) -> WavLinkModel:
    text = {"model_type": text, "vocab_size": 60, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, **SIZES}
    return WavLinkModel(WavLinkConfig(audio, text, 16, text_pooling="mean", loss_type="sigmoid"))


def expected_decayed(model) -> set[str]:
    """Of all that learns: names as weights are published, without biases, norms, tables, token, scale and bias."""
    tables = (
        "embeddings.",
        "embedding.weight",
        "embed_positions",
        "relative_",
        "token_type",
        "embed_tokens",
        "pos_embed",
        "_token",
    )
    names = [name for name, p in model.named_parameters() if p.requires_grad and p.ndim >= 2]
    return {name for name in names if not any(part in name for part in (*tables, "norm", "global_token"))}


@pytest.mark.parametrize("audio", [WHISPER, HTSAT, PASST], ids=["whisper", "htsat", "passt"])
@pytest.mark.parametrize("text", ["bert", "mpnet", "modernbert", "clip_text_model"])
def test_linear_maps_and_convolutions_alone_are_decayed(audio, text):
    model = small(audio, text)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 0.1)
    found = [{names[id(p)] for p in group["params"]} for group in groups]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.0]
    assert found[0] == expected_decayed(model)
    assert found[2] == {"logit_scale", "logit_bias"}
    assert set.union(*found) == {name for name, p in model.named_parameters() if p.requires_grad}
    if audio is PASST:
        assert "audio_model.time_new_pos_embed" in found[1] and "audio_model.patch_embed.proj.weight" in found[0]
    if audio is HTSAT:
        assert any("relative_position_bias_table" in name for name in found[1])


@pytest.mark.parametrize("regime", ["full", "lora", "projector"])
def test_the_heads_have_a_learning_rate_of_their_own(model, regime):
    set_trainable(model, regime)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 0.1, head_learning_rate=3e-3)
    head = {names[id(p)] for group in groups if "lr" in group for p in group["params"]}
    towers = {names[id(p)] for group in groups if "lr" not in group for p in group["params"]}
    assert head >= {"audio_projection.weight", "text_projection.weight", "audio_model.global_token", "logit_scale"}
    assert not any(name.startswith(("audio_model.encoder", "text_model")) for name in head)
    assert not towers & head and towers | head == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {group["lr"] for group in groups if "lr" in group} == {3e-3}
    plain, split = parameter_groups(model, 0.1), {group["weight_decay"]: set() for group in groups}
    for group in groups:
        split[group["weight_decay"]] |= {*map(id, group["params"])}
    assert split[0.1] == {*map(id, plain[0]["params"])}
    optimizer = torch.optim.AdamW(groups, lr=1e-4)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-4, 3e-3}


def trainer(model, processor, folder, dataset, **options) -> WavLinkTrainer:
    defaults = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_strategy": "no"}
    fixed = {"remove_unused_columns": False, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    args = TrainingArguments(str(folder), **fixed, **{**defaults, **options}, dataloader_pin_memory=False)
    columns = ["captions"] if "captions" in dataset[0] else ["caption"]
    return WavLinkTrainer(
        model, args, data_collator=AudioTextCollator(processor, columns), train_dataset=dataset, eval_dataset=dataset
    )


def rows(clips: int) -> list[dict]:
    return [
        {"audio": {"array": tone(200 * (i + 1), 0.1 + 0.05 * i, i), "sampling_rate": RATE}, "caption": f"a tone {i}"}
        for i in range(clips)
    ]


@pytest.mark.parametrize("regime", ["full", "lora"])
def test_the_trainer_decays_what_the_loop_decays(model, processor, tmp_path, regime):
    set_trainable(model, regime)
    ours = trainer(model, processor, tmp_path, rows(4), weight_decay=0.1)
    optimizer = ours.create_optimizer()
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(p) for p in parameter_groups(model, 0.1)[0]["params"]}
    assert len(decayed) > 5


def test_the_parameter_of_the_scale_stays_within_its_bound(model):
    model.logit_scale.data.fill_(5.72)
    clamp_scale(model)
    assert model.scale.item() == pytest.approx(100.0) and model.logit_scale.item() == pytest.approx(math.log(100))
    model.logit_scale.data.fill_(1.5)
    clamp_scale(model)
    assert model.logit_scale.item() == 1.5


@pytest.mark.parametrize("micro_batch_size", [0, 2])
def test_the_trainer_clamps_the_scale_after_each_step(model, processor, tmp_path, micro_batch_size):
    seen = []

    class Seen(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append(model.logit_scale.item())

    model.logit_scale.data.fill_(5.72)
    ours = trainer(model, processor, tmp_path, rows(4))
    ours.micro_batch_size = micro_batch_size
    ours.add_callback(Seen())
    ours.train()
    assert len(seen) == 2 and max(seen) <= math.log(100) + 1e-6


@pytest.mark.parametrize("skipped", [False, True])
def test_the_loop_clamps_the_scale_after_each_step(model, processor, skipped, monkeypatch):
    """Also where the fp16 scaler skips the optimizer's step."""
    batch = AudioTextCollator(processor, ["caption"])(rows(4))
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-3)
    if skipped:
        monkeypatch.setattr(optimizer, "step", lambda: None)
    schedule = SimpleNamespace(step=lambda: None)
    settings = SimpleNamespace(micro_batch_size=0, max_grad_norm=1.0, augmented=False)
    accelerator = Accelerator(cpu=True)
    run = SimpleNamespace(accelerator=accelerator, model=model, optimizer=optimizer, schedule=schedule, step=0)
    run.recipe, run.feed, run.average = settings, None, None
    model.logit_scale.data.fill_(5.72)
    train.Run.learn(run, batch)
    assert model.logit_scale.item() <= math.log(100) + 1e-6


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
@pytest.mark.parametrize("of", ["list", "dataset", "captioned"])
def test_a_subset_is_trained_on_by_its_own_rows(model, processor, tmp_path, strategy, of):
    base = {"list": lambda: rows(12), "dataset": lambda: synthetic_dataset("train", 1)}
    base = base.get(of, lambda: CaptionedAudio(synthetic_dataset("train", 1), ["caption"], shuffle=True))()
    indices = [1, 3, 4, 7, 9, 11]
    nested = Subset(Subset(base, [*range(len(base))][::-1]), [len(base) - 1 - i for i in indices])
    ours = trainer(model, processor, tmp_path, nested, train_sampling_strategy=strategy, per_device_train_batch_size=3)
    taken = []
    sampler = ours.get_train_dataloader().batch_sampler
    for epoch in range(2):
        sampler.set_epoch(epoch)
        taken += [key for batch in sampler for key in batch]
    if of == "captioned":
        assert {epoch for epoch, _ in taken} == {0, 1}
        taken = [index for _, index in taken]
    assert sorted(taken) == sorted(indices * 2)
    ours.train()


@pytest.mark.parametrize("build", [list, lambda x: ConcatDataset([x[:4], Subset(x, [4, 5])])])
def test_lengths_of_lists_and_joined_data_sets_group_batches(model, processor, tmp_path, build):
    clips = rows(6)
    ours = trainer(model, processor, tmp_path, build(clips), train_sampling_strategy="group_by_length")
    assert np.allclose(
        ours.get_train_dataloader().batch_sampler.plan.lengths, [0.1 + 0.05 * i for i in range(6)], atol=1e-3
    )


def test_validation_computes_in_the_precision_of_training(tmp_path, monkeypatch):
    """Flash attention, for one, takes half precision alone."""
    dtypes = {True: set(), False: set()}
    options = ["--max_steps", "1", "--batch_size", "4", "--mixed_precision", "bf16", "--num_workers", "0"]
    recipe = train.parse_recipe(["quickstart", "--output_dir", str(tmp_path), *options])
    for module in (loop, feeds):
        monkeypatch.setattr(module, "load_source", lambda *_: synthetic_dataset("validation", 1))
    for name in ("draw_loss", "draw_recall", "draw_similarities"):
        monkeypatch.setattr(f"wavlink.training.log.{name}", lambda *_: None)
    build = loop.build

    def watched(*arguments):
        model, processor = build(*arguments)
        queries = [model.audio_model.encoder.layers[0].self_attn.q_proj]
        queries.append(model.text_model.encoder.layer[0].attention.self.query)
        for query in queries:
            query.register_forward_hook(lambda module, _, output: dtypes[module.training].add(output.dtype))
        return model, processor

    monkeypatch.setattr("wavlink.training.loop.build", watched)
    AcceleratorState._reset_state()  # other tests here train in fp32
    try:
        train.train(recipe)
    finally:
        AcceleratorState._reset_state()
    assert dtypes == {True: {torch.bfloat16}, False: {torch.bfloat16}}


def test_the_text_tower_has_a_learning_rate_of_its_own(model):
    set_trainable(model, "full")
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 0.1, 3e-3, text_learning_rate=2e-5)
    rates = {names[id(p)]: group.get("lr") for group in groups for p in group["params"]}
    assert rates.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, rate in rates.items():
        of_text = name.startswith("text_model.")
        head = name.startswith(("audio_projection", "text_projection", "logit_")) or name == "audio_model.global_token"
        assert rate == (2e-5 if of_text else 3e-3 if head else None), name
