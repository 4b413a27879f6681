"""Losses a block of pairs at a time, and several texts a clip: two processes are one, blocks are the whole."""

from datetime import timedelta
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_wavlink.losses_wavlink import (
    LOSSES,
    blockwise_sigmoid,
    contrastive_loss,
    false_negatives,
    gather,
    info_nce,
    matryoshka,
    sigmoid,
)
from tests.loss_batches import Batch, gradients
from tests.loss_batches import same as nearly
from tests.processes import spawn

CLIPS = [slice(0, 3), slice(3, 5)]  # of each process
TEXTS = [slice(0, 6), slice(6, 9)]
OWNER = torch.tensor([0, 2, 0, 1, 2, 2, 3, 4, 4])
# Text 0 (clip 0) is also clip 4's, texts 3 (clip 1) and 6 (clip 3) are the same; the last columns are in no batch.
CAPTION_IDS = torch.tensor([[0, 1, 90, -1], [2, -1, -1, -1], [3, 4, 5, -1], [2, 91, -1, -1], [7, 8, 0, -1]])
DIMS = [8, 4, 2]
CASES = [
    (loss_type, several, with_ids) for loss_type in LOSSES for several in (False, True) for with_ids in (False, True)
]


def leaves(several=False) -> list[torch.Tensor]:
    """Clips, texts, scale and bias."""
    generator = torch.Generator().manual_seed(3)
    clips, texts = torch.randn(5, 8, generator=generator), torch.randn(9 if several else 5, 8, generator=generator)
    return [x.double().requires_grad_() for x in (clips, texts, torch.tensor(6.0), torch.tensor(-2.0))]


def local(rank: int | None, several: bool, with_ids: bool) -> tuple[list[torch.Tensor], dict]:
    """The leaves of one process (`None`: of all), and what belongs to them; the processes' ids differ in width."""
    clips, texts, scale, bias = (x.detach() for x in leaves(several))
    ids, owner = CAPTION_IDS, OWNER if several else None
    if rank is not None:
        rows = CLIPS[rank]
        clips, texts, ids = clips[rows], texts[TEXTS[rank] if several else rows], ids[rows, : 4 - rank]
        owner = OWNER[TEXTS[rank]] - rows.start if several else None
    options = {"text_owner": owner, "caption_ids": ids if with_ids else None}
    return [x.clone().requires_grad_() for x in (clips, texts, scale, bias)], options


def results(loss: torch.Tensor, inputs: list[torch.Tensor], factor: float = 1.0) -> dict[str, torch.Tensor]:
    (factor * loss).backward()
    grads = {name: x.grad for name, x in zip(("clips", "texts", "scale", "bias"), inputs, strict=True)}
    return {"loss": loss.detach(), **{name: grad for name, grad in grads.items() if grad is not None}}


def of_a_case(rank, case, dims=DIMS, **options):
    loss_type, several, with_ids = case
    inputs, about = local(rank, several, with_ids)
    if loss_type == "info_nce":
        options["label_smoothing"] = 0.1
    return results(contrastive_loss(*inputs, loss_type, dims, gather_negatives=True, **about, **options), inputs)


def gathered_sigmoid(rank: int, dim: int) -> dict[str, torch.Tensor]:
    """All texts in one place, by autograd; the upstream gradient differs between the processes."""
    inputs, about = local(rank, True, True)
    texts, first_text = gather(inputs[1])
    clips, first_row = gather(inputs[0])
    whole = false_negatives(CAPTION_IDS, CAPTION_IDS, text_owner=OWNER)[0]
    loss = matryoshka(
        sigmoid,
        [dim],
        *inputs,
        all_audio_embeds=clips,
        all_text_embeds=texts,
        first_row=first_row,
        first_text=first_text,
        text_owner=about["text_owner"],
        ignore=(whole[CLIPS[rank]], None),
    )
    return results(2 * loss, inputs, factor=rank + 1.0)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gave."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            self.elements = max(self.elements, x.numel() if isinstance(x, torch.Tensor) else 0)
        return out


