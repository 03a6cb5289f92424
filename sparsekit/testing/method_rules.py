"""The rules for pruning methods: every public function is one, and its docstring states what the contract requires."""

from __future__ import annotations

import importlib.util
import math
from contextlib import suppress
from dataclasses import replace

import torch

from sparsekit._types import Tensors
from sparsekit.api import PruningMethod, Schedule, Stage
from sparsekit.errors import RunError, UserError
from sparsekit.models.state import effective
from sparsekit.planning.plan import check_plan, check_rising
from sparsekit.testing.cases import COMMON_RULES
from sparsekit.testing.compare import clones, difference, first_change, frozen, global_seeds, revived
from sparsekit.testing.hook_rules import HOOK_RULES
from sparsekit.testing.method_case import MethodCase, budget, check_alike, check_gradients, plan_of
from sparsekit.testing.option_rules import OPTION_RULES
from sparsekit.testing.rules import Broken, Skipped, after, describe, need, rules_of
from sparsekit.testing.run_rules import RUN_RULES

EPOCHS = (6.0, 7.0, 30.0, 90.0)
CHANGES = (0.0, 0.01, 0.5, 1.0, math.inf)
FRACTIONS = [i / 200 for i in range(201)]

# --- the plan ----------------------------------------------------------------------------------------


def plans_add_up(case: MethodCase) -> None:
    """A plan's epochs sum up to the budget's, its last sparsity is the budget's, every sparsity lies in [0, 1) and no
    segment's epochs are negative; the sparsity never falls where masks() is not defined; a budget that the options do
    not suit is refused with a ValueError that says why.
    """
    method, planned = case.make(), 0
    for epochs in EPOCHS:
        for sparsity in case.sparsities:
            given = budget(epochs, sparsity)
            if (plan := plan_of(method, given)) is not None:
                planned += 1
                try:
                    check_plan("plan()", plan, given)
                    if case.cls.masks is PruningMethod.masks:
                        check_rising("plan()", plan)
                except UserError as error:
                    raise Broken(f"for {epochs:g} epochs and sparsity {sparsity:g}: {error}") from error
    need(planned > 0, f"every budget was refused, from {EPOCHS[0]:g} to {EPOCHS[-1]:g} epochs, at any sparsity")


@after("plans_add_up")
def plans_are_repeatable(case: MethodCase) -> None:
    """plan() depends on the options and the budget alone: any instance gives the same plan, however often and in
    whatever order it is called, and is not changed by it.
    """
    budgets = [budget(30.0, 0.9), budget(6.0, 0.5, "linear"), budget(30.0, 0.9)]
    method = case.make()
    before, plans = frozen(vars(method)), []
    for number, given in enumerate(budgets):
        with global_seeds(number):
            plans.append(plan_of(method, given))
    changed = first_change(before, method)
    need(not changed, f"plan() changed self.{changed}")
    need(plans[0] == plans[2], f"the same budget was planned as {plans[0]} first and as {plans[2]} later")
    fresh = plan_of(case.make(), budgets[0])
    need(fresh == plans[0], f"another instance with the same options planned {fresh} instead of {plans[0]}")


@after("plans_add_up", "plans_are_repeatable")
def learning_rates_are_usable(case: MethodCase) -> None:
    """learning_rate() gives a Schedule for every segment, from its Stage alone, weights unseen; the multiplier is
    finite and 0 or more at any done fraction and any relative change of the weights, from 0 to infinity.
    """
    method = case.make()
    for sparsity in case.sparsities:
        given = budget(30.0, sparsity)
        plan = plan_of(method, given) or ()
        for index in range(len(plan)):
            for change in CHANGES:
                stage = Stage(given, plan, index, change)
                where = f"segment {index + 1} of {len(plan)} to sparsity {sparsity:g}, relative_change {change:g}"
                rates = _rates(method, stage, where)
                need(rates == _rates(method, stage, where), f"{where}: asked twice, it gave different multipliers")


