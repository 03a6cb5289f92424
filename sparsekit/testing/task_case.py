"""A task under test: examples of the usual kinds, tried on loss and meter, and a run of a tiny model on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.api import Task
from sparsekit.config.options import DataConfig, ModelConfig, OptimizerConfig
from sparsekit.data.examples import Data
from sparsekit.merges.uniform import Uniform
from sparsekit.methods.gmp import GMP
from sparsekit.plugins.objects import brought
from sparsekit.plugins.registry import Kind
from sparsekit.testing import problem
from sparsekit.testing.cases import PluginCase
from sparsekit.testing.rules import Broken, Skipped, describe, need

_COUNT = 12
_NAME = "sparsekit:examples"


@dataclass(frozen=True)
class Examples:
    """Outputs and targets of some examples, and what they are."""

    what: str
    outputs: Tensor
    targets: Tensor

    def some(self, part: slice) -> Examples:
        """A part of the examples."""
        return Examples(self.what, self.outputs[part], self.targets[part])


def _kinds() -> Iterator[tuple[str, Tensor]]:
    """Targets of the usual kinds."""
    random = torch.Generator().manual_seed(0)
    yield "a class number each", torch.arange(_COUNT) % 4
    yield "a row of 0 and 1 each", torch.randint(2, (_COUNT, 4), generator=random).float()
    yield "a number each", torch.randn(_COUNT, generator=random)
    yield "a row of numbers each", torch.randn(_COUNT, 3, generator=random)
    yield "a class number for each pixel", torch.randint(3, (_COUNT, 4, 5), generator=random)
    yield "an image each", torch.randn(_COUNT, 2, 4, 5, generator=random)


class TaskCase(PluginCase[Task]):
    """A task under test.

    Args:
        cls: The class.
        options: Options to make it with.
        given: Outputs and targets to try it on, instead of the usual kinds.
    """

    kind: Kind = "task"

    def __init__(
        self, cls: type[Task], options: dict[str, Any] | None = None, given: tuple[Tensor, Tensor] | None = None
    ) -> None:
        super().__init__(cls, options)
        self._given = given

    @property
    def examples(self) -> tuple[Examples, ...]:
        """The examples that suit the task; raises Skipped where there are none, which `suits_some_examples` reports."""
        if not self._found[0]:
            raise Skipped("there are no examples to try it on, see suits_some_examples")
        return self._found[0]

    def probe(self, instance: Task) -> None:
        for some in self.examples:
            try:
                instance.check(some.outputs, some.targets)
            except ValueError:  # with other options other examples suit
                continue
            loss = float(instance.loss(some.outputs, some.targets))
            need(math.isfinite(loss), f"the loss is {loss}")
            measured(instance, some)

    def explain(self) -> None:
        """Raise Broken or Skipped where no examples suit the task, with the reasons."""
        found, reasons, refused = self._found
        if found:
            return
        said = "\n".join(reasons)
        if refused:
            raise Skipped(
                f"check() takes none of the kit's examples; try it on your own: check_task({self.cls.__name__}, "
                f"(outputs, targets))\n{said}"
            )
        raise Broken(said)

    @cached_property
    def _found(self) -> tuple[tuple[Examples, ...], list[str], bool]:
        """The examples that suit the task, why others do not, and whether all of these were refused by `check`."""
        task = self.make()
        checks = type(task).check is not Task.check
        found, reasons, refused = [], [], checks and self._given is None
        for make in self._tries(task):
            what = "the examples given"
            try:
                some = make()
                what = some.what
                task.check(some.outputs, some.targets)
                if not checks or self._given:
                    task.loss(some.outputs, some.targets)
                    measured(task, some)
            except Exception as error:  # a plugin may raise anything
                reasons.append(f"{getattr(make, 'what', what)}: {describe(error)}")
                refused &= isinstance(error, ValueError)
            else:
                found.append(some)
        return tuple(found), reasons, refused

    def _tries(self, task: Task) -> Iterator[Callable[[], Examples]]:
        if self._given:
            outputs, targets = self._given
            yield lambda: Examples("the examples given", outputs, targets)
            return
        for what, targets in _kinds():
            yield lambda what=what, targets=targets: _with_outputs(what, task.num_outputs(targets), targets)  # type: ignore[misc]

    def run(self, examples: Examples) -> problem.Run:
        """A run of a tiny network on these examples, again and again, with noise as inputs."""
        targets = examples.targets.detach().repeat(12, *[1] * (examples.targets.dim() - 1))
        inputs = torch.randn(len(targets), 16, generator=torch.Generator().manual_seed(0))
        shape = examples.outputs.shape[1:]
        network = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, shape.numel()), nn.Unflatten(1, shape))
        data = Data((inputs, targets), (inputs[:24], targets[:24]), (inputs[24:48], targets[24:48]))
        with brought({f"--data.name {_NAME}": data, f"--model.name {_NAME}": network}):
            return problem.run(
                GMP(interval=0.3), Uniform(), task=self.make(), data=DataConfig(_NAME, batch_size=16),
                model=ModelConfig(_NAME), optimizer=OptimizerConfig("adamw", lr=0.01),  # for losses of any size
            )  # fmt: skip


def _with_outputs(what: str, count: int, targets: Tensor) -> Examples:
    """Examples with outputs as a network of so many outputs, for each pixel if there are pixels, would make them."""
    pixels = targets.shape[-2:] if targets.dim() > 2 else ()
    outputs = torch.randn(len(targets), count, *pixels, generator=torch.Generator().manual_seed(1))
    return Examples(what, outputs, targets)


def measured(task: Task, *batches: Examples) -> dict[str, Any]:
    """What a new meter measures of these batches, tensors as numbers and lists."""
    meter = task.meter(torch.device("cpu"))
    with torch.no_grad():
        for some in batches:
            meter.update(some.outputs.double(), some.targets.clone())
    found = meter.compute()
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in found.items()}
