"""Alternating compressed and decompressed training."""

from __future__ import annotations

from dataclasses import replace

from sparsekit import Budget, PruningMethod, PruningStep, Schedule, Segment, Stage, Tensors
from sparsekit.schedules import check_option


class ACDC(PruningMethod):
    """AC/DC: sparse and dense phases by turns, the last one sparse (Peste et al., arXiv 2106.12379, algorithm 1).

    After a dense warm-up, `cycles` times a sparse and a dense phase, then a longer sparse one. A sparse phase keeps the
    weights of largest magnitude, chosen anew; in a dense phase all weights train, and those that were masked start
    at 0. As in the authors' code the optimizer is fresh at the start of a dense phase. One learning-rate schedule
    goes on over the whole budget.

    Args:
        warmup: Fraction of the budget that is dense at first, above 0 and below 1.
        cycles: Number of sparse and dense phases by turns, 0 to 1000; 0 prunes once.
        last: Fraction of the budget for the last sparse phase, above 0, so that something is left for the cycles.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, warmup: float = 0.1, cycles: int = 4, last: float = 0.2) -> None:
        check_option("method.warmup", warmup, 0.0 < warmup < 1.0, "a fraction of the budget above 0 and below 1")
        check_option("method.cycles", cycles, 0 <= cycles <= 1000, "0 to 1000")
        check_option(
            "method.last",
            last,
            0.0 < last < 1.0 - warmup,
            f"a fraction of the budget above 0 and below what --method.warmup leaves ({1.0 - warmup:g})",
        )
        self.warmup, self.cycles, self.last = warmup, cycles, last

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        if not self.cycles:
            dense = 1.0 - self.last
            return Segment(0.0, dense * budget.epochs), Segment(budget.sparsity, self.last * budget.epochs)
        phase = (1.0 - self.warmup - self.last) / (2 * self.cycles) * budget.epochs
        turns = [Segment(budget.sparsity, phase), Segment(0.0, phase)] * self.cycles
        return (
            Segment(0.0, self.warmup * budget.epochs),
            *turns,
            Segment(budget.sparsity, self.last * budget.epochs),
        )

    def masks(self, step: PruningStep) -> Tensors:
        return step.select(self.scores(step), regrow=True)

    def learning_rate(self, stage: Stage) -> Schedule:
        return replace(stage.continued(), restarts=stage.segment.sparsity < stage.previous_sparsity)
