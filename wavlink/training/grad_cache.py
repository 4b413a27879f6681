"""GradCache: the exact gradients of a contrastive batch, in chunks that fit into memory (arXiv 2101.06983)."""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .distributed import average_whole

LOSS_INPUTS = ("caption_ids", "text_owner")  # of a batch, inputs of the loss alone


def backward(
    accelerator: Accelerator,
    model: nn.Module,
    batch: dict[str, Tensor],
    micro_batch_size: int = 0,
    added_loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Add the batch's gradients to `.grad`, and return its loss, detached.

    The loss needs all embeddings at once, but the towers only need the loss's gradients by the embeddings. So the
    chunks are embedded without a graph, the loss's gradient by the embeddings is computed, and each chunk is embedded
    again to propagate its part of that gradient. This takes the memory of one chunk. Dropout is replayed, so the
    result equals that of the undivided batch.

    Args:
        accelerator: that prepared the model.
        model: a `WavLinkModel` from `accelerator.prepare`.
        batch: what `WavLinkModel.forward` takes, as many clips as texts, or a `text_owner`.
        micro_batch_size: clips a chunk, with texts in proportion; 0 computes the batch undivided.
        added_loss: a further loss, a function of the clips' embeddings, the text projection's weight and the log of
            the scale (`CaptionBank.loss_of`); not with FSDP2.
    """
    wavlink = accelerator.unwrap_model(model)
    if not micro_batch_size or _fits(accelerator, len(batch["input_features"]), micro_batch_size):
        with accelerator.autocast():
            output = model(**batch, return_loss=True)
        loss = output.loss
        if added_loss is not None:
            loss = loss + added_loss(output.audio_embeds, wavlink.text_projection.weight, wavlink.logit_scale)
        accelerator.backward(loss)
        average_whole(model)
        return loss.detach()
    texts = batch["input_ids"] if "input_ids" in batch else batch["text_pooled"]
    slices = _slices(len(batch["input_features"]), len(texts), micro_batch_size)
    chunks = [trim(_cut(batch, *pair)) for pair in slices]
    states, pairs = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state(accelerator.device))
            pairs.append(_embed(accelerator, model, chunk))
    audio, text = (torch.cat(side).float().requires_grad_() for side in zip(*pairs, strict=True))
    learned = [wavlink.logit_scale]
    if wavlink.logit_bias.requires_grad:
        learned.append(wavlink.logit_bias)
    if added_loss is not None:
        learned.append(wavlink.text_projection.weight)
    # Copies, because gradients of the parameters themselves may only arise under the wrapper's last backward.
    copies = [parameter.detach().requires_grad_() for parameter in learned]
    bias = copies[1] if wavlink.logit_bias.requires_grad else wavlink.logit_bias.detach()
    about = {name: batch.get(name) for name in LOSS_INPUTS}
    loss = wavlink.loss(audio, text, logit_scale=copies[0], logit_bias=bias, **about)
    if added_loss is not None:
        loss = loss + added_loss(audio, copies[-1], copies[0])
    factor = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
    audio_grad, text_grad, *grads = torch.autograd.grad(factor * loss, (audio, text, *copies), materialize_grads=True)
    for number, (chunk, state, (clips, texts)) in enumerate(zip(chunks, states, slices, strict=True)):
        last = number == len(chunks) - 1
        with nullcontext() if last else accelerator.no_sync(model):
            with _replay(state, accelerator.device):
                audio_embeds, text_embeds = _embed(accelerator, model, chunk)
            surrogate = (audio_embeds * audio_grad[clips]).sum() + (text_embeds * text_grad[texts]).sum()
            if last:
                for parameter, grad in zip(learned, grads, strict=True):
                    surrogate = surrogate + (parameter * grad).sum()
            surrogate.backward()
    average_whole(model)
    return loss.detach()


def _fits(accelerator: Accelerator, clips: int, micro_batch_size: int) -> bool:
    """Whether one chunk is enough on every process.

    DDP hangs if some processes divide a batch and others do not: it may communicate before a forward with a graph,
    which is then before the loss's communication on some and after it on others.
    """
    if accelerator.num_processes > 1:
        clips = int(accelerator.gather(torch.tensor([clips], device=accelerator.device)).max())
    return clips <= micro_batch_size


def _slices(clips: int, texts: int, micro_batch_size: int) -> list[tuple[slice, slice]]:
    """The clips and the texts of each chunk; a chunk has no loss, so they need not be pairs."""
    starts = [*range(0, clips, micro_batch_size), clips]
    cuts = [start * texts // clips for start in starts]
    return [(slice(*clips), slice(*texts)) for clips, texts in zip(pairwise(starts), pairwise(cuts), strict=True)]


def _cut(batch: dict[str, Tensor], clips: slice, texts: slice) -> dict[str, Tensor]:
    inputs = {name: rows for name, rows in batch.items() if name not in LOSS_INPUTS}
    return {name: rows[clips if name.startswith("input_features") else texts] for name, rows in inputs.items()}


def trim(chunk: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the end of a chunk that is padding (frames, windows, tokens) in every row; with masks no vector changes.

    Padding at the start stays, because towers count positions from there.
    """
    chunk = dict(chunk)
    for mask, names in {
        "input_features_mask": ("input_features", "input_features_mask"),
        "attention_mask": ("input_ids", "attention_mask", "token_type_ids"),
    }.items():
        if mask in chunk:
            used = (chunk[mask] != 0).any(0).nonzero()
            longest = int(used[-1]) + 1 if len(used) else 1
            # The log-mel [B, F, T] of Whisper is the only input whose masked axis is not the second.
            chunk |= {
                name: chunk[name].narrow(2 if chunk[name].dim() == 3 else 1, 0, longest)
                for name in names
                if name in chunk
            }
    return chunk


def _embed(accelerator, model, chunk: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    with accelerator.autocast():
        output = model(**chunk, return_loss=False)
    return output.audio_embeds, output.text_embeds


def _random_state(device: torch.device) -> list[Tensor]:
    """The states of the random numbers of the CPU and of `device`."""
    return [torch.get_rng_state(), *(get(*arguments) for get, _, arguments in _generators(device))]


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state, (_, set_state, arguments) in zip(states[1:], _generators(device), strict=True):
        set_state(state, *arguments)


def _generators(device: torch.device) -> list[tuple[Callable, Callable, tuple]]:
    """The functions that get and set the random state of an accelerator, and their other arguments."""
    if device.type == "cpu":
        return []
    module = torch.get_device_module(device)
    if not (hasattr(module, "get_rng_state") and hasattr(module, "set_rng_state")):
        raise ValueError(
            f"micro_batch_size replays dropout, and torch cannot set a {device.type}'s random state: leave it at 0"
        )
    arguments = () if device.type == "mps" else (device,)  # MPS has one device, and its functions take none
    return [(module.get_rng_state, module.set_rng_state, arguments)]


@contextmanager
def _replay(states: list[Tensor], device: torch.device):
    """A context in which random numbers are repeated; afterwards the states are as before."""
    before = _random_state(device)
    _set_random_state(states, device)
    try:
        yield
    finally:
        _set_random_state(before, device)
