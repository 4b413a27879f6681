"""`WavLinkTrainer`: saved folders, resumption, batches, and refused arguments."""

import copy

import pytest
import torch
from datasets import Audio, Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, TrainingArguments

from processing.collator import CaptionedAudio
from processing.sampling import BatchPlan
from tests.trainer_runs import CAPTIONS, REGIMES, collator, prepared, pretrained, rows, train, trainer, wavlink  # noqa: F401
from wavlink.training.finetuning import set_trainable
from wavlink.training.trainer import EpochBatches


@pytest.mark.parametrize("regime", REGIMES)
def test_a_resumed_run_ends_as_an_unbroken_one(wavlink, tmp_path, regime):  # noqa: F811
    """Seven clips in batches of 3, so two steps an epoch; resumed in the middle of the second, with dropout on."""

    def model():
        model = prepared(wavlink, "info_nce", regime)
        for module in model.text_model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
        return model

    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 5, "optim": "adamw_torch", "seed": 3}
    options |= {"learning_rate": 1e-2, "micro_batch_size": 2, "output_dir": str(tmp_path)}
    unbroken = model()
    trainer(wavlink, unbroken, rows(7), **options).train()
    for step in (2, 3):
        resumed = model()
        subject = trainer(wavlink, resumed, rows(7), **options)
        subject.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert subject.state.global_step == 5 and subject.state.epoch == 2.5
        for (name, one), (_, other) in zip(resumed.named_parameters(), unbroken.named_parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=f"{name}, resumed at step {step}")


def test_lora_is_saved_merged_and_as_an_adapter(wavlink, tmp_path):  # noqa: F811
    model = prepared(wavlink, "info_nce", "lora")
    subject = trainer(wavlink, model, rows(5), output_dir=str(tmp_path))
    subject.train()
    subject.save_model()
    weights = load_file(tmp_path / "model.safetensors")
    assert set(weights) == set(load_file(wavlink / "model.safetensors"))  # no lora_ and no base_layer
    assert (tmp_path / "adapter" / "adapter_config.json").is_file() and (tmp_path / "training_args.bin").is_file()
    batch = collator(wavlink)(rows(5))
    loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert processor.feature_extractor.padding == subject.processing_class.feature_extractor.padding
    with torch.no_grad():
        expected = model.eval()(**batch).audio_embeds
        torch.testing.assert_close(loaded.eval()(**batch).audio_embeds, expected, atol=1e-5, rtol=0)
        before = prepared(wavlink, "info_nce", "lora").eval()(**batch).audio_embeds
    assert (before - expected).abs().max() > 1e-3


