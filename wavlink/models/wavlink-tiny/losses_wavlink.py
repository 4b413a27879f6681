"""Contrastive losses: functions of embeddings, scale and bias, in both directions, over nested dims and processes."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .caption_masks_wavlink import check_text_owner, false_negatives, local_owner, shared_captions, text_ids
from .processes_wavlink import gather, gather_caption_ids, receive, sizes_of, world_size

CHUNK = 4096  # texts whose SigLIP logits are in memory at once; InfoNCE has at most CHUNK**2 logits in memory


def truncate_embeddings(embeds: Tensor, dim: int) -> Tensor:
    """Truncate vectors to their first `dim` numbers and L2-normalise them again, `[..., D] -> [..., dim]`.

    Raises:
        ValueError: `dim` is not between 1 and D.
    """
    if not 1 <= dim <= embeds.shape[-1]:
        raise ValueError(f"dim must be between 1 and the embeddings' width {embeds.shape[-1]}, got {dim}")
    return F.normalize(embeds[..., :dim], dim=-1)


def info_nce(
    audio_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float = 0.0,
    all_audio_embeds: Tensor | None = None,
    all_text_embeds: Tensor | None = None,
    first_row: int = 0,
    ignore: tuple[Tensor, Tensor] | None = None,
    text_owner: Tensor | None = None,
    first_text: int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute CLIP's symmetric InfoNCE loss (arXiv 2103.00020).

    It is the mean of audio→text and text→audio cross-entropy, each summed over local rows and divided by the number of
    all clips or texts.

    With several texts a clip, audio→text is `L_out` of SupCon (arXiv 2004.11362, eq. 2) for clip i with texts P(i):
    `-1 / |P(i)| · sum over p in P(i) of log(exp(logit_ip) / sum over all texts j of exp(logit_ij))`, so that a clip's
    other texts stay in the denominator. text→audio is the ordinary cross-entropy towards the text's owner.

    Args:
        audio_embeds, text_embeds: `[b, d]`, `[t, d]`, normalised.
        logit_scale: the scale itself, not its log.
        logit_bias: ignored, since a constant does not change a softmax; `sigmoid` takes the same arguments.
        all_audio_embeds, all_text_embeds: `[B, d]`, `[T, d]`, the rows of all processes (default: the local ones).
        first_row: where the local clips start in them.
        ignore: two masks `[b, T]` and `[t, B]`, true where a pair is no negative (`false_negatives`).
        text_owner: `[t]` int64, the *local* clip each local text belongs to (default: row i of one to row i of the
            other). Every clip has at least one text; all of them are in the process of their clip.
        first_text: where the local texts start (default: `first_row`).
        label_smoothing: the share of each row's target that is spread evenly over all its pairs that are not ignored,
            positives included; the rest is spread evenly over the positives.
    """
    all_audio_embeds = audio_embeds if all_audio_embeds is None else all_audio_embeds
    all_text_embeds = text_embeds if all_text_embeds is None else all_text_embeds
    texts = torch.arange(len(text_embeds), device=text_embeds.device)
    owner = texts if text_owner is None else text_owner
    columns = texts + (first_row if first_text is None else first_text)
    ones = torch.ones_like(text_embeds[:, 0])
    positives = torch.zeros_like(audio_embeds[:, 0]).index_add(0, owner, ones)  # (b,), texts of each clip
    logits_per_audio = logit_scale * audio_embeds @ all_text_embeds.T  # (b, T)
    logits_per_text = logit_scale * text_embeds @ all_audio_embeds.T  # (t, B)
    ignored = (None, None) if ignore is None else ignore
    audio_to_text = _cross_entropy(logits_per_audio, owner, columns, 1 / positives[owner], ignored[0], label_smoothing)
    text_to_audio = _cross_entropy(logits_per_text, texts, first_row + owner, ones, ignored[1], label_smoothing)
    clips_per_text = len(all_audio_embeds) / len(all_text_embeds)
    return (audio_to_text + clips_per_text * text_to_audio) / (2 * len(all_audio_embeds))


