"""Mixtures of data sets in given proportions."""

import math
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np


def mixture(parts: Mapping[str, datasets.Dataset], weights: Mapping[str, float], seed: int = 0) -> datasets.Dataset:
    """Mix data sets into one, of which each has a given share.

    A weight is a part's share of the clips of an epoch, up to a common factor: `{"clotho": 1, "audiocaps": 3}` makes
    every fourth clip one of Clotho. Shares are exact, not averages, except for rounding to a number of clips.

    An epoch (one pass over the result) is as short as possible without leaving out a clip: `max(len(part) / share)`
    clips. The part with that maximum occurs once, the others are repeated: of a part that occurs 2.4 times, every clip
    occurs twice and four in ten, drawn at random, a third time. With the parts' lengths as weights every clip occurs
    once. The order is shuffled, so that any section of it has the same proportions.

    Args:
        parts: data sets by name; a column that some of them lack is None there.
        weights: a positive weight for each of them, by the same names.
        seed: of the order and the choice of repeated clips.

    Raises:
        ValueError: names that differ, a weight that is not a positive number, an empty part, or a column with another
            type than in another part.
    """
    _check(parts, weights)
    total = sum(weights.values())
    share = {name: weights[name] / total for name in parts}
    epoch = max(len(part) / share[name] for name, part in parts.items())
    rng = np.random.default_rng(seed)
    rows, start = [], 0
    for name, part in parts.items():
        repeats, rest = divmod(max(round(epoch * share[name]), len(part)), len(part))
        rows += [np.tile(np.arange(len(part)), repeats) + start, rng.permutation(len(part))[:rest] + start]
        start += len(part)
    return datasets.concatenate_datasets(list(parts.values())).select(rng.permutation(np.concatenate(rows)))


def _check(parts: Mapping[str, datasets.Dataset], weights: Mapping[str, float]) -> None:
    if not parts:
        raise ValueError("a mixture needs at least one data set")
    if unknown := [name for name in weights if name not in parts]:
        raise ValueError(f"weights for {', '.join(unknown)}, but the data sets are {', '.join(parts)}")
    if missing := [name for name in parts if name not in weights]:
        raise ValueError(f"no weight for {', '.join(missing)}: give each data set one, or leave it out")
    if wrong := [f"{name}={weights[name]}" for name in parts if not 0 < weights[name] < math.inf]:
        raise ValueError(f"a weight is a positive number, got {', '.join(wrong)}; leave out what should not be there")
    if empty := [name for name, part in parts.items() if not len(part)]:
        raise ValueError(f"{', '.join(empty)} holds no clips")
    for conflict in type_conflicts(parts).values():
        raise ValueError(f"{conflict}: write both in one type, or rename one of them")


def type_conflicts(parts: Mapping[str, datasets.Dataset]) -> dict[str, str]:
    """Return, by column, what two data sets hold in it where their types differ; a column without a cell has none."""
    known: dict[str, tuple[str, Any]] = {}
    conflicts = {}
    for name, part in parts.items():
        for column, feature in part.features.items():
            if feature != datasets.Value("null"):
                first, other = known.setdefault(column, (name, feature))
                if feature != other:
                    conflicts[column] = f"the column {column!r} of {name} holds {feature}, that of {first} {other}"
    return conflicts
