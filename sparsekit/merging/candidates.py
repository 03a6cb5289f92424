"""Candidates in files, and their weighted mean, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sparsekit._types import Tensors
from sparsekit.api import Candidate, Score
from sparsekit.errors import RunError
from sparsekit.files import save_tensors
from sparsekit.models.state import OPTIMIZER, State
from sparsekit.pruning import masks


class FileCandidate(Candidate):
    """A candidate in its own safetensors file, which also holds its optimizer state.

    Attributes:
        path: The file.
        mask_digest: Hash of the candidate's masks.
        tested: Its test score, at the last merge only; merges must not use it.
    """

    def __init__(self, path: Path, index: int, score: Score, mask_digest: str, tested: Score | None = None) -> None:
        self.path, self.index, self.score, self.mask_digest = path, index, score, mask_digest
        self.tested = tested

    @classmethod
    def write(cls, path: Path, index: int, state: State, score: Score, tested: Score | None = None) -> FileCandidate:
        """Save a trained replica to `path`, and return it as a candidate."""
        save_tensors(path, state.named() | {OPTIMIZER + name: t for name, t in state.optimizer.items()})
        return cls(path, index, score, masks.digest(state.masks), tested)

    def names(self) -> Sequence[str]:
        return [name for name in self._all_names() if not name.startswith(OPTIMIZER)]

    def optimizer_names(self) -> Sequence[str]:
        """Names of the optimizer's state tensors, as `read` takes them."""
        return [name for name in self._all_names() if name.startswith(OPTIMIZER)]

    def read(self, name: str) -> Tensor:
        with safe_open(str(self.path), framework="pt") as file:
            return file.get_tensor(name)  # type: ignore[no-any-return]

    def _all_names(self) -> list[str]:
        with safe_open(str(self.path), framework="pt") as file:
            return sorted(file.keys())


def read_tensors(candidate: Candidate) -> Tensors:
    """All of a candidate's tensors, on the CPU."""
    return {name: candidate.read(name) for name in candidate.names()}


def average(candidates: Sequence[Candidate], coefficients: Sequence[float], names: Sequence[str]) -> Tensors:
    """The weighted mean of each named tensor, one tensor in memory at a time.

    Sums in float64, in the candidates' order. Integer tensors are not averaged: they come from the first candidate
    with a coefficient other than 0.

    Raises:
        RunError: the coefficients do not match the candidates, are not finite, or do not sum up to 1.
    """
    if len(coefficients) != len(candidates) or not abs(sum(coefficients) - 1.0) < 1e-6:
        raise RunError(
            f"a merge gave coefficients {list(coefficients)} for {len(candidates)} candidates; they must sum to 1"
        )
    used = [(c, weight) for c, weight in zip(candidates, coefficients, strict=True) if weight]
    scratch = torch.empty(2, 0, dtype=torch.float64)
    averaged = {}
    for name in names:
        first = used[0][0].read(name)
        if not first.is_floating_point() or len(used) == 1:
            averaged[name] = first.clone()  # a tensor that was read keeps its whole memory-mapped file in memory
            continue
        # The same two buffers for every tensor: temporaries allocated between the results would fragment the heap, and
        # memory would grow with the number of candidates.
        if scratch.shape[1] < first.numel():
            scratch = torch.empty(2, first.numel(), dtype=torch.float64)
        total, addend = scratch[:, : first.numel()].view(2, *first.shape)
        total.copy_(first).mul_(used[0][1])
        for candidate, weight in used[1:]:
            total += addend.copy_(candidate.read(name)).mul_(weight)
        averaged[name] = total.to(first.dtype, copy=True)
    return averaged
