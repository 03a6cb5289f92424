"""What is told of a trial step that fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import OnePrune, optimizer, tiny_config

from sparsekit import Tensor, TrainingStep
from sparsekit.config.options import ReplicasConfig
from sparsekit.errors import UserError
from sparsekit.training.prepare import prepare


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), torch.OutOfMemoryError),
        (RuntimeError("CUDA error: out of memory\nmore"), RuntimeError),
        (RuntimeError("this optimizer is for sparse gradients\nmore"), UserError),
    ],
)
def test_a_lack_of_memory_is_not_the_optimizers_fault(
    error: RuntimeError, told: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch.optim.SGD, "step", fail)
    with pytest.raises(told) as caught:
        prepare(tiny_config(optimizer=optimizer()))
    assert type(caught.value) is told
    assert ("--optimizer.name" in str(caught.value)) == (told is UserError)
    assert "more" not in str(caught.value) or told is RuntimeError


class Threshold(OnePrune):
    """A tensor of its own, drawn around an option, and a penalty that follows another."""

    def __init__(self, start: float = 0.1, strength: float = 0.01, dense: float = 1.0) -> None:
        super().__init__(dense)
        self.start, self.strength = start, strength

    def extra(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"threshold": self.start * torch.rand(3)}

    def penalty(self, step: TrainingStep) -> Tensor:
        return self.strength * step.extra["threshold"].square().sum()


class Scaled(OnePrune):
    """Multiplies the weights by a factor that grows with the training, away from the middle."""

    def __init__(self, base: float = 1.0, dense: float = 1.0) -> None:
        super().__init__(dense)
        self.base = base

    def effective(self, step: TrainingStep) -> dict[str, Tensor]:
        return {name: weight * step.masks[name] * self.base**step.progress for name, weight in step.weights.items()}


def test_replicas_that_are_merged_must_be_one_network() -> None:
    with pytest.raises(UserError) as caught:
        prepare(tiny_config(Scaled(), replicas=ReplicasConfig(2, vary="method.base", values=[1.0, 2.0], start=0.0)))
    assert all(part in str(caught.value) for part in ("--replicas.vary method.base", "forward pass", "sparsekit sweep"))


def test_replicas_of_one_parent_cannot_have_other_tensors_of_the_method() -> None:
    def vary(axis: str) -> None:
        replicas = ReplicasConfig(2, vary=axis, values=[0.1, 0.2], start=0.0)
        prepare(tiny_config(Threshold(), replicas=replicas))

    vary("method.strength")
    with pytest.raises(UserError) as caught:
        vary("method.start")
    assert all(part in str(caught.value) for part in ("--replicas.vary method.start", "tensors", "sparsekit sweep"))