def largest_tensor(loss_type, clips, texts, width, **options) -> int:
    """Forward and backward; what the inputs themselves hold does not count."""
    inputs = [torch.randn(n, width).requires_grad_() for n in (clips, texts)]
    extra = [torch.tensor(3.0).requires_grad_(), torch.tensor(-2.0).requires_grad_()]
    with Largest() as seen:
        contrastive_loss(*inputs, *extra, loss_type, [width, width // 2], **options).backward()
    return seen.elements


# Batches of any size, cut at any place.
PAIRS = [(several, with_ids) for several in (False, True) for with_ids in (False, True)]
CUT = [
    Batch(loss_type, 2 + 3 * place, 6, 8.0, -3.0, *PAIRS[(place + number) % 4], 0.1, seed=place)
    for number, loss_type in enumerate(LOSSES)
    for place in range(4)
]


def share(batch: Batch, rank: int) -> tuple[list[torch.Tensor], dict]:
    """The leaves and what belongs to them of one of two processes, at a place that the seed draws."""
    cut = int(np.random.default_rng((batch.seed, 3)).integers(1, batch.clips))
    rows = slice(0, cut) if rank == 0 else slice(cut, batch.clips)
    clips, texts, scale, bias = (x.detach() for x in batch.leaves())
    owner = batch.owner()
    own = torch.tensor((owner >= rows.start) & (owner < rows.stop))
    about = {
        "text_owner": torch.tensor(owner)[own] - rows.start if batch.several else None,
        "caption_ids": torch.tensor(batch.captions())[rows] if batch.with_ids else None,
    }
    return [x.clone().requires_grad_() for x in (clips[rows], texts[own], scale, bias)], about


def work(rank, folder):
    dist.init_process_group(
        "gloo", f"file://{folder}/meeting", timeout=timedelta(minutes=3), rank=rank, world_size=len(CLIPS)
    )
    torch.set_num_threads(1)
    found = {case: of_a_case(rank, case) for case in CASES}
    for dim in DIMS:
        inputs, about = local(rank, True, True)
        loss = contrastive_loss(*inputs, "sigmoid", [dim], gather_negatives=True, **about)
        found["blocks", dim] = results(loss, inputs, factor=rank + 1.0)
        found["gathered", dim] = gathered_sigmoid(rank, dim)
    for chunk in (1, 2, 4):
        for case in CASES:
            found["chunk", chunk, case] = of_a_case(rank, case, chunk=chunk)
    for loss_type in LOSSES:
        found["largest", loss_type] = largest_tensor(loss_type, 20, 20, 64, gather_negatives=True)
    found["cut"] = []
    for batch in CUT:
        inputs, about = share(batch, rank)
        loss = batch.loss(inputs, gather_negatives=True, chunk=3, **about)
        found["cut"].append([loss.detach(), *gradients(loss, inputs)])
    found["evaluation"] = contrastive_loss(*local(rank, False, False)[0], "sigmoid", DIMS).detach()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_processes")
    spawn(work, (str(folder),), len(CLIPS))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(CLIPS))]


