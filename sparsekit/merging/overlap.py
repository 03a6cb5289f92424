"""Check that saved models have the same tensors, and measure how far their masks agree."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsekit._types import Tensors
from sparsekit.errors import UserError
from sparsekit.models.reparametrized import all_finite, is_number
from sparsekit.models.saved import SavedModel

_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)
"""Number of set bits of each byte value."""


@dataclass(frozen=True)
class Overlap:
    """How the masks of several models overlap.

    Attributes:
        paths: The models.
        union: Masks of the weights that any of the models keeps, True keeps.
        total: Number of prunable weights.
        fresh: The layers of zeros that no mask covers, each with its model.
        both: `both[i][j]` is the number of weights that models i and j both keep; `both[i][i]` those of model i.
    """

    paths: tuple[Path, ...]
    union: Tensors
    total: int
    both: tuple[tuple[int, ...], ...]
    fresh: tuple[str, ...] = ()

    @property
    def differing(self) -> int:
        """Index of the first model whose mask differs from the first model's; 0 if all are equal."""
        first = self.both[0][0]
        return next((i for i, row in enumerate(self.both) if row[i] != first or row[0] != first), 0)

    @property
    def apart(self) -> int:
        """Number of weights that only one of the first model and the first differing one keeps."""
        other = self.differing
        return self.both[0][0] + self.both[other][other] - 2 * self.both[0][other]

    @property
    def same(self) -> bool:
        """Whether all masks are equal."""
        return not self.differing

    def table(self) -> str:
        """A text table with one row per model: its sparsity, and the Jaccard index of its mask with each model's."""
        width = max(len(str(path)) for path in self.paths)
        count = len(self.paths)
        rows = [f"{'':{width}}     sparsity" + "".join(f"{i + 1:>8}" for i in range(count))]
        for i, path in enumerate(self.paths):
            shares = "".join(f"{self._share(i, j):>8.3f}" for j in range(count))
            rows.append(f"{path!s:{width}}  {i + 1:>2} {1 - self.both[i][i] / max(self.total, 1):>8.2%}{shares}")
        return "\n".join(rows)

    def _share(self, i: int, j: int) -> float:
        either = self.both[i][i] + self.both[j][j] - self.both[i][j]
        return self.both[i][j] / either if either else 1.0


def compare_masks(sources: Sequence[SavedModel], prunable: Sequence[str]) -> Overlap:
    """Check that models have the same tensors and compare their masks, reading every tensor once.

    Args:
        sources: The models.
        prunable: Names of the weights to compare.

    Raises:
        UserError: names, shapes or types differ, a value is not finite, or a file is damaged.
    """
    first, count = sources[0], len(sources)
    for other in sources[1:]:
        _same_names(first, other)
    both = [[0] * count for _ in sources]
    union = {name: torch.zeros(first.read(name).shape, dtype=torch.bool) for name in prunable}
    fresh: list[str] = []
    for name in first.names():
        reference = first.read(name)
        shape, dtype = reference.shape, reference.dtype
        del reference
        kept = []
        for source in sources:
            tensor = source.read(name)
            _check(tensor, name, shape, dtype, source, first)
            if name in union:
                mask = source.masks([name])[name]
                if bool(mask.any()) and not bool(tensor.any()):
                    fresh.append(f"{name} of {source.path}")
                union[name] |= mask
                kept.append(np.packbits(mask.numpy()))
        for i, j in itertools.combinations_with_replacement(range(len(kept)), 2):
            common = int(_ONES[kept[i] & kept[j]].sum())
            both[i][j] += common
            both[j][i] = both[i][j]
    total = sum(mask.numel() for mask in union.values())
    return Overlap(tuple(s.path for s in sources), union, total, tuple(tuple(row) for row in both), tuple(fresh))


def tied(sources: Sequence[SavedModel]) -> dict[str, str]:
    """Names of matrices that equal an earlier one in every model, as tied ones do, with the earlier one's name."""
    first: dict[tuple[torch.Size, object], str] = {}
    found = {}
    for name in sources[0].names():
        tensor = sources[0].read(name)
        if tensor.dim() > 1 and is_number(tensor):
            other = first.setdefault((tensor.shape, tensor.sum().item()), name)
            if other != name and all(torch.equal(source.read(name), source.read(other)) for source in sources):
                found[name] = other
    return found


def _check(
    tensor: Tensor, name: str, shape: torch.Size, dtype: torch.dtype, source: SavedModel, first: SavedModel
) -> None:
    """Raise UserError unless a tensor is finite and has the shape and type of the first model's."""
    where = f"{source.path}: {name}"
    if tensor.shape != shape:
        raise UserError(f"{where} has shape {tuple(tensor.shape)}, in {first.path} {tuple(shape)}")
    if tensor.dtype != dtype:
        raise UserError(f"{where} is {tensor.dtype}, in {first.path} {dtype}; convert one of them")
    if not all_finite(tensor):
        raise UserError(f"{where} is not finite; leave this model out")


def _same_names(first: SavedModel, other: SavedModel) -> None:
    expected, names = set(first.names()), set(other.names())
    if missing := sorted(expected - names):
        raise UserError(f"{other.path} lacks {missing[0]}, which {first.path} has; give models of one architecture")
    if extra := sorted(names - expected):
        raise UserError(f"{other.path} has {extra[0]}, which {first.path} lacks; give models of one architecture")
