"""The gradient of `transformers.Trainer` on two processes, in chunks, and with shares of unequal size."""

import gc
import os
import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from transformers import Trainer

from tests import trainer_runs
from tests.processes import spawn
from tests.trainer_runs import DIMS, REGIMES, collator, prepared, rows, snapshot, train, trainer
from wavlink.training.grad_cache import backward
from wavlink.training.trainer import WavLinkTrainer

LOSSES = ["info_nce", "sigmoid"]

wavlink = trainer_runs.wavlink

# Clips in the data set, trainer, and its options, for two processes; each epoch is one batch.
TOGETHER = {
    "stock, 3 + 3": (6, Trainer, {}),
    "ours, 3 + 2": (5, WavLinkTrainer, {}),
    # Without its search for unused parameters DDP also talks at the second forward; so in train.py.
    "ours, 3 + 2, chunks of 2": (5, WavLinkTrainer, {"micro_batch_size": 2, "ddp_find_unused_parameters": False}),
}
ALONE = {
    "stock": (5, Trainer, {}),
    "ours": (5, WavLinkTrainer, {}),
    "ours, chunks of 2": (5, WavLinkTrainer, {"micro_batch_size": 2}),
}


def reference(folder, loss_type: str, regime: str, clips: int, dims=DIMS) -> list[dict[str, torch.Tensor]]:
    """The gradients of two steps on one process with all clips in one piece, without a Trainer."""
    model = prepared(folder, loss_type, regime, dims).train()
    batch = collator(folder)(rows(clips))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = []
    for _ in range(2):
        model.zero_grad()
        backward(Accelerator(cpu=True), model, batch)
        steps.append(snapshot(model))
        optimizer.step()
    return steps


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert set(one) == set(other)
        for name, gradient in other.items():
            torch.testing.assert_close(
                one[name], gradient, atol=1e-5, rtol=0, msg=lambda m, w=f"step {step}, {name}": f"{w}: {m}"
            )


def work(rank: int, folder: str) -> None:
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {**ranks, "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    gc.freeze()  # each Trainer collects garbage at its start, which need not look through all that was imported
    dist.init_process_group("gloo", f"file://{folder}/meeting", timeout=timedelta(minutes=3), rank=rank, world_size=2)
    found = {}
    for loss_type in LOSSES:
        for regime in REGIMES:
            for name, (clips, kind, options) in TOGETHER.items():
                model = prepared(folder, loss_type, regime)
                found[loss_type, regime, name] = train(folder, model, rows(clips), kind, **options)
        for dim in DIMS:
            model = prepared(folder, loss_type, dims=[dim])
            found[loss_type, dim] = train(folder, model, rows(5), micro_batch_size=2, max_steps=1)
        options = {"per_device_train_batch_size": 4, "max_steps": -1, "num_train_epochs": 1}
        options["accelerator_config"] = {"even_batches": False}
        found[loss_type, "13 clips"] = train(folder, prepared(folder, loss_type), rows(13), Trainer, **options)
        options = {"per_device_train_batch_size": 4, "max_steps": 2}
        found[loss_type, "plan"] = train(folder, prepared(folder, loss_type), rows(13), **options)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(wavlink) -> dict:
    """The gradients of every case on two processes."""
    spawn(work, (str(wavlink),), 2)
    ranks = [torch.load(wavlink / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for case, steps in ranks[0].items():
        for one, other in zip(steps, ranks[1][case], strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one), case
    return ranks[0]


@pytest.fixture(scope="module")
def expected(wavlink) -> dict:
    """What it should be, by (loss, regime, clips)."""
    return {
        (loss_type, regime, clips): reference(wavlink, loss_type, regime, clips)
        for loss_type in LOSSES
        for regime in REGIMES
        for clips in (5, 6)
    }


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes(together, expected, loss_type, regime, name):
    assert_same(together[loss_type, regime, name], expected[loss_type, regime, TOGETHER[name][0]])


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", ALONE)
def test_one_process(wavlink, expected, loss_type, regime, name):
    clips, kind, options = ALONE[name]
    options = {**options, "per_device_train_batch_size": 5}
    found = train(wavlink, prepared(wavlink, loss_type, regime), rows(clips), kind, **options)
    assert_same(found, expected[loss_type, regime, clips])


@pytest.mark.skipif(torch.accelerator.is_available(), reason="memory is pinned for an accelerator")
def test_without_an_accelerator_no_loader_warns_of_pinned_memory(wavlink):
    options = {"use_cpu": False, "dataloader_pin_memory": True, "label_names": ["caption_ids"], "max_steps": 1}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*pin_memory")
        ours = trainer(wavlink, prepared(wavlink, "info_nce"), rows(3), **options)
        ours.train()
        assert "eval_loss" in ours.evaluate()


def test_training_drops_a_calibration_of_other_weights(wavlink):
    model = prepared(wavlink, "info_nce", "full")
    fit = {"prior": 0.01, "dims": {"32": {"slope": 3.0, "intercept": -1.0}}}
    model.config.match_calibration = fit
    trainer = trainer_runs.trainer(wavlink, model, rows(5), per_device_train_batch_size=5, max_steps=1)
    assert model.config.match_calibration == fit  # as for an evaluation alone
    trainer.train()
    assert model.config.match_calibration is None


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("dim", DIMS)
def test_each_nested_dim(wavlink, together, loss_type, dim):
    assert_same(together[loss_type, dim], reference(wavlink, loss_type, "full", 5, [dim])[:1])


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", LOSSES)
def test_stock_trainer_with_an_uneven_last_batch(wavlink, together, loss_type):
    """13 clips in batches of 4 a process: 4 + 4, then 4 + 1; on one process 8, then 5."""
    options = {"per_device_train_batch_size": 8, "max_steps": -1, "num_train_epochs": 1}
    alone = train(wavlink, prepared(wavlink, loss_type), rows(13), Trainer, **options)
    assert len(alone) == 2
    assert_same(together[loss_type, "13 clips"], alone)


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_plan_is_that_of_one_process(wavlink, together, loss_type):
    """Two epochs of one batch of 8 out of 13."""
    options = {"per_device_train_batch_size": 8, "max_steps": 2}
    assert_same(together[loss_type, "plan"], train(wavlink, prepared(wavlink, loss_type), rows(13), **options))


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("regime", REGIMES)
def test_the_tolerance_would_notice_missing_negatives(wavlink, expected, loss_type, regime):
    """The gradients if each process knows its share of clips alone: the mean of the two shares' gradients."""
    model = prepared(wavlink, loss_type, regime).train()
    collate = collator(wavlink)
    for share in (rows(6)[::2], rows(6)[1::2]):
        (model(**collate(share)).loss / 2).backward()
    whole = expected[loss_type, regime, 6][0]
    apart = {name: (gradient - whole[name]).abs().max().item() for name, gradient in snapshot(model).items()}
    for part in ("audio_model", "text_model", "audio_projection", "text_projection", "logit_scale"):
        assert max(value for name, value in apart.items() if name.startswith(part)) > 3e-4, (
            part
        )  # thirty times the tolerance
