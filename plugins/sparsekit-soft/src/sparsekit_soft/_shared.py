"""What the methods share: checked options, the two phases, the push towards the target and an exact top k."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, inf
from typing import TYPE_CHECKING, Any

from sparsekit import Budget, PruningMethod, PruningStep, Segment, Tensors, TrainingStep
from sparsekit.schedules import check_option, cubic_sparsity

if TYPE_CHECKING:  # here and not beside a method, whose own module is run whole when its options are read
    from torch import Tensor as Tensor
else:
    Tensor = Any

_TOLERANCE = 1e-9


class TwoPhases(PruningMethod):
    """Search with nothing masked, then prune once to the target and train on with that mask.

    Args:
        search: Fraction of the budget that searches, above 0 and up to 1.
        interval: Fraction of the budget between two merges of the searching replicas, 0.0001 to 1.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, search: float, interval: float) -> None:
        check_option("method.search", search, 0.0 < search <= 1.0, "a fraction of the budget above 0 and up to 1")
        check_option("method.interval", interval, 1e-4 <= interval <= 1.0, "a fraction of the budget from 0.0001 to 1")
        self.search, self.interval = search, interval

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        count = ceil(self.search / self.interval - _TOLERANCE)
        searching = Segment(0.0, self.search * budget.epochs / count)
        return (*[searching] * count, Segment(budget.sparsity, (1.0 - self.search) * budget.epochs))

    def masks(self, step: PruningStep) -> Tensors:
        return step.select(self.scores(step), regrow=True)

    def searching(self, step: TrainingStep) -> bool:
        """Whether the first phase still runs, its very end included."""
        return step.progress <= self.search + _TOLERANCE


class Steered(TwoPhases):
    """A search whose sparsity is an outcome, pushed along GMP's ramp to the target.

    Args:
        search: See `TwoPhases`.
        interval: See `TwoPhases`.
        strength: Factor of the method's penalty, 0 or more.
        steer: Whether the penalty rests while the model is as sparse as it should be by now.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, search: float, interval: float, strength: float, steer: bool) -> None:
        super().__init__(search, interval)
        check_option("method.strength", strength, 0.0 <= strength < inf, "a number of 0 or more")
        self.strength, self.steer = strength, steer

    def push(self, step: TrainingStep, kept: Iterable[Tensor]) -> float | Tensor:
        """The factor of the penalty, `strength` or 0, where the layers keep so many weights by now.

        The sparsity to be reached follows s(t) = S (1 − (1 − t)³), t from 0 to 1 over the search (arXiv 1710.01878).
        """
        if not self.steer:
            return self.strength
        wanted = 1.0 - cubic_sparsity(step.progress, 0.0, self.search, 0.0, step.target)
        count = sum(weight.numel() for weight in step.weights.values())
        return self.strength * (total(kept) > wanted * count)


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of some scalars."""
    import torch

    return torch.stack(list(terms)).sum()


def kept_count(count: int, sparsity: float) -> int:
    """How many of `count` weights a sparsity keeps."""
    return count - round(sparsity * count)


def top(scores: Tensors, kept: int) -> Tensors:
    """1 at the `kept` highest scores of all tensors together and 0 elsewhere, ties or not.

    `kept` is 0 to the number of scores; on CUDA which of equal scores stay is not fixed.
    """
    import torch

    flat = torch.cat([score.reshape(-1) for score in scores.values()])
    chosen = torch.zeros_like(flat).scatter(0, flat.topk(kept, sorted=False).indices, 1.0)
    pieces = torch.split(chosen, [score.numel() for score in scores.values()])
    return {name: piece.view(score.shape) for (name, score), piece in zip(scores.items(), pieces, strict=True)}
