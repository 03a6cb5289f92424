"""Continuous sparsification."""

from __future__ import annotations

from math import exp

from sparsekit import PruningStep, Tensors, TrainingStep
from sparsekit.schedules import check_option
from sparsekit_soft._shared import Layers, Steered, Tensor, above_zero, by_layer, counts


class CS(Steered):
    """A soft gate for every weight, hardened step by step (Savarese et al., arXiv 1912.04427).

    Search: the forward pass uses w · σ(β m) / σ(init) with one learned logit m a weight, β = beta^t growing from 1 as
    the search goes on, t from 0 to 1, and the penalty strength · Σ σ(β m) closes gates; nothing is masked. In the
    paper the sparsity is what comes of `init` and the penalty; here the penalty rests while the gates with m ≤ 0 are
    ahead of GMP's ramp to the target. Then exactly the target is masked, where m is smallest; kept gates are
    1 / σ(init) from there on. The paper decays no logits; sparsekit decays a method's own tensors as it does weights.

    Args:
        search: Fraction of the budget in which the gates learn, above 0 and up to 1.
        interval: Fraction of the budget between two merges until then, 0.0001 to 1; weights and logits are averaged.
        init: First value of every logit, -80 to 100.
        beta: Temperature at the end of the search, 1 to 1000000.
        strength: Factor of the penalty, 0 or more.
        steer: False keeps the penalty on all the time, as in the paper.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        search: float = 0.7,
        interval: float = 0.1,
        init: float = 0.0,
        beta: float = 200.0,
        strength: float = 1e-3,
        steer: bool = True,
    ) -> None:
        super().__init__(search, interval, strength, steer)
        check_option("method.init", init, -80.0 <= init <= 100.0, "a number from -80 to 100")
        check_option("method.beta", beta, 1.0 <= beta <= 1e6, "a number from 1 to 1000000")
        self.init, self.beta = init, beta

    def extra(self, weights: Tensors) -> Tensors:
        return {name: weight.new_full(weight.shape, self.init) for name, weight in weights.items()}

    def effective(self, step: TrainingStep) -> Tensors:
        import torch

        weights, masks = by_layer(step.weights, step.weights, step.masks)
        scale = 1.0 + exp(-self.init)  # 1 / σ(init), below float32's largest: every weight starts as it is
        gated = torch._foreach_mul(weights, scale)
        if self.searching(step):
            gated = torch._foreach_mul(gated, self._gates(step))
        return dict(zip(step.weights, torch._foreach_mul(gated, masks), strict=True))

    def penalty(self, step: TrainingStep) -> Tensor | None:
        if not self.searching(step):
            return None
        import torch

        push = self.push(step, counts(above_zero(list(step.extra.values()))).sum())
        # gates are positive, so that their norm is their sum
        return push * torch.stack(torch._foreach_norm(self._gates(step), 1)).sum()

    def scores(self, step: PruningStep) -> Tensors:
        return {name: step.extra[name] for name in step.weights}

    def _gates(self, step: TrainingStep) -> Layers:
        import torch

        beta = self.beta ** min(step.progress / self.search, 1.0)
        (logits,) = by_layer(step.weights, step.extra)
        return torch._foreach_sigmoid(torch._foreach_mul(logits, beta))
