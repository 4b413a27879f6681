"""Mixtures: exact shares, no clip left out, the same every time."""

from collections import Counter

import datasets
import pytest

from processing.datasets.mixture import mixture


def part(name: str, count: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"clip": [f"{name}{i}" for i in range(count)], "source": [name] * count})


PARTS = {"big": part("big", 12), "small": part("small", 5)}


@pytest.mark.parametrize(
    ("weights", "epoch"),
    [
        ({"big": 1, "small": 1}, {"big": 12, "small": 12}),
        ({"big": 3, "small": 1}, {"big": 15, "small": 5}),  # now the small one comes once
        ({"big": 0.1, "small": 0.2}, {"big": 12, "small": 24}),
        ({"big": 12, "small": 5}, {"big": 12, "small": 5}),  # the lengths: every clip once
        ({"big": 1, "small": 1000}, {"big": 12, "small": 12000}),
    ],
)
def test_a_weight_is_an_exact_share_of_the_shortest_epoch_with_every_clip(weights, epoch):
    mixed = mixture(PARTS, weights)
    assert Counter(mixed["source"]) == epoch
    times = Counter(mixed["clip"])
    for dataset in PARTS.values():
        counts = [times[clip] for clip in dataset["clip"]]
        assert min(counts) >= 1 and max(counts) - min(counts) <= 1
    assert list(mixed["clip"]) == list(mixture(PARTS, weights)["clip"])
    assert list(mixed["clip"]) != list(mixture(PARTS, weights, seed=1)["clip"])


def test_the_clips_that_come_once_more_are_drawn_by_the_seed():
    extras = {
        tuple(clip for clip, times in sorted(Counter(mixture(PARTS, {"big": 1, "small": 1}, seed)["clip"]).items())
              if times == 3)
        for seed in range(20)
    }  # fmt: skip
    assert len(extras) > 3 and all(len(extra) == 2 for extra in extras)


def test_every_stretch_is_mixed():
    sources = mixture({"big": part("big", 1000), "small": part("small", 10)}, {"big": 1, "small": 1})["source"]
    assert len(sources) == 2000
    assert all(30 < Counter(sources[start : start + 100])["small"] < 70 for start in range(0, 2000, 100))


def test_one_part_is_itself_shuffled():
    mixed = mixture({"big": PARTS["big"]}, {"big": 7})["clip"]
    assert sorted(mixed) == sorted(PARTS["big"]["clip"]) and list(mixed) != list(PARTS["big"]["clip"])


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ({}, {}, "at least one"),
        (PARTS, {"big": 1, "small": 1, "smal": 1}, "weights for smal, but the data sets are big, small"),
        (PARTS, {"big": 1}, "no weight for small"),
        (PARTS, {"big": 0, "small": -1}, "positive number, got big=0, small=-1"),
        (PARTS, {"big": float("nan"), "small": float("inf")}, "positive number, got big=nan, small=inf"),
        (PARTS | {"none": PARTS["big"].select([])}, {"big": 1, "small": 1, "none": 1}, "none holds no clips"),
        (PARTS | {"other": datasets.Dataset.from_dict({"clip": [1]})}, {"big": 1, "small": 1, "other": 1},
         "columns of other .clip. are not those of big .clip, source."),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_refused(parts, weights, message):
    with pytest.raises(ValueError, match=message):
        mixture(parts, weights)