def test_the_best_lora_is_loaded_at_the_end(wavlink, tmp_path):  # noqa: F811
    """The loss rises with each step, so the first model is the best."""
    model = prepared(wavlink, "info_nce", "lora")
    options = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "eval_strategy": "steps"}
    options |= {"eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    subject = trainer(wavlink, model, rows(5), output_dir=str(tmp_path), **options)
    subject._evaluate = lambda *args, **kwargs: {"eval_loss": float(subject.state.global_step)}
    subject.train()
    saved = load_file(tmp_path / "checkpoint-1" / "adapter" / "adapter_model.safetensors")
    last = load_file(tmp_path / "checkpoint-2" / "adapter" / "adapter_model.safetensors")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = "base_model.model." + name.replace(".default.", ".")
            assert torch.equal(parameter, saved[key]), name
    assert any(not torch.equal(value, last[name]) for name, value in saved.items())


def test_a_checkpoint_of_another_lora_is_refused(wavlink, tmp_path):  # noqa: F811
    subject = trainer(wavlink, prepared(wavlink, "info_nce", "lora"), rows(5), output_dir=str(tmp_path))
    subject.save_model()
    other = set_trainable(copy.deepcopy(pretrained(wavlink)), "lora", lora_rank=4)
    with pytest.raises(ValueError, match="another LoRA .rank, targets or scope"):
        trainer(wavlink, other, rows(5))._load_from_checkpoint(str(tmp_path))
    with pytest.raises(ValueError, match="only a folder written with LoRA"):
        trainer(wavlink, other, rows(5))._load_from_checkpoint(str(wavlink))


def test_a_peft_model_around_it_in_chunks(wavlink, tmp_path):  # noqa: F811
    """With LoRA's own dropout, which must be replayed: finite differences of the loss agree with the gradient."""
    lora = LoraConfig(
        r=4, lora_dropout=0.5, target_modules=r".*\.(q_proj|v_proj|query|value)", init_lora_weights=False
    )
    torch.manual_seed(1)
    model = get_peft_model(prepared(wavlink, "info_nce"), lora)
    subject = trainer(wavlink, model, rows(5), micro_batch_size=2, output_dir=str(tmp_path))
    batch = collator(wavlink)(rows(5))
    factors = [parameter for name, parameter in model.named_parameters() if ".lora_" in name]

    def loss() -> float:
        torch.manual_seed(2)
        return subject.training_step(model, batch).item()

    loss()
    direction = [parameter.grad.clone() for parameter in factors]
    slope = sum(part.square().sum() for part in direction).sqrt().item()
    values = []
    for step in (0.1, -0.1):
        with torch.no_grad():
            torch._foreach_add_(factors, direction, alpha=step / slope)
        values.append(loss())
        with torch.no_grad():
            torch._foreach_add_(factors, direction, alpha=-step / slope)
    assert (values[0] - values[1]) / 0.2 == pytest.approx(slope, rel=0.02)
    subject.save_model()
    assert (tmp_path / "adapter_model.safetensors").is_file()  # peft's own folder, as with the stock Trainer


def test_batches_of_an_epoch(wavlink):  # noqa: F811
    plan = BatchPlan(torch.zeros(7), 3, epochs=1, seed=5)
    batches = EpochBatches(plan, list(range(7)))
    first = list(batches)
    batches.set_epoch(1)
    assert list(batches) != first and len(batches) == len(first) == 2
    assert len({index for batch in first for index in batch}) == 6
    both = [EpochBatches(BatchPlan(torch.zeros(7), 3, 1, 5, rank=rank, world_size=2), range(7)) for rank in (0, 1)]
    assert [sorted(one + other) for one, other in zip(*both, strict=True)] == [sorted(batch) for batch in first]


def test_captions_and_crops_change_with_the_epoch(wavlink):  # noqa: F811
    table = [{"audio": {**row["audio"], "path": None}, "caption": row["caption"]} for row in rows(4)]
    keys = []

    class Noted(CaptionedAudio):
        def __getitem__(self, key):
            keys.append(key)
            return {**super().__getitem__(key), "caption": CAPTIONS[0]}

    dataset = Noted(table, ["caption"], shuffle=True)
    train(wavlink, prepared(wavlink, "info_nce"), dataset, per_device_train_batch_size=4)
    assert sorted(keys) == [(epoch, index) for epoch in (0, 1) for index in range(4)]


def test_group_by_length_reads_the_lengths(wavlink):  # noqa: F811
    lengths = [1.0, 9.0, 2.0, 8.0, 1.5, 8.5]
    table = [{"audio": {"bytes": b"", "path": None}, "duration": seconds, "caption": "a"} for seconds in lengths]
    dataset = Dataset.from_list(table).cast_column("audio", Audio(decode=False))
    options = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2}
    batches = trainer(wavlink, prepared(wavlink, "info_nce"), dataset, **options).get_train_dataloader().batch_sampler
    assert sorted(sorted(batch) for batch in batches) == [[0, 4], [1, 5], [2, 3]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"gradient_accumulation_steps": 2}, "adds no negatives.*micro_batch_size"),
        ({"micro_batch_size": -1}, "or 0 for all at once, got -1"),
        ({"remove_unused_columns": True}, "remove_unused_columns=False"),
        ({"train_sampling_strategy": "sequential"}, "one of random, group_by_length, got 'sequential'"),
    ],
)
def test_what_would_train_on_something_else_is_refused(wavlink, options, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        trainer(wavlink, pretrained(wavlink), rows(5), **options)


def test_several_gpus_in_one_process_are_refused(wavlink, monkeypatch):  # noqa: F811
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="no negatives across them: start a process for each"):
        trainer(wavlink, pretrained(wavlink), rows(5))


def test_streams_are_for_one_process(wavlink, monkeypatch):  # noqa: F811
    """Trainer would fill up the last shares of a stream with rows from its start."""
    stream = Dataset.from_list([{"caption": text} for text in CAPTIONS]).to_iterable_dataset()
    subject = trainer(wavlink, pretrained(wavlink), stream)
    assert subject.get_train_dataloader().batch_size == 3
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: 2))
    with pytest.raises(ValueError, match="cannot be shared by 2 processes without repeating"):
        subject.get_train_dataloader()
