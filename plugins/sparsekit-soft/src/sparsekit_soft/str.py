"""Soft threshold weight reparameterisation."""

from __future__ import annotations

from sparsekit import PruningStep, Tensors, TrainingStep
from sparsekit.schedules import check_option
from sparsekit_soft._shared import Layers, Steered, Tensor, above_zero, by_layer, counts, detached, signs


class STR(Steered):
    """Soft thresholds learned for each layer (Kusupati et al., arXiv 2002.03231).

    Search: the forward pass uses sign(w) · relu(|w| − σ(s)) with one learned s a layer; nothing is masked. The loss's
    gradient moves s, weight decay and the penalty strength/2 · Σ s² draw it from `init` towards 0, which raises the
    threshold. In the paper the sparsity is what comes of the weight decay; here the penalty rests while the soft zeros
    are ahead of GMP's ramp to the target. Then exactly the target is masked, where |w| − σ(s) is smallest, and the
    kept weights train on from where the thresholds, now fixed, have put them; one still below its threshold counts
    as 0 until it grows past it.

    Args:
        search: Fraction of the budget in which the thresholds learn, above 0 and up to 1.
        interval: Fraction of the budget between two merges until then, 0.0001 to 1; weights and s are averaged.
        init: First value of every s, -10000 to 10000; the lower, the longer the weights stay as they are.
        strength: Factor of the penalty, 0 or more; 0 leaves it to weight decay, as in the paper.
        steer: False keeps the penalty on all the time.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        search: float = 0.7,
        interval: float = 0.1,
        init: float = -5.0,
        strength: float = 0.02,
        steer: bool = True,
    ) -> None:
        super().__init__(search, interval, strength, steer)
        check_option("method.init", init, -1e4 <= init <= 1e4, "a number from -10000 to 10000")
        self.init = init

    def extra(self, weights: Tensors) -> Tensors:
        return {name: weight.new_tensor(self.init) for name, weight in weights.items()}

    def effective(self, step: TrainingStep) -> Tensors:
        import torch

        weights, masks = by_layer(step.weights, step.weights, step.masks)
        over = self._over(step)
        soft = torch._foreach_mul(over, torch._foreach_mul(signs(weights), above_zero(over)))
        if not self.searching(step):
            # the same values with the gradient of w, so that a kept weight below its threshold can grow past it
            soft = torch._foreach_add(weights, detached(torch._foreach_sub(soft, weights)))
        return dict(zip(step.weights, torch._foreach_mul(soft, masks), strict=True))

    def penalty(self, step: TrainingStep) -> Tensor | None:
        if not self.searching(step):
            return None
        import torch

        push = self.push(step, counts(above_zero(self._over(step))).sum())
        return 0.5 * push * torch.stack(list(step.extra.values())).square().sum()

    def scores(self, step: PruningStep) -> Tensors:
        return {name: weight.abs() - step.extra[name].sigmoid() for name, weight in step.weights.items()}

    def _over(self, step: TrainingStep) -> Layers:
        """|w| − σ(s)."""
        import torch

        weights, thresholds = by_layer(step.weights, step.weights, step.extra)
        sizes = torch._foreach_mul(weights, signs(weights))
        return torch._foreach_sub(sizes, torch._foreach_sigmoid(thresholds))
