"""Dynamic sparse training."""

from __future__ import annotations

from sparsekit import PruningStep, Tensors, TrainingStep
from sparsekit.schedules import check_option
from sparsekit_soft._shared import Layers, Steered, Tensor, above_zero, by_layer, counts, detached, signs


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
        import torch

        weights, thresholds, masks = by_layer(step.weights, step.weights, step.extra, step.masks)
        over = self._over(weights, thresholds)
        fixed = detached(over)
        gates = torch._foreach_add(
            above_zero(over), torch._foreach_mul(_slopes(fixed), torch._foreach_sub(over, fixed))
        )
        soft = torch._foreach_mul(torch._foreach_mul(weights, gates), masks)
        return dict(zip(step.weights, soft, strict=True))

    def penalty(self, step: TrainingStep) -> Tensor | None:
        if not self.searching(step):
            return None
        import torch

        weights, thresholds = by_layer(step.weights, step.weights, step.extra)
        kept, holds = self._kept(weights, thresholds)
        push = self.push(step, kept.where(holds, counts(above_zero(torch._foreach_abs(weights)))).sum())
        held = torch.cat([each.expand(len(t)) for each, t in zip(holds, thresholds, strict=True)])
        t = torch.cat(thresholds)
        return (push * (-t).exp()).where(held, 0.5 * t.square()).sum()

    def scores(self, step: PruningStep) -> Tensors:
        weights, thresholds = by_layer(step.weights, step.weights, step.extra)
        over = zip(step.weights.items(), self._over(weights, thresholds), strict=True)
        peak = max(weight.abs().max() for weight in weights)
        return {name: weight.abs().where(each > 0, weight.abs() - peak) for (name, weight), each in over}

    def _kept(self, weights: Layers, thresholds: Layers) -> tuple[Tensor, Tensor]:
        """How many weights each layer's thresholds keep, float64 [N], and whether they hold: whether it is enough."""
        import torch

        kept = counts(above_zero(_less(torch._foreach_abs(detached(weights)), detached(thresholds))))
        shares = torch._foreach_div(kept.unbind(), [weight.numel() for weight in weights])
        return kept, torch.stack(shares) > self.reset

    def _over(self, weights: Layers, thresholds: Layers) -> Layers:
        """|w| − t, with t counted as 0 where the layer's thresholds do not hold; the gradient is that of |w| − t."""
        import torch

        _, holds = self._kept(weights, thresholds)
        void = torch._foreach_mul(detached(thresholds), (~holds).unbind())
        return _less(torch._foreach_mul(weights, signs(weights)), torch._foreach_sub(thresholds, void))


def _less(sizes: Layers, thresholds: Layers) -> Layers:
    """Sizes less a threshold an output channel."""
    import torch

    return torch._foreach_sub(sizes, [t.view(-1, *[1] * (w.dim() - 1)) for w, t in zip(sizes, thresholds, strict=True)])


def _slopes(over: Layers) -> Layers:
    """What stands for the derivative of the step: 2 − 4|x| up to 0.4, 0.4 up to 1 (arXiv 2005.06870, section 3.3)."""
    import torch

    sizes = torch._foreach_abs(over)
    middle, outside = (above_zero(torch._foreach_sub(sizes, end)) for end in (0.4, 1.0))
    inside = torch._foreach_add(torch._foreach_neg(middle), 1.0)
    slopes = torch._foreach_mul(torch._foreach_add(torch._foreach_mul(sizes, -4.0), 2.0), inside)
    return torch._foreach_add(slopes, torch._foreach_mul(torch._foreach_sub(middle, outside), 0.4))
