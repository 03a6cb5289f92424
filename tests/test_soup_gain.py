"""The claim the product stands on: averaging at every pruning step makes a better sparse model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def soup_gain() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "soup_gain.py"
    spec = importlib.util.spec_from_file_location("soup_gain", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_soup_beats_one_model_and_its_own_candidates(soup_gain: ModuleType) -> None:
    (row,) = soup_gain.measure(seeds=10, sparsity=0.95, starts=[0.2])
    assert row["gain"] >= 0.4
    assert row["gain"] - row["gain_half"] > 0.0
    assert row["over_candidates"] > 0.0
