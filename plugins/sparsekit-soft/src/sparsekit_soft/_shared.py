"""What the methods share: checked options, the two phases and an exact top k over all layers."""

from __future__ import annotations

from math import ceil

from sparsekit import Budget, PruningMethod, PruningStep, Segment, Tensors, TrainingStep

_TOLERANCE = 1e-9


def check_option(name: str, value: float, valid: bool, rule: str) -> None:
    """Raise ValueError, naming the option and the rule, unless `valid`."""
    if not valid:
        raise ValueError(f"--method.{name} is {value:g}; give {rule}")


class TwoPhases(PruningMethod):
    """Search with nothing masked, then prune once to the target and train on with that mask.

    Args:
        search: Fraction of the budget that searches.
        interval: Fraction of the budget between two merges of the searching replicas.
    """

    def __init__(self, search: float, interval: float) -> None:
        check_option("search", search, 0.0 < search <= 1.0, "a fraction of the budget above 0 and up to 1")
        check_option("interval", interval, 1e-4 <= interval <= 1.0, "a fraction of the budget from 0.0001 to 1")
        self.search, self.interval = search, interval

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        count = ceil(self.search / self.interval - _TOLERANCE)
        epochs = self.search * budget.epochs / count
        last = Segment(budget.sparsity, (1.0 - self.search) * budget.epochs)
        return (*[Segment(0.0, epochs)] * count, last)

    def masks(self, step: PruningStep) -> Tensors:
        return step.select(self.scores(step), regrow=True)

    def searching(self, step: TrainingStep) -> bool:
        """Whether the first phase still runs, its very end included."""
        return step.progress <= self.search + _TOLERANCE


def wanted_density(step: TrainingStep, search: float) -> float:
    """How dense the model should be by now: 1 minus GMP's cubic ramp (arXiv 1710.01878) from 0 to the target.

    The ramp ends with the search phase.
    """
    left = max(0.0, 1.0 - step.progress / search)
    return 1.0 - step.target * (1.0 - left**3)


def top(scores: Tensors, sparsity: float) -> Tensors:
    """1 at the highest scores of all layers together, N − round(sparsity · N) of the N, and 0 elsewhere."""
    import torch

    flat = torch.cat([score.reshape(-1) for score in scores.values()])
    indices = flat.topk(len(flat) - round(sparsity * len(flat)), sorted=False).indices
    chosen = torch.zeros_like(flat).scatter(0, indices, 1.0)
    pieces = chosen.split([score.numel() for score in scores.values()])
    return {name: piece.view(score.shape) for (name, score), piece in zip(scores.items(), pieces, strict=True)}
