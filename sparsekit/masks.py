"""Masks: which weights can be pruned, scores to exact masks, and the checks that hold them to it.

A mask is a bool tensor beside an ordinary parameter, True keeps.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from sparsekit import allocation
from sparsekit._types import Tensors
from sparsekit.errors import RunError, UserError


def prunable_names(model: nn.Module, exclude: Sequence[str] = ()) -> list[str]:
    """Parameter names of all Conv and Linear weights, but those that a pattern finds; in the model's order.

    Raises:
        UserError: a pattern finds no such weight, or nothing is left.
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    parameters = dict(model.named_parameters())  # names each shared parameter once
    names = [f"{path}.weight" if path else "weight" for path, m in model.named_modules() if isinstance(m, kinds)]
    names = [name for name in names if name in parameters]
    for pattern in exclude:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(f"--masks.exclude: {pattern!r} finds no Conv or Linear weight; the first is {names[0]!r}")
    left = [name for name in names if not any(re.search(pattern, name) for pattern in exclude)]
    if not left:
        raise UserError(f"--masks.exclude {list(exclude)} leaves nothing to prune; exclude less")
    return left


def full(weights: Mapping[str, Tensor]) -> Tensors:
    """Masks that keep everything."""
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}


def select(scores: Tensors, among: Tensors, sparsity: float, rule: str) -> Tensors:
    """Keep the highest scores, exactly N − round(sparsity · N) of the N weights; of equal scores the first.

    Args:
        scores: A number a weight; infinities allowed.
        among: Only weights True here can be kept.
        sparsity: Over all weights of `scores`.
        rule: `global` compares all layers, `uniform` and `erk` give each layer its own count.

    Raises:
        RunError: a score is NaN, or `among` has fewer weights than are to be kept.
    """
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    if rule == "global":
        flat = np.concatenate([_numpy(score) for score in scores.values()])
        alive = np.concatenate([_numpy(among[name]) for name in scores])
        keep = _top(flat, alive, allocation.kept_total(shapes, sparsity), "the model")
        pieces = np.split(keep, np.cumsum([prod(shape) for shape in shapes.values()])[:-1])
    else:
        available = {name: int(among[name].sum()) for name in scores}
        counts = {"uniform": allocation.uniform, "erk": allocation.erk}[rule](shapes, sparsity, available)
        pieces = [_top(_numpy(score), _numpy(among[name]), counts[name], name) for name, score in scores.items()]
    return {
        name: torch.from_numpy(piece.reshape(shapes[name])).to(among[name].device)
        for name, piece in zip(scores, pieces, strict=True)
    }


def _numpy(tensor: Tensor) -> np.ndarray:
    flat = tensor.detach().reshape(-1).cpu()
    return (flat.float() if flat.dtype is torch.bfloat16 else flat).numpy()  # numpy has no bfloat16


def _top(scores: np.ndarray, alive: np.ndarray, count: int, where: str) -> np.ndarray:
    """True at the `count` highest scores among `alive`, ties to the lower index, in linear time among survivors."""
    survivors = np.flatnonzero(alive)
    values = scores[survivors]
    if np.isnan(values).any():
        raise RunError(f"scores of {where} hold NaN; a pruning method must score every weight that is still kept")
    if count > len(survivors):
        raise RunError(f"{count} weights of {where} are to be kept, but {len(survivors)} are left")
    kept = np.zeros(len(scores), dtype=bool)
    if count:
        threshold = np.partition(values, len(values) - count)[len(values) - count]
        above, ties = survivors[values > threshold], survivors[values == threshold]
        kept[above] = True
        kept[ties[: count - len(above)]] = True
    return kept


def sparsity(masks: Mapping[str, Tensor]) -> float:
    """Fraction of the prunable weights masked out, 0 to 1."""
    total = sum(mask.numel() for mask in masks.values())
    return (total - sum(int(mask.sum()) for mask in masks.values())) / total


def check(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], where: str) -> None:
    """Raise RunError unless every masked weight is exactly 0."""
    for name, mask in masks.items():
        if bool((tensors[name][~mask] != 0).any()):
            raise RunError(f"{where}: {name} has masked weights that are not 0")


def digest(masks: Mapping[str, Tensor]) -> str:
    """A hash of the masks; equal for equal masks only."""
    state = hashlib.sha256()
    for name in sorted(masks):
        state.update(name.encode())
        state.update(np.packbits(masks[name].cpu().numpy()).tobytes())
    return state.hexdigest()
