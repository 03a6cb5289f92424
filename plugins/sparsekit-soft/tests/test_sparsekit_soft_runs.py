"""Whole runs from the command line."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

Fit = Callable[..., dict[str, Any]]
METHODS = ["str", "cs", "dst", "gsm", "lc", "dnw", "movement"]
SMALL = ["--epochs", "6", "--model.kwargs", '{"channels": [8, 8, 16, 16]}', "--data.image_size", "8"]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Run `sparsekit fit`; the summary, its masks checked to be exact and the saved model to follow them."""

    def run(method: str, *options: str, sparsity: float = 0.9) -> dict[str, Any]:
        out = tmp_path / "run"
        argv = ["sparsekit", "fit", "--method", method, "--sparsity", str(sparsity), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", [*argv, "--device", "cpu", "--wandb.mode", "disabled", *options])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("sparsekit", run_name="__main__")
        assert stop.value.code == 0
        masks, model = load_file(out / "masks.safetensors"), load_file(out / "model" / "model.safetensors")
        total = sum(mask.numel() for mask in masks.values())
        assert sum(int((mask == 0).sum()) for mask in masks.values()) == round(sparsity * total)
        assert all(not model[name][mask == 0].any() for name, mask in masks.items())
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text("utf-8"))
        assert summary["status"] == "done"
        return summary

    return run


@pytest.mark.parametrize("merge", ["uniform", "greedy"])
@pytest.mark.parametrize("method", METHODS)
def test_fit_ends_at_the_target(method: str, merge: str, fit: Fit) -> None:
    summary = fit(method, *SMALL, "--merge", merge, "--replicas.count", "2")
    assert summary["sparsity"] == pytest.approx(0.9, abs=1e-4)


@pytest.mark.exhaustive
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95, 0.99])
@pytest.mark.parametrize("method", METHODS)
def test_fit_ends_at_any_target(method: str, sparsity: float, fit: Fit) -> None:
    fit(method, *SMALL, "--merge", "none", sparsity=sparsity)


@pytest.mark.parametrize("method", METHODS)
def test_one_model_learns_the_digits(method: str, fit: Fit) -> None:
    assert fit(method, "--merge", "none")["test.accuracy"] > 0.9
