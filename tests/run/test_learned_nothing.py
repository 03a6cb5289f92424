"""A finished model that is no better than one answer for every example is warned of, and no other."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekit
from sparsekit.evaluation.scores import constant_score
from sparsekit.tasks import Classification

QUICK: dict[str, Any] = {
    "epochs": 6, "sparsity": 0.5, "device": "cpu", "wandb": {"mode": "disabled"}, "evaluation": {"report": False},
    "data.workers": 0,
}  # fmt: skip


class Dead(nn.Module):
    """What a network is whose units are all below 0: its outputs do not depend on the input."""

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(8, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.relu() * 0.0)


def examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :4].argmax(1)


DATA = sparsekit.Data(train=examples(480, 0), test=examples(200, 1))


def rare(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A rare class that nothing foresees with more than one half, but some inputs with more than others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator)
    return x, (torch.rand(count, generator=generator) < torch.where(x[:, 0] > 0, 0.35, 0.0)).long()


def warned(**options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        sparsekit.fit(**{"data": DATA, **QUICK, **options})
    return [str(each.message) for each in found if "learned nothing" in str(each.message)]


def test_a_model_at_chance_is_warned_of_with_both_scores_and_what_to_try(tmp_path: Path) -> None:
    (told,) = warned(model=Dead, out=tmp_path / "run")
    most = 100 * int(DATA.test[1].bincount().max()) / 200
    assert f"one answer for every example gives {most:.2f} %" in told
    assert all(word in told for word in ("optimizer.lr", "epochs"))


def test_one_of_another_task_is_too(tmp_path: Path) -> None:
    x, _ = examples(480, 0)
    data = sparsekit.Data(train=(x, x[:, 0] * x[:, 1]), test=(x, x[:, 0] * x[:, 1]))
    (told,) = warned(model=lambda: Dead(1), data=data, task="regression", out=tmp_path / "run")
    assert "R2" in told


@pytest.mark.parametrize("model", [nn.Linear(8, 4), nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))])
def test_a_model_that_learned_is_not(tmp_path: Path, model: nn.Module) -> None:
    assert warned(model=model, out=tmp_path / "run") == []


def test_nor_is_one_that_knows_more_than_its_most_frequent_class_shows(tmp_path: Path) -> None:
    data = sparsekit.Data(train=rare(2000, 0), test=rare(1000, 1))
    with warnings.catch_warnings():
        run_warnings = warned(model=nn.Linear(8, 2), data=data, out=tmp_path / "run", sparsity=0.3)
    summary = sparsekit.load(tmp_path / "run").summary
    assert summary["test.accuracy"] <= 1.0 - float(data.test[1].double().mean()) + 1e-9
    assert run_warnings == []


def test_the_best_constant_answer_is_that_of_the_shares() -> None:
    targets = torch.tensor([0] * 6 + [1] * 3 + [3])
    best = constant_score(Classification(), targets)
    assert best is not None
    assert best.accuracy == 0.6
    assert best.loss == pytest.approx(-(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1)), rel=1e-6)
