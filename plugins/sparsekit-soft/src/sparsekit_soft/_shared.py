"""What the methods share: checked options, two phases, the push towards the target, counts and an exact top k."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, inf
from typing import TYPE_CHECKING, Any

from sparsekit import Budget, PruningMethod, PruningStep, Segment, Tensors, TrainingStep
from sparsekit.schedules import check_option, cubic_sparsity

if TYPE_CHECKING:  # here and not beside a method, whose own module is run whole when its options are read
    from torch import Tensor as Tensor

    Layers = list[Tensor] | tuple[Tensor, ...]  # a tensor a layer: torch's foreach functions take them in one launch
else:
    Tensor = Layers = Any

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

    def push(self, step: TrainingStep, kept: Tensor) -> float | Tensor:
        """The factor of the penalty, `strength` or 0, where the model keeps so many weights by now.

        The sparsity to be reached follows s(t) = S (1 − (1 − t)³), t from 0 to 1 over the search (arXiv 1710.01878).
        """
        if not self.steer:
            return self.strength
        wanted = 1.0 - cubic_sparsity(step.progress, 0.0, self.search, 0.0, step.target)
        count = sum(weight.numel() for weight in step.weights.values())
        return self.strength * (kept.long() > wanted * count)


def by_layer(names: Iterable[str], *parts: Tensors) -> list[list[Tensor]]:
    """The tensors of these names in each of the parts."""
    return [[part[name] for name in names] for part in parts]


def detached(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The same values without a gradient."""
    return [tensor.detach() for tensor in tensors]


def signs(tensors: Layers) -> Layers:
    """−1, 0 or 1, without a gradient; w · sign(w) is |w| whose gradient takes a launch a layer less than abs()'s."""
    import torch

    return torch._foreach_sign(detached(tensors))


def above_zero(tensors: Layers) -> Layers:
    """1 where a number is above 0 and 0 elsewhere, without a gradient."""
    import torch

    return torch._foreach_clamp_min(signs(tensors), 0.0)


def counts(ones: Layers) -> Tensor:
    """How many ones each tensor holds beside its zeros, float64 [N]."""
    import torch

    return torch.stack(torch._foreach_norm(ones, 1, dtype=torch.float64))


def kept_count(count: int, sparsity: float) -> int:
    """How many of `count` weights a sparsity keeps."""
    return count - round(sparsity * count)


def top(scores: Layers, kept: int, inside: float = 1.0, outside: float = 0.0) -> list[Tensor]:
    """One value at the `kept` highest scores of all tensors together and another elsewhere, ties or not.

    `kept` is 0 to the number of scores; on CUDA which of equal scores stay is not fixed.
    """
    import torch

    flat = torch.cat([score.reshape(-1) for score in scores])
    chosen = torch.full_like(flat, outside).scatter_(0, flat.topk(kept, sorted=False).indices, inside)
    pieces = torch.split(chosen, [score.numel() for score in scores])
    return [piece.view(score.shape) for score, piece in zip(scores, pieces, strict=True)]
