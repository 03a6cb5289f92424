"""Every merge in whole runs."""

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
    "options",
    [
        ["fisher", "--merge.images", "32"],
        ["learned", "--merge.steps", "3"],
        ["model_stock"],
        ["likelihood"],
        ["swa"],
        ["ties"],
        ["dare"],
        ["regmean", "--merge.images", "32"],
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


def test_fit_regmean_with_dense_weights_behind_the_mask(fit: Fit) -> None:
    fit("--method", "dpf", "--merge", "regmean", "--merge.images", "16")


def test_fit_swa_of_one_replica(fit: Fit) -> None:
    fit("--merge", "swa", "--replicas.count", "1")
