"""Candidates in files: a trained replica, its score and its optimizer state, read on demand."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsekit._types import Tensors
from sparsekit.api import Candidate, Score
from sparsekit.files import save_tensors
from sparsekit.models.state import OPTIMIZER, State
from sparsekit.pruning import masks

_TYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    **{"C64": torch.complex64, "BOOL": torch.bool},
}
"""The types of tensors in a safetensors file."""


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
        self._start, self._entries = 0, dict[str, Any]()

    @classmethod
    def write(cls, path: Path, index: int, state: State, score: Score, tested: Score | None = None) -> FileCandidate:
        """Save a trained replica to `path`, and return it as a candidate."""
        candidate = cls(path, index, score, masks.digest(state.masks), tested)
        candidate.save(state)
        return candidate

    def save(self, state: State) -> None:
        """Write the replica's tensors and its optimizer's state to the candidate's file."""
        save_tensors(self.path, state.named() | {OPTIMIZER + name: t for name, t in state.optimizer.items()})

    def names(self) -> Sequence[str]:
        return [name for name in self._all_names() if not name.startswith(OPTIMIZER)]

    def optimizer_names(self) -> Sequence[str]:
        """Names of the optimizer's state tensors, as `read` takes them."""
        return [name for name in self._all_names() if name.startswith(OPTIMIZER)]

    def read(self, name: str) -> Tensor:
        return self._read(name, self._entry(name)["shape"], 0)

    def read_rows(self, name: str, rows: slice) -> Tensor:
        """Read some rows of a tensor, which must not be a scalar."""
        first, *row = self._entry(name)["shape"]
        start, stop, _ = rows.indices(first)
        return self._read(name, [stop - start, *row], start * math.prod(row))

    def _read(self, name: str, shape: Sequence[int], skipped: int) -> Tensor:
        """Read values into memory of their own: what was read of a mapped file would stay in memory."""
        entry = self._entry(name)
        dtype = _TYPES[entry["dtype"]]
        offset = self._start + entry["data_offsets"][0] + skipped * dtype.itemsize
        size = math.prod(shape) * dtype.itemsize
        found = np.fromfile(self.path, np.uint8, size, offset=offset)
        if len(found) < size:
            raise OSError(errno.EIO, "the file is cut short", str(self.path))
        return torch.from_numpy(found).view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)

    def _all_names(self) -> list[str]:
        return sorted(self._header())

    def _entry(self, name: str) -> Any:
        return self._header()[name]

    def _header(self) -> dict[str, Any]:
        """The file's own table of its tensors, read once: https://github.com/huggingface/safetensors#format."""
        if not self._entries:
            with self.path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                self._entries = json.loads(file.read(size))
            self._entries.pop("__metadata__", None)
            self._start = 8 + size
        return self._entries


def read_tensors(candidate: Candidate) -> Tensors:
    """All of a candidate's tensors, on the CPU."""
    return {name: candidate.read(name) for name in candidate.names()}
