"""The rules for a method's hooks in training: every public function is one, and its docstring states what it requires.

They call hooks as a training step does, at several moments of a run, and in `penalty`, `effective`, `gradients` and
`update` alone. Whole runs come later.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch

from sparsekit._types import Tensors
from sparsekit.errors import RunError
from sparsekit.models.state import has_dense_weights
from sparsekit.testing.compare import (
    clones,
    difference,
    global_draws,
    global_seeds,
    not_finite,
    process_settings,
    revived,
)
from sparsekit.testing.hashing import class_differs
from sparsekit.testing.method_case import MethodCase, check_alike, check_gradients, named
from sparsekit.testing.placed import Placed, WrongDevice, as_on_gpu, placed
from sparsekit.testing.renamed import NAMES
from sparsekit.testing.rules import Broken, Skipped, after, describe, need, rules_of


@after("prunes_exactly", "prunes_repeatably")
def leaves_its_inputs_alone(case: MethodCase) -> None:
    """No tensor that a step carries is changed in place, whether in pruning or in training; nor are the gradients that
    update() gets, nor settings of torch that hold for the whole process.
    """
    method = case.make()
    hook = " or ".join(f"{name}()" for name in ("masks", "scores") if case.defines(name)) or "plan()"
    with process_settings() as changed:
        prunings = list(case.prunings(0.9, method))
    need(not changed, f"{hook} changed {', '.join(changed)} for the whole process; put it back, or use a `with` block")
    for pruning in prunings:
        need(not pruning.touched, f"{hook} changed the step's {pruning.touched!r} in place; change a clone")
    for step in case.training_steps(method):
        for hook, call in case.hooks(method, step):
            held = {"weights": step.weights, "masks": step.masks, "extra": step.extra}
            before = {part: clones(tensors) for part, tensors in held.items()}
            with torch.no_grad(), suppress(Exception):  # which the next rules report
                call()
            for part, tensors in held.items():
                name = difference(before[part], tensors)
                need(not name, f"{hook}() changed step.{part}[{name!r}] in place; change a clone")
        if case.defines("update"):
            generator = torch.Generator().manual_seed(1)  # of both signs: g² and |g| leave 0 and 1 as they are
            gradients = {name: torch.randn(w.shape, generator=generator) for name, w in step.weights.items()}
            given = clones(gradients)
            with torch.no_grad(), suppress(Exception):
                method.update(step, given)
            name = difference(gradients, given)
            need(not name, f"update() changed gradients[{name!r}] in place; change a clone")


@after("extra_tensors_are_sound", "prunes_repeatably")
def penalties_are_scalars(case: MethodCase) -> None:
    """penalty() is None or a finite scalar tensor with a finite gradient, at any time of the run; what has no gradient
    changes the loss that is logged, and trains nothing.
    """
    method = case.make()
    idle, moves = "", False
    for step in case.training_steps(method):
        where, value = f"penalty() at progress {step.progress:g}", method.penalty(step)
        if value is None:
            continue
        need(isinstance(value, torch.Tensor) and value.dim() == 0, f"{where} is {value!r}, not a 0-dim tensor")
        need(bool(torch.isfinite(value)), f"{where} is {value.item()}")
        if value.requires_grad:
            moves |= check_gradients(where, value, step)
        if value.item():
            idle = f"{where} is {value.item():.4g}"
            need(value.requires_grad, f"{idle} and has no gradient; compute it from step.weights, without detach()")
    need(moves or not idle, f"{idle}, but its gradient is 0; compute it from step.weights or step.extra")


@after("extra_tensors_are_sound", "prunes_repeatably")
def gradients_fit(case: MethodCase) -> None:
    """gradients() gives prunable weights finite gradients of their shape and type, and, where no dense weights are kept
    behind the mask, 0 for those that are masked.
    """
    method = case.make()
    dense = has_dense_weights(method)
    for step in case.training_steps(method):
        got: Tensors = next((call() for hook, call in case.hooks(method, step) if hook == "gradients"), {})
        where = f"gradients() at progress {step.progress:g}"
        for name in got:
            need(name in step.weights, f"{where}: {name} is no prunable weight; give names of step.weights")
        check_alike(where, got, step.weights)
        alive = "" if dense else revived(got, {name: step.masks[name] for name in got})
        need(not alive, f"{where}: the gradients of {alive} are not 0; multiply by step.masks")


@after("extra_tensors_are_sound", "prunes_repeatably")
def updates_fit(case: MethodCase) -> None:
    """update() gives new values, finite and of the same shape, for tensors of extra() that extra_trained() leaves to
    it; extra_trained() and extra_decays() are true or false for each tensor.
    """
    method = case.make()
    extra = case.start(method).extra
    for name in extra:
        for hook in ("extra_trained", "extra_decays"):
            answer = getattr(method, hook)(name)
            need(type(answer) is bool, f"{hook}({name!r}) is {answer!r}; return True or False")
    if not case.defines("update"):
        return
    left = [name for name in extra if not method.extra_trained(name)]
    for step in case.training_steps(method):
        where = f"update() at progress {step.progress:g}"
        got = next(call() for hook, call in case.hooks(method, step) if hook == "update")
        need(isinstance(got, dict), f"{where} returned {type(got).__name__}; return tensors by name, or {{}}")
        for name, value in got.items():
            need(name in extra, f"{where} gives {name!r}, which is no tensor of extra()")
            need(name in left, f"{where} gives {name!r}, which the optimizer trains; let extra_trained() say False")
            need(isinstance(value, torch.Tensor), f"{where}: {name} is {type(value).__name__}, not a tensor")
            need(value.shape == extra[name].shape, f"{where}: {name} is {tuple(value.shape)}, not as extra() made it")
        wrong = not_finite(got)
        need(not wrong, f"{where}: {wrong} is not finite")


@after("effective_weights_are_sound", "penalties_are_scalars", "gradients_fit", "updates_fit")
def hooks_follow_from_the_step(case: MethodCase) -> None:
    """effective(), penalty(), gradients() and update() follow from the step alone: equal steps give equal bits; nothing
    is drawn but from `step.generator`, nothing kept in the instance.
    """
    method = case.make()
    for step, again in zip(case.training_steps(method), case.training_steps(method), strict=True):
        for (hook, call), (_, other) in zip(case.hooks(method, step), case.hooks(method, again), strict=True):
            with global_seeds(0), global_draws() as drawn:
                first = named(call())
            need(not drawn, f"{hook}() draws from {' and '.join(drawn)}; draw from step.generator")
            with global_seeds(1):
                name = difference(first, named(other()))
            what = "another value" if name == "it" else f"another {name}"
            need(
                not name,
                f"{hook}() gave {what} for an equal step; draw from step.generator only, and keep nothing in self",
            )


@after("effective_weights_are_sound", "penalties_are_scalars", "gradients_fit", "updates_fit")
def hooks_stay_on_the_device(case: MethodCase) -> None:
    """effective(), penalty(), gradients() and update() make new tensors on the weights' device, so that they work on a
    GPU. Tried without one: tensors say that they lie elsewhere, and each operation is held against torch's rules.
    """
    method = case.make()
    for step in case.training_steps(method):
        with as_on_gpu():
            on_gpu = replace(step, weights=placed(step.weights), masks=placed(step.masks), extra=placed(step.extra))
            for hook, call in case.hooks(method, on_gpu):
                try:
                    found = call()
                except WrongDevice as error:
                    raise Broken(f"{hook}() would fail on a GPU: {error}; make it with device=weight.device") from error
                except Exception as error:
                    if "numpy" in str(error):
                        raise Broken(f"{hook}() would fail on a GPU: it asks for numpy; use torch instead") from error
                    raise Skipped(f"{hook}() cannot be tried as on a GPU: {describe(error)}") from error
                for name, tensor in named(found).items() if hook != "penalty" else ():
                    like = f"step.extra[{name!r}]" if hook == "update" else "weight"
                    stays = isinstance(tensor, Placed)
                    need(stays, f"{hook}() gives {name} on the CPU; make it with device={like}.device")


@after("prunes_repeatably", "leaves_its_inputs_alone", "hooks_follow_from_the_step")
def hashes_decide_nothing(case: MethodCase) -> None:
    """Scores, masks and hooks do not depend on how Python hashes names, which differs from process to process: of a set
    of names the order is sorted, and no seed is a hash(). Tried with a network whose names differ in their first
    letters.
    """
    method = case.make()
    first: list[tuple[str, Tensors]] = []
    for name in NAMES:
        try:
            found = list(case.choices(method, name))
        except RunError:
            raise
        except Exception as error:  # as where it names a layer itself
            list(case.choices(method))  # what fails under any name is told as that
            raise Skipped(f"it cannot be tried under other names: {describe(error)}") from error
        for number, (what, tensors) in enumerate(found):
            differs = bool(first) and difference(first[number][1], tensors)
            if not differs:
                continue
            if not class_differs(case):
                return
            raise Broken(
                f"{what} depends on hashes of names: it gave another {differs} under names in the same order; go "
                "through step.weights or sorted(names) instead of a set, and do not use hash()"
            )
        first = first or found


HOOK_RULES = rules_of(globals())
