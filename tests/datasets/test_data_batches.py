"""The order in which training takes the clips: it survives a restart and any number of processes."""

import numpy as np
import pytest

from processing.sampling import BatchPlan

LENGTHS = np.random.default_rng(0).lognormal(size=103).round(3)  # seconds


def plan(batch_size=8, epochs=3, seed=0, lengths=LENGTHS, **options) -> BatchPlan:
    return BatchPlan(lengths, batch_size, epochs, seed, **options)


@pytest.mark.parametrize("group", [1, 4, 16])
def test_an_epoch_holds_each_clip_at_most_once(group):
    batches = list(plan(group=group))
    assert len(batches) == len(plan(group=group)) == 3 * (103 // 8)
    for epoch in range(3):
        keys = [key for batch in batches[epoch * 12 : (epoch + 1) * 12] for key in batch]
        assert len(set(keys)) == len(keys) == 96 and {key[0] for key in keys} == {epoch}
        assert {key[1] for key in keys} <= set(range(103))


def test_clips_left_out_of_an_epoch_are_in_another():
    assert {index for batch in plan(epochs=20) for _, index in batch} == set(range(103))


def test_the_plan_depends_on_seed_and_epoch_only():
    full = list(plan(epochs=5))
    assert list(plan(epochs=3)) == full[:36] == list(plan(epochs=3))
    assert list(plan(seed=1)) != full[:36]
    assert [[index for _, index in batch] for batch in full[:12]] != [[i for _, i in batch] for batch in full[12:24]]


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_processes_share_each_batch(world_size):
    shares = [list(plan(rank=rank, world_size=world_size)) for rank in range(world_size)]
    for number, batch in enumerate(plan()):
        parts = [share[number] for share in shares]
        assert sorted(key for part in parts for key in part) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_resumed_plan_goes_on_where_it_stopped():
    full = list(plan())
    for start in range(len(full) + 1):
        resumed = plan()
        resumed.start = start
        assert list(resumed) == full[start:] and len(resumed) == len(full) - start


def test_grouping_by_length_saves_padding():
    def padding(group: int) -> float:
        batches = [LENGTHS[[index for _, index in batch]] for batch in plan(epochs=10, group=group)]
        return sum((batch.max() - batch).sum() for batch in batches)

    assert padding(16) < 0.25 * padding(1)
    spans = sorted((LENGTHS[batch].min(), LENGTHS[batch].max()) for batch in plan(group=16).epoch(0))
    assert all(longest <= shortest for (_, longest), (shortest, _) in zip(spans, spans[1:], strict=False))


def test_a_batch_is_never_larger_than_the_data():
    assert [len(batch) for batch in plan(lengths=[1.0, 2.0, 3.0])] == [3, 3, 3]


@pytest.mark.parametrize(
    ("batch_size", "clips", "world_size", "message"),
    [
        (8, 1, 1, "at least two clips in a batch, got batch_size=8 and a data set of 1"),
        (1, 9, 1, "at least two clips in a batch, got batch_size=1"),
        (0, 9, 1, "at least two clips"),
        (3, 9, 4, "batch_size=3 .*nothing for some of the 4 processes"),
        (8, 3, 4, "data set of 3 leave nothing for some of the 4 processes"),
    ],
)
def test_impossible_batches_are_refused(batch_size, clips, world_size, message):
    with pytest.raises(ValueError, match=message):
        plan(batch_size, lengths=np.ones(clips), world_size=world_size)
