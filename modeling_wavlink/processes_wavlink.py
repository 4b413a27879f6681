"""Rows of tensors between processes, with gradients."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


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


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sizes_of(rows: Tensor, world: int) -> list[int]:
    """How many rows each process has."""
    if world == 1:
        return [len(rows)]
    size = torch.tensor(len(rows), device=rows.device)
    sizes = [torch.empty_like(size) for _ in range(world)]
    dist.all_gather(sizes, size)
    return torch.stack(sizes).tolist()


def gather(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, with gradients back to each: `[b, ...] -> [B, ...]` and where the local ones start.

    Batches may differ in size between processes. Without a process group it returns its input and 0.
    """
    world = world_size()
    if world == 1:
        return rows, 0
    sizes = sizes_of(rows, world)
    padding = rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])
    parts = _AllGather.apply(torch.cat([rows, padding]))
    together = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return together, sum(sizes[: dist.get_rank()])


def gather_caption_ids(caption_ids: Tensor) -> Tensor:
    """`[b, K] -> [B, max K]`: processes may know of different numbers of captions."""
    width = torch.tensor(caption_ids.shape[1], device=caption_ids.device)
    dist.all_reduce(width, dist.ReduceOp.MAX)
    return gather(F.pad(caption_ids, (0, int(width) - caption_ids.shape[1]), value=-1))[0]


def receive(rows: Tensor, source: int | None, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of process `source`, in every process, or (`None`) of this one; no gradient."""
    if source is None:
        return rows[start:stop]
    own = source == dist.get_rank()
    block = rows[start:stop].contiguous() if own else rows.new_empty(stop - start, *rows.shape[1:])
    dist.broadcast(block, source)
    return block
