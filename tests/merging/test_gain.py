"""Intervals of what a soup brought, against SciPy's bootstrap and a case worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from sparsekit.merging.gain import gain


def test_an_interval_is_scipys_over_the_same_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    soup = torch.rand(400, generator=generator)
    candidates = [soup + 0.1 * torch.randn(400, generator=generator) for _ in range(3)]
    found = gain({"loss": soup}, [{"loss": each} for each in candidates], seed=0)
    differences = (soup - torch.stack(candidates).mean(0)).double().numpy()
    assert found["gain.loss"] == pytest.approx(differences.mean())
    by_scipy = stats.bootstrap(
        (differences,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    width = by_scipy.high - by_scipy.low
    assert found["gain.loss.low"] == pytest.approx(by_scipy.low, abs=0.05 * width)
    assert found["gain.loss.high"] == pytest.approx(by_scipy.high, abs=0.05 * width)
    paired = 2 * 1.96 * differences.std() / 20  # examples are drawn together, so that their own spread cancels
    assert width == pytest.approx(paired, rel=0.1)


def test_equal_models_gain_nothing_and_infinite_losses_are_left_out() -> None:
    right = torch.tensor([1.0, 0.0, 1.0])
    found = gain(
        {"accuracy": right, "loss": torch.tensor([1.0, torch.inf, 2.0])}, [{"accuracy": right, "loss": right}], 0
    )
    assert found == {"gain.accuracy": 0.0, "gain.accuracy.low": 0.0, "gain.accuracy.high": 0.0}
    two = gain({"accuracy": right}, [{"accuracy": right}, {"accuracy": 1 - right}], 0)
    assert two["gain.accuracy"] == pytest.approx(2 / 3 - (2 / 3 + 1 / 3) / 2)


def test_the_same_seed_draws_the_same() -> None:
    soup, other = {"loss": torch.arange(50.0)}, [{"loss": torch.arange(50.0).flip(0)}]
    assert gain(soup, other, 1) == gain(soup, other, 1) != gain(soup, other, 2)
