"""Lottery tickets."""

from __future__ import annotations

from dataclasses import replace

from sparsekit import Budget, PruningMethod, Schedule, Segment, Stage
from sparsekit.schedules import check_option, cycles_plan


class LTH(PruningMethod):
    """Lottery tickets: prune the smallest, rewind the rest, train again (Frankle and Carbin, arXiv 1803.03635).

    A dense training, then cycles. Each prunes the same fraction of what remains, the smallest |w| at the end of the
    training before it, in all layers together; then every parameter and buffer that is left returns to what it was
    after the fraction `rewind` of the dense training (iterative magnitude pruning with rewinding, arXiv 1912.05671),
    or to the initial weights with 0, as in the first paper. A cycle trains to the end of the original schedule: its
    learning rate is replayed from the rewound epoch on (arXiv 2003.02389, section 2). The optimizer is fresh.

    Dense training and cycles share the budget, so that a training is E / (1 + cycles · (1 − rewind)) of E epochs long.

    Args:
        cycles: Number of prunings, each followed by a training, 1 to 1000.
        rewind: Fraction of a training to whose end weights return, 0 to below 1; 0 is the initial weights.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, cycles: int = 3, rewind: float = 0.1) -> None:
        check_option("method.cycles", cycles, 1 <= cycles <= 1000, "1 to 1000")
        check_option("method.rewind", rewind, 0.0 <= rewind < 1.0, "a fraction of a training from 0 to below 1")
        self.cycles, self.rewind = cycles, rewind

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        dense, *cycles = cycles_plan(budget, 1.0 / (1.0 + self.cycles * (1.0 - self.rewind)), self.cycles)
        whole = [dense]
        if self.rewind:
            whole = [Segment(0.0, share * dense.epochs) for share in (self.rewind, 1.0 - self.rewind)]
        return (*whole, *(replace(cycle, rewind=len(whole) - 1) for cycle in cycles))

    def learning_rate(self, stage: Stage) -> Schedule:
        first, last = self.rewind, 1.0
        if self.rewind and stage.index == 0:
            first, last = 0.0, self.rewind
        goes_on = bool(self.rewind) and stage.index == 1
        return Schedule(lambda done: stage.budget.rate(first + done * (last - first)), restarts=not goes_on)
