"""Prune the parent: the method chooses masks; they are checked and applied here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch

from sparsekit._types import Tensors
from sparsekit.api import Probe, PruningMethod, PruningStep, Stage
from sparsekit.config.nm_pattern import Pattern
from sparsekit.config.options import MasksConfig
from sparsekit.errors import RunError
from sparsekit.models.state import State, effective, has_dense_weights, masked, pruned_optimizer_state
from sparsekit.pruning import allocation, masks
from sparsekit.pruning.channels import Channels
from sparsekit.seeds import derive

_BLOCK = 1 << 15


def prune(
    method: PruningMethod,
    parent: State,
    stage: Stage,
    config: MasksConfig,
    seed: int,
    gradients: Callable[..., Tensors] | None = None,
    probe: Probe | None = None,
    rewound: Tensors | None = None,
    channels: Channels | None = None,
) -> tuple[State, Stage]:
    """Prune the parent for a segment.

    Masked weights and their optimizer state become 0, unless the method keeps dense weights behind the masks.

    Args:
        method: The pruning method.
        parent: The model to prune.
        stage: The segment that starts.
        config: The options of `--masks`.
        seed: The run's seed.
        gradients: The function for `PruningStep.gradients`; without it that raises RunError.
        probe: What the method can find out about the network; by default nothing.
        rewound: Parameters and buffers as `Segment.rewind` asks for them; None trains on from the parent's.
        channels: The channels that can be removed, where the pattern is whole channels.

    Returns:
        The pruned parent, and the stage with `relative_change`, ‖W − W_p‖₂ / ‖W‖₂ over all parameters.

    Raises:
        RunError: the method's masks break the contract.
    """
    pattern = Pattern.parse(config.pattern) if config.pattern is not None and channels is None else None
    rule = config.allocation or method.allocation

    def select(
        scores: Tensors, regrow: bool = False, floor: float = 0.0, sparsity: float | None = None,
        among: Tensors | None = None,
    ) -> Tensors:  # fmt: skip
        wanted = stage.segment.sparsity if sparsity is None else sparsity
        alive = masks.full(parent.masks) if regrow else parent.masks
        if among is not None:
            _check_arguments(f"method {type(method).__name__}: select()", parent.masks, among=among)
            alive = {name: mask & among[name] for name, mask in alive.items()}
        _check_arguments(f"method {type(method).__name__}: select()", parent.masks, scores, wanted, floor)
        if channels is not None:
            return channels.select(scores, alive, wanted, rule, config.floor, floor)
        return masks.select(scores, alive, wanted, rule, pattern, config.floor, floor)

    probe = probe or Probe()
    step = PruningStep(
        stage.budget,
        stage.plan,
        stage.index,
        weights=parent.weights,
        masks=parent.masks,
        extra=parent.extra,
        generator=torch.Generator().manual_seed(derive(seed, "prune", stage.index)),
        select=select,
        gradients=gradients or _no_gradients,
        allocation=rule,
        pattern=config.pattern,
        floor=config.floor,
        **vars(probe),
    )
    chosen = method.masks(step)
    maker = "scores" if type(method).masks is PruningMethod.masks else "masks"
    where = f"method {type(method).__name__}, segment {stage.index + 1}: {maker}()"
    _check_form(where, chosen, parent.weights)
    beside, told = parent.beside, {}
    if channels is None:
        _check(where, chosen, stage, pattern, config.floor)
    else:
        if fault := channels.check_masks(chosen, stage.segment.sparsity, config.floor):
            raise RunError(f"{where} breaks --masks.pattern {config.pattern}: {fault}")
        kept = channels.kept(chosen)
        beside, told = channels.masks_beside(kept), channels.buffers(kept)
        parent = replace(parent, tensors={**parent.tensors, **told})
    if has_dense_weights(method):
        pruned = replace(parent, masks=chosen, beside=beside)
        before, after = effective(method, parent).weights, effective(method, pruned).weights
        squares = [_squares(before[name], after[name]) for name in chosen]
    else:
        after, squares = {}, []
        for name, weight in parent.weights.items():
            after[name] = masked(weight, chosen[name])  # of infinite weights NaN, which masks.check reports
            squares.append(_squares(weight, after[name]))
        after |= {name: masked(parent.tensors[name], mask) for name, mask in beside.items()}
        optimizer = _without(parent, {**chosen, **beside})
        pruned = replace(parent.with_weights(after), masks=chosen, beside=beside, optimizer=optimizer)
    masks.check(after, chosen, f"pruning of segment {stage.index + 1}")
    if rewound is not None:
        pruned = replace(pruned, tensors={**rewound, **told}, optimizer={})
        pruned = pruned if has_dense_weights(method) else effective(method, pruned)
    others = parent.tensors.keys() - parent.masks.keys() - probe.buffers
    # sorted, as files do not keep an order, and the sum of a resumed run has to be the same to the bit
    squares += [_squares(parent.tensors[name], parent.tensors[name]) for name in sorted(others)]
    norm, change = (sum(parts) for parts in zip(*squares, strict=True))
    return pruned, replace(stage, relative_change=math.sqrt(change / norm) if norm else 0.0)


def _without(parent: State, chosen: Tensors) -> Mapping[str, torch.Tensor]:
    """The optimizer's state with 0 for weights that are masked now or were before: regrown weights start at 0 too."""
    if not parent.optimizer:
        return {}
    before = parent.all_masks
    return pruned_optimizer_state(parent.optimizer, {name: mask & before[name] for name, mask in chosen.items()})


