"""The rules for pruning methods: every public function is one, and its docstring states what the contract requires."""

from __future__ import annotations

import math

import torch

from sparsekit._types import Tensor, Tensors
from sparsekit.api import PruningMethod, Schedule, Stage, TrainingStep
from sparsekit.errors import RunError, UserError
from sparsekit.models.state import has_dense_weights
from sparsekit.planning.plan import check_plan, check_rising
from sparsekit.testing.cases import COMMON_RULES
from sparsekit.testing.compare import clones, difference, first_change, frozen, global_seeds, not_finite, revived
from sparsekit.testing.method_case import MethodCase, budget, plan_of
from sparsekit.testing.rules import Broken, describe, need, rules_of
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


# --- pruning -----------------------------------------------------------------------------------------


def prunes_exactly(case: MethodCase) -> None:
    """masks() gives a bool mask for each prunable weight, with exactly round(sparsity · N) of N weights masked, at
    every segment and any target: 0, 0.5, 0.9, 0.99 and all but one weight.
    """
    for sparsity in case.sparsities:
        _check_counts(case, sparsity, f"to sparsity {sparsity:g}")


def handles_ties(case: MethodCase) -> None:
    """Equal weights, and equal gradients, still give exact counts."""
    ones = {name: torch.ones_like(w) for name, w in case.start(case.make()).weights.items()}
    _check_counts(case, 0.9, "all weights equal", ones)


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


def _check_counts(case: MethodCase, sparsity: float, what: str, equal: Tensors | None = None) -> None:
    """Raise Broken where pruning along a plan fails or masks another number of weights than planned."""
    try:
        for pruning in case.prunings(sparsity, weights=equal, gradients=equal):
            segment, chosen = pruning.stage.segment, pruning.child.masks
            planned, got = round(segment.sparsity * case.weight_count), sum(int((~m).sum()) for m in chosen.values())
            need(got == planned, f"{what}: segment {pruning.stage.index + 1} masks {got} weights instead of {planned}")
    except (RunError, UserError) as error:
        raise Broken(f"{what}: {error}") from error


# --- training ----------------------------------------------------------------------------------------


def leaves_its_inputs_alone(case: MethodCase) -> None:
    """No tensor that a step carries is changed in place, whether in pruning or in training."""
    method = case.make()
    for pruning in case.prunings(0.9, method):
        need(not pruning.touched, f"pruning changed the step's {pruning.touched!r} in place")
    for step in case.training_steps(method):
        ones = {name: torch.ones_like(w) * step.masks[name] for name, w in step.weights.items()}
        held = {"weights": step.weights, "masks": step.masks, "extra": step.extra}
        before = {part: clones(tensors) for part, tensors in held.items()}
        for hook in ("effective", "penalty", "gradients"):
            with torch.no_grad():
                getattr(method, hook)(step, *([ones] if hook == "gradients" else []))
            for part, tensors in held.items():
                name = difference(before[part], tensors)
                need(not name, f"{hook}() changed step.{part}[{name!r}] in place")


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
    need(not name, f"extra()[{name!r}] differs when asked again with the same weights")


def effective_weights_are_sound(case: MethodCase) -> None:
    """effective() gives each prunable weight its shape and type, finite, exactly 0 where masked, and a finite gradient
    for the weights or the extra tensors, at any time of the run.
    """
    method = case.make()
    for step in case.training_steps(method):
        where, got = f"effective() at progress {step.progress:g}", method.effective(step)
        odd = [name for name in [*got, *step.weights] if (name in got) != (name in step.weights)]
        need(not odd, f"{where}: {odd[:1]} is missing or too many")
        _check_alike(where, got, step.weights)
        alive = revived(got, step.masks)
        need(not alive, f"{where}: {alive} are not 0")
        total = torch.stack([weight.square().sum() for weight in got.values()]).sum()
        need(total.requires_grad, f"{where}: no gradient reaches the weights; is something detached?")
        _check_gradients(where, total, step)


def penalties_are_scalars(case: MethodCase) -> None:
    """penalty() is None or a finite scalar tensor with a finite gradient, at any time of the run."""
    method = case.make()
    for step in case.training_steps(method):
        where, value = f"penalty() at progress {step.progress:g}", method.penalty(step)
        if value is not None:
            need(isinstance(value, torch.Tensor) and value.dim() == 0, f"{where} is {value!r}, not a 0-dim tensor")
            need(bool(torch.isfinite(value)), f"{where} is {value.item()}")
            if value.requires_grad:
                _check_gradients(where, value, step)


def gradients_fit(case: MethodCase) -> None:
    """gradients() gives prunable weights finite gradients of their shape and type, and, where no dense weights are kept
    behind the mask, 0 for those that are masked.
    """
    method = case.make()
    dense = has_dense_weights(method)
    for step in case.training_steps(method):
        generator = torch.Generator().manual_seed(0)
        noise = {name: torch.randn(w.shape, generator=generator) for name, w in step.weights.items()}
        given = {name: g if dense else g * step.masks[name] for name, g in noise.items()}
        with torch.no_grad():
            got = method.gradients(step, clones(given))
        where = f"gradients() at progress {step.progress:g}"
        for name in got:
            need(name in step.weights, f"{where}: {name} is no prunable weight")
        _check_alike(where, got, step.weights)
        alive = "" if dense else revived(got, {name: step.masks[name] for name in got})
        need(not alive, f"{where}: the gradients of {alive} are not 0")


def _check_alike(where: str, got: Tensors, weights: Tensors) -> None:
    """Raise Broken unless tensors are finite and have the shapes and types of the weights of the same names."""
    for name, tensor in got.items():
        alike = tensor.shape == weights[name].shape and tensor.dtype == weights[name].dtype
        need(alike, f"{where}: {name} is {tensor.dtype} {tuple(tensor.shape)}")
    name = not_finite(got)
    need(not name, f"{where}: {name} is not finite")


def _check_gradients(where: str, value: Tensor, step: TrainingStep) -> None:
    """Raise Broken unless the gradients of a scalar are finite."""
    leaves = {**step.weights, **step.extra}
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    name = not_finite({name: g for name, g in zip(leaves, found, strict=True) if g is not None})
    need(not name, f"{where}: the gradient of {name} is not finite")


METHOD_RULES = (*COMMON_RULES, *rules_of(globals()), *RUN_RULES)
