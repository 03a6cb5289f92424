"""How many weights each layer keeps: arithmetic on shapes, with exact totals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

Shapes = Mapping[str, Sequence[int]]


def kept_total(shapes: Shapes, sparsity: float) -> int:
    """Number of weights kept in total: N − round(sparsity · N)."""
    total = sum(prod(shape) for shape in shapes.values())
    return total - round(sparsity * total)


def uniform(shapes: Shapes, sparsity: float, available: Mapping[str, int]) -> dict[str, int]:
    """Weights to keep in each layer at equal density, up to rounding, and at most as many as are `available` there."""
    return _apportion(shapes, dict.fromkeys(shapes, 1.0 - sparsity), kept_total(shapes, sparsity), available)


def erk(shapes: Shapes, sparsity: float, available: Mapping[str, int]) -> dict[str, int]:
    """Weights to keep in each layer by the Erdős–Rényi kernel: density_l = ε · Σ dims / Π dims (arXiv 1911.11134, § 3).

    Layers that would keep more than are `available` keep all of those, and ε is solved again for the others, until no
    layer exceeds its limit.
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    target = kept_total(shapes, sparsity)
    full: set[str] = set()
    while True:
        free = [name for name in shapes if name not in full]
        budget = target - sum(available[name] for name in full)
        # density_l · size_l = ε · Σ dims, so ε follows from the sum over the free layers
        epsilon = budget / sum(sum(shapes[name]) for name in free) if free else 0.0
        over = {name for name in free if epsilon * sum(shapes[name]) > available[name]}
        if not over:
            break
        full |= over
    kept = {name: available[name] if name in full else epsilon * sum(shapes[name]) for name in shapes}
    density = {name: kept[name] / sizes[name] for name in shapes}
    return _apportion(shapes, density, target, available)


def _apportion(
    shapes: Shapes, density: Mapping[str, float], total: int, available: Mapping[str, int]
) -> dict[str, int]:
    """Integer counts that follow the densities and add up to `total`, by the largest-remainder method.

    Counts that exceed what is available in a layer go to the next ones: rounding at an earlier pruning may have left a
    layer one weight fewer.
    """
    exact = {name: density[name] * prod(shape) for name, shape in shapes.items()}
    counts = {name: min(int(value + 1e-9), available[name]) for name, value in exact.items()}
    order = sorted(shapes, key=lambda name: counts[name] - exact[name])
    missing = min(total, sum(available.values())) - sum(counts.values())
    while missing:
        for name in order if missing > 0 else reversed(order):
            step = (missing > 0) - (missing < 0)
            if 0 <= counts[name] + step <= available[name]:
                counts[name] += step
                missing -= step
    return counts
