"""Prune the parent: the method decides, the core applies and checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from sparsekit._types import Tensors
from sparsekit.api import PruningMethod, PruningStep, Stage
from sparsekit.config.nm_pattern import Pattern
from sparsekit.config.options import MasksConfig
from sparsekit.errors import RunError
from sparsekit.models.state import State, effective, has_dense_weights, pruned_optimizer_state
from sparsekit.pruning import masks
from sparsekit.seeds import derive

_BLOCK = 1 << 15


def prune(
    method: PruningMethod,
    parent: State,
    stage: Stage,
    config: MasksConfig,
    seed: int,
    gradients: Callable[..., Tensors] | None = None,
) -> tuple[State, Stage]:
    """The parent with the segment's masks, and the stage with ‖W − W_p‖₂ / ‖W‖₂ filled in.

    Masked weights and their optimizer state become 0, unless the method keeps dense weights behind them.

    Args:
        method: Decides.
        parent: What is pruned.
        stage: The segment that starts.
        config: `--masks`.
        seed: The run's.
        gradients: What `PruningStep.gradients` is.

    Raises:
        RunError: the method's masks break the contract.
    """
    pattern = Pattern.parse(config.pattern) if config.pattern is not None else None
    rule = config.allocation or method.allocation
    step = PruningStep(
        stage.budget,
        stage.plan,
        stage.index,
        weights=parent.weights,
        masks=parent.masks,
        extra=parent.extra,
        generator=torch.Generator().manual_seed(derive(seed, "prune", stage.index)),
        select=partial(_select, parent.masks, stage.segment.sparsity, rule, pattern),
        gradients=gradients or _no_gradients,
    )
    chosen = method.masks(step)
    maker = "scores" if type(method).masks is PruningMethod.masks else "masks"
    _check(type(method).__name__, maker, chosen, parent.weights, stage, pattern)
    if has_dense_weights(method):
        pruned = replace(parent, masks=chosen)
        before, after = effective(method, parent).weights, effective(method, pruned).weights
        squares = [_squares(before[name], after[name]) for name in chosen]
    else:
        after, squares = {}, []
        for name, weight in parent.weights.items():  # layer by layer: one more model in memory is enough
            # numpy asks for huge pages, which torch does not: half the time for a large model
            with np.errstate(invalid="ignore"):  # an infinite weight that is pruned is NaN, and told of below
                after[name] = torch.from_numpy(np.multiply(weight.numpy(), chosen[name].numpy()))
            squares.append(_squares(weight, after[name]))
        pruned = replace(parent.with_weights(after), masks=chosen, optimizer=_without(parent, chosen))
    masks.check(after, chosen, f"pruning of segment {stage.index + 1}")
    whole, change = (sum(parts) for parts in zip(*squares, strict=True))
    return pruned, replace(stage, relative_change=math.sqrt(change / whole) if whole else 0.0)


def _without(parent: State, chosen: Tensors) -> Tensors:
    """The optimizer's state with 0 where a weight was or is pruned; what regrows starts with an empty state too."""
    if not parent.optimizer:
        return {}
    return pruned_optimizer_state(parent.optimizer, {name: mask & parent.masks[name] for name, mask in chosen.items()})


def _squares(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float]:
    """‖W‖² and ‖W − W_p‖² of one layer, in float64; only what the cache holds is."""
    whole = change = 0.0
    old, new = before.numpy().reshape(-1), after.numpy().reshape(-1)
    for start in range(0, len(old), _BLOCK):
        part = slice(start, start + _BLOCK)
        with np.errstate(invalid="ignore"):  # of infinite weights it is NaN, which needs no warning
            wide, lost = old[part].astype(np.float64), (old[part] - new[part]).astype(np.float64)
        whole += float(np.dot(wide, wide))
        change += float(np.dot(lost, lost))
    return whole, change


def _select(
    old: Tensors, sparsity: float, rule: str, pattern: Pattern | None, scores: Tensors, regrow: bool = False
) -> Tensors:
    return masks.select(scores, masks.full(old) if regrow else old, sparsity, rule, pattern)


def _no_gradients(batches: int = 1) -> Tensors:
    raise RunError("gradients are to be had only where data is at hand")


def _check(name: str, maker: str, chosen: Tensors, weights: Tensors, stage: Stage, pattern: Pattern | None) -> None:
    where = f"method {name}, segment {stage.index + 1}: {maker}()"
    if not isinstance(chosen, dict):
        raise RunError(f"{where} must return masks by parameter name, got {type(chosen).__name__}")
    for key in weights:
        if key not in chosen:
            raise RunError(f"{where} gives none for {key}")
    for key, due in zip(chosen, [*weights, None], strict=False):
        if key != due:
            raise RunError(f"{where} gives {key!r} where {due or 'nothing'} is due; keep the order of step.weights")
    for key, mask in chosen.items():
        if mask.dtype is not torch.bool or mask.shape != weights[key].shape:
            expected = tuple(weights[key].shape)
            raise RunError(
                f"{where}: {key} must be a bool tensor of shape {expected}, got {mask.dtype} {tuple(mask.shape)}"
            )
        if pattern and stage.segment.sparsity == stage.budget.sparsity and not pattern.holds(mask.numpy()):
            raise RunError(f"{where}: {key} breaks --masks.pattern {pattern}; choose masks with step.select")
    total = sum(mask.numel() for mask in chosen.values())
    pruned = total - masks.kept(chosen)
    if pruned != round(stage.segment.sparsity * total):
        raise RunError(
            f"{where} must prune {round(stage.segment.sparsity * total)} of {total} weights, pruned {pruned}"
        )
