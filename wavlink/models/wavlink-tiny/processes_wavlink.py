"""Exchange of tensor rows between processes, with gradients."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


class _AllGather(torch.autograd.Function):
    """All-gather with gradients, which `torch.distributed.nn.all_gather` does not send through gloo.

    The backward of a gather is a sum.
    """

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
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sizes_of(rows: Tensor, world: int) -> list[int]:
    """Return the number of rows of each of `world` processes."""
    if world == 1:
        return [len(rows)]
    size = torch.tensor(len(rows), device=rows.device)
    sizes = [torch.empty_like(size) for _ in range(world)]
    dist.all_gather(sizes, size)
    return torch.stack(sizes).tolist()


def gather(rows: Tensor) -> tuple[Tensor, int]:
    """Gather the rows of all processes, with gradients: `[b, ...] -> [B, ...]` and the index of the first local row.

    Batches may differ in size between processes. Without a process group the result is the input and 0.
    """
    world = world_size()
    if world == 1:
        return rows, 0
    sizes = sizes_of(rows, world)
    padding = rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])
    parts = _AllGather.apply(torch.cat([rows, padding]))
    all_rows = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return all_rows, sum(sizes[: dist.get_rank()])


def gather_caption_ids(caption_ids: Tensor) -> Tensor:
    """Gather caption ids, `[b, K] -> [B, max K]`: the number of captions K may differ between processes."""
    width = torch.tensor(caption_ids.shape[1], device=caption_ids.device)
    dist.all_reduce(width, dist.ReduceOp.MAX)
    return gather(F.pad(caption_ids, (0, int(width) - caption_ids.shape[1]), value=-1))[0]


def receive(rows: Tensor, source: int | None, start: int, stop: int) -> Tensor:
    """Send rows `start` to `stop` of process `source` to every process, without gradients.

    Args:
        source: None takes them from this process and sends nothing.
    """
    if source is None:
        return rows[start:stop]
    is_source = source == dist.get_rank()
    block = rows[start:stop].contiguous() if is_source else rows.new_empty(stop - start, *rows.shape[1:])
    dist.broadcast(block, source)
    return block
