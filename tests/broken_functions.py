"""Allocations and a data set that break the contract, where other processes import them in a moment: without torch."""

from __future__ import annotations

import random
from typing import Any

import sparsekit
from sparsekit.pruning.allocation import uniform


def deaf(shapes: Any, sparsity: float, available: Any, least: Any) -> Any:
    """Takes no notice of what is available."""
    from math import prod

    return uniform(shapes, sparsity, {name: prod(shape) for name, shape in shapes.items()}, dict.fromkeys(shapes, 0))


def eager(shapes: Any, sparsity: float, available: Any, least: Any) -> Any:
    """Changes its arguments."""
    found = uniform(shapes, sparsity, available, least)
    available.clear()
    return found


def moody(shapes: Any, sparsity: float, available: Any, least: Any) -> Any:
    """Draws where the rounding goes."""
    found = uniform(shapes, sparsity, available, least)
    names = [name for name in found if least[name] < found[name] < available[name]]
    for name, step in zip(random.sample(names, 2) if len(names) > 1 else (), (1, -1), strict=False):
        found[name] += step
    return found


def by_set(shapes: Any, sparsity: float, available: Any, least: Any) -> Any:
    """Fills layers in the order of a set of their names."""
    found = uniform(shapes, sparsity, available, least)
    left, kept = sum(found.values()) - sum(least.values()), dict(least)
    for name in set(shapes):
        more = min(left, available[name] - kept[name])
        kept[name], left = kept[name] + more, left - more
    return kept


def narrow(shapes: Any, sparsity: float) -> Any:
    """Takes two arguments."""


def numbered_by_set() -> sparsekit.Data:
    """Numbers classes in the order of a set of their names."""
    import torch

    numbers = {name: number for number, name in enumerate({"cat", "dog", "cow", "hen", "owl"})}
    y = torch.tensor([numbers[name] for name in ("cat", "dog", "cow", "hen", "owl")])
    return sparsekit.Data((torch.ones(5, 2), y), (torch.zeros(5, 2), y))
