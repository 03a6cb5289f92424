"""Dynamic sparse training."""

from __future__ import annotations

from sparsekit import PruningStep, Tensors, TrainingStep
from sparsekit.schedules import check_option
from sparsekit_soft._shared import Steered, Tensor, total


class DST(Steered):
    """A threshold learned for every output channel (Liu et al., arXiv 2005.06870).

    Search: the forward pass uses w where |w| > t and 0 elsewhere, with one learned t an output channel, 0 at first. The
    step's gradient is replaced by 2 − 4|x| up to |x| = 0.4, 0.4 up to 1 and 0 beyond, x = |w| − t; the penalty
    strength · Σ exp(−t) raises thresholds. Nothing is masked, what is below comes back when it grows. In the paper the
    sparsity is what comes of the penalty; here it rests while the zeros are ahead of GMP's ramp to the target. Then
    exactly the target is masked: what is below its threshold before what is above, the smaller |w| first.

    A layer of which the thresholds would keep a fraction of `reset` or less counts as if they were 0, while ½ Σ t²
    draws them back; the paper sets them to 0 for good.

    Args:
        search: Fraction of the budget in which the thresholds learn, above 0 and up to 1.
        interval: Fraction of the budget between two merges until then, 0.0001 to 1; weights and t are averaged.
        strength: Factor of the penalty, 0 or more.
        reset: Fraction of a layer, from 0 to below 1, of which the thresholds must keep more.
        steer: False keeps the penalty on all the time, as in the paper.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        search: float = 0.7,
        interval: float = 0.1,
        strength: float = 1e-3,
        reset: float = 0.01,
        steer: bool = True,
    ) -> None:
        super().__init__(search, interval, strength, steer)
        check_option("method.reset", reset, 0.0 <= reset < 1.0, "a fraction from 0 to below 1")
        self.reset = reset

    def extra(self, weights: Tensors) -> Tensors:
        return {name: weight.new_zeros(len(weight)) for name, weight in weights.items()}

    def effective(self, step: TrainingStep) -> Tensors:
        if not self.searching(step):
            return super().effective(step)
        soft = {}
        for name, weight in step.weights.items():
            over = self._over(weight, step.extra[name])
            gate = (over > 0).to(weight.dtype) + _slope(over.detach()) * (over - over.detach())
            soft[name] = weight * gate * step.masks[name]
        return soft

    def penalty(self, step: TrainingStep) -> Tensor | None:
        if not self.searching(step):
            return None
        push = self.push(step, ((self._over(w, step.extra[n]) > 0).sum() for n, w in step.weights.items()))
        return total(
            (push * (-t).exp().sum()).where(self._holds(step.weights[name], t), 0.5 * t.square().sum())
            for name, t in step.extra.items()
        )

    def scores(self, step: PruningStep) -> Tensors:
        peak = max(weight.abs().max() for weight in step.weights.values())
        return {
            name: weight.abs().where(self._over(weight, step.extra[name]) > 0, weight.abs() - peak)
            for name, weight in step.weights.items()
        }

    def _holds(self, weight: Tensor, threshold: Tensor) -> Tensor:
        """Whether a layer's thresholds keep enough of it."""
        return (weight.abs() > _spread(threshold, weight)).to(weight.dtype).mean() > self.reset

    def _over(self, weight: Tensor, threshold: Tensor) -> Tensor:
        """|w| − t, with t counted as 0 where the layer's thresholds do not hold; the gradient is that of |w| − t."""
        void = (threshold * ~self._holds(weight, threshold)).detach()
        return weight.abs() - _spread(threshold - void, weight)


def _spread(threshold: Tensor, weight: Tensor) -> Tensor:
    """A number an output channel, shaped to be taken from the layer's weights."""
    return threshold.view(-1, *[1] * (weight.dim() - 1))


def _slope(x: Tensor) -> Tensor:
    """What stands for the derivative of the step at 0 (arXiv 2005.06870, section 3.3)."""
    return (2.0 - 4.0 * x.abs()).where(x.abs() <= 0.4, 0.4) * (x.abs() <= 1.0)