def _squares(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float]:
    """‖W‖² and ‖W − W_p‖² of one tensor, in float64; converted in blocks that fit the cache."""
    norm = change = 0.0
    if before.dtype is torch.bfloat16:  # which numpy lacks
        before, after = before.float(), after.float()
    old, new = before.numpy().reshape(-1), after.numpy().reshape(-1)
    for start in range(0, len(old), _BLOCK):
        part = slice(start, start + _BLOCK)
        with np.errstate(invalid="ignore"):  # the difference of infinite weights is NaN, which needs no warning
            weights, difference = old[part].astype(np.float64), (old[part] - new[part]).astype(np.float64)
        norm += float(np.dot(weights, weights))
        change += float(np.dot(difference, difference))
    return norm, change


def _check_arguments(
    where: str,
    like: Tensors,
    scores: Tensors | None = None,
    sparsity: float = 0.0,
    floor: float = 0.0,
    among: Tensors | None = None,
) -> None:
    """Raise RunError where `select` is given what nothing can be selected by."""
    if not 0.0 <= sparsity <= 1.0:
        raise RunError(f"{where} got sparsity={sparsity}; give a fraction from 0 to 1")
    if not 0.0 <= floor < math.inf:
        raise RunError(f"{where} got floor={floor}; give a number of weights, or a fraction of a layer, 0 or more")
    for what, given in (("scores", scores), ("among", among)):
        if given is None:
            continue
        missing = like.keys() - given.keys() if what == "among" else set()
        for wrong in sorted(missing | (given.keys() - like.keys())):
            raise RunError(f"{where}: {what} must have the names of step.weights; {wrong!r} is missing or too many")
        for name, tensor in given.items():
            if tensor.shape != like[name].shape or (what == "among" and tensor.dtype is not torch.bool):
                found = f"{tensor.dtype} {tuple(tensor.shape)}"
                raise RunError(f"{where}: {what} has {found} for {name}, whose shape is {tuple(like[name].shape)}")


def _no_gradients(batches: int = 1) -> Tensors:
    raise RunError("gradients need data, which is not available here")


def _check_form(where: str, chosen: Tensors, weights: Tensors) -> None:
    """Raise RunError unless there is a mask for each weight, in their order."""
    if not isinstance(chosen, dict):
        raise RunError(f"{where} must return masks by parameter name, got {type(chosen).__name__}")
    for key in weights:
        if key not in chosen:
            raise RunError(f"{where} gives none for {key}")
    for key, expected_key in zip(chosen, [*weights, None], strict=False):
        if key != expected_key:
            raise RunError(
                f"{where} gives {key!r}, but expected is {expected_key or 'nothing'}; keep the order of step.weights"
            )
    for key, mask in chosen.items():
        if mask.dtype is not torch.bool or mask.shape != weights[key].shape:
            expected = tuple(weights[key].shape)
            raise RunError(
                f"{where}: {key} must be a bool tensor of shape {expected}, got {mask.dtype} {tuple(mask.shape)}"
            )


def _check(where: str, chosen: Tensors, stage: Stage, pattern: Pattern | None, floor: float) -> None:
    """Raise RunError unless masks follow the pattern and the floor, and prune exactly as much as the segment says."""
    for key, mask in chosen.items():
        if pattern and stage.segment.sparsity == stage.budget.sparsity and not pattern.holds(mask.numpy()):
            raise RunError(f"{where}: {key} breaks --masks.pattern {pattern}; choose masks with step.select")
    least = allocation.floors({n: mask.shape for n, mask in chosen.items()}, floor, pattern.share if pattern else 1.0)
    for key, count in least.items() if floor else ():
        if (kept := masks.kept({key: chosen[key]})) < count:
            raise RunError(
                f"{where} keeps {kept} weights of {key}, fewer than the {count} of --masks.floor {floor:g}; choose "
                "masks with step.select"
            )
    total = sum(mask.numel() for mask in chosen.values())
    pruned = total - masks.kept(chosen)
    if pruned != round(stage.segment.sparsity * total):
        raise RunError(
            f"{where} must prune {round(stage.segment.sparsity * total)} of {total} weights, pruned {pruned}"
        )