def _rates(method: PruningMethod, stage: Stage, where: str) -> list[float]:
    schedule = method.learning_rate(stage)
    need(isinstance(schedule, Schedule), f"{where}: learning_rate() returned {schedule!r}")
    need(type(schedule.restarts) is bool, f"{where}: Schedule.restarts is {schedule.restarts!r}")
    rates = [schedule(done) for done in FRACTIONS]
    for done, rate in zip(FRACTIONS, rates, strict=True):
        need(math.isfinite(rate) and rate >= 0.0, f"{where}: the multiplier is {rate!r} at {done:g} of the segment")
    return rates


# --- the method's own tensors -------------------------------------------------------------------------


def extra_tensors_are_sound(case: MethodCase) -> None:
    """extra() names finite floating-point tensors of its own, sharing no memory with the weights or one another, and
    gives the same for the same weights.
    """
    method = case.make()
    weights = case.start(case.make()).weights
    extra = method.extra(weights)
    need(isinstance(extra, dict), f"extra() returned {type(extra).__name__}, not a dict of tensors by name")
    memory = {w.untyped_storage().data_ptr(): f"weight {name}" for name, w in weights.items()}
    for name, tensor in extra.items():
        need(isinstance(name, str) and bool(name), f"extra() names a tensor {name!r}")
        need(isinstance(tensor, torch.Tensor), f"extra()[{name!r}] is {type(tensor).__name__}, not a tensor")
        need(tensor.is_floating_point(), f"extra()[{name!r}] is {tensor.dtype}; it is trained and averaged: use floats")
        need(bool(torch.isfinite(tensor).all()), f"extra()[{name!r}] is not finite")
        owner = memory.setdefault(tensor.untyped_storage().data_ptr(), name)
        need(owner == name, f"extra()[{name!r}] shares its memory with {owner}; clone it")
    with global_seeds(1):
        name = difference(extra, method.extra(clones(weights)))
    need(not name, f"extra()[{name!r}] differs when asked again with the same weights; seed a torch.Generator")


@after("extra_tensors_are_sound")
def effective_weights_are_sound(case: MethodCase) -> None:
    """effective() gives each prunable weight its shape and type, finite, exactly 0 where masked, and a finite gradient
    for the weights or the extra tensors, at any time of the run; it works outside of training, too, where
    `step.generator` and `step.replica` are None.
    """
    method = case.make()
    for step in case.training_steps(method):
        where, got = f"effective() at progress {step.progress:g}", method.effective(step)
        odd = [name for name in [*got, *step.weights] if (name in got) != (name in step.weights)]
        need(not odd, f"{where}: {odd[:1]} is missing or too many; give each of step.weights")
        check_alike(where, got, step.weights)
        alive = revived(got, step.masks)
        need(not alive, f"{where}: {alive} are not 0; multiply by step.masks")
        total = torch.stack([weight.square().sum() for weight in got.values()]).sum()
        need(total.requires_grad, f"{where}: no gradient reaches the weights; is something detached?")
        check_gradients(where, total, step)
        try:
            method.effective(replace(step, generator=None, replica=None, weight_decay=0.0))
        except Exception as error:
            raise Broken(f"effective() outside of training, where step.generator is None: {describe(error)}") from error


# --- pruning -----------------------------------------------------------------------------------------


@after("plans_add_up", "plans_are_repeatable", "extra_tensors_are_sound")
def draws_from_the_steps_generator(case: MethodCase) -> None:
    """extra(), scores() and masks() draw no random number but from `step.generator`: a run must repeat, whatever else
    was drawn before.
    """
    case.make()
    seen: list[tuple[str, str]] = []
    with suppress(Exception):  # which the next rules report
        list(case.prunings(0.9, case.watched(seen)))
    for hook, which in seen:
        fix = "seed a torch.Generator of its own" if hook == "extra" else "draw from step.generator"
        raise Broken(f"{hook}() draws from {which}; {fix}")


@after("plans_add_up", "plans_are_repeatable", "extra_tensors_are_sound", "effective_weights_are_sound")
def prunes_exactly(case: MethodCase) -> None:
    """masks() gives a bool mask for each prunable weight, with exactly round(sparsity · N) of N weights masked, at
    every segment and any target: 0, 0.5, 0.9, 0.99 and all but one weight.
    """
    for sparsity in case.sparsities:
        _check_counts(case, sparsity, f"to sparsity {sparsity:g}")


