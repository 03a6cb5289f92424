"""What several merges share: checked options, the plain mean, and merging the changes from the parent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsekit import Candidate, MergeStep, Soup, Tensors


def equal_shares(count: int) -> list[float]:
    """The plain mean's coefficients."""
    return [1.0 / count] * count


def only_candidate(candidates: Sequence[Candidate], step: MergeStep) -> Soup:
    """One candidate as it is, its optimizer state included: there is nothing to merge."""
    return Soup(step.average(candidates, [1.0]), (1.0,), (candidates[0].index,))


def trained(tensors: Tensors) -> list[str]:
    """Names of the tensors that training moved, in order: no counters, and not BatchNorm's statistics.

    A variance must not be trimmed, dropped or extrapolated; it takes the plain mean.
    """
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not name.endswith(("running_mean", "running_var"))
    ]


def changes(candidates: Sequence[Candidate], step: MergeStep, name: str) -> Tensor:
    """What each candidate changed of the parent's tensor, float64, candidates along dimension 0."""
    parent = step.parent[name].double()
    return torch.stack([candidate.read(name).double() - parent for candidate in candidates])


def merge_changes(candidates: Sequence[Candidate], step: MergeStep, combine: Callable[[Tensor], Tensor]) -> Soup:
    """The parent plus what `combine` makes of the candidates' changes, a tensor at a time; the rest is the plain mean.

    `combine` must map changes that are all 0 to 0: so common zeros and an unchanged parent stay. The soup has no
    coefficients, since it is no mixture of the candidates alone.

    Args:
        candidates: What is merged.
        step: Gives the parent and the mean.
        combine: Maps float64 [N, *shape] to [*shape].
    """
    if len(candidates) == 1:
        return only_candidate(candidates, step)
    tensors = step.average(candidates, equal_shares(len(candidates)))
    for name in trained(tensors):
        merged = step.parent[name].double() + combine(changes(candidates, step, name))
        tensors[name] = merged.to(tensors[name].dtype)
    return Soup(tensors, None, tuple(candidate.index for candidate in candidates))