def _cross_entropy(
    logits: Tensor, rows: Tensor, columns: Tensor, weights: Tensor, ignored: Tensor | None, label_smoothing: float
) -> Tensor:
    """Compute the cross-entropy summed over the rows of `[n, m]` logits.

    The targets are `weights` at (rows, columns), which add up to 1 in a row.

    Not `F.cross_entropy`: its smoothing also spreads over the ignored pairs, whose -log 0 makes the loss infinite.
    """
    if ignored is not None:
        logits = logits.masked_fill(ignored, float("-inf"))
    log_probs = logits.log_softmax(-1)
    loss = -(weights * log_probs[rows, columns]).sum()
    if not label_smoothing:
        return loss
    kept = logits.shape[1]
    if ignored is not None:
        log_probs = log_probs.masked_fill(ignored, 0.0)
        kept = (~ignored).sum(-1)
    return (1 - label_smoothing) * loss - label_smoothing * (log_probs.sum(-1) / kept).sum()


def sigmoid(
    audio_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float = 0.0,
    all_audio_embeds: Tensor | None = None,
    all_text_embeds: Tensor | None = None,
    first_row: int = 0,
    ignore: tuple[Tensor, Tensor | None] | None = None,
    text_owner: Tensor | None = None,
    first_text: int | None = None,
) -> Tensor:
    """Compute SigLIP's sigmoid loss (arXiv 2303.15343).

    It is -log sigmoid(±logit) over all pairs, + where the text belongs to the clip and - elsewhere, summed and divided
    by the number of all clips. Every pair counts once, in the process of its clip. Arguments as for `info_nce`, but a
    `text_owner` of -1 stands for a clip of another process.
    """
    all_text_embeds = text_embeds if all_text_embeds is None else all_text_embeds
    clips = torch.arange(len(audio_embeds), device=audio_embeds.device)
    owner = torch.arange(len(text_embeds), device=clips.device) if text_owner is None else text_owner
    owner = local_owner(owner, first_row if first_text is None else first_text, len(all_text_embeds))
    logits = logit_scale * audio_embeds @ all_text_embeds.T + logit_bias  # (b, T)
    signed = torch.where(clips[:, None] == owner, logits, -logits)
    pair_losses = -F.logsigmoid(signed)
    if ignore is not None:
        pair_losses = pair_losses.masked_fill(ignore[0], 0.0)
    return pair_losses.sum() / len(audio_embeds if all_audio_embeds is None else all_audio_embeds)


def matryoshka(
    loss: Callable[..., Tensor],
    dims: Sequence[int],
    audio_embeds: Tensor,
    text_embeds: Tensor,
    *args: object,
    **kwargs: object,
) -> Tensor:
    """Compute the mean of `loss` over nested dims (arXiv 2205.13147), each prefix normalised by itself.

    Args:
        loss: `info_nce`, `sigmoid` or a function of the same arguments.
        dims: the lengths of the prefixes.
        audio_embeds, text_embeds: `[b, d]`, `[t, d]`.
        args, kwargs: further arguments of `loss`.
    """
    all_embeds = {name: kwargs.pop(name, None) for name in ("all_audio_embeds", "all_text_embeds")}
    total = 0.0
    for dim in dims:
        all_cut = {name: None if x is None else truncate_embeddings(x, dim) for name, x in all_embeds.items()}
        pair = truncate_embeddings(audio_embeds, dim), truncate_embeddings(text_embeds, dim)
        total = total + loss(*pair, *args, **all_cut, **kwargs)
    return total / len(dims)


