"""Contrastive losses: functions of embeddings, scale and bias, in both directions, over nested dims and processes."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .processes_wavlink import gather, gather_caption_ids, receive, sizes_of, world_size

CHUNK = 4096  # texts whose SigLIP logits are in memory at once; its square is InfoNCE's number of logits


def truncate_embeddings(embeds: Tensor, dim: int) -> Tensor:
    """The first `dim` of each vector, `[..., D] -> [..., dim]`, L2-normalised again."""
    if not 1 <= dim <= embeds.shape[-1]:
        raise ValueError(f"dim must be between 1 and the embeddings' width {embeds.shape[-1]}, got {dim}")
    return F.normalize(embeds[..., :dim], dim=-1)


def false_negatives(
    caption_ids: Tensor,
    all_caption_ids: Tensor,
    first_row: int = 0,
    text_owner: Tensor | None = None,
    all_text_ids: Tensor | None = None,
    first_text: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Pairs of a clip and another's text that is one of the clip's own captions, so must not count as negatives.

    Args:
        caption_ids: `[b, K]`, for each local clip the ids of its captions in this batch (one, or with `text_owner` all
            its texts, in their order), then those of its further captions; -1 fills up. Equal texts have equal ids.
        all_caption_ids: `[B, K]`, the same for all processes; the local rows start at `first_row`.
        text_owner: `[t]`, see `info_nce`.
        all_text_ids: `[T]`, `text_ids` of all processes (default: the first column of `all_caption_ids`, or with
            `text_owner` the local ones); the local texts start at `first_text` (default: `first_row`).

    Returns:
        two masks, local clips against all texts `[b, T]`, and local texts against all clips `[t, B]`.
    """
    ids = text_ids(caption_ids, text_owner)
    if all_text_ids is None:
        all_text_ids = all_caption_ids[:, 0] if text_owner is None else ids
    owner = torch.arange(len(ids), device=ids.device) if text_owner is None else text_owner
    local = _local_owner(owner, first_row if first_text is None else first_text, len(all_text_ids))
    return _shared(caption_ids, all_text_ids, local), _shared(all_caption_ids, ids, first_row + owner).T


