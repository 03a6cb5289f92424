"""Masks: the prunable weights, masks of exact sparsity from scores, and checks.

A mask is a bool tensor beside an ordinary parameter, True keeps.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sparsekit._types import Tensors
from sparsekit.config.nm_pattern import Array, Pattern
from sparsekit.errors import RunError, UserError
from sparsekit.pruning import allocation, top_k

Arrays = dict[str, Array]

KINDS = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers whose weights can be pruned."""
_CENTRED = "timm.layers.std_conv"
"""The module of timm's convolutions that centre their weights; to import timm takes seconds."""


def is_centred(layer: nn.Module) -> bool:
    """Whether a convolution centres its weights in every forward pass, which would make masked weights nonzero."""
    return any(kind.__module__ == _CENTRED for kind in type(layer).__mro__)


def prunable_names(model: nn.Module, exclude: Sequence[str] = ()) -> list[str]:
    """Parameter names of the Conv and Linear weights in the model's order, without those that a pattern matches.

    Args:
        model: The model.
        exclude: Regular expressions, searched for in the names.

    Raises:
        UserError: a pattern matches no such weight, no weight is left, or two layers share a weight.
    """
    every = dict(model.named_parameters(remove_duplicate=False))  # reparametrized weights are not among them
    names = [
        f"{path}.weight" if path else "weight"
        for path, m in model.named_modules()
        if isinstance(m, KINDS) and not is_centred(m)
    ]
    names = [name for name in names if name in every]
    matrices, once = {id(every[name]) for name in names}, dict(model.named_parameters())
    if shared := [name for name, parameter in every.items() if name not in once and id(parameter) in matrices]:
        raise UserError(f"--model.name: two layers share {shared[0]}, which cannot be pruned here; choose another")
    if not names:
        raise UserError("--model.name: the model has no Conv or Linear weight that can be pruned; choose another")
    for pattern in exclude:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(f"--masks.exclude: {pattern!r} finds no Conv or Linear weight; the first is {names[0]!r}")
    left = [name for name in names if not any(re.search(pattern, name) for pattern in exclude)]
    if not left:
        raise UserError(f"--masks.exclude {list(exclude)} leaves nothing to prune; exclude less")
    return left


def full(weights: Mapping[str, Tensor]) -> Tensors:
    """Masks that keep all weights."""
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}


def select(
    scores: Tensors,
    among: Tensors,
    sparsity: float,
    rule: str,
    pattern: Pattern | None = None,
    floor: float = 0.0,
    own_floor: float = 0.0,
) -> Tensors:
    """Masks that keep the highest scores, exactly N − round(sparsity · N) of the N weights; ties keep the first.

    With a floor each layer first keeps its f_l highest scores, f_l by `allocation.floors`; the others compete for what
    is left of the N − round(sparsity · N).

    Args:
        scores: The weights' scores by name, of any sign, infinities allowed; for `lamp` finite and 0 or more.
        among: Bool tensors; only weights that are True here can be kept.
        sparsity: Fraction of all weights to mask, 0 to 1.
        rule: `global` compares scores across layers, `lamp` does so after normalising them within each layer,
            all others keep a fixed number of weights in each layer, as `allocation.counts` says.
        pattern: Prune weights that break this pattern first.
        floor: Fewest weights of a layer to keep, as `--masks.floor` says; one with fewer in `among` keeps those.
        own_floor: Another floor, of the method's own; what keeps more of a layer holds.

    Raises:
        RunError: a score is NaN or invalid for `lamp`, `among` has too few weights, or the floor takes more than stay.
    """
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    flat = {name: _numpy(score) for name, score in scores.items()}
    alive = {name: _numpy(among[name]) for name in scores}
    if rule == "lamp":
        flat = {name: lamp(_squarable(name, score, alive[name]), alive[name]) for name, score in flat.items()}
    first = alive
    if pattern is not None:
        first = {n: _fitting(pattern, _checked(n, flat[n], alive[n]), alive[n], shapes[n]) for n in scores}
    total, living = allocation.kept_total(shapes, sparsity), _counts(alive)
    share = pattern.share if pattern else 1.0
    wanted = [allocation.floors(shapes, each, share) for each in (floor, own_floor)]
    least = {n: min(max(counts[n] for counts in wanted), living[n]) for n in scores}
    if sum(least.values()) > total:
        which = f"--masks.floor {floor:g}" if floor >= own_floor else f"the method's floor of {own_floor:g}"
        raise RunError(f"{which} keeps {sum(least.values())} weights, but only {total} are to stay")
    if rule in ("global", "lamp"):
        kept = (
            _top(flat, alive, first, total, "the model")
            if not any(least.values())
            else _floored(flat, alive, first, total, least)
        )
    else:
        available = _counts(first)
        if sum(available.values()) < total:  # the pattern leaves too few
            available = living
        counts = allocation.counts(rule, shapes, sparsity, available, least)
        kept = _top_of_each(flat, alive, first, counts)
    return {name: torch.from_numpy(kept[name].reshape(shapes[name])).to(among[name].device) for name in scores}


