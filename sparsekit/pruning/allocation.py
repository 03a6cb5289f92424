"""How many weights each layer keeps. Plain arithmetic on shapes; totals are exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

Shapes = Mapping[str, Sequence[int]]


def kept_total(shapes: Shapes, sparsity: float) -> int:
    """Weights kept in all: N − round(sparsity · N)."""
    total = sum(prod(shape) for shape in shapes.values())
    return total - round(sparsity * total)


def uniform(shapes: Shapes, sparsity: float, available: Mapping[str, int]) -> dict[str, int]:
    """The same density in every layer, up to rounding and to what is `available` there."""
    return _apportion(shapes, dict.fromkeys(shapes, 1.0 - sparsity), kept_total(shapes, sparsity), available)


def erk(shapes: Shapes, sparsity: float, available: Mapping[str, int]) -> dict[str, int]:
    """Erdős–Rényi kernel: density_l = ε · Σ dims / Π dims (arXiv 1911.11134, section 3).

    Layers that would pass what is `available` there, all of their weights at most, keep that, and ε is solved again,
    until none does.
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    target = kept_total(shapes, sparsity)
    whole: set[str] = set()
    while True:
        free = [name for name in shapes if name not in whole]
        budget = target - sum(available[name] for name in whole)
        # density_l · size_l = ε · Σ dims, so ε follows from the sum over the layers that are still free
        epsilon = budget / sum(sum(shapes[name]) for name in free) if free else 0.0
        over = {name for name in free if epsilon * sum(shapes[name]) > available[name]}
        if not over:
            break
        whole |= over
    kept = {name: available[name] if name in whole else epsilon * sum(shapes[name]) for name in shapes}
    density = {name: kept[name] / sizes[name] for name in shapes}
    return _apportion(shapes, density, target, available)


def _apportion(
    shapes: Shapes, density: Mapping[str, float], total: int, available: Mapping[str, int]
) -> dict[str, int]:
    """Whole counts that follow the densities and sum up to `total`: floors, then the largest remainders.

    What a layer cannot give, because rounding left it one weight fewer earlier on, goes to the next ones.
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
