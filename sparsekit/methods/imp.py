"""Iterative magnitude pruning."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from sparsekit.api import Budget, PruningMethod, Schedule, Segment, Stage
from sparsekit.schedules import Retraining, check_option, cycles_plan, dense_schedule, retraining_schedule


class IMP(PruningMethod):
    """Iterative magnitude pruning: train dense, then cycles of pruning and retraining (Han et al., arXiv 1506.02626).

    Every cycle prunes the same fraction of the remaining weights, and starts with a new optimizer.

    Args:
        dense: Fraction of the budget for training the dense model on the whole original schedule; 0 prunes at once, for
            a model that is trained already (`--model.init`).
        cycles: Number of prune-retrain cycles that share the rest.
        retrain: Learning rate of a cycle: `ft`, `lrw`, `slr`, `clr`, `llr` or `allr` (arXiv 2111.00843).
    """

    _not_zero: ClassVar[str] = "raise --optimizer.min_lr, or choose another, such as llr"

    def __init__(self, dense: float = 0.4, cycles: int = 3, retrain: Retraining = "llr") -> None:
        check_option("method.dense", dense, 0.0 <= dense < 1.0, "a fraction of the budget from 0 to below 1")
        check_option("method.cycles", cycles, 1 <= cycles <= 1000, "1 to 1000")
        self.dense, self.cycles, self.retrain = dense, cycles, retrain

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        segments = cycles_plan(budget, self.dense, self.cycles)
        if self.retrain == "ft" and not self.original(budget).decay(1.0):
            raise ValueError(f"--method.retrain ft keeps the dense phase's last rate, which is 0; {self._not_zero}")
        if not self.dense:
            if self.retrain in ("lrw", "allr"):
                raise ValueError(
                    f"--method.retrain {self.retrain} goes by the length of the dense phase, which --method.dense 0 "
                    "leaves out; choose another, such as llr"
                )
            return segments[1:]
        if self.retrain == "lrw" and segments[-1].epochs > segments[0].epochs * (1.0 + 1e-9):
            raise ValueError(
                f"--method.retrain lrw replays the dense phase's last {segments[-1].epochs:g} epochs, but that phase "
                f"has {segments[0].epochs:g}; raise --method.dense or --method.cycles"
            )
        return segments

    def original(self, budget: Budget) -> Budget:
        """The budget with the schedule that the dense phase runs, and that cycles replay."""
        return budget

    def learning_rate(self, stage: Stage) -> Schedule:
        budget = self.original(stage.budget)
        if not stage.index and self.dense:
            return dense_schedule(budget)
        return retraining_schedule(self.retrain, replace(stage, budget=budget))
