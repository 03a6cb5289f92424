"""A user's own data set: examples for training, merges and tests. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sparsekit._types import Tensor

if TYPE_CHECKING:
    from typing import Any

    from torch.utils.data import Dataset

    Examples: TypeAlias = Dataset[Any] | tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Data:
    """Examples of any kind, each an input and a target.

    A split is a map-style `torch.utils.data.Dataset` (`len`, and `[index]` gives input and target), or a pair of
    tensors or arrays: inputs [N, ...] and targets [N, ...]. Inputs reach the model as they are given.

    Attributes:
        train: What replicas are trained on.
        test: What the finished model is tested on; no merge sees it.
        held_out: What merges look at; None cuts `--data.held_out` off `train`, the same in every run.
        class_names: The classes' names, by number; none if it is empty.
    """

    train: Examples
    test: Examples
    held_out: Examples | None = None
    class_names: Sequence[str] = ()
