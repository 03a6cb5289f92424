"""Prune the parent: the method decides, the core applies and checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from sparsekit import masks, optimizers, states
from sparsekit._types import Tensors
from sparsekit.api import PruningMethod, PruningStep, Stage
from sparsekit.config import MasksConfig
from sparsekit.errors import RunError
from sparsekit.patterns import Pattern
from sparsekit.seeds import derive
from sparsekit.states import State


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
    before = states.effective(method, parent).weights
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
    _check(type(method).__name__, chosen, parent.weights, stage, pattern)
    pruned = replace(parent, masks=chosen)
    if not states.keeps_dense(method):
        kept = {name: weight * chosen[name] for name, weight in parent.weights.items()}
        # where a weight was or is pruned; what regrows starts with an empty state too
        both = {name: chosen[name] & parent.masks[name] for name in chosen}
        pruned = replace(pruned.with_weights(kept), optimizer=optimizers.prune(parent.optimizer, both))
    after = states.effective(method, pruned).weights
    masks.check(after, chosen, f"pruning of segment {stage.index + 1}")
    return pruned, replace(stage, relative_change=_change(before, after))


def _select(
    old: Tensors, sparsity: float, rule: str, pattern: Pattern | None, scores: Tensors, regrow: bool = False
) -> Tensors:
    return masks.select(scores, masks.full(old) if regrow else old, sparsity, rule, pattern)


def _no_gradients(batches: int = 1) -> Tensors:
    raise RunError("gradients are to be had only where data is at hand")


def _check(name: str, chosen: Tensors, weights: Tensors, stage: Stage, pattern: Pattern | None) -> None:
    where = f"method {name}, segment {stage.index + 1}: masks()"
    if not isinstance(chosen, dict):
        raise RunError(f"{where} must return masks by parameter name, got {type(chosen).__name__}")
    if list(chosen) != list(weights):
        raise RunError(f"{where} must return a mask for each of {list(weights)}, in that order; got {list(chosen)}")
    for key, mask in chosen.items():
        if mask.dtype is not torch.bool or mask.shape != weights[key].shape:
            expected = tuple(weights[key].shape)
            raise RunError(
                f"{where}: {key} must be a bool tensor of shape {expected}, got {mask.dtype} {tuple(mask.shape)}"
            )
        if pattern and stage.segment.sparsity == stage.budget.sparsity and not pattern.holds(mask.numpy()):
            raise RunError(f"{where}: {key} breaks --masks.pattern {pattern}; choose masks with step.select")
    total = sum(mask.numel() for mask in chosen.values())
    pruned = total - sum(int(mask.sum()) for mask in chosen.values())
    if pruned != round(stage.segment.sparsity * total):
        raise RunError(
            f"{where} must prune {round(stage.segment.sparsity * total)} of {total} weights, pruned {pruned}"
        )


def _change(before: Tensors, after: Tensors) -> float:
    def norm(tensors: list[torch.Tensor]) -> float:
        return float(torch.stack([t.double().square().sum() for t in tensors]).sum().sqrt())

    whole = norm(list(before.values()))
    return norm([before[name] - after[name] for name in before]) / whole if whole else 0.0
