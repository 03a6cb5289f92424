"""n:m patterns: at most n of every m weights that follow one another along the input channels. No torch."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

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
            raise UserError(f"--masks.pattern is {text!r}; give n:m with 0 < n < m, such as 2:4, or channels")
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

    @property
    def share(self) -> float:
        """The largest part of a layer that the pattern keeps, 0 to 1."""
        return self.n / self.m

    def check(self, shapes: Mapping[str, Sequence[int]], sparsity: float, exclude: Sequence[str] = ()) -> None:
        """Check that every layer can follow the pattern, and that the target sparsity reaches it.

        Args:
            shapes: The layers' shapes.
            sparsity: The target, 0 to 1.
            exclude: What `--masks.exclude` leaves out already, for the message.

        Raises:
            UserError: the message names every layer that does not fit, and the `--masks.exclude` that leaves them out.
        """
        wrong = {name: shape[1] for name, shape in shapes.items() if shape[1] % self.m}
        least = 1.0 - self.share
        needs = f"needs --sparsity {least:g} or more, not {sparsity:g}" if sparsity < least - 1e-12 else ""
        if wrong:
            counts = ", ".join(
                f"{channels} in {names[0] if len(names) == 1 else f'{len(names)} layers'}"
                for channels in sorted(set(wrong.values()))
                for names in [[name for name, found in wrong.items() if found == channels]]
            )
            some = (
                f"leave them out with --masks.exclude {_value([*exclude, _only(list(wrong))])}"
                if len(wrong) < len(shapes)
                else "choose another"
            )
            raise UserError(
                f"--masks.pattern {self} does not fit {len(wrong)} of {len(shapes)} layers, whose input channels "
                f"({counts}) are no multiple of {self.m}; {some}{f'; it also {needs}' if needs else ''}"
            )
        if needs:
            raise UserError(f"--masks.pattern {self} {needs}")

    def holds(self, mask: Array) -> bool:
        """Whether a mask follows the pattern."""
        return bool((self.blocks(mask.reshape(-1), mask.shape).sum(axis=1) <= self.n).all())


def _only(names: Sequence[str]) -> str:
    """One regular expression that finds these parameters and no others."""
    suffix = r"\.weight" if all(name.endswith(".weight") for name in names) else ""
    return f"^({'|'.join(re.escape(name).removesuffix(suffix) for name in names)}){suffix}$"


def _value(patterns: Sequence[str]) -> str:
    """A list of regular expressions as an option's value in a shell."""
    return shlex.quote(yaml.safe_dump(patterns, default_flow_style=True, width=math.inf).strip())
