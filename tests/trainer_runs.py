"""Data and models for `WavLinkTrainer`."""

import copy
import functools
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from modeling_wavlink import WavLinkModel
from processing import WavLinkProcessor
from processing.collator import AudioTextCollator
from wavlink.training.finetuning import set_trainable
from wavlink.training.trainer import WavLinkTrainer

from .conftest import RATE, tone

REGIMES = ["full", "lora"]


CAPTIONS = ["a dog", "the cat", "the bell rings", "a dog", "low rain", "a low sound", "the high cat barks"]


DIMS = [32, 16, 8, 4]


def rows(clips: int) -> list[dict]:
    """Clips of different lengths; the first and the fourth share their caption."""
    return [
        {
            "audio": {"array": tone(200 * (i + 1), 0.2 + 0.05 * i, i), "sampling_rate": RATE},
            "caption": CAPTIONS[i % len(CAPTIONS)],
        }
        for i in range(clips)
    ]


@functools.cache
def pretrained(folder) -> WavLinkModel:
    return WavLinkModel.from_pretrained(folder)


@functools.cache
def collator(folder) -> AudioTextCollator:
    return AudioTextCollator(WavLinkProcessor.from_pretrained(folder, trust_remote_code=True), ["caption"])


def prepared(folder, loss_type: str, regime: str = "full", dims=DIMS) -> WavLinkModel:
    """Without dropout, since chance differs by process; LoRA's second factor is not at its zero."""
    model = copy.deepcopy(pretrained(folder))
    model.config.loss_type = loss_type
    model.config.matryoshka_dims = list(dims)
    torch.nn.init.zeros_(model.logit_scale)  # a scale of 1: gradients of at most 10, of which fp32 knows 1e-5
    torch.manual_seed(7)
    set_trainable(model, regime)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def snapshot(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


class Gradients(TrainerCallback):
    """Keeps the gradients of each step, as the optimizer gets them."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.steps.append(snapshot(model))


def trainer(folder, model, dataset, kind=WavLinkTrainer, micro_batch_size=None, callbacks=(), **options):
    defaults = {
        "output_dir": f"{folder}/trainer",
        "per_device_train_batch_size": 3,
        "max_steps": 2,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0,
        "remove_unused_columns": False,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    chunks = {} if micro_batch_size is None else {"micro_batch_size": micro_batch_size}
    return kind(
        model=model,
        args=TrainingArguments(**{**defaults, **options}),
        data_collator=collator(folder),
        train_dataset=dataset,
        eval_dataset=dataset,
        callbacks=list(callbacks),
        **chunks,
    )


def train(folder, model, dataset, kind=WavLinkTrainer, **options) -> list[dict[str, torch.Tensor]]:
    """The gradients of each step of a Trainer."""
    gradients = Gradients()
    trainer(folder, model, dataset, kind, callbacks=[gradients], **options).train()
    return gradients.steps


@pytest.fixture(scope="module")
def wavlink(whisper_folder, bert_folder, processor, tmp_path_factory) -> Path:
    """A tiny WavLink on disk."""
    folder = tmp_path_factory.mktemp("wavlink")
    torch.manual_seed(0)
    model = WavLinkModel.from_audio_text_pretrained(str(whisper_folder), str(bert_folder), text_pooling="mean")
    torch.nn.init.normal_(model.audio_model.global_token)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
