"""Sound plugin classes, and what it takes to break one in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsekit.api import (
    Budget,
    Candidate,
    CoefficientMerge,
    MergeStep,
    MergeStrategy,
    PruningMethod,
    PruningStep,
    Schedule,
    Segment,
    Soup,
    Stage,
    TrainingStep,
)
from sparsekit.testing.rules import Outcome, outcomes

Tensors = dict[str, Tensor]


class Once(PruningMethod):
    """Prune once, halfway."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return Segment(0.0, budget.epochs / 2), Segment(budget.sparsity, budget.epochs / 2)


class Twice(Once):
    """Prune twice."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        third = budget.epochs / 3
        return Segment(0.0, third), Segment(budget.sparsity / 2, third), Segment(budget.sparsity, third)


class Thresholds(Twice):
    """Learned thresholds, with everything that a method may define.

    Args:
        pull: Factor of the penalty.
        rates: Learning rate multipliers at the start and the end.
        allocate: How scores are compared.
    """

    allocation: ClassVar[Any] = "erk"

    def __init__(
        self, pull: float = 1e-3, rates: tuple[float, float] = (1.0, 0.1), allocate: str | None = None
    ) -> None:
        if not 0 <= pull < 1e6:
            raise ValueError(f"--method.pull is {pull}; give a number from 0 to 1e6")
        self.pull, self.rates, self.allocate = pull, rates, allocate

    def learning_rate(self, stage: Stage) -> Schedule:
        low = min(stage.relative_change, 1.0) * self.rates[1]
        return Schedule(lambda done: self.rates[0] + (low - self.rates[0]) * done)

    def extra(self, weights: Tensors) -> Tensors:
        return {f"threshold of {name}": torch.tensor(-5.0) for name in weights}

    def effective(self, step: TrainingStep) -> Tensors:
        found = {}
        for name, weight in step.weights.items():
            threshold = step.extra[f"threshold of {name}"].sigmoid() * weight.detach().abs().mean()
            found[name] = weight.sign() * (weight.abs() - threshold).relu() * step.masks[name]
        return found

    def penalty(self, step: TrainingStep) -> Tensor | None:
        return None if step.progress < 0.1 else -self.pull * torch.stack(list(step.extra.values())).sum()

    def gradients(self, step: TrainingStep, gradients: Tensors) -> Tensors:
        return {name: 0.5 * g for name, g in gradients.items()}

    def masks(self, step: PruningStep) -> Tensors:
        noise = {name: torch.rand(w.shape, generator=step.generator) for name, w in step.weights.items()}
        slope = step.gradients(2)
        scores = {name: (w * slope[name]).abs() + 1e-9 * noise[name] for name, w in step.weights.items()}
        return step.select(scores, regrow=True)


class Mean(CoefficientMerge):
    """The plain mean."""

    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        return [1.0 / len(candidates)] * len(candidates)


@dataclass
class Pulled(MergeStrategy):
    """The mean, pulled towards the parent at random.

    Args:
        most: Largest share of the parent.
        only: Names of the tensors that are pulled; by default all.
    """

    max_replicas: ClassVar[int | None] = 5

    most: float = 0.5
    only: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 <= self.most <= 1:
            raise ValueError(f"--merge.most is {self.most}; give a share from 0 to 1")

    @property
    def average_from(self) -> float | None:
        return 0.5

    def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
        tensors = step.average(candidates, [1.0 / len(candidates)] * len(candidates))
        share = self.most * float(torch.rand((), generator=step.generator)) * (len(candidates) > 1)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and (not self.only or name in self.only):
                tensors[name] = tensor.lerp(step.parent[name], share)
        step.score(tensors)
        return Soup(tensors, None, tuple(c.index for c in candidates))


def method(base: type[Any] = Twice, doc: str | None = "A broken one.", **members: Any) -> type[Any]:
    return type("Broken", (base,), {"__doc__": doc, "__module__": __name__, **members})


def merge(base: type[Any] = Mean, **members: Any) -> type[Any]:
    return method(base, **members)


def option(name: str, default: object, kind: object = float, keep: bool = True) -> Any:
    """A constructor with one option."""

    def __init__(self: Any, **given: Any) -> None:
        if keep:
            setattr(self, name, given.get(name, default))

    from inspect import Parameter, Signature

    one = Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)
    __init__.__signature__ = Signature([Parameter("self", Parameter.POSITIONAL_OR_KEYWORD), one])  # type: ignore[attr-defined]
    return __init__


def counting(name: str, change: Any) -> Any:
    """A method of a plugin that counts its calls in the instance and answers by the count."""

    def hook(self: Any, *given: Any) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        return change(self, self.calls, *given)

    return {name: hook}


def refuse(message: str) -> Any:
    def plan(self: Any, budget: Budget) -> Any:
        raise ValueError(message)

    return plan


def by_zeros(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
    zeros = [1.0 / int((c.read("fc.weight") == 0).sum()) for c in candidates]
    return [zero / sum(zeros) for zero in zeros]


def tried(rules: Sequence[Any], name: str, case: Any) -> Outcome:
    (outcome,) = outcomes([rule for rule in rules if rule.__name__ == name], case)
    return outcome
