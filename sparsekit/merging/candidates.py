"""Candidates in files: a trained replica, its score and its optimizer state, read on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from sparsekit._types import Tensors
from sparsekit.api import Candidate, Score
from sparsekit.files import save_tensors
from sparsekit.models.state import OPTIMIZER, State
from sparsekit.pruning import masks

_REOPEN = 32 << 20
"""Bytes that are read of a file before it is opened anew."""


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
        self._file: Any = None
        self._read = 0

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
        tensor: Tensor = self._opened().get_tensor(name)
        self._read += tensor.nbytes
        return tensor

    def read_rows(self, name: str, rows: slice) -> Tensor:
        """Read some rows of a tensor, which must not be a scalar."""
        tensor: Tensor = self._opened().get_slice(name)[rows]
        self._read += tensor.nbytes
        return tensor

    def _all_names(self) -> list[str]:
        return sorted(self._opened().keys())

    def _opened(self) -> Any:
        """The file, opened once for many tensors; now and then anew, as what was read of a file stays in memory."""
        if self._file is None or self._read > _REOPEN:
            file: Any = safe_open(str(self.path), framework="pt")
            self._file, self._read = file.__enter__(), 0
        return self._file


def read_tensors(candidate: Candidate) -> Tensors:
    """All of a candidate's tensors, on the CPU."""
    return {name: candidate.read(name) for name in candidate.names()}
