"""Selection by a sampled bracket against a full sort, at sizes where it samples, with all that can mislead a sample."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsekit.errors import RunError
from sparsekit.pruning import top_k

SIZES = (150_000, 1, 0, 90_001)


def split(flat: np.ndarray) -> dict[str, np.ndarray]:
    return {str(i): part for i, part in enumerate(np.split(flat, np.cumsum(SIZES)[:-1]))}


def by_sorting(scores: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    places = np.flatnonzero(among)
    order = np.argsort(-scores[places].astype(np.float64), kind="stable")
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[places[order[:count]]] = True
    return chosen


def cases() -> dict[str, np.ndarray]:
    chance = np.random.default_rng(0)
    total = sum(SIZES)
    normal = chance.standard_normal(total).astype(np.float32)
    mostly_zero = np.where(chance.random(total) < 0.85, 0.0, np.abs(normal)).astype(np.float32)
    few_values = chance.integers(-3, 4, total)
    infinite = np.where(chance.random(total) < 0.4, np.float32(-math.inf), normal)
    infinite[::7] = math.inf
    spikes = np.zeros(total, dtype=np.float32)  # the sample sees other numbers than the rest holds
    spikes[:: total // top_k._SAMPLE] = 1.0 + np.arange(len(spikes[:: total // top_k._SAMPLE]))
    return {
        "normal": normal,
        "mostly zero": mostly_zero,
        "few values": few_values,
        "infinite": infinite,
        "spikes": spikes,
        "sorted": np.sort(normal),
        "equal": np.ones(total),
        "half": normal.astype(np.float16),
    }


@pytest.mark.parametrize("case", cases())
@pytest.mark.parametrize("alive", [1.0, 0.7])
def test_it_chooses_what_a_full_sort_chooses(case: str, alive: float) -> None:
    scores = cases()[case]
    among = np.random.default_rng(1).random(len(scores)) < alive
    available = int(among.sum())
    assert available > 2 * top_k._SAMPLE  # else there is no bracket
    for count in (0, 1, available // 10, available // 2, available - 1, available):
        chosen = top_k.highest(split(scores), split(among), count)
        assert np.array_equal(np.concatenate(list(chosen.values())), by_sorting(scores, among, count)), count


def test_a_bracket_that_misses_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = cases()["normal"]
    among = np.ones(len(scores), dtype=bool)
    expected = by_sorting(scores, among, 1000)
    for bracket in ((-9.0, -8.0), (8.0, 9.0), (math.nan, math.nan)):
        monkeypatch.setattr(top_k, "_bracket", lambda *_, found=bracket: found)
        chosen = top_k.highest(split(scores), split(among), 1000)
        assert np.array_equal(np.concatenate(list(chosen.values())), expected)


def test_a_bracket_leaves_little_in_doubt() -> None:
    scores = cases()["normal"]
    among = np.ones(len(scores), dtype=bool)
    low, high = top_k._bracket(split(scores), split(among), len(scores) // 10, len(scores))
    threshold = np.sort(scores)[-(len(scores) // 10)]
    assert low <= threshold <= high
    assert ((scores >= low) & (scores <= high)).mean() < 0.05


def test_nan_is_refused_among_those_that_count_wherever_it_lies() -> None:
    for place in (0, 7, 149_999, sum(SIZES) - 1):
        scores = cases()["normal"].copy()
        scores[place] = math.nan
        among = np.ones(len(scores), dtype=bool)
        with pytest.raises(RunError, match="hold NaN"):
            top_k.highest(split(scores), split(among), 1000)
        among[place] = False
        chosen = np.concatenate(list(top_k.highest(split(scores), split(among), 1000).values()))
        assert np.array_equal(chosen, by_sorting(np.nan_to_num(scores), among, 1000))