@after("prunes_exactly")
def prunes_whole_channels(case: MethodCase) -> None:
    """With `--masks.pattern channels`, masks() keeps or removes whole channels, as many as fit under the sparsity, and
    leaves some of every layer, as `step.select` does; norms and biases go with them.
    """
    if importlib.util.find_spec("torch_pruning") is None:
        raise Skipped("torch_pruning is not installed: pip install 'sparsekit-soups[structured]'")
    try:
        for pruning in case.prunings(0.5, channels=True):
            alive = revived(effective(case.make(), pruning.child).tensors, pruning.child.all_masks)
            where = f"segment {pruning.stage.index + 1}"
            need(not alive, f"{where}: {alive} is not 0 where its channel is removed; multiply by step.masks")
    except (RunError, UserError) as error:
        raise Broken(f"--masks.pattern channels: {error}") from error


@after("prunes_exactly")
def handles_ties(case: MethodCase) -> None:
    """Equal weights, and equal gradients, still give exact counts."""
    ones = {name: torch.ones_like(w) for name, w in case.start(case.make()).weights.items()}
    _check_counts(case, 0.9, "all weights equal", ones)


@after("prunes_exactly")
def handles_non_finite(case: MethodCase) -> None:
    """Where a weight or a gradient is NaN or infinite, masks() is exact all the same or raises RunError."""
    weights = case.start(case.make()).weights
    for value in (math.nan, math.inf, -math.inf):
        spoilt = clones(weights)
        next(iter(spoilt.values())).flatten()[3:5] = value
        for what, prunings in (
            ("weights", case.prunings(0.9, weights=spoilt)),
            ("gradients", case.prunings(0.9, gradients=spoilt)),
        ):
            try:
                list(prunings)
            except RunError:
                pass
            except Exception as error:
                raise Broken(f"two {what} {value}: {describe(error)}") from error


@after("prunes_exactly", "draws_from_the_steps_generator")
def prunes_repeatably(case: MethodCase) -> None:
    """masks() follows from the step alone: nothing is drawn but from `step.generator`, nothing kept in the instance."""
    method = case.make()
    before = frozen(vars(method))
    first = [pruning.child.masks for pruning in case.prunings(0.9, method)]
    changed = first_change(before, method)
    need(not changed, f"pruning changed self.{changed}; the state of a run belongs to the run")
    for other, seed, whose in ((method, 1, "the same instance"), (case.make(), 2, "another instance")):
        with global_seeds(seed):
            again = [pruning.child.masks for pruning in case.prunings(0.9, other)]
        for number, (one, two) in enumerate(zip(first, again, strict=True), 1):
            name = difference(one, two)
            need(not name, f"{whose} pruned {name} otherwise in segment {number} when asked again with equal steps")


@after("prunes_exactly", "prunes_repeatably")
def follows_the_allocation(case: MethodCase) -> None:
    """`--masks.allocation` decides how many weights each layer keeps: masks() chooses with `step.select`, or reads
    `step.allocation`.
    """
    kept = [
        [{name: int(mask.sum()) for name, mask in p.child.masks.items()} for p in case.prunings(0.9, allocation=rule)]
        for rule in ("erk", "uniform")  # which go by shapes alone, whatever the scores
    ]
    same = bool(kept[0]) and kept[0] == kept[1]
    need(not same, "masks() keeps as many weights of every layer under --masks.allocation erk and uniform")


def _check_counts(case: MethodCase, sparsity: float, what: str, equal: Tensors | None = None) -> None:
    """Raise Broken where pruning along a plan fails or masks another number of weights than planned."""
    try:
        for pruning in case.prunings(sparsity, weights=equal, gradients=equal):
            segment, chosen = pruning.stage.segment, pruning.child.masks
            planned, got = round(segment.sparsity * case.weight_count), sum(int((~m).sum()) for m in chosen.values())
            need(got == planned, f"{what}: segment {pruning.stage.index + 1} masks {got} weights instead of {planned}")
    except (RunError, UserError) as error:
        raise Broken(f"{what}: {error}") from error


METHOD_RULES = (*COMMON_RULES, *rules_of(globals()), *HOOK_RULES, *OPTION_RULES, *RUN_RULES)
