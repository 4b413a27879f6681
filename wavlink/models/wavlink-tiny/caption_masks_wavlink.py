"""Which text belongs to which clip, and which pairs of a clip and another's text must not count as negatives."""

import torch
from torch import Tensor
from torch.nn import functional as F


def false_negatives(
    caption_ids: Tensor,
    all_caption_ids: Tensor,
    first_row: int = 0,
    text_owner: Tensor | None = None,
    all_text_ids: Tensor | None = None,
    first_text: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Find pairs of a clip and another clip's text that is also a caption of the first: they are no negatives.

    Args:
        caption_ids: `[b, K]`, for each local clip the ids of its captions in this batch (one, or with `text_owner` all
            its texts, in their order), then those of its further captions; -1 is padding. Equal texts have equal ids.
        all_caption_ids: `[B, K]`, the same for all processes; the local rows start at `first_row`.
        text_owner: `[t]`, see `info_nce`.
        all_text_ids: `[T]`, `text_ids` of all processes (default: the first column of `all_caption_ids`, or with
            `text_owner` the local ones); the local texts start at `first_text` (default: `first_row`).

    Returns:
        Two masks, local clips against all texts `[b, T]`, and local texts against all clips `[t, B]`.
    """
    ids = text_ids(caption_ids, text_owner)
    if all_text_ids is None:
        all_text_ids = all_caption_ids[:, 0] if text_owner is None else ids
    owner = torch.arange(len(ids), device=ids.device) if text_owner is None else text_owner
    local = local_owner(owner, first_row if first_text is None else first_text, len(all_text_ids))
    per_audio = shared_captions(caption_ids, all_text_ids, local)
    return per_audio, shared_captions(all_caption_ids, ids, first_row + owner).T


def text_ids(caption_ids: Tensor, text_owner: Tensor | None = None) -> Tensor:
    """Return the ids of the batch's texts, `[b, K] -> [t]`: the n-th text of a clip has the n-th id of its row.

    Raises:
        ValueError: a row of `caption_ids` is shorter than its clip's number of texts.
    """
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


def local_owner(text_owner: Tensor, first_text: int, texts: int) -> Tensor:
    """Return the local clip of each of all texts, `[t] -> [T]`; -1 for the texts of other processes.

    Args:
        text_owner: `[t]`, the local clip of each local text.
        first_text: index of the first local text among all.
        texts: number of all texts.
    """
    owner = text_owner.new_full((texts,), -1)
    owner[first_text : first_text + len(text_owner)] = text_owner
    return owner


def shared_captions(caption_ids: Tensor, ids: Tensor, owner: Tensor) -> Tensor:
    """Return the mask `[b, n]` of texts that are a clip's caption but belong to another clip.

    Args:
        caption_ids: `[b, K]`, of each clip.
        ids: `[n]`, of each text.
        owner: `[n]`, the clip of each text.
    """
    shared = torch.zeros(len(caption_ids), len(ids), dtype=torch.bool, device=ids.device)
    for column in caption_ids.unbind(1):  # not all at once: that would be K masks
        shared |= column[:, None] == ids
    return shared & (torch.arange(len(caption_ids), device=ids.device)[:, None] != owner)


def check_text_owner(text_owner: Tensor | None, clips: int, texts: int) -> None:
    """Check that `text_owner` gives a clip for each text and leaves no clip without a text.

    Raises:
        ValueError: it does not, or it is missing although the numbers of clips and texts differ.
    """
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
