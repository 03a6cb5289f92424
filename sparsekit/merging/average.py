"""The weighted mean of candidates, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekit._types import Tensors
from sparsekit.api import Candidate
from sparsekit.errors import RunError
from sparsekit.models.reparametrized import is_number


def average(
    candidates: Sequence[Candidate],
    coefficients: Sequence[float],
    names: Sequence[str],
    device: torch.device | None = None,
) -> Tensors:
    """The weighted mean of each named tensor on the CPU, one tensor in memory at a time.

    Sums in float64 on the device (the CPU without one), in the candidates' order; of complex numbers both parts.
    Integer tensors are not averaged: they come from the first candidate with a coefficient other than 0.

    Raises:
        RunError: the coefficients do not match the candidates, are not finite, or do not sum up to 1.
    """
    check_coefficients(coefficients, len(candidates))
    used = [(c, weight) for c, weight in zip(candidates, coefficients, strict=True) if weight]
    scratch = torch.empty(2, 0, dtype=torch.float64, device=device)
    averaged = {}
    for name in names:
        first = used[0][0].read(name)
        if not is_number(first) or len(used) == 1:
            averaged[name] = first.clone()  # a tensor that was read keeps its whole memory-mapped file in memory
            continue
        parts = torch.view_as_real if first.is_complex() else _as_it_is
        first = parts(first)
        # The same two buffers for every tensor: temporaries allocated between the results would fragment the heap, and
        # memory would grow with the number of candidates.
        if scratch.shape[1] < first.numel():
            scratch = torch.empty(2, first.numel(), dtype=torch.float64, device=device)
        total, addend = scratch[:, : first.numel()].view(2, *first.shape)
        total.copy_(first.to(total.device)).mul_(used[0][1])
        for candidate, weight in used[1:]:
            total += addend.copy_(parts(candidate.read(name)).to(total.device)).mul_(weight)
        mean = total.to(first.dtype, copy=True).cpu()
        averaged[name] = mean if parts is _as_it_is else torch.view_as_complex(mean)
    return averaged


def check_coefficients(coefficients: Sequence[float], count: int) -> None:
    """Raise RunError unless there are `count` coefficients, finite, that sum up to 1."""
    if len(coefficients) != count or not abs(sum(coefficients) - 1.0) < 1e-6:
        raise RunError(f"a merge gave coefficients {list(coefficients)} for {count} candidates; they must sum to 1")


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
