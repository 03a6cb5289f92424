"""Every merge under the contract kit and in whole runs."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from sparsekit_merges.dare import DARE
from sparsekit_merges.fisher import Fisher
from sparsekit_merges.learned import Learned
from sparsekit_merges.likelihood import Likelihood
from sparsekit_merges.model_stock import ModelStock
from sparsekit_merges.swa import SWA
from sparsekit_merges.ties import TIES

from sparsekit import MergeStrategy
from sparsekit.testing import check_merge

Fit = Callable[..., dict[str, Any]]
KWARGS = '{"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}'
SMALL = ["--epochs", "6", "--model.kwargs", KWARGS, "--data.image_size", "8", "--device", "cpu"]
SMALL += ["--replicas.count", "2", "--replicas.start", "0", "--wandb.mode", "disabled"]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Run `sparsekit fit` here; the summary, masks checked to be exact and the model to follow them."""

    def run(*options: str, sparsity: float = 0.9) -> dict[str, Any]:
        argv = ["sparsekit", "fit", *SMALL, "--sparsity", str(sparsity), "--out", str(tmp_path / "run"), *options]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("sparsekit", run_name="__main__")
        assert stop.value.code == 0
        masks = load_file(tmp_path / "run" / "masks.safetensors")
        model = load_file(tmp_path / "run" / "model" / "model.safetensors")
        total = sum(mask.numel() for mask in masks.values())
        assert sum(int((mask == 0).sum()) for mask in masks.values()) == round(sparsity * total)
        assert all(not model[name][mask == 0].any() for name, mask in masks.items())
        summary: dict[str, Any] = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
        assert summary["status"] == "done"
        return summary

    return run


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Fisher, {"images": 32}),
        (Learned, {"steps": 3}),
        pytest.param(Learned, {"steps": 3, "per": "tensor"}, marks=pytest.mark.slow),
        (ModelStock, {}),
        (Likelihood, {}),
        (SWA, {}),
        (TIES, {}),
        pytest.param(TIES, {"density": 0.05, "scale": 2.0}, marks=pytest.mark.slow),
        (DARE, {}),
        pytest.param(DARE, {"density": 0.05}, marks=pytest.mark.slow),
    ],
)
def test_keeps_the_contract(cls: type[MergeStrategy], options: dict[str, Any]) -> None:
    check_merge(cls, **options)


@pytest.mark.parametrize(
    "options",
    [
        ["fisher", "--merge.images", "32"],
        ["learned", "--merge.steps", "3"],
        ["model_stock"],
        ["likelihood"],
        ["swa"],
        ["ties"],
        ["dare"],
    ],
    ids=lambda options: options[0],
)
def test_fit_ends_at_the_target(options: list[str], fit: Fit) -> None:
    assert fit("--merge", *options)["merge"] == options[0]


def test_fit_learned_per_tensor_with_dense_weights_behind_the_mask(fit: Fit) -> None:
    fit("--method", "dpf", "--merge", "learned", "--merge.per", "tensor", "--merge.steps", "2", sparsity=0.5)


@pytest.mark.parametrize("name", ["ties", "dare"])
def test_fit_with_dense_weights_behind_the_mask(name: str, fit: Fit) -> None:
    fit("--method", "dpf", "--merge", name, "--merge.density", "0.3", "--replicas.batchnorm", "average")


def test_fit_swa_of_one_replica(fit: Fit) -> None:
    fit("--merge", "swa", "--replicas.count", "1")
