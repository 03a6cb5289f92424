"""Movement pruning."""

from __future__ import annotations

from sparsekit import Budget, PruningMethod, PruningStep, Segment, Tensors, TrainingStep
from sparsekit.schedules import check_option, check_ramp, gradual_plan
from sparsekit_soft._shared import by_layer


class Movement(PruningMethod):
    """Keep the weights that move away from 0, not the large ones (Sanh et al., arXiv 2005.07683).

    Every weight has a score, S ← S − ∂L/∂(w ⊙ m) · w at each step (section 4): it rises while training pushes w away
    from 0. The gradient goes straight through the mask, so that the scores of masked weights move too and these can
    come back; masked weights themselves get no gradient and stay behind the mask. The masks keep the highest scores
    on GMP's cubic ramp. Here they change only where replicas meet, in the paper at every step.

    The scores are no parameters: neither the optimizer nor weight decay nor clipping touches them, and a learning rate
    of their own would change no order. Made for fine-tuning (`--model.pretrained`), where magnitudes hardly change.

    Args:
        start: Fraction of the budget at which the ramp starts, 0 to below 1; the first pruning is one interval later.
        end: Fraction of the budget at which the target sparsity is reached, above `start` and below 1.
        interval: Fraction of the budget between two choices of the mask, 0.0001 to 1.
        freeze: Fraction of the budget after which the mask no longer changes, from `end` to 1.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, start: float = 0.1, end: float = 0.6, interval: float = 0.05, freeze: float = 0.8) -> None:
        check_ramp(start, end, interval)
        check_option(
            "method.freeze", freeze, end <= freeze <= 1.0, f"a fraction of the budget from --method.end ({end:g}) to 1"
        )
        self.start, self.end, self.interval, self.freeze = start, end, interval, freeze

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return gradual_plan(budget, self.start, self.end, self.interval, 0.0, stop=self.freeze)

    def extra(self, weights: Tensors) -> Tensors:
        return {name: weight.new_zeros(weight.shape) for name, weight in weights.items()}

    def effective(self, step: TrainingStep) -> Tensors:
        return super().effective(step)  # defined, so that what is masked stays behind the mask

    def update(self, step: TrainingStep, gradients: Tensors) -> Tensors:
        import torch

        scores, weights, given = by_layer(gradients, step.extra, step.weights, gradients)
        return dict(zip(gradients, torch._foreach_sub(scores, torch._foreach_mul(given, weights)), strict=True))

    def scores(self, step: PruningStep) -> Tensors:
        if step.index == 0:  # nothing has moved yet: a model that starts sparse keeps its zeros
            return super().scores(step)
        return {name: step.extra[name] for name in step.weights}

    def masks(self, step: PruningStep) -> Tensors:
        return step.select(self.scores(step), regrow=True)
