"""`sparsekit.testing.pruning_step`: a step as a run hands it to a method, from weights that a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sparsekit._types import Tensors
from sparsekit.api import Budget, PruningMethod, PruningStep, Segment, Stage


class _Reached(Exception):
    """Carries the step out of the pruning."""


class _Catches(PruningMethod):
    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return (Segment(budget.sparsity, budget.epochs),)

    def masks(self, step: PruningStep) -> Tensors:
        raise _Reached(step)


def pruning_step(
    weights: Tensors, plan: Sequence[Segment], index: int = 0, *, masks: Tensors | None = None,
    extra: Tensors | None = None, gradients: Callable[..., Tensors] | None = None, allocation: str = "global",
    pattern: str | None = None, floor: float = 0.0, seed: int = 0,
) -> PruningStep:  # fmt: skip
    """The step of one pruning, for answers worked by hand: `RigL().masks(pruning_step(weights, plan, 1))`.

    Its `select` is that of a run; there are no network and no images, and what is logged is dropped.

    Args:
        weights: The prunable weights by name; masked ones become 0.
        plan: The segments.
        index: Which of them begins.
        masks: The current masks, bool, True keeps; by default all True.
        extra: The method's own tensors.
        gradients: What `step.gradients(batches)` calls; without it that raises RunError.
        allocation: As `--masks.allocation`.
        pattern: As `--masks.pattern`.
        floor: As `--masks.floor`.
        seed: Seed of `step.generator`.
    """
    from sparsekit.config.options import MasksConfig  # only now: these import torch
    from sparsekit.models.state import State
    from sparsekit.pruning import masks as whole
    from sparsekit.pruning.prune import prune

    kept = whole.full(weights) if masks is None else masks
    parent = State({name: w * kept[name] for name, w in weights.items()}, kept, extra or {})
    budget = Budget(sum(segment.epochs for segment in plan), plan[-1].sparsity)
    config = MasksConfig(allocation=allocation, pattern=pattern, floor=floor)
    try:
        prune(_Catches(), parent, Stage(budget, tuple(plan), index), config, seed, gradients)
    except _Reached as reached:
        step: PruningStep = reached.args[0]
        return replace(step, log=lambda name, value: None)
    raise AssertionError("pruning asks for masks")
