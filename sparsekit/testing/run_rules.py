"""The rules for pruning methods that need whole runs: four epochs of two replicas each.

Every public function is a rule, and its docstring states what the contract requires.
"""

from __future__ import annotations

from sparsekit.config.options import OptimizerConfig, ReplicasConfig
from sparsekit.merges.uniform import Uniform
from sparsekit.models.state import State, effective, has_dense_weights
from sparsekit.pruning import masks
from sparsekit.testing import problem
from sparsekit.testing.compare import difference, first_change, global_seeds, not_finite, revived
from sparsekit.testing.method_case import MethodCase, budget, plan_of
from sparsekit.testing.problem import Run
from sparsekit.testing.rules import Broken, after, describe, need, rules_of


@after(
    "keeps_its_options", "plans_add_up", "learning_rates_are_usable", "prunes_exactly", "prunes_repeatably",
    "leaves_its_inputs_alone", "hooks_follow_from_the_step", "hashes_decide_nothing",
)  # fmt: skip
def ends_well(case: MethodCase) -> None:
    """A run of four epochs with two replicas ends, and its model is finite."""
    _check_finite(case.run)


@after("ends_well")
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


@after("ends_well")
def zeros_are_exact(case: MethodCase) -> None:
    """After every pruning, training and merge, and in the finished model, exactly round(sparsity · N) weights are
    masked and the effective weights are exactly 0 there.
    """
    _check_zeros(case.run)


@after("ends_well", "zeros_are_exact")
def masks_are_shared(case: MethodCase) -> None:
    """A segment's mask stays as it was chosen until the next pruning: all replicas train and merge with one mask."""
    chosen: dict[int, str] = {}
    for moment in case.run.moments:
        first = chosen.setdefault(moment.stage.index, moment.mask)
        need(moment.mask == first, f"{moment.where}, the mask is not the one that the segment began with")
        now = masks.digest(moment.state.masks)
        need(now == moment.mask, f"{moment.where}, a mask was changed in place afterwards")


@after("ends_well")
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


@after("ends_well", "masks_are_shared")
def keeps_no_state(case: MethodCase) -> None:
    """A run leaves the instance as it was, so that one instance serves many runs."""
    method = case.run.setup.method
    changed = first_change(case.before_run, method)
    need(not changed, f"a run changed self.{changed}; the state of a run belongs to the run")


@after("keeps_no_state")
def runs_repeatably(case: MethodCase) -> None:
    """The same options and seed give the same bits, in another run of the same instance too: nothing is drawn but from
    generators that the steps carry.
    """
    with global_seeds(1):
        again = problem.run(case.run.setup.method, Uniform())
    for first, second in zip(case.run.moments, again.moments, strict=True):
        need(first.mask == second.mask, f"{first.where}, a second run of the same instance has another mask")
        one, two = ({**moment.state.named(), **moment.state.optimizer} for moment in (first, second))
        name = difference(one, two)
        need(not name, f"{first.where}, a second run of the same instance has another {name}")


@after("runs_repeatably")
def resumes_exactly(case: MethodCase) -> None:
    """A run that stops inside a replica resumes from its checkpoint, with a new instance, to the same weights."""
    name = difference(case.run.final.named(), problem.resumed_run(case.make(), case.make(), Uniform()).named())
    need(not name, f"resumed from a checkpoint, the finished model has another {name}")


@after("runs_repeatably")
def ranks_agree(case: MethodCase) -> None:
    """Two ranks that share the replicas, each with its own instance, end with the same weights as one process."""
    name = difference(case.run.final.named(), problem.shared_run(case.make(), case.make(), Uniform()).named())
    need(not name, f"shared by two ranks, the finished model has another {name}")


@after("works_at_the_extremes", "keeps_no_state")
def stacks(case: MethodCase) -> None:
    """Replicas that are stacked and trained in lockstep keep finite weights and exact zeros."""
    run = problem.run(case.make(), Uniform(), replicas=ReplicasConfig(count=2, start=0.0, executor="vectorized"))
    need(not run.faults, "a replica did not stay finite among others, and had to be trained alone")
    _check_finite(run)
    _check_zeros(run)


@after("ends_well", "works_at_the_extremes")
def trains_with_adamw(case: MethodCase) -> None:
    """A run with AdamW and its weight decay ends with a finite model in which masked weights are 0 and not all are."""
    method, optimizer = case.make(), OptimizerConfig("adamw", lr=0.01, weight_decay=0.05)
    try:
        run = problem.run(method, Uniform(), optimizer=optimizer, replicas=ReplicasConfig(count=1))
    except Exception as error:
        raise Broken(f"with --optimizer.name adamw: {describe(error)}") from error
    _check_finite(run)
    _check_zeros(run)
    alive = any(bool(weight.any()) for weight in run.final.weights.values())
    need(alive, "with --optimizer.name adamw every weight is 0 in the end; should extra_decays() say False?")


def _check_finite(run: Run) -> None:
    name = not_finite(run.final.named())
    need(not name, f"the finished model's {name} is not finite")


def _check_zeros(run: Run) -> None:
    for moment in run.moments:
        _check_state(effective(run.setup.method, moment.state), moment.stage.segment.sparsity, moment.where)
    _check_state(run.final, run.setup.config.sparsity, "in the finished model")


def _check_state(state: State, sparsity: float, where: str) -> None:
    total = sum(mask.numel() for mask in state.masks.values())
    planned, got = round(sparsity * total), sum(int((~mask).sum()) for mask in state.masks.values())
    need(got == planned, f"{where}, {got} of {total} weights are masked instead of {planned}")
    alive = revived(state.weights, state.masks)
    need(not alive, f"{where}, {alive} are not 0")


RUN_RULES = rules_of(globals())
