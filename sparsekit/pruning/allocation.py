"""How many weights each layer keeps: arithmetic on shapes, with exact totals."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from math import ceil, prod
from numbers import Integral
from typing import Any

from sparsekit.errors import RunError, UserError
from sparsekit.plugins.choices import described, find_choice

Shapes = Mapping[str, Sequence[int]]


def count(shapes: Shapes) -> int:
    """Number of weights in total, N."""
    return sum(prod(shape) for shape in shapes.values())


def kept_total(shapes: Shapes, sparsity: float) -> int:
    """Number of weights kept in total: N − round(sparsity · N)."""
    return count(shapes) - round(sparsity * count(shapes))


def floors(shapes: Shapes, floor: float, share: float = 1.0) -> dict[str, int]:
    """The fewest weights that each layer keeps: min(`floor`, n) of its n weights, or ⌈`floor` · n⌉ below 1.

    Args:
        shapes: The layers' shapes.
        floor: A whole number of weights, or a fraction of each layer, 0 to below 1; 0 asks for none.
        share: The largest part of a layer that can be kept, 0 to 1; no layer is asked for more.
    """
    least = {}
    for name, shape in shapes.items():
        size = prod(shape)
        wanted = ceil(floor * size - 1e-9) if floor < 1.0 else int(floor)
        least[name] = min(wanted, int(share * size + 1e-9))
    return least


def check_floor(options: tuple[str, str], shapes: Shapes, floor: float, sparsity: float, share: float = 1.0) -> None:
    """Raise UserError, with the numbers, where a floor keeps more than the sparsity leaves.

    Args:
        options: The option that gives the floor, and the one that gives the sparsity.
        shapes: The layers' shapes.
        floor: As for `floors`.
        sparsity: The target, 0 to 1.
        share: As for `floors`.
    """
    least, kept, total = sum(floors(shapes, floor, share).values()), kept_total(shapes, sparsity), count(shapes)
    if least <= kept:
        return
    unit = 1.0 if floor >= 1.0 else 1e-4
    steps = range(int(floor / unit) + 1)
    fits = bisect_right(steps, kept, key=lambda n: sum(floors(shapes, n * unit, share).values())) - 1
    highest = int(1e4 * (1.0 - least / total)) / 1e4
    raise UserError(
        f"{options[0]} {floor:g} keeps {least:,} of the {total:,} prunable weights, but {options[1]} {sparsity:g} "
        f"leaves {kept:,}; give {fits * unit:g} or less, or a sparsity of {highest:g} or less"
    )


def uniform(
    shapes: Shapes, sparsity: float, available: Mapping[str, int], least: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Weights to keep in each layer at equal density, up to rounding, and at most as many as are `available` there.

    Layers that would keep fewer than `least` keep that many, and the others share the rest at equal density.
    """
    total = kept_total(shapes, sparsity)
    if not any((least or {}).values()):
        return _apportion(shapes, dict.fromkeys(shapes, 1.0 - sparsity), total, available, {})
    density = _densities(shapes, {name: prod(shape) for name, shape in shapes.items()}, total, available, least or {})
    return _apportion(shapes, density, total, available, least or {})


def erk(
    shapes: Shapes, sparsity: float, available: Mapping[str, int], least: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Weights to keep in each layer by the Erdős–Rényi kernel: density_l = ε · Σ dims / Π dims (arXiv 1911.11134, § 3).

    Layers that would keep more than are `available`, or fewer than `least`, keep those, and ε is solved again for the
    others, until no layer exceeds its limits.
    """
    total = kept_total(shapes, sparsity)
    density = _densities(shapes, {name: sum(shape) for name, shape in shapes.items()}, total, available, least or {})
    return _apportion(shapes, density, total, available, least or {})


def counts(
    rule: str, shapes: Shapes, sparsity: float, available: Mapping[str, int], least: Mapping[str, int]
) -> dict[str, int]:
    """Weights to keep in each layer by `uniform`, `erk`, or a plugin's function of the same arguments.

    Raises:
        RunError: a plugin's numbers are not one a layer, within its limits, or do not add up to what is to be kept.
    """
    own = find_choice("allocation", rule)
    if own is None:
        return {"uniform": uniform, "erk": erk}[rule](shapes, sparsity, available, least)
    found = own(dict(shapes), sparsity, dict(available), dict(least))
    for fault in faults(found, shapes, sparsity, available, least):
        raise RunError(f"{described('allocation', rule)}: {fault}")
    return {name: int(found[name]) for name in shapes}


def faults(
    found: Any, shapes: Shapes, sparsity: float, available: Mapping[str, int], least: Mapping[str, int]
) -> Iterator[str]:
    """What is wrong with the numbers of weights that an allocation gave, each as a sentence."""
    if not isinstance(found, Mapping):
        yield f"it returned {type(found).__name__}, not the number of weights to keep by the layer's name"
        return
    if names := sorted({*map(str, found)} ^ {*shapes}):
        yield f"it {'leaves out' if names[0] in shapes else 'names'} {names[0]}; give every layer of shapes, no other"
        return
    for name in shapes:
        kept, low, high = found[name], least.get(name, 0), available[name]
        if not isinstance(kept, Integral) or isinstance(kept, bool):
            yield f"it keeps {kept!r} weights of {name}; give a whole number"
        elif not low <= int(kept) <= high:
            yield f"it keeps {kept} weights of {name}; give {low} (least) to {high} (available)"
        else:
            continue
        return
    total, expected = sum(found.values()), min(kept_total(shapes, sparsity), sum(available.values()))
    if total != expected:
        yield f"it keeps {total} weights in all at a sparsity of {sparsity:g}; give {expected}"


def _densities(
    shapes: Shapes, shares: Mapping[str, int], total: int, available: Mapping[str, int], least: Mapping[str, int]
) -> dict[str, float]:
    """Densities for which each layer keeps ε · its share, within its limits, and all together keep `total`."""
    fixed: dict[str, int] = {}
    while True:
        free = [name for name in shapes if name not in fixed]
        budget = total - sum(fixed.values())
        epsilon = budget / sum(shares[name] for name in free) if free else 0.0
        over = {name: available[name] for name in free if epsilon * shares[name] > available[name]}
        under = {name: least.get(name, 0) for name in free if epsilon * shares[name] < least.get(name, 0)}
        if not over and not under:
            break
        # fixing the side that is further off never has to be undone, as ε then moves away from its limits
        excess = sum(epsilon * shares[name] - count for name, count in over.items())
        lack = sum(count - epsilon * shares[name] for name, count in under.items())
        fixed |= over if excess >= lack else under
    return {name: (fixed[name] if name in fixed else epsilon * shares[name]) / prod(shapes[name]) for name in shapes}


def _apportion(
    shapes: Shapes, density: Mapping[str, float], total: int, available: Mapping[str, int], least: Mapping[str, int]
) -> dict[str, int]:
    """Integer counts that follow the densities and add up to `total`, by the largest-remainder method.

    Counts that exceed what is available in a layer go to the next ones: rounding at an earlier pruning may have left a
    layer one weight fewer.
    """
    exact = {name: density[name] * prod(shape) for name, shape in shapes.items()}
    counts = {name: min(max(int(value + 1e-9), least.get(name, 0)), available[name]) for name, value in exact.items()}
    order = sorted(shapes, key=lambda name: counts[name] - exact[name])
    missing = min(total, sum(available.values())) - sum(counts.values())
    while missing:
        for name in order if missing > 0 else reversed(order):
            step = (missing > 0) - (missing < 0)
            if least.get(name, 0) <= counts[name] + step <= available[name]:
                counts[name] += step
                missing -= step
    return counts