def together(ranks: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What DDP makes of it: the mean of the losses and of the gradients (rows stay where they are)."""
    whole = {name: torch.cat([found[name] for found in ranks]) / len(ranks) for name in ("clips", "texts")}
    return whole | {name: torch.stack([x[name] for x in ranks]).mean(0) for name in ranks[0] if name not in whole}


def same(actual, expected, tolerance=1e-12):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
        assert value.abs().max() > 1e-3, name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_are_one(case, two_processes):
    alone = of_a_case(None, case)
    same(together([found[case] for found in two_processes]), alone)
    unmasked = of_a_case(None, (*case[:2], False))["loss"]
    assert (abs(alone["loss"] - unmasked) > 1e-2) == case[2]


def test_two_processes_are_one_however_a_batch_is_cut(two_processes):
    """The mean over processes, as DDP takes it, is the loss and the gradient of the whole."""
    for batch, *both in zip(CUT, *(found["cut"] for found in two_processes), strict=True):
        leaves = batch.leaves()
        clips, texts, *rest = gradients(loss := batch.loss(leaves), leaves)
        owner, cut = batch.owner(), int(np.random.default_rng((batch.seed, 3)).integers(1, batch.clips))
        order = np.concatenate([np.flatnonzero(owner < cut), np.flatnonzero(owner >= cut)])
        (loss0, clips0, texts0, *rest0), (loss1, clips1, texts1, *rest1) = both
        means = [(one + other) / 2 for one, other in zip([loss0, *rest0], [loss1, *rest1], strict=True)]
        rows = [torch.cat([clips0, clips1]) / 2, torch.cat([texts0, texts1]) / 2]
        nearly([*means, *rows], [loss, *rest, clips, texts[order]])


@pytest.mark.parametrize("dim", DIMS)
def test_blocks_are_the_gathered_loss_in_each_process(dim, two_processes):
    """Also where each process multiplies its loss by something else: no foreign text takes the wrong factor."""
    for found in two_processes:
        same(found["blocks", dim], found["gathered", dim])


@pytest.mark.parametrize("chunk", [1, 2, 4])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_smaller_blocks_of_two_processes(chunk, case, two_processes):
    same(together([found["chunk", chunk, case] for found in two_processes]), of_a_case(None, case))


def test_no_process_holds_all_texts(two_processes):
    for found in two_processes:
        assert found["largest", "sigmoid"] == 20 * 64  # one process's texts; the logits are 20 x 20
        assert found["largest", "info_nce"] == 40 * 64


def test_evaluation_asks_no_other_process(two_processes):
    for rank, found in enumerate(two_processes):
        inputs = local(rank, False, False)[0]
        assert torch.equal(found["evaluation"], matryoshka(sigmoid, DIMS, *inputs).detach())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_blocks_of_one_process(case, chunk):
    same(of_a_case(None, case, chunk=chunk), of_a_case(None, case))


def test_blocks_keep_memory_linear_in_the_batch():
    assert largest_tensor("sigmoid", 64, 64, 4) == 64 * 64
    assert largest_tensor("sigmoid", 64, 64, 4, chunk=8) == 64 * 8
    assert largest_tensor("info_nce", 64, 64, 4) == 64 * 64
    assert largest_tensor("info_nce", 64, 64, 2, chunk=16) == 16 * 16


def test_pieces_of_info_nce_keep_no_logits_for_backward():
    inputs = [torch.randn(64, 4).requires_grad_() for _ in range(2)] + [torch.tensor(3.0), torch.tensor(0.0)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        contrastive_loss(*inputs, "info_nce", [4, 2], chunk=16)
    assert max(kept) == 64 * 4


def test_blocks_keep_nothing_but_the_inputs_for_backward():
    inputs = leaves()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        blockwise_sigmoid(*inputs, DIMS, chunk=2)
    assert {x.data_ptr() for x in kept if x.dim()} == {x.data_ptr() for x in inputs[:2]}


def test_blocks_stay_in_full_precision_where_backward_runs_under_autocast():
    inputs, about = local(None, True, True)
    inputs = [x.detach().float().requires_grad_() for x in inputs]
    loss = contrastive_loss(*inputs, "sigmoid", DIMS, chunk=2, **about)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(loss, inputs)
    expected = of_a_case(None, ("sigmoid", True, True))
    same({name: x.double() for name, x in found.items()}, expected, tolerance=1e-5)


def test_several_texts_of_one_process_have_the_gradients_of_finite_differences():
    for loss, options in ((sigmoid, {}), (info_nce, {"label_smoothing": 0.2})):
        ignore = false_negatives(CAPTION_IDS, CAPTION_IDS, text_owner=OWNER)
        subject = partial(loss, ignore=ignore, text_owner=OWNER, **options)
        assert torch.autograd.gradcheck(subject, leaves(several=True), atol=1e-6)