def text_ids(caption_ids: Tensor, text_owner: Tensor | None = None) -> Tensor:
    """The ids of the batch's texts, `[b, K] -> [t]`: the n-th text of a clip has the n-th id of its row."""
    if text_owner is None:
        return caption_ids[:, 0]
    order = text_owner.argsort(stable=True)
    counts = text_owner.bincount(minlength=len(caption_ids))
    nth = torch.empty_like(order)
    nth[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[text_owner[order]]
    ids = F.pad(caption_ids, (0, 1), value=-1)[text_owner, nth.clamp(max=caption_ids.shape[1])]
    if (ids < 0).any():
        raise ValueError("caption_ids must hold the ids of all of a clip's texts, in their order, before any others'")
    return ids


def _local_owner(text_owner: Tensor, first_text: int, texts: int) -> Tensor:
    """`[t] -> [T]`: the local texts' owners in their place among all texts; -1, no local clip, elsewhere."""
    owner = text_owner.new_full((texts,), -1)
    owner[first_text : first_text + len(text_owner)] = text_owner
    return owner


def _shared(caption_ids: Tensor, ids: Tensor, owner: Tensor) -> Tensor:
    """`[b, K], [n], [n] -> [b, n]`: true where a text is one of a clip's captions and not the clip's own text."""
    shared = torch.zeros(len(caption_ids), len(ids), dtype=torch.bool, device=ids.device)
    for column in caption_ids.unbind(1):  # not all at once: that would be K masks
        shared |= column[:, None] == ids
    return shared & (torch.arange(len(caption_ids), device=ids.device)[:, None] != owner)


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
    """CLIP's loss (arXiv 2103.00020): the mean of audio→text and text→audio cross-entropy, each summed over local rows
    and divided by the number of all clips or texts.

    With several texts a clip, audio→text is `L_out` of SupCon (arXiv 2004.11362, eq. 2) for clip i with texts P(i):
    `-1 / |P(i)| · sum over p in P(i) of log(exp(logit_ip) / sum over all texts j of exp(logit_ij))`, so that a clip's
    other texts stay in the denominator. text→audio is the ordinary cross-entropy towards the text's owner.

    Args:
        audio_embeds, text_embeds: `[b, d]`, `[t, d]`, normalised.
        logit_scale: the scale itself, not its log.
        logit_bias: accepted beside `sigmoid`'s; a constant does not change a softmax.
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
    """Summed over the rows of `[n, m]`, the targets being `weights` at (rows, columns), which add up to 1 in a row.

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
    """SigLIP's loss (arXiv 2303.15343): -log sigmoid(±logit) over all pairs, + where the text is the clip's own and -
    elsewhere, summed and divided by the number of all clips. Arguments as for `info_nce`, but a `text_owner` of -1 is
    no clip here; every pair is seen once, from its clip."""
    all_text_embeds = text_embeds if all_text_embeds is None else all_text_embeds
    clips = torch.arange(len(audio_embeds), device=audio_embeds.device)
    owner = torch.arange(len(text_embeds), device=clips.device) if text_owner is None else text_owner
    owner = _local_owner(owner, first_row if first_text is None else first_text, len(all_text_embeds))
    logits = logit_scale * audio_embeds @ all_text_embeds.T + logit_bias  # (b, T)
    signed = torch.where(clips[:, None] == owner, logits, -logits)
    pair_losses = -F.logsigmoid(signed)
    if ignore is not None:
        pair_losses = pair_losses.masked_fill(ignore[0], 0.0)
    return pair_losses.sum() / len(audio_embeds if all_audio_embeds is None else all_audio_embeds)


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


class _Blockwise(torch.autograd.Function):
    """The sum of all losses of all the blocks that `blocks(texts)` yields: (source, start, stop, block, losses).

    Kept for backward are the local inputs alone: it asks for each block a second time, recomputes each loss by itself,
    and sums the block's gradient over the processes, back to its source. So a process holds at most one foreign block
    and, forward and backward, the logits `[b, block]` of one loss.
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
    """This process's share of `matryoshka(sigmoid, dims, ...)` over the texts of `world` processes, which are never
    all in one place: `chunk` texts of one process at a time are sent to all (`_Blockwise`), with their ids."""
    ids = None if caption_ids is None else text_ids(caption_ids, text_owner)
    if text_owner is None:
        text_owner = torch.arange(len(text_embeds), device=text_embeds.device)
    rank, sources = (None, [None]) if world == 1 else (dist.get_rank(), range(world))
    sizes = sizes_of(text_embeds, world)

    def blocks(texts):
        for source, size in zip(sources, sizes, strict=True):
            for start in range(0, size, chunk):
                place = source, start, min(start + chunk, size)
                owner = text_owner[start : place[2]]
                if source != rank:  # no clip here owns a foreign text
                    owner = text_owner.new_full((place[2] - start,), -1)
                shared = None if ids is None else _shared(caption_ids, receive(ids, *place), owner)
                options = {"text_owner": owner, "ignore": None if shared is None else (shared, None)}
                losses = [partial(matryoshka, sigmoid, [dim], **options) for dim in dims]
                yield *place, receive(texts, *place), losses

    scale, bias = (torch.as_tensor(x).to(audio_embeds) for x in (logit_scale, logit_bias))
    total = _Blockwise.apply(audio_embeds, text_embeds, scale, bias, blocks)
    return total * (len(audio_embeds) / (len(dims) * sum(sizes_of(audio_embeds, world))))


def piecewise_info_nce(
    pair: tuple[Tensor, Tensor],
    everyone: tuple[Tensor, Tensor],
    logit_scale: Tensor | float,
    dims: Sequence[int],
    first: tuple[int, int],
    text_owner: Tensor | None,
    ids: tuple[Tensor, Tensor, Tensor] | None,
    label_smoothing: float,
    rows: int,
) -> Tensor:
    """`matryoshka(info_nce, dims, ...)`, `rows` clips and their texts at a time; backward computes the logits anew.

    Args:
        pair, everyone: local and all clips and texts; the local ones start at `first` (a row, a text).
        text_owner: as for `info_nce`, and rising: the texts of a clip follow each other.
        ids: local and all `caption_ids`, and all texts' ids, for the masks of false negatives.
    """
    clips = len(pair[0])
    owner = torch.arange(clips, device=pair[0].device) if text_owner is None else text_owner
    cuts = [(start, min(start + rows, clips)) for start in range(0, clips, rows)]
    texts = [torch.searchsorted(owner, torch.tensor(cut, device=owner.device)).tolist() for cut in cuts]

    def piece(audio, text, all_audio, all_text, clip_cut, text_cut):
        place = first[0] + clip_cut[0], owner[slice(*text_cut)] - clip_cut[0], first[1] + text_cut[0]
        ignore = None
        if ids is not None:
            ignore = false_negatives(ids[0][slice(*clip_cut)], ids[1], place[0], place[1], ids[2], place[2])
        local = audio[slice(*clip_cut)], text[slice(*text_cut)], logit_scale, 0.0
        return info_nce(*local, all_audio, all_text, place[0], ignore, *place[1:], label_smoothing)

    total = 0.0
    for dim in dims:
        cut = [truncate_embeddings(x, dim) for x in (*pair, *everyone)]
        for place in zip(cuts, texts, strict=True):
            total = total + checkpoint(piece, *cut, *place, use_reentrant=False, preserve_rng_state=False)
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
    """What training minimises: `loss_type` over the nested dims, with the negatives of all processes.

    Each process scores its own rows against everyone's: InfoNCE against gathered rows, so that memory is linear in the
    local batch, and at most `chunk` x `chunk` logits at a time (`piecewise_info_nce`); SigLIP against `chunk` texts of
    one process at a time (`blockwise_sigmoid`; with one process, where there are more texts than that). The value is
    scaled so that its *mean over processes*, which is what DDP's averaging differentiates, is the loss of the whole
    batch.

    Args:
        audio_embeds, text_embeds: `[b, d]`, `[t, d]`, local; t = b without `text_owner`.
        caption_ids: `[b, K]`, see `false_negatives`; either all processes give it or none.
        text_owner: `[t]` int64, the local clip of each local text, at least one for every clip.
        label_smoothing: see `info_nce`; a `sigmoid` loss has no softmax to smooth and refuses it.
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
        everyone, first = (all_audio_embeds, all_text_embeds), (first_row, first_text)
        return world * piecewise_info_nce(
            pair[:2], everyone, logit_scale, dims, first, text_owner, ids, label_smoothing, rows
        )
    options = {"label_smoothing": label_smoothing} if label_smoothing else {}
    if world > 1:
        options |= {"all_audio_embeds": all_audio_embeds, "all_text_embeds": all_text_embeds}
    if ids is not None:
        options["ignore"] = false_negatives(*ids[:2], first_row, text_owner, ids[2], first_text)
    options |= {"first_row": first_row, "first_text": first_text, "text_owner": text_owner}
    return world * matryoshka(LOSSES[loss_type], dims, *pair, **options)


def check_text_owner(text_owner: Tensor | None, clips: int, texts: int) -> None:
    """Refuses a `text_owner` that is not `[texts]` rows of clips, or that leaves a clip without a text."""
    if text_owner is None:
        if clips != texts:
            raise ValueError(f"got {clips} clips and {texts} texts: give text_owner [{texts}], the clip of each text")
        return
    rows = text_owner.unique()
    fits = text_owner.shape == (texts,) and text_owner.dtype == torch.int64
    if not fits or not torch.equal(rows, torch.arange(clips, device=rows.device)):
        raise ValueError(
            f"text_owner must be int64 [{texts}], the row of each text's clip on this process, with each of the rows "
            f"0 to {clips - 1} at least once; got {text_owner.dtype} {list(text_owner.shape)} with {len(rows)} rows"
        )