class _Blockwise(torch.autograd.Function):
    """The sum of all losses of all the blocks that `blocks(texts)` yields: (source, start, stop, block, losses).

    Only the local inputs are saved for the backward pass. It receives each block a second time, recomputes each loss,
    and sums the block's gradient over the processes, back to its source. So a process holds at most one block of
    another process and, forward and backward, the logits `[b, block]` of one loss.
    """

    @staticmethod
    def forward(ctx, audio: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, blocks: Callable) -> Tensor:
        ctx.save_for_backward(audio, texts, scale, bias)
        ctx.blocks = blocks
        total = torch.zeros_like(scale)
        for *_, block, losses in blocks(texts):
            for loss in losses:
                total = total + loss(audio, block, scale, bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        audio, texts, scale, bias = (x.detach().requires_grad_() for x in ctx.saved_tensors)
        grads = [torch.zeros_like(x) for x in (audio, texts, scale, bias)]
        for source, start, stop, block, losses in ctx.blocks(texts.detach()):
            block_grad = torch.zeros_like(block)
            block = block.detach().requires_grad_()
            for loss in losses:
                # Mixed precision may be on around backward, and was not around forward.
                with torch.enable_grad(), torch.autocast(audio.device.type, enabled=False):
                    value = loss(audio, block, scale, bias)
                    parts = torch.autograd.grad(value, (audio, block, scale, bias), grad)
                for total, part in zip((grads[0], block_grad, *grads[2:]), parts, strict=True):
                    total += part
            if source is not None:
                dist.reduce(block_grad, source)
            if source is None or source == dist.get_rank():
                grads[1][start:stop] = block_grad
        return *grads, None


def blockwise_sigmoid(
    audio_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    dims: Sequence[int],
    caption_ids: Tensor | None = None,
    text_owner: Tensor | None = None,
    chunk: int = CHUNK,
    world: int = 1,
) -> Tensor:
    """Compute this process's share of `matryoshka(sigmoid, dims, ...)` over the texts of `world` processes.

    The texts are never gathered: `chunk` texts of one process at a time are sent to all (`_Blockwise`), with their
    ids. Arguments as for `contrastive_loss`.
    """
    ids = None if caption_ids is None else text_ids(caption_ids, text_owner)
    if text_owner is None:
        text_owner = torch.arange(len(text_embeds), device=text_embeds.device)
    rank, sources = (None, [None]) if world == 1 else (dist.get_rank(), range(world))
    sizes = sizes_of(text_embeds, world)

    def blocks(texts: Tensor) -> Iterator[tuple]:
        for source, size in zip(sources, sizes, strict=True):
            for start in range(0, size, chunk):
                stop = min(start + chunk, size)
                owner = text_owner[start:stop]
                if source != rank:  # the clips of these texts are in another process
                    owner = text_owner.new_full((stop - start,), -1)
                ignore = None
                if ids is not None:
                    ignore = shared_captions(caption_ids, receive(ids, source, start, stop), owner), None
                options = {"text_owner": owner, "ignore": ignore}
                losses = [partial(matryoshka, sigmoid, [dim], **options) for dim in dims]
                yield source, start, stop, receive(texts, source, start, stop), losses

    scale, bias = (torch.as_tensor(x).to(audio_embeds) for x in (logit_scale, logit_bias))
    total = _Blockwise.apply(audio_embeds, text_embeds, scale, bias, blocks)
    return total * (len(audio_embeds) / (len(dims) * sum(sizes_of(audio_embeds, world))))


def piecewise_info_nce(
    pair: tuple[Tensor, Tensor],
    all_pairs: tuple[Tensor, Tensor],
    logit_scale: Tensor | float,
    dims: Sequence[int],
    first: tuple[int, int],
    text_owner: Tensor | None,
    ids: tuple[Tensor, Tensor, Tensor] | None,
    label_smoothing: float,
    rows: int,
) -> Tensor:
    """Compute `matryoshka(info_nce, dims, ...)` for `rows` clips at a time; backward recomputes the logits.

    Args:
        pair, all_pairs: local and all clips and texts; the local ones start at `first` (a row, a text).
        text_owner: as for `info_nce`, and sorted: the texts of a clip follow each other.
        ids: local and all `caption_ids`, and all texts' ids, for the masks of false negatives.
    """
    clips = len(pair[0])
    owner = torch.arange(clips, device=pair[0].device) if text_owner is None else text_owner
    cuts = [(start, min(start + rows, clips)) for start in range(0, clips, rows)]
    texts = [torch.searchsorted(owner, torch.tensor(cut, device=owner.device)).tolist() for cut in cuts]

    def piece(audio, text, all_audio, all_text, clip_cut, text_cut):
        first_row, first_text = first[0] + clip_cut[0], first[1] + text_cut[0]
        piece_owner = owner[slice(*text_cut)] - clip_cut[0]
        ignore = None
        if ids is not None:
            ignore = false_negatives(ids[0][slice(*clip_cut)], ids[1], first_row, piece_owner, ids[2], first_text)
        local = audio[slice(*clip_cut)], text[slice(*text_cut)], logit_scale, 0.0
        return info_nce(*local, all_audio, all_text, first_row, ignore, piece_owner, first_text, label_smoothing)

    total = 0.0
    for dim in dims:
        embeds = [truncate_embeddings(x, dim) for x in (*pair, *all_pairs)]
        for clip_cut, text_cut in zip(cuts, texts, strict=True):
            part = checkpoint(piece, *embeds, clip_cut, text_cut, use_reentrant=False, preserve_rng_state=False)
            total = total + part
    return total / len(dims)


def bank_cross_entropy(
    audio_embeds: Tensor, bank_embeds: Tensor, logit_scale: Tensor | float, positives: Tensor, dims: Sequence[int]
) -> Tensor:
    """Compute each clip's cross-entropy over a bank of captions: a mean over nested dims, summed over the clips.

    For clip i with the captions P(i) it is
    `-1 / |P(i)| · sum over p in P(i) of log(exp(logit_ip) / sum over all captions j of exp(logit_ij))`:
    the softmax over all instances of arXiv 1805.01978 (eq. 2) with the targets of SupCon's `L_out` (arXiv 2004.11362).
    Rows do not depend on each other, so the sum over several processes is that of the whole batch.

    Args:
        audio_embeds: `[b, D]`.
        bank_embeds: `[N, D]`, of distinct captions.
        logit_scale: the scale itself, not its log.
        positives: bool `[b, N]`, the captions of each clip, at least one.
        dims: the lengths of the prefixes, each normalised by itself (`truncate_embeddings`).
    """
    counts = positives.sum(-1)
    total = 0.0
    for dim in dims:
        logits = logit_scale * truncate_embeddings(audio_embeds, dim) @ truncate_embeddings(bank_embeds, dim).T
        own = logits.masked_fill(~positives, 0.0).sum(-1) / counts
        total = total + (logits.logsumexp(-1) - own).sum()
    return total / len(dims)


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
    text_owner: Tensor | None = None,
    label_smoothing: float = 0.0,
    chunk: int = CHUNK,
) -> Tensor:
    """Compute the training loss: `loss_type` over the nested dims, with the negatives of all processes.

    Each process scores its local rows against the rows of all processes. InfoNCE gathers them, so that memory is
    linear in the local batch, and computes at most `chunk` x `chunk` logits at a time (`piecewise_info_nce`). SigLIP
    receives `chunk` texts of one process at a time (`blockwise_sigmoid`; in a single process only where there are more
    texts than that). The value is scaled so that its *mean over processes*, which is what DDP's averaging
    differentiates, is the loss of the whole batch.

    Args:
        audio_embeds, text_embeds: `[b, d]`, `[t, d]`, local; t = b without `text_owner`.
        caption_ids: `[b, K]`, see `false_negatives`; either all processes give it or none.
        text_owner: `[t]` int64, the local clip of each local text, at least one for every clip.
        gather_negatives: whether the rows of other processes are negatives too.
        label_smoothing: see `info_nce`; a `sigmoid` loss has no softmax to smooth and refuses it.
        chunk: see above.
    """
    check_text_owner(text_owner, len(audio_embeds), len(text_embeds))
    if loss_type == "sigmoid" and label_smoothing:
        raise ValueError(f"label_smoothing={label_smoothing} needs loss_type='info_nce': SigLIP's has no softmax")
    world = world_size() if gather_negatives else 1
    if text_owner is not None:  # the texts of a clip one after the other
        order = text_owner.argsort(stable=True)
        text_embeds, text_owner = text_embeds[order], text_owner[order]
    pair = audio_embeds, text_embeds, logit_scale, logit_bias
    if loss_type == "sigmoid" and (world > 1 or len(text_embeds) > chunk):
        return world * blockwise_sigmoid(*pair, dims, caption_ids, text_owner, chunk, world)
    all_audio_embeds, all_text_embeds = audio_embeds, text_embeds
    first_row, first_text = 0, 0
    ids = None if caption_ids is None else (caption_ids, caption_ids, text_ids(caption_ids, text_owner))
    if world > 1:
        all_audio_embeds, first_row = gather(audio_embeds)
        all_text_embeds, first_text = gather(text_embeds)
        ids = ids and (caption_ids, gather_caption_ids(caption_ids), gather(ids[2])[0])
    rows = max(chunk**2 // len(all_text_embeds), 1)
    if loss_type == "info_nce" and len(audio_embeds) > rows:
        all_pairs, first = (all_audio_embeds, all_text_embeds), (first_row, first_text)
        return world * piecewise_info_nce(
            pair[:2], all_pairs, logit_scale, dims, first, text_owner, ids, label_smoothing, rows
        )
    options = {"label_smoothing": label_smoothing} if label_smoothing else {}
    if world > 1:
        options |= {"all_audio_embeds": all_audio_embeds, "all_text_embeds": all_text_embeds}
    if ids is not None:
        options["ignore"] = false_negatives(*ids[:2], first_row, text_owner, ids[2], first_text)
    options |= {"first_row": first_row, "first_text": first_text, "text_owner": text_owner}
    return world * matryoshka(LOSSES[loss_type], dims, *pair, **options)
