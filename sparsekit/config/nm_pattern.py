"""n:m patterns: at most n of every m weights that follow one another along the input channels. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsekit.errors import UserError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Pattern:
    """At most `n` of every `m` weights that follow one another along the input channels (dimension 1)."""

    n: int
    m: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """From `n:m`; raises UserError."""
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if not found or not 0 < int(found[1]) < int(found[2]):
            raise UserError(f"--masks.pattern is {text!r}; give n:m with 0 < n < m, such as 2:4")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def blocks(self, flat: Array, shape: Sequence[int]) -> Array:
        """A view or copy of a flat layer as rows of m weights."""
        return np.moveaxis(flat.reshape(shape), 1, -1).reshape(-1, self.m)

    def unblock(self, rows: Array, shape: Sequence[int]) -> Array:
        """The reverse of `blocks`."""
        moved = (shape[0], *shape[2:], shape[1])
        return np.moveaxis(rows.reshape(moved), -1, 1).reshape(-1)

    def check(self, shapes: Mapping[str, Sequence[int]], sparsity: float) -> None:
        """Raise UserError where a layer cannot follow the pattern, or the target sparsity does not reach it."""
        for name, shape in shapes.items():
            if shape[1] % self.m:
                raise UserError(
                    f"--masks.pattern {self}: {name} has input channels: {shape[1]}, no multiple of {self.m}; "
                    f"leave it out with --masks.exclude '[^{name}$]'"
                )
        least = 1.0 - self.n / self.m
        if sparsity < least - 1e-12:
            raise UserError(f"--masks.pattern {self} needs --sparsity {least:g} or more, not {sparsity:g}")

    def holds(self, mask: Array) -> bool:
        """Whether a mask follows the pattern."""
        return bool((self.blocks(mask.reshape(-1), mask.shape).sum(axis=1) <= self.n).all())
