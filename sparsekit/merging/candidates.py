"""Candidates in files: a trained replica, its score and its optimizer state, read on demand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from sparsekit._types import Tensors
from sparsekit.api import Candidate, Score
from sparsekit.models import stored
from sparsekit.models.state import OPTIMIZER, State
from sparsekit.models.stored import Lazy, StoredTensors
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
        self._stored = StoredTensors(path)

    @classmethod
    def write(cls, path: Path, index: int, state: State, score: Score, tested: Score | None = None) -> FileCandidate:
        """Save a trained replica to `path`, and return it as a candidate."""
        candidate = cls(path, index, score, masks.digest(state.masks), tested)
        candidate.save(state)
        return candidate

    def save(self, state: State) -> None:
        """Write the replica's tensors and its optimizer's state to the candidate's file."""
        momenta = {OPTIMIZER + name: partial(state.optimizer.__getitem__, name) for name in state.optimizer}
        stored.save(self.path, Lazy({n: partial(t.detach) for n, t in state.named().items()} | momenta))

    def names(self) -> Sequence[str]:
        return [name for name in self._stored if not name.startswith(OPTIMIZER)]

    def optimizer_names(self) -> Sequence[str]:
        """Names of the optimizer's state tensors, as `read` takes them."""
        return [name for name in self._stored if name.startswith(OPTIMIZER)]

    def read(self, name: str) -> Tensor:
        return self._stored[name]

    def read_rows(self, name: str, rows: slice) -> Tensor:
        """Read some rows of a tensor, which must not be a scalar."""
        return self._stored.rows(name, rows)


def read_tensors(candidate: Candidate) -> Tensors:
    """All of a candidate's tensors, on the CPU."""
    return {name: candidate.read(name) for name in candidate.names()}
