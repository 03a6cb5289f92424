"""Gradual magnitude pruning."""

from __future__ import annotations

from sparsekit.api import Budget, PruningMethod, Schedule, Segment, Stage
from sparsekit.schedules import Retraining, check_option, check_ramp, gradual_plan, restarted_schedule


class GMP(PruningMethod):
    """Gradual magnitude pruning on a cubic ramp (Zhu and Gupta, arXiv 1710.01878).

    Prunes the smallest weights at regular intervals, by default with one learning-rate schedule over the whole budget.

    Args:
        start: Fraction of the budget at which the ramp starts; with `initial` 0 the first pruning is one interval
            later.
        end: Fraction of the budget at which the target sparsity is reached.
        interval: Fraction of the budget between two pruning steps.
        initial: Sparsity of the step at `start`, as a fraction of the target; 0 starts the ramp without a jump.
        retrain: Learning rate after each pruning, where the first segment has the whole schedule: `ft`, `lrw`, `slr`,
            `clr`, `llr` or `allr` (arXiv 2111.00843). By default one schedule goes on over the budget.
    """

    def __init__(
        self,
        start: float = 0.1,
        end: float = 0.7,
        interval: float = 0.1,
        initial: float = 0.0,
        retrain: Retraining | None = None,
    ) -> None:
        check_ramp(start, end, interval)
        check_option("method.initial", initial, 0.0 <= initial <= 1.0, "a fraction of the target from 0 to 1")
        self.start, self.end, self.interval, self.initial, self.retrain = start, end, interval, initial, retrain

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return gradual_plan(budget, self.start, self.end, self.interval, self.initial, stop=self.end)

    def learning_rate(self, stage: Stage) -> Schedule:
        return restarted_schedule(self.retrain, stage)
