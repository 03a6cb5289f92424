"""Dynamic pruning with feedback."""

from __future__ import annotations

from sparsekit._types import Tensors
from sparsekit.api import Budget, PruningMethod, PruningStep, Schedule, Segment, Stage, TrainingStep
from sparsekit.schedules import Retraining, check_option, check_ramp, gradual_plan, restarted_schedule


class DPF(PruningMethod):
    """Dynamic pruning with feedback (Lin et al., arXiv 2006.07253).

    The forward pass and the gradient use the masked weights, but the update goes to the dense weights behind them, so
    that a weight that was pruned too early can grow back. The mask is chosen again from the dense weights at every
    segment and is fixed within it, so that replicas share it (in the paper: every 16 iterations).

    Args:
        start: Fraction of the budget at which the ramp starts; the first pruning is one interval later.
        end: Fraction of the budget at which the target sparsity is reached.
        interval: Fraction of the budget between two choices of the mask.
        freeze: Fraction of the budget after which the mask no longer changes.
        retrain: Learning rate after each pruning, where the first segment has the whole schedule: `ft`, `lrw`, `slr`,
            `clr`, `llr` or `allr` (arXiv 2111.00843). By default one schedule goes on over the budget.
    """

    def __init__(
        self,
        start: float = 0.05,
        end: float = 0.6,
        interval: float = 0.05,
        freeze: float = 0.8,
        retrain: Retraining | None = None,
    ) -> None:
        check_ramp(start, end, interval)
        check_option(
            "method.freeze", freeze, end <= freeze <= 1.0, f"a fraction of the budget from --method.end ({end:g}) to 1"
        )
        self.start, self.end, self.interval, self.freeze, self.retrain = start, end, interval, freeze, retrain

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return gradual_plan(budget, self.start, self.end, self.interval, 0.0, stop=self.freeze)

    def learning_rate(self, stage: Stage) -> Schedule:
        return restarted_schedule(self.retrain, stage)

    def masks(self, step: PruningStep) -> Tensors:
        return step.select(self.scores(step), regrow=True)

    def effective(self, step: TrainingStep) -> Tensors:
        import torch

        weights, masks = [w.detach() for w in step.weights.values()], [step.masks[name] for name in step.weights]
        # w + (w⊙m − w) is exactly w or 0, and its gradient reaches the dense weights unmasked
        change = torch._foreach_sub(torch._foreach_mul(weights, masks), weights)
        return dict(zip(step.weights, torch._foreach_add(list(step.weights.values()), change), strict=True))
