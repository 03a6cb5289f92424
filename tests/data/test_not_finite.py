"""Numbers that are not finite in a user's own examples: told by split and example, before training if known."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import sparsekit

QUICK: dict[str, Any] = {
    "epochs": 6, "sparsity": 0.5, "device": "cpu", "wandb": {"mode": "disabled"}, "evaluation": {"report": False},
    "data.workers": 0, "task": "regression",
}  # fmt: skip


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))


def pair(count: int, wrong: int | None = None, value: float = float("nan")) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(count))
    y = x[:, :2] * x[:, 2:4]
    if wrong is not None:
        y[wrong, 1] = value
    return x, y


class Read(Dataset[Any]):
    """The same, which has to be read."""

    def __init__(self, *pairs: Any) -> None:
        self.x, self.y = pair(*pairs)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class Masked(sparsekit.Task):
    """The squared error of the targets that are known; NaN is an unknown one."""

    score_name: ClassVar[str] = "closeness"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        known = ~targets.isnan()
        return (outputs[known] - targets[known]).square().mean()

    def meter(self, device: Any) -> Any:
        return Errors(self)

    def num_outputs(self, targets: Tensor) -> int:
        return 2


class Errors:
    def __init__(self, task: Masked) -> None:
        self.task, self.losses = task, list[Tensor]()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.losses.append(self.task.loss(outputs, targets))

    def compute(self) -> dict[str, Any]:
        return {"closeness": -torch.stack(self.losses).mean()}


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ({"train": pair(320, 17)}, ["data.train", "target of example 17"]),
        ({"train": pair(320, 17, float("inf"))}, ["data.train", "target of example 17"]),
        ({"held_out": pair(80, 3)}, ["data.held_out", "target of example 3"]),
        ({"test": pair(160, 9)}, ["data.test", "target of example 9"]),
    ],
)
def test_targets_in_memory_are_looked_at_before_training(
    tmp_path: Path, splits: dict[str, Any], words: list[str]
) -> None:
    data = sparsekit.Data(**{"train": pair(320), "test": pair(160), **splits})
    with pytest.raises(sparsekit.UserError) as told:
        sparsekit.fit(model=net, data=data, out=tmp_path / "run", **QUICK)
    assert all(word in str(told.value) for word in [*words, "not finite"]), told.value
    assert not (tmp_path / "run").exists()


def test_a_task_for_which_nan_means_unknown_is_trained(tmp_path: Path) -> None:
    data = sparsekit.Data(train=pair(320, 17), test=pair(160, 9))
    run = sparsekit.fit(model=net, data=data, out=tmp_path / "run", **{**QUICK, "task": Masked})
    assert run.summary["test.closeness"] < 0.0


@pytest.mark.parametrize("inputs", [False, True])
def test_an_example_that_was_read_is_named_where_training_ends_of_it(tmp_path: Path, inputs: bool) -> None:
    train = Read(320, 17)
    if inputs:
        train.x[17, 0], train.y[17, 1] = float("nan"), 0.0
    data = sparsekit.Data(train=train, test=pair(160), held_out=pair(80))
    what = rf"data\.train: the {'input' if inputs else 'target'} of example 17 is not finite"
    with pytest.raises(sparsekit.RunError, match=what) as told, pytest.warns(UserWarning, match="left out"):
        sparsekit.fit(model=net, data=data, out=tmp_path / "run", **QUICK)
    assert "optimizer.lr" not in str(told.value)


def test_a_test_score_that_is_not_finite_is_warned_of(tmp_path: Path) -> None:
    data = sparsekit.Data(train=pair(320), test=Read(160, 9))
    with pytest.warns(UserWarning, match=r"test\.R2 is not finite.*data\.test: the target of example 9"):
        run = sparsekit.fit(model=net, data=data, out=tmp_path / "run", **QUICK)
    assert run.summary["test.R2"] is None
