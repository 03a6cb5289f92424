"""Budgeted iterative magnitude pruning."""

from __future__ import annotations

from sparsekit.api import Schedule, Stage
from sparsekit.methods.imp import IMP
from sparsekit.schedules import Retraining


class BIMP(IMP):
    """Budgeted IMP: dense training and all cycles inside the budget of one training (Zimmer et al., arXiv 2111.00843).

    The learning rate falls linearly to 0 in the dense phase too; in the cycles it depends on the pruning (ALLR).

    Args:
        dense: Fraction of the budget for training the dense model.
        cycles: Number of prune-retrain cycles that share the rest.
        retrain: Learning rate of a cycle: `ft`, `lrw`, `slr`, `clr`, `llr` or `allr`.
    """

    def __init__(self, dense: float = 0.3, cycles: int = 3, retrain: Retraining = "allr") -> None:
        super().__init__(dense, cycles, retrain)

    def learning_rate(self, stage: Stage) -> Schedule:
        if stage.index:
            return super().learning_rate(stage)
        warmup = stage.budget.warmup

        def linear(done: float) -> float:
            return done / warmup if done < warmup else (1.0 - done) / (1.0 - warmup)

        return Schedule(linear)
