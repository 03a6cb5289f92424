"""The k highest of many numbers, exactly: a sample brackets the threshold, one pass settles all but what lies between.

Full selection by `numpy.partition` moves every number several times. Here each is read once, in blocks that stay in the
cache, and only those that the sample leaves in doubt are partitioned. Where the sample misled, everything is in doubt.
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
    """What is wrong with the scores of a layer."""
    return RunError(f"scores of {name} hold NaN; a pruning method must score every weight that is still kept")


def highest(scores: Mapping[str, Array], among: Mapping[str, Array], count: int) -> dict[str, Array]:
    """True at the `count` highest scores; of equal ones the first, in the mapping's order.

    Args:
        scores: Flat arrays; infinities allowed.
        among: Flat bool arrays; only numbers True here can be chosen.
        count: How many, at most as many as there are among `among`.

    Raises:
        RunError: a score among them is NaN.
    """
    available = sum(int(np.count_nonzero(allowed)) for allowed in among.values())
    low, high = _bracket(scores, among, count, available)
    chosen = _cut(scores, among, count, low, high)
    if chosen is None:
        chosen = _cut(scores, among, count, -inf, inf)
    assert chosen is not None
    return chosen


def _bracket(scores: Mapping[str, Array], among: Mapping[str, Array], count: int, available: int) -> tuple[Any, Any]:
    """Two numbers between which the `count`-th highest almost surely lies."""
    if available < 2 * _SAMPLE:
        return -inf, inf
    stride = available // _SAMPLE
    while gcd(stride, 210) > 1:  # out of step with rows and kernels
        stride += 1
    sample = np.concatenate([scores[name][::stride][allowed[::stride]] for name, allowed in among.items()])
    sample.sort()
    size, share = len(sample), count / available
    place, margin = size * (1 - share), 5 * sqrt(size * share * (1 - share)) + 2  # five standard deviations
    below, above = int(place - margin), int(place + margin) + 1
    return sample[below] if below >= 0 else -inf, sample[above] if above < size else inf


def _cut(
    scores: Mapping[str, Array], among: Mapping[str, Array], count: int, low: Any, high: Any
) -> dict[str, Array] | None:
    """The choice, given that its lowest score lies from `low` to `high`; None where it does not."""
    chosen = {name: np.empty(len(values), dtype=bool) for name, values in scores.items()}
    doubtful: list[tuple[Array, Array]] = []  # each with where its answers belong
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
            places = np.flatnonzero(between)
            doubtful.append((block[places], places))
    values = np.concatenate([part for part, _ in doubtful]) if doubtful else np.empty(0)
    wanted = count - found
    if not 0 <= wanted <= len(values):
        return None
    settled = _first_highest(values, wanted, low)
    at = 0
    parts = iter(doubtful)
    for flags in chosen.values():
        for start in range(0, len(flags), _BLOCK):
            _, places = next(parts)
            flags[start : start + _BLOCK][places] = settled[at : at + len(places)]
            at += len(places)
    return chosen


def _first_highest(values: Array, count: int, low: Any) -> Array:
    """True at the `count` highest of values of `low` or more, ties to the first."""
    if not count:
        return np.zeros(len(values), dtype=bool)
    over = values > low
    rest = int(np.count_nonzero(over)) - count
    # many equal scores are slow to partition; where there are many, they are the bracket's end
    threshold = low if rest < 0 else np.partition(values[over], rest)[rest]
    flags = values > threshold
    ties = np.flatnonzero(values == threshold)
    flags[ties[: count - int(np.count_nonzero(flags))]] = True
    return np.asarray(flags)
