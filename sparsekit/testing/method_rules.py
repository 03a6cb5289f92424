"""The rules for pruning methods; each docstring says what the contract asks. A new rule goes into `METHOD_RULES`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from sparsekit._types import Tensors
from sparsekit.api import PruningMethod, Schedule, Stage
from sparsekit.errors import RunError, UserError
from sparsekit.models.state import has_dense_weights
from sparsekit.planning.plan import check_plan
from sparsekit.testing import run_rules
from sparsekit.testing.method_case import MethodCase, budget, plan_of
from sparsekit.testing.problem import clones, difference, first_change, frozen, global_seeds, unknown
from sparsekit.testing.rules import Broken, describe, need

ALLOCATIONS = ("global", "uniform", "erk", "lamp")
EPOCHS = (6.0, 7.0, 30.0, 90.0)
CHANGES = (0.0, 0.01, 0.5, 1.0, math.inf)
FRACTIONS = [i / 200 for i in range(201)]

# --- the class and its plan --------------------------------------------------------------------------


def is_well_formed(case: MethodCase) -> None:
    """The class subclasses PruningMethod, defines plan(), has a docstring, and names and annotates every option."""
    case.check_form()
    rule = case.cls.allocation
    need(rule in ALLOCATIONS, f"{case.cls.__name__}.allocation is {rule!r}; choose from {', '.join(ALLOCATIONS)}")


def keeps_its_options(case: MethodCase) -> None:
    """Every option is kept under its own name, as it was given, and can be written to config.yaml and read again."""
    case.check_options()


def plans_add_up(case: MethodCase) -> None:
    """A plan's epochs sum up to the budget's, its last sparsity is the budget's, every sparsity lies in [0, 1) and no
    segment's epochs are negative; a budget that the options do not suit is refused with a ValueError that says why.
    """
    method, planned = case.make(), 0
    for epochs in EPOCHS:
        for sparsity in case.sparsities:
            given = budget(epochs, sparsity)
            if (plan := plan_of(method, given)) is not None:
                planned += 1
                try:
                    check_plan("plan()", plan, given)
                except UserError as error:
                    raise Broken(f"for {epochs:g} epochs and sparsity {sparsity:g}: {error}") from error
    need(planned > 0, f"every budget was refused, from {EPOCHS[0]:g} to {EPOCHS[-1]:g} epochs, at any sparsity")


def plans_are_repeatable(case: MethodCase) -> None:
    """plan() depends on the options and the budget alone: called again, in any order, by any instance, it says the same
    and leaves the instance as it was.
    """
    budgets = [budget(30.0, 0.9), budget(6.0, 0.5, "linear"), budget(30.0, 0.9)]
    method = case.make()
    before = frozen(vars(method))
    plans = []
    for number, given in enumerate(budgets):
        with global_seeds(number):
            plans.append(plan_of(method, given))
    changed = first_change(before, frozen(vars(method)))
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
        _prune_all(case, sparsity, f"to sparsity {sparsity:g}")


def handles_ties(case: MethodCase) -> None:
    """Equal weights, and equal gradients, still give exact counts."""
    ones = {name: torch.ones_like(w) for name, w in case.start(case.make()).weights.items()}
    _prune_all(case, 0.9, "all weights equal", weights=ones, gradients=ones)


def handles_non_finite(case: MethodCase) -> None:
    """Where a weight or a gradient is NaN or infinite, masks() is exact all the same or raises RunError."""
    weights = case.start(case.make()).weights
    for value in (math.nan, math.inf, -math.inf):
        for place in ("weights", "gradients"):
            sick = clones(weights)
            next(iter(sick.values())).flatten()[3:5] = value
            try:
                for _ in case.prunings(case.make(), 0.9, **{place: sick}):
                    pass
            except RunError:
                pass
            except Exception as error:
                raise Broken(f"two {place} {value}: {describe(error)}") from error


def prunes_repeatably(case: MethodCase) -> None:
    """masks() follows from the step alone: nothing is drawn but from `step.generator`, nothing kept in the instance."""
    method = case.make()
    before = frozen(vars(method))
    first = [pruning.child.masks for pruning in case.prunings(method, 0.9)]
    changed = first_change(before, frozen(vars(method)))
    need(not changed, f"pruning changed self.{changed}; the state of a run belongs to the run")
    for other, seed, whose in ((method, 1, "the same instance"), (case.make(), 2, "another instance")):
        with global_seeds(seed):
            again = [pruning.child.masks for pruning in case.prunings(other, 0.9)]
        for number, (one, two) in enumerate(zip(first, again, strict=True), 1):
            name = difference(one, two)
            need(not name, f"{whose} pruned {name} otherwise in segment {number} when asked again with equal steps")


def _prune_all(case: MethodCase, sparsity: float, what: str, **doctored: Tensors) -> None:
    """Prune along a whole plan; raise Broken where that fails or a count is not exact."""
    try:
        for pruning in case.prunings(case.make(), sparsity, **doctored):
            segment, chosen = pruning.stage.segment, pruning.child.masks
            wanted, got = round(segment.sparsity * case.weight_count), sum(int((~m).sum()) for m in chosen.values())
            need(got == wanted, f"{what}: segment {pruning.stage.index + 1} masks {got} weights instead of {wanted}")
    except (RunError, UserError) as error:
        raise Broken(f"{what}: {error}") from error


# --- training ----------------------------------------------------------------------------------------


def leaves_its_inputs_alone(case: MethodCase) -> None:
    """No tensor that a step carries is changed in place, whether in pruning or in training."""
    method = case.make()
    for pruning in case.prunings(method, 0.9):
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
        where = f"effective() at progress {step.progress:g}"
        got = method.effective(step)
        odd = unknown(list(got), list(step.weights))
        need(not odd, f"{where}: {odd!r} is missing or too many")
        for name, weight in got.items():
            need(weight.shape == step.weights[name].shape, f"{where}: {name} has shape {tuple(weight.shape)}")
            need(weight.dtype == step.weights[name].dtype, f"{where}: {name} is {weight.dtype}")
            need(bool(torch.isfinite(weight).all()), f"{where}: {name} is not finite")
            revived = int((weight[step.masks[name] == 0] != 0).sum())
            need(not revived, f"{where}: {revived} masked weights of {name} are not 0")
        total = torch.stack([weight.square().sum() for weight in got.values()]).sum()
        need(total.requires_grad, f"{where}: no gradient reaches the weights; is something detached?")
        leaves = {**step.weights, **step.extra}
        for name, g in zip(leaves, torch.autograd.grad(total, list(leaves.values()), allow_unused=True), strict=True):
            need(g is None or bool(torch.isfinite(g).all()), f"{where}: the gradient of {name} is not finite")


def penalties_are_scalars(case: MethodCase) -> None:
    """penalty() is None or a finite scalar tensor with a finite gradient, at any time of the run."""
    method = case.make()
    for step in case.training_steps(method):
        where, value = f"penalty() at progress {step.progress:g}", method.penalty(step)
        if value is None:
            continue
        need(isinstance(value, torch.Tensor) and value.dim() == 0, f"{where} is {value!r}, not a 0-dim tensor")
        need(bool(torch.isfinite(value)), f"{where} is {value.item()}")
        leaves = {**step.weights, **step.extra}
        if value.requires_grad:
            found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
            for name, g in zip(leaves, found, strict=True):
                need(g is None or bool(torch.isfinite(g).all()), f"{where}: the gradient of {name} is not finite")


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
        for name, g in got.items():
            where = f"gradients() at progress {step.progress:g}: {name}"
            need(name in step.weights, f"{where} is no prunable weight")
            alike = g.shape == given[name].shape and g.dtype == given[name].dtype
            need(alike, f"{where} is {g.dtype} {tuple(g.shape)}")
            need(bool(torch.isfinite(g).all()), f"{where} is not finite")
            revived = 0 if dense else int((g[step.masks[name] == 0] != 0).sum())
            need(not revived, f"{where} has {revived} gradients other than 0 where weights are masked")


METHOD_RULES: tuple[Callable[[MethodCase], None], ...] = (
    is_well_formed,
    keeps_its_options,
    plans_add_up,
    plans_are_repeatable,
    learning_rates_are_usable,
    prunes_exactly,
    handles_ties,
    handles_non_finite,
    prunes_repeatably,
    leaves_its_inputs_alone,
    extra_tensors_are_sound,
    effective_weights_are_sound,
    penalties_are_scalars,
    gradients_fit,
    *run_rules.RUN_RULES,
)
