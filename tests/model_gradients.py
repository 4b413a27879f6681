"""Gradients of a model without dropout."""

import torch
from accelerate import Accelerator

from modeling_wavlink import WavLinkModel
from wavlink.training.grad_cache import backward


def gradients(model, batch, micro_batch_size) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(5)
    loss = backward(Accelerator(cpu=True), model, batch, micro_batch_size)
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def without_chance(model: WavLinkModel, loss_type: str) -> WavLinkModel:
    """In training mode, in which processes share their negatives, but without dropout."""
    model.config.loss_type = loss_type
    model.freeze_constants()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()
