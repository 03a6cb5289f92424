"""Gradual pruning with zero-cost neuroregeneration."""

from __future__ import annotations

from sparsekit import Budget, PruningMethod, PruningStep, Segment, Tensors
from sparsekit.schedules import check_option, check_ramp, cubic_sparsity
from sparsekit_dynamic._shared import (
    check_batches,
    drop_and_grow,
    drop_fraction,
    now,
    segments,
    updates,
)


class GraNet(PruningMethod):
    """GraNet: gradual magnitude pruning, then regrowth of as many by gradient (Liu et al., arXiv 2106.10404).

    From a dense model. Every change prunes by magnitude to GMP's cubic ramp (arXiv 1710.01878), then drops the fraction
    r/2 · (1 + cos(π t / T)) of each layer's kept weights, the smallest, and grows as many in that layer where the dense
    gradient is largest, so that the sparsity stays on the ramp. Regrowth goes on after the ramp, until `freeze`.

    Replicas of a segment share one mask, so the topology changes only where they meet: the paper's interval of some
    thousand steps is a segment here (`interval`), and the gradient is the merged model's.

    Args:
        start: Fraction of the budget at which the ramp starts, 0 to below 1; its first pruning is an interval later.
        end: Fraction of the budget at which the target sparsity is reached, above `start` and below 1.
        interval: Fraction of the budget between two changes, 0.0001 to 1.
        regrow: r, the fraction of a layer's kept weights exchanged at first, 0 to 1; 0 is GMP.
        freeze: T, the fraction of the budget after which the topology stays as it is, from `end` to 1.
        batches: Training batches over which the gradient is averaged, 1 to 1000 (the paper: 1).

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        start: float = 0.0,
        end: float = 0.7,
        interval: float = 0.05,
        regrow: float = 0.5,
        freeze: float = 0.8,
        batches: int = 1,
    ) -> None:
        check_ramp(start, end, interval)
        check_option("method.regrow", regrow, 0.0 <= regrow <= 1.0, "a fraction of the kept weights from 0 to 1")
        check_option(
            "method.freeze", freeze, end <= freeze <= 1.0, f"a fraction of the budget from --method.end ({end:g}) to 1"
        )
        check_batches(batches)
        self.start, self.end, self.interval = start, end, interval
        self.regrow, self.freeze, self.batches = regrow, freeze, batches

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        ramp = updates(self.start + self.interval, self.end, self.interval)
        times = [0.0, *ramp, self.end, *updates(self.end + self.interval, self.freeze, self.interval)]
        return segments(budget, times, [self.sparsity(time, budget.sparsity) for time in times])

    def sparsity(self, time: float, target: float) -> float:
        """GMP's ramp from 0 at `start` to the target at `end`; times are fractions of the budget."""
        return cubic_sparsity(time, self.start, self.end, 0.0, target)

    def masks(self, step: PruningStep) -> Tensors:
        pruned = step.select(self.scores(step))
        fraction = drop_fraction(self.regrow, now(step), self.freeze)
        if step.segment.sparsity == 0.0 or fraction == 0.0:  # nowhere to grow, or nothing
            return pruned
        return drop_and_grow(step, pruned, fraction, step.gradients(self.batches))
