"""A task whose loss cannot train a model is refused before training, in one line with the fix."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekit
from sparsekit.cli import main
from sparsekit.tasks import Classification

QUICK: dict[str, Any] = {
    "epochs": 6, "sparsity": 0.5, "device": "cpu", "wandb": {"mode": "disabled"}, "evaluation": {"report": False},
}  # fmt: skip
X = torch.randn(320, 8, generator=torch.Generator().manual_seed(0))
DATA = sparsekit.Data(train=(X, X[:, :4].argmax(1)), test=(X, X[:, :4].argmax(1)))


class Float(Classification):
    def loss(self, outputs: Tensor, targets: Tensor) -> Any:
        return super().loss(outputs, targets).item()


class Detached(Classification):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets).detach()


class Smoothed(Classification):
    def smoothed_loss(self, outputs: Tensor, targets: Tensor, smoothing: float) -> Any:
        loss = super().smoothed_loss(outputs, targets, smoothing)
        return loss.item() if smoothing else loss


class InTraining(Classification):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.requires_grad:
            raise KeyError("weight")
        return super().loss(outputs, targets)


class Measured(Classification):
    def meter(self, device: torch.device) -> Any:
        class One:
            def update(self, outputs: Tensor, targets: Tensor) -> None:
                pass

            def compute(self) -> float:
                return 0.5

        return One()


@pytest.mark.parametrize(
    ("task", "more", "words"),
    [
        (Float, {}, ["task", "Float", "loss", "not float", "torch"]),
        (Detached, {}, ["task", "Detached", "loss", "no gradient", "outputs"]),
        (Smoothed, {"label_smoothing": 0.1}, ["task", "Smoothed", "loss", "not float"]),
        (InTraining, {}, ["task", "InTraining", "loss", "KeyError", "weight"]),
        (Measured, {}, ["task", "Measured", "compute", "float", "accuracy"]),
    ],
)
def test_it_is_told_from_python(tmp_path: Path, task: Any, more: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(sparsekit.UserError) as told:
        sparsekit.fit(model=nn.Linear(8, 4), data=DATA, task=task, out=tmp_path / "run", **QUICK, **more)
    assert all(word in str(told.value) for word in words), told.value
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


class Cut(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).detach()


@pytest.mark.parametrize(
    ("model", "words"), [(nn.Linear(8, 4).requires_grad_(False), "requires_grad"), (Cut(8, 4), "outputs.*no gradient")]
)
def test_a_model_of_which_nothing_is_trained_is_told_apart(tmp_path: Path, model: nn.Module, words: str) -> None:
    with pytest.raises(sparsekit.UserError, match=rf"model\.name.*{words}"):
        sparsekit.fit(model=model, data=DATA, out=tmp_path / "run", **QUICK)


def test_it_is_told_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lossy.py").write_text(
        textwrap.dedent(
            """
            from sparsekit.tasks import Classification
            class F(Classification):
                def loss(self, outputs, targets):
                    return float(super().loss(outputs, targets))
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    options = [
        "fit",
        "--task",
        "lossy:F",
        "--data.image_size",
        "8",
        "--device",
        "cpu",
        "--wandb.mode",
        "disabled",
        "--out",
        "run",
    ]
    assert main.main(options) == 2
    told = capsys.readouterr().err
    assert all(word in told for word in ("--task lossy:F", "loss", "not float"))
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("loss", "words"), [(lambda m, b: 1.0, "float"), (lambda m, b: torch.zeros(()), "gradient")])
def test_pruner_says_so_of_its_own_loss(loss: Any, words: str) -> None:
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = sparsekit.Pruner(
        model, optimizer, steps_per_epoch=5, epochs=2, method="snip", loss=loss, batches=[X[:8]] * 50
    )
    with pytest.raises(sparsekit.UserError, match=rf"^loss.*{words}"):
        pruner.prune_if_due()