def lamp(scores: Array, alive: Array) -> Array:
    """LAMP's score of each weight of one layer: s_u² / Σ s_v² over all v with s_v ≥ s_u (arXiv 2010.07611, eq. 3)."""
    values = np.where(alive, scores.astype(np.float64), 0.0) ** 2
    order = np.argsort(values, kind="stable")
    rest = np.cumsum(values[order][::-1])[::-1]
    _, group = np.unique(values[order], return_index=True)  # equal scores share the sum that starts at the first
    start = np.repeat(group, np.diff([*group, len(values)]))
    result = np.zeros_like(values)
    result[order] = np.divide(values[order], rest[start], out=np.zeros_like(values), where=rest[start] > 0.0)
    return result


def _fitting(pattern: Pattern, scores: Array, alive: Array, shape: Sequence[int]) -> Array:
    """The weights that a pattern would keep: in each block the n best of those alive."""
    rows = pattern.blocks(np.where(alive, scores, -np.inf), shape)
    order = np.argsort(-rows, axis=1, kind="stable")
    kept = np.zeros(rows.shape, dtype=bool)
    np.put_along_axis(kept, order[:, : pattern.n], True, axis=1)
    return np.logical_and(pattern.unblock(kept, shape), alive)


def _numpy(tensor: Tensor) -> Array:
    flat = tensor.detach().reshape(-1).cpu()
    return (flat.float() if flat.dtype is torch.bfloat16 else flat).numpy()  # numpy has no bfloat16


def _checked(name: str, scores: Array, alive: Array) -> Array:
    if np.isnan(scores[alive]).any():
        raise top_k.not_a_number(name)
    return scores


def _squarable(name: str, scores: Array, alive: Array) -> Array:
    """The scores, checked for LAMP, which squares them; raises RunError if one is negative, infinite or NaN."""
    live = _checked(name, scores, alive)[alive]
    if live.size and not (live.min() >= 0.0 and live.max() < np.inf):
        raise RunError(
            f"--masks.allocation lamp takes finite scores of 0 or more, but {name} has {live.min():.4g} to "
            f"{live.max():.4g}; choose global, uniform or erk"
        )
    return scores


def _top(scores: Arrays, alive: Arrays, first: Arrays, count: int, where: str) -> Arrays:
    """True at the `count` highest scores; weights in `first` come before the rest of `alive`."""
    firsts = sum(int(np.count_nonzero(mask)) for mask in first.values())
    if count <= firsts:
        return top_k.highest(scores, first, count)
    rest = {name: np.greater(alive[name], first[name]) for name in scores}
    others = sum(int(np.count_nonzero(mask)) for mask in rest.values())
    if count > firsts + others:
        raise RunError(f"{count} weights of {where} are to be kept, but {firsts + others} are left")
    added = top_k.highest(scores, rest, count - firsts)
    return {name: np.logical_or(first[name], added[name]) for name in scores}


def _top_of_each(scores: Arrays, alive: Arrays, first: Arrays, counts: Mapping[str, int]) -> Arrays:
    """`_top` of every layer alone."""
    kept: Arrays = {}
    for n in scores:
        kept |= _top({n: scores[n]}, {n: alive[n]}, {n: first[n]}, counts[n], n)
    return kept


def _floored(scores: Arrays, alive: Arrays, first: Arrays, count: int, least: Mapping[str, int]) -> Arrays:
    """`_top`, but each layer keeps its `least` highest scores before all layers compete for the rest of `count`."""
    safe = _top_of_each(scores, alive, first, least)
    others, firsts = ({n: np.greater(of[n], safe[n]) for n in scores} for of in (alive, first))
    rest = _top(scores, others, firsts, count - sum(least.values()), "the model")
    return {name: np.logical_or(safe[name], rest[name]) for name in scores}


def _counts(arrays: Arrays) -> dict[str, int]:
    return {name: int(np.count_nonzero(array)) for name, array in arrays.items()}


def sparsity(masks: Mapping[str, Tensor]) -> float:
    """Fraction of the prunable weights that are masked, 0 to 1."""
    total = sum(mask.numel() for mask in masks.values())
    return (total - kept(masks)) / total


def kept(masks: Mapping[str, Tensor]) -> int:
    """Number of weights that the masks keep."""
    return sum(int(np.count_nonzero(_numpy(mask))) for mask in masks.values())


def check(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], where: str) -> None:
    """Raise RunError, with `where` in its message, unless every masked weight is exactly 0."""
    for name, mask in masks.items():
        if np.greater(_numpy(tensors[name]) != 0, _numpy(mask)).any():  # NaN is not 0 either
            raise RunError(f"{where}: {name} has masked weights that are not 0")


def empty(masks: Mapping[str, Tensor]) -> list[str]:
    """Names of the layers of which nothing is kept, or, given weights, of those that hold only zeros."""
    return [name for name, mask in masks.items() if not bool(mask.any())]


def digest(masks: Mapping[str, Tensor]) -> str:
    """A hash of the masks and their names, independent of their order."""
    state = hashlib.sha256()
    for name in sorted(masks):
        state.update(name.encode())
        state.update(np.packbits(masks[name].cpu().numpy()).tobytes())
    return state.hexdigest()
