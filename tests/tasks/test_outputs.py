"""Data sets and tasks that do not go together are told of when the data is loaded."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from sparsekit.api import Meter, Task
from sparsekit.config.options import DataConfig
from sparsekit.data import Data, load
from sparsekit.data.batches import ExampleData
from sparsekit.errors import UserError
from sparsekit.plugins.objects import brought

CPU = torch.device("cpu")


class Rows(Task):
    """A row of numbers for each example."""

    score_name: ClassVar[str] = "closeness"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    def meter(self, device: Any) -> Meter:
        raise NotImplementedError

    def num_outputs(self, targets: Tensor) -> int:
        return targets.shape[1]


def loaded(targets: Tensor, **options: Any) -> ExampleData:
    data = Data((torch.randn(40, 3), targets), (torch.randn(40, 3), targets), **options)
    with brought({"--data.name here:data": data}):
        found = load(DataConfig("here:data", batch_size=10), CPU, False, Rows())
    assert isinstance(found, ExampleData)
    return found


def test_the_task_counts_outputs() -> None:
    assert loaded(torch.randn(40, 5)).num_classes == 5


def test_targets_that_the_task_does_not_know_are_told() -> None:
    with pytest.raises(UserError, match=r"--task: Rows cannot tell .* shape \(10,\) \(IndexError: .*; change"):
        loaded(torch.randn(40))
    with pytest.raises(UserError, match=r"--task: Rows cannot tell .*int64"):
        load(DataConfig(image_size=8), CPU, False, Rows())


def test_names_in_another_order_are_refused_where_targets_are_no_class_numbers() -> None:
    data = loaded(torch.randn(40, 2), class_names=("a", "b"))
    assert data.seen_by(data.inputs, None).class_names == ("a", "b")
    with pytest.raises(UserError, match=r"data\.class_names"):
        data.seen_by(data.inputs, [1, 0])
