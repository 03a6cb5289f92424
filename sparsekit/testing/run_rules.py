"""The rules for pruning methods that need a whole run: six epochs of two replicas through the real scheduler."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sparsekit.config.options import ReplicasConfig
from sparsekit.merges.uniform import Uniform
from sparsekit.models.state import State, effective, has_dense_weights
from sparsekit.pruning import masks
from sparsekit.testing import problem
from sparsekit.testing.method_case import MethodCase, budget, plan_of
from sparsekit.testing.problem import Run, difference, first_change, frozen, global_seeds
from sparsekit.testing.rules import Broken, describe, need
from sparsekit.training.setup import Setup


def ends_well(case: MethodCase) -> None:
    """A run of six epochs with two replicas ends, and its model is finite."""
    if case.run_error:
        raise Broken(describe(case.run_error)) from case.run_error
    _check_finite(case.run)


def works_at_the_extremes(case: MethodCase) -> None:
    """A run to sparsity 0, and one to a single weight, end with a finite model too, unless plan() refuses them."""
    for sparsity in (0.0, case.sparsities[-1]):
        method = case.make()
        if plan_of(method, budget(float(problem.EPOCHS), sparsity)) is None:
            continue
        try:
            run = problem.run(method, Uniform(), sparsity=sparsity, replicas=ReplicasConfig(count=1))
        except Exception as error:
            raise Broken(f"to sparsity {sparsity:g}: {describe(error)}") from error
        _check_finite(run)
        _check_zeros(run)


def zeros_are_exact(case: MethodCase) -> None:
    """After every pruning, training and merge, and in the finished model, exactly round(sparsity · N) weights are
    masked and the effective weights are exactly 0 there.
    """
    _check_zeros(case.run)


def masks_are_shared(case: MethodCase) -> None:
    """A segment's mask stays as it was chosen until the next pruning: all replicas train and merge with one mask."""
    chosen: dict[int, str] = {}
    for moment in case.run.moments:
        first = chosen.setdefault(moment.segment, moment.mask)
        need(moment.mask == first, f"{moment.where}, the mask is not the one that the segment began with")
        now = masks.digest(moment.state.masks)
        need(now == moment.mask, f"{moment.where}, a mask was changed in place afterwards")


def optimizer_state_is_cleared(case: MethodCase) -> None:
    """The optimizer's state of masked weights is 0 after every pruning and training: momentum must not revive them.

    Methods that keep dense weights behind the mask are free of this.
    """
    run = case.run
    for moment in () if has_dense_weights(run.setup.method) else run.moments:
        for name, tensor in moment.state.optimizer.items():
            mask = moment.state.masks.get(name.rpartition("/")[0])
            if mask is not None and mask.shape == tensor.shape:
                count = int((tensor[~mask] != 0).sum())
                need(not count, f"{moment.where}, {count} entries of {name} are not 0 where weights are masked")


def runs_repeatably(case: MethodCase) -> None:
    """The same options and seed give the same bits: nothing is drawn but from generators that the steps carry."""
    with global_seeds(1):
        again = problem.run(case.make(), Uniform())
    _check_equal(case.run, again, "another run with the same options and seed, of another instance")


def keeps_no_state(case: MethodCase) -> None:
    """One instance serves many runs: a run leaves it as it was, and a second gives the same bits as the first."""
    run = case.run
    changed = first_change(case.before_run, frozen(vars(run.setup.method)))
    need(not changed, f"a run changed self.{changed}; the state of a run belongs to the run")
    again = problem.run(run.setup.method, Uniform())
    _check_equal(run, again, "a later run of an instance that served one before")


def resumes_exactly(case: MethodCase) -> None:
    """A run that is stopped inside a replica goes on from its checkpoint, with a new instance, to the same weights."""
    final = problem.resumed_run(case.make(), case.make(), Uniform())
    name = difference(case.run.final.named(), final.named())
    need(not name, f"resumed from a checkpoint, the finished model has another {name}")


def ranks_agree(case: MethodCase) -> None:
    """Two ranks that share the replicas, each with its own instance, end with the same weights as one process."""
    final = problem.shared_run(case.make(), case.make(), Uniform())
    name = difference(case.run.final.named(), final.named())
    need(not name, f"shared by two ranks, the finished model has another {name}")


def stacks(case: MethodCase) -> None:
    """Replicas that are stacked and trained in lockstep keep finite weights and exact zeros."""
    run = problem.run(case.make(), Uniform(), replicas=ReplicasConfig(count=2, start=0.0, executor="vectorized"))
    need(not run.faults, "a replica did not stay finite among others, and had to be trained alone")
    _check_finite(run)
    _check_zeros(run)


def _check_finite(run: Run) -> None:
    for name, tensor in run.final.named().items():
        finite = not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
        need(finite, f"the finished model's {name} is not finite")


def _check_zeros(run: Run) -> None:
    for moment in run.moments:
        segment = run.setup.plan[moment.segment].stage.segment
        _check_state(run.setup, moment.state, segment.sparsity, moment.where)
    _check_state(run.setup, run.final, run.setup.config.sparsity, "in the finished model", finished=True)


def _check_state(setup: Setup, state: State, sparsity: float, where: str, finished: bool = False) -> None:
    total = sum(mask.numel() for mask in state.masks.values())
    wanted, got = round(sparsity * total), sum(int((~mask).sum()) for mask in state.masks.values())
    need(got == wanted, f"{where}, {got} of {total} weights are masked instead of {wanted}")
    weights = state.weights if finished else effective(setup.method, state).weights
    for name, mask in state.masks.items():
        revived = int((weights[name][~mask] != 0).sum())
        need(not revived, f"{where}, {revived} masked weights of {name} are not 0")


def _check_equal(one: Run, two: Run, whose: str) -> None:
    """Raise Broken at the first moment at which two runs differ."""
    for left, right in zip(one.moments, two.moments, strict=True):
        need(left.mask == right.mask, f"{left.where}, {whose} has another mask")
        name = difference(left.state.named() | left.state.optimizer, right.state.named() | right.state.optimizer)
        need(not name, f"{left.where}, {whose} has another {name}")


RUN_RULES: tuple[Callable[[MethodCase], None], ...] = (
    ends_well,
    zeros_are_exact,
    masks_are_shared,
    optimizer_state_is_cleared,
    works_at_the_extremes,
    runs_repeatably,
    keeps_no_state,
    resumes_exactly,
    ranks_agree,
    stacks,
)
