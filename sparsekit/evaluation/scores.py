"""Measure a model on a split, as its task says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.api import Meter, Score, Task
from sparsekit.errors import RunError
from sparsekit.tasks.classification import Classification

_MOST_OUTPUTS = 100_000_000
"""Outputs, of all examples, that are looked at on a CPU in some seconds."""
Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Measured:
    """What a model reached on a split.

    Attributes:
        score: Its score and loss.
        numbers: All measures that are numbers, by name, the loss among them.
        lists: The others.
        predictions: The prediction for each example, on the CPU, where asked for; None if the task predicts nothing.
    """

    score: Score
    numbers: dict[str, float | int]
    lists: dict[str, Any]
    predictions: Tensor | None = None


@torch.no_grad()
def measure_model(
    model: nn.Module, batches: Batches, autocast: torch.autocast, task: Task, predictions: bool = False
) -> Measured:
    """Measure a model in evaluation mode, without waiting for the device before the end.

    Outputs are measured in float64. A loss that is NaN becomes infinite, a score that is NaN the worst there is.

    Raises:
        RunError: there are no batches, or the task's meter has no such score.
    """
    model.eval()
    meter: Meter | None = None
    losses: list[Tensor] = []
    predicted: list[Tensor | None] = []
    count = 0
    for inputs, targets in batches:
        with autocast:
            outputs = model(inputs)
        outputs = outputs.double()
        meter = meter or task.meter(outputs.device)
        meter.update(outputs, targets)
        losses.append(task.loss(outputs, targets).double() * len(targets))
        count += len(targets)
        if predictions:
            predicted.append(task.predict(outputs))
    if meter is None:
        raise RunError("there is nothing to evaluate: the split is empty")
    loss = sum(torch.stack(losses).tolist()) / count  # read only here, so as not to wait for the device at each batch
    found = {name: plain(value) for name, value in meter.compute().items()}
    found.setdefault("loss", loss if loss == loss else float("inf"))
    numbers = {name: value for name, value in found.items() if isinstance(value, (int, float))}
    if task.score_name not in numbers:
        raise RunError(f"task {type(task).__name__}: its meter measures no {task.score_name!r}, which is its score")
    value = numbers[task.score_name]
    every = [each.cpu() for each in predicted if each is not None]
    return Measured(
        Score(value if value == value else -float("inf"), numbers["loss"]),
        numbers,
        {name: value for name, value in found.items() if name not in numbers},
        torch.cat(every) if every else None,
    )


def score_model(model: nn.Module, batches: Batches, autocast: torch.autocast, task: Task | None = None) -> Score:
    """A model's score and mean loss, as `measure_model` measures them; by default of a classification."""
    return measure_model(model, batches, autocast, task or Classification()).score


@torch.no_grad()
def constant_score(task: Task, targets: Tensor) -> Score | None:
    """The best score of the same outputs for all examples; None where the task has none, or it would take long."""
    constant = task.constant_outputs(targets)
    if constant is None or constant.numel() * len(targets) > _MOST_OUTPUTS:
        return None
    parts = torch.split(targets, max(1, _MOST_OUTPUTS // 100 // constant.numel()))
    batches, plain_type = ((part, part) for part in parts), torch.autocast("cpu", enabled=False)
    return score_model(_Constant(constant), batches, plain_type, task)


class _Constant(nn.Module):
    """A model that gives the same outputs for every input."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outputs.expand(len(inputs), *self.outputs.shape)


@torch.no_grad()
def predict_outputs(model: nn.Module, inputs: Tensor, autocast: torch.autocast) -> Tensor:
    """Outputs of a model in evaluation mode, for inputs as the data set's batches have them."""
    with autocast:
        outputs: Tensor = model.eval()(inputs)
    return outputs


def plain(value: Any) -> Any:
    """What torch and numpy have no dimension for as a number, the rest of theirs as lists."""
    return value.tolist() if hasattr(value, "tolist") else value
