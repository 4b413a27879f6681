"""Mixtures: exact shares, no clip left out, the same every time."""

from collections import Counter

import datasets
import pytest

from processing.datasets import loaders
from processing.datasets.mixture import mixture
from wavlink.training.recipe_fields import Recipe


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


def test_a_column_that_a_part_lacks_or_never_fills_is_none_there():
    other = datasets.Dataset.from_dict({"clip": ["other0", "other1"], "caption": ["rain", "snow"]})
    empty = datasets.Dataset.from_dict({"clip": ["empty0"], "caption": [None], "source": ["empty"]})
    mixed = mixture(PARTS | {"other": other, "empty": empty}, {"big": 12, "small": 5, "other": 2, "empty": 1})
    assert Counter(mixed["source"]) == {"big": 12, "small": 5, None: 2, "empty": 1}
    assert Counter(mixed["caption"]) == {None: 18, "rain": 1, "snow": 1}


def test_columns_that_training_does_not_read_may_differ(monkeypatch):
    sources = {
        "a": {"audio": ["a.wav"], "caption": ["rain"], "year": [1999], "site": ["x"]},
        "b": {"audio": ["b.wav"], "caption_2": ["wind"], "label": ["wind"], "year": ["2001"], "words": ["x"]},
    }
    monkeypatch.setattr(loaders, "load_source", lambda recipe, name, split: datasets.Dataset.from_dict(sources[name]))
    mixed = loaders.load_training_set(
        Recipe("m", init="any", mixture={"a": 1.0, "b": 1.0}, caption_columns=("words",))
    )
    assert mixed.column_names == ["audio", "caption", "site", "caption_2", "label", "words"] and len(mixed) == 2


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
         "column 'clip' of other holds Value.'int64'., that of big Value.'string'.: write both in one type"),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_refused(parts, weights, message):
    with pytest.raises(ValueError, match=message):
        mixture(parts, weights)
