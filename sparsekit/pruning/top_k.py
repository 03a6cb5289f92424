"""Exact top-k: bound the threshold from a sample, then partition only the values within the bounds.

`numpy.partition` on all values moves each of them several times. Here each value is read once, in blocks that fit the
cache. If the sample's bounds turn out wrong, all values are partitioned.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, inf, sqrt
from typing import Any

import numpy as np

from sparsekit.errors import RunError

Array = np.ndarray[Any, Any]

_SAMPLE = 1 << 16
_BLOCK = 1 << 18  # numbers; as float32 they take 1 MB


def not_a_number(name: str) -> RunError:
    """The error for NaN among the scores of a layer."""
    return RunError(f"scores of {name} hold NaN; a pruning method must score every weight that is still kept")


def highest(scores: Mapping[str, Array], among: Mapping[str, Array], count: int) -> dict[str, Array]:
    """True at the `count` highest scores; ties go to the first in the mapping's order.

    Args:
        scores: Flat arrays; infinities allowed.
        among: Flat bool arrays; only scores that are True here can be chosen.
        count: How many to choose; at most the number of True values in `among`.

    Raises:
        RunError: a score that can be chosen is NaN.
    """
    available = sum(int(np.count_nonzero(allowed)) for allowed in among.values())
    low, high = _bracket(scores, among, count, available)
    chosen = _cut(scores, among, count, low, high)
    if chosen is None:
        chosen = _cut(scores, among, count, -inf, inf)
    assert chosen is not None
    return chosen


def _bracket(scores: Mapping[str, Array], among: Mapping[str, Array], count: int, available: int) -> tuple[Any, Any]:
    """Bounds from a sample that almost surely enclose the `count`-th highest score."""
    if available < 2 * _SAMPLE:
        return -inf, inf
    stride = available // _SAMPLE
    while gcd(stride, 210) > 1:  # so that samples do not align with rows and kernels
        stride += 1
    sample = np.concatenate([scores[name][::stride][allowed[::stride]] for name, allowed in among.items()])
    sample.sort()
    size, share = len(sample), count / available
    rank, margin = size * (1 - share), 5 * sqrt(size * share * (1 - share)) + 2  # five standard deviations
    below, above = int(rank - margin), int(rank + margin) + 1
    return sample[below] if below >= 0 else -inf, sample[above] if above < size else inf


def _cut(
    scores: Mapping[str, Array], among: Mapping[str, Array], count: int, low: Any, high: Any
) -> dict[str, Array] | None:
    """True at the `count` highest scores, if the lowest of them is within the bounds; None if it is not."""
    chosen = {name: np.empty(len(values), dtype=bool) for name, values in scores.items()}
    within: list[tuple[Array, Array]] = []  # of each block, the scores within the bounds and their indices
    found = 0
    for name, values in scores.items():
        for start in range(0, len(values), _BLOCK):
            part = slice(start, start + _BLOCK)
            block, allowed, above = values[part], among[name][part], chosen[name][part]
            if np.isnan(block.min()) and np.isnan(block[allowed]).any():
                raise not_a_number(name)
            between = block >= low
            np.logical_and(between, allowed, out=between)
            np.greater(block, high, out=above)
            np.logical_and(above, allowed, out=above)
            np.not_equal(between, above, out=between)
            found += int(np.count_nonzero(above))
            indices = np.flatnonzero(between)
            within.append((block[indices], indices))
    values = np.concatenate([part for part, _ in within]) if within else np.empty(0)
    missing = count - found
    if not 0 <= missing <= len(values):
        return None
    highest_within = _first_highest(values, missing, low)
    position = 0
    parts = iter(within)
    for flags in chosen.values():
        for start in range(0, len(flags), _BLOCK):
            _, indices = next(parts)
            flags[start : start + _BLOCK][indices] = highest_within[position : position + len(indices)]
            position += len(indices)
    return chosen


def _first_highest(values: Array, count: int, low: Any) -> Array:
    """True at the `count` highest of values that are all at least `low`; ties go to the first."""
    if not count:
        return np.zeros(len(values), dtype=bool)
    over = values > low
    rest = int(np.count_nonzero(over)) - count
    # many equal scores are slow to partition; if there are many, they equal the lower bound
    threshold = low if rest < 0 else np.partition(values[over], rest)[rest]
    flags = values > threshold
    ties = np.flatnonzero(values == threshold)
    flags[ties[: count - int(np.count_nonzero(flags))]] = True
    return np.asarray(flags)
