"""Discovering neural wirings."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import ClassVar, Literal

from sparsekit import Tensors, TrainingStep
from sparsekit_soft._shared import TwoPhases, by_layer, detached, kept_count, top


class DNW(TwoPhases):
    """The largest weights in every forward pass, gradients to all: neural wirings (Wortsman et al., arXiv 1906.00586).

    Search: every forward pass uses the weights of largest magnitude only, as many as the target keeps; the gradient
    there goes straight through to all weights, so that what is left out can come back at the next step. Then the mask
    is fixed, exactly at the target.

    Each layer keeps its own number of weights, as in the authors' code for ImageNet, but by the Erdős–Rényi kernel
    (arXiv 1911.11134) instead of one density. One top k over all layers takes whole layers out before they are trained:
    a ResNet from timm, whose first and last weights start small, then never learns. `--masks.allocation` rules the
    final pruning alone.

    Args:
        search: Fraction of the budget in which every forward pass chooses anew, above 0 and up to 1.
        interval: Fraction of the budget between two merges until then, 0.0001 to 1; the dense weights are averaged.

    Raises:
        ValueError: an option out of its range.
    """

    allocation: ClassVar[Literal["global", "uniform", "erk", "lamp"]] = "erk"

    def __init__(self, search: float = 0.8, interval: float = 0.1) -> None:
        super().__init__(search, interval)

    def effective(self, step: TrainingStep) -> Tensors:
        if not self.searching(step):
            return super().effective(step)
        import torch

        counts = erk_counts({name: tuple(weight.shape) for name, weight in step.weights.items()}, step.target)
        trained, masks = by_layer(step.weights, step.weights, step.masks)
        weights = detached(trained)
        sizes = zip(step.weights, torch._foreach_abs(weights), strict=True)
        largest = [top([size], counts[name])[0] for name, size in sizes]
        wired = torch._foreach_mul(weights, torch._foreach_mul(masks, largest))
        # w + (w⊙m − w) is exactly w or 0, and its gradient reaches every weight
        change = torch._foreach_sub(wired, weights)
        return dict(zip(step.weights, torch._foreach_add(trained, change), strict=True))


def erk_counts(shapes: Mapping[str, tuple[int, ...]], sparsity: float) -> dict[str, int]:
    """Weights that each layer keeps, at least one: density ε · Σ dims / Π dims, rounded.

    Layers that would pass density 1 are kept whole, and ε is solved again, until none does.
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    counts: dict[str, int] = {}
    while len(counts) < len(shapes):
        free = [name for name in shapes if name not in counts]
        left = kept_count(sum(sizes.values()), sparsity) - sum(counts.values())
        epsilon = left / sum(sum(shapes[name]) for name in free)
        full = {name: sizes[name] for name in free if epsilon * sum(shapes[name]) >= sizes[name]}
        counts |= full or {name: max(1, round(epsilon * sum(shapes[name]))) for name in free}
    return counts
