"""Contrastive losses: functions of embeddings, scale and bias, in both directions, over nested dims and processes."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def truncate_embeddings(embeds: Tensor, dim: int) -> Tensor:
    """The first `dim` of each vector, `[..., D] -> [..., dim]`, L2-normalised again."""
    if not 1 <= dim <= embeds.shape[-1]:
        raise ValueError(f"dim must be between 1 and the embeddings' width {embeds.shape[-1]}, got {dim}")
    return F.normalize(embeds[..., :dim], dim=-1)


def false_negatives(caption_ids: Tensor, all_caption_ids: Tensor, first_row: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs off the diagonal whose text is one of the clip's own captions, so must not count as negatives.

    Args:
        caption_ids: `[b, K]`, for each local clip the id of the caption in this batch, then those of its further
            captions; -1 fills up. Equal texts have equal ids.
        all_caption_ids: `[B, K]`, the same for all processes; the local rows start at `first_row`.

    Returns:
        two masks `[b, B]`: local clips against all texts, and local texts against all clips.
    """
    clips_to_texts = (caption_ids[:, :, None] == all_caption_ids[None, None, :, 0]).any(1)
    texts_to_clips = (caption_ids[:, :1, None] == all_caption_ids[None, :, :]).any(-1)
    diagonal = torch.arange(len(caption_ids), device=caption_ids.device)
    clips_to_texts[diagonal, first_row + diagonal] = False
    texts_to_clips[diagonal, first_row + diagonal] = False
    return clips_to_texts, texts_to_clips


def info_nce(
    audio_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float = 0.0,
    all_audio_embeds: Tensor | None = None,
    all_text_embeds: Tensor | None = None,
    first_row: int = 0,
    ignore: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """CLIP's loss (arXiv 2103.00020): the mean of audio→text and text→audio cross-entropy, summed over local rows
    and divided by the number of all rows.

    Args:
        audio_embeds, text_embeds: `[b, d]`, normalised; row i of one belongs to row i of the other.
        logit_scale: the scale itself, not its log.
        logit_bias: accepted beside `sigmoid`'s; a constant does not change a softmax.
        all_audio_embeds, all_text_embeds: `[B, d]`, the rows of all processes (default: the local ones).
        first_row: where the local rows start in them.
        ignore: two masks `[b, B]`, true where a pair is no negative (`false_negatives`).
    """
    all_audio_embeds = audio_embeds if all_audio_embeds is None else all_audio_embeds
    all_text_embeds = text_embeds if all_text_embeds is None else all_text_embeds
    logits_per_audio = logit_scale * audio_embeds @ all_text_embeds.T  # (b, B)
    logits_per_text = logit_scale * text_embeds @ all_audio_embeds.T  # (b, B)
    if ignore is not None:
        logits_per_audio = logits_per_audio.masked_fill(ignore[0], float("-inf"))
        logits_per_text = logits_per_text.masked_fill(ignore[1], float("-inf"))
    targets = first_row + torch.arange(len(audio_embeds), device=audio_embeds.device)
    audio_to_text = F.cross_entropy(logits_per_audio, targets, reduction="sum")
    text_to_audio = F.cross_entropy(logits_per_text, targets, reduction="sum")
    return (audio_to_text + text_to_audio) / (2 * len(all_text_embeds))


def sigmoid(
    audio_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float = 0.0,
    all_audio_embeds: Tensor | None = None,
    all_text_embeds: Tensor | None = None,
    first_row: int = 0,
    ignore: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """SigLIP's loss (arXiv 2303.15343): -log sigmoid(±logit) over all pairs, + on the diagonal and - elsewhere,
    summed and divided by the batch size. Arguments as for `info_nce`; every pair is seen once, from its clip."""
    all_text_embeds = text_embeds if all_text_embeds is None else all_text_embeds
    logits = logit_scale * audio_embeds @ all_text_embeds.T + logit_bias  # (b, B)
    rows = torch.arange(len(logits), device=logits.device)
    targets = -torch.ones_like(logits)
    targets[rows, first_row + rows] = 1.0
    pair_losses = -F.logsigmoid(targets * logits)
    if ignore is not None:
        pair_losses = pair_losses.masked_fill(ignore[0], 0.0)
    return pair_losses.sum() / len(all_text_embeds)


def matryoshka(
    loss: Callable[..., Tensor], dims: Sequence[int], audio_embeds: Tensor, text_embeds: Tensor, *args, **kwargs
) -> Tensor:
    """Mean of `loss` over nested dims (arXiv 2205.13147): each prefix is normalised and judged by itself."""
    everyone = {name: kwargs.pop(name, None) for name in ("all_audio_embeds", "all_text_embeds")}
    total = 0.0
    for dim in dims:
        cut = {name: None if x is None else truncate_embeddings(x, dim) for name, x in everyone.items()}
        pair = truncate_embeddings(audio_embeds, dim), truncate_embeddings(text_embeds, dim)
        total = total + loss(*pair, *args, **cut, **kwargs)
    return total / len(dims)


class _AllGather(torch.autograd.Function):
    """`torch.distributed.nn.all_gather` sends no gradient through gloo; the backward of a gather is a sum."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad[dist.get_rank()]


def gather(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, with gradients back to each: `[b, ...] -> [B, ...]` and where the local ones start.

    Batches may differ in size between processes. Without a process group it returns its input and 0.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows, 0
    size = torch.tensor(len(rows), device=rows.device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    sizes = torch.stack(sizes).tolist()
    padding = rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])
    parts = _AllGather.apply(torch.cat([rows, padding]))
    together = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return together, sum(sizes[: dist.get_rank()])


LOSSES = {"info_nce": info_nce, "sigmoid": sigmoid}


def contrastive_loss(
    audio_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    loss_type: str,
    dims: Sequence[int],
    caption_ids: Tensor | None = None,
    gather_negatives: bool = False,
) -> Tensor:
    """What training minimises: `loss_type` over the nested dims, with the negatives of all processes.

    Each process scores its own rows against everyone's, so memory is linear in the local batch. The value is scaled
    so that its *mean over processes*, which is what DDP's averaging differentiates, is the loss of the whole batch.
    """
    world = 1
    everyone = {}
    first_row = 0
    all_caption_ids = caption_ids
    if gather_negatives and dist.is_available() and dist.is_initialized():
        world = dist.get_world_size()
        all_audio_embeds, first_row = gather(audio_embeds)
        everyone = {"all_audio_embeds": all_audio_embeds, "all_text_embeds": gather(text_embeds)[0]}
        all_caption_ids = None if caption_ids is None else gather(caption_ids)[0]
    ignore = None if caption_ids is None else false_negatives(caption_ids, all_caption_ids, first_row)
    loss = matryoshka(
        LOSSES[loss_type],
        dims,
        audio_embeds,
        text_embeds,
        logit_scale,
        logit_bias,
        first_row=first_row,
        ignore=ignore,
        **everyone,
    )
    return world * loss
