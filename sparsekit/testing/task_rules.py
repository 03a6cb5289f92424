"""The rules for tasks: every public function is one, and its docstring states what the contract requires."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

from sparsekit.api import Task
from sparsekit.testing.cases import COMMON_RULES
from sparsekit.testing.compare import first_change, frozen, global_seeds, not_finite
from sparsekit.testing.option_rules import OPTION_RULES
from sparsekit.testing.rules import Broken, describe, need, rules_of
from sparsekit.testing.task_case import Examples, TaskCase, measured

# --- examples ----------------------------------------------------------------------------------------


def suits_some_examples(case: TaskCase) -> None:
    """What `check` takes, loss and meter take, too. Tried on targets of the usual kinds (class numbers, 0 and 1,
    numbers, for each example or pixel), with as many outputs as `num_outputs` says.
    """
    case.explain()
    task = case.make()
    for some in case.examples:
        try:
            task.loss(some.outputs, some.targets)
            measured(task, some)
        except Exception as error:
            raise Broken(f"{some.what}: {describe(error)}") from error


def counts_outputs(case: TaskCase) -> None:
    """`num_outputs` is a whole number, 1 or more, the same for the same targets."""
    task = case.make()
    for some in case.examples:
        count, again = task.num_outputs(some.targets), task.num_outputs(some.targets)
        need(type(count) is int and count >= 1, f"{some.what}: num_outputs() gave {count!r}")
        need(count == again, f"{some.what}: num_outputs() gave {count}, then {again}")


def refuses_with_value_errors(case: TaskCase) -> None:
    """Where outputs do not suit, `check` raises a ValueError with a message, or nothing at all."""
    task = case.make()
    for some in case.examples:
        one_row = some.outputs.flatten()
        for what, outputs in (("a row of outputs", one_row), ("outputs of fewer examples", some.outputs[1:])):
            try:
                task.check(outputs, some.targets)
            except ValueError as error:
                need(bool(str(error)), f"{some.what}: with {what} check() raised ValueError without a message")
            except Exception as error:
                raise Broken(f"{some.what}: with {what} check() raised {describe(error)}") from error


# --- the loss ----------------------------------------------------------------------------------------


def loss_is_one_number(case: TaskCase) -> None:
    """The loss is a 0-dim floating-point tensor, finite for ordinary outputs, in float32 as in float64."""
    task = case.make()
    for some in case.examples:
        single, double = task.loss(some.outputs, some.targets), task.loss(some.outputs.double(), some.targets)
        for loss in (single, double):
            one = isinstance(loss, Tensor) and not loss.dim() and loss.is_floating_point()
            need(one, f"{some.what}: the loss is {_about(loss)}")
            need(math.isfinite(loss), f"{some.what}: the loss is {float(loss)}")
        need(_near(float(single), float(double), 1e-3), f"{some.what}: {float(single)}, but in float64 {float(double)}")


def loss_has_gradients(case: TaskCase) -> None:
    """The loss can be differentiated with respect to the outputs; the gradient is finite and not 0."""
    for some in case.examples:
        outputs = some.outputs.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(case.make().loss(outputs, some.targets), [outputs])
        wrong = not_finite({"gradient": gradient})
        need(not wrong and bool(gradient.any()), f"{some.what}: its gradient is {'not finite' if wrong else '0'}")


def loss_is_a_mean(case: TaskCase) -> None:
    """The loss is a mean over the batch: the same examples twice have the same loss, and one example will do, as the
    last batch of a split may be.
    """
    task = case.make()
    for some in case.examples:
        once = float(task.loss(some.outputs, some.targets))
        twice = float(task.loss(torch.cat([some.outputs] * 2), torch.cat([some.targets] * 2)))
        need(_near(once, twice), f"{some.what}: {once:.6g}, but {twice:.6g} for the same examples twice")
        one = float(task.loss(some.outputs[:1], some.targets[:1]))
        need(math.isfinite(one), f"{some.what}: the loss of one example is {one}")


def loss_depends_on_its_inputs_alone(case: TaskCase) -> None:
    """The same outputs and targets give the same loss, bit for bit; neither they nor the instance are changed."""
    task = case.make()
    before = frozen(vars(task))
    for some in case.examples:
        outputs, targets = some.outputs.clone(), some.targets.clone()
        losses = []
        for seed in range(3):
            with global_seeds(seed):
                losses.append(float(task.loss(outputs, targets)))
            need(_same(some, outputs, targets), f"{some.what}: loss() changed its inputs in place")
        need(len(set(losses)) == 1, f"{some.what}: the loss of the same outputs is {losses[0]}, then {losses[-1]}")
    changed = first_change(before, task)
    need(not changed, f"loss() changed self.{changed}; the state of a run belongs to the run")


# --- the meter ---------------------------------------------------------------------------------------


def meter_measures_the_score(case: TaskCase) -> None:
    """`compute` has `score_name`, a finite number for ordinary outputs; what is beside it is a number, or a list that
    JSON can hold: None in the place of NaN.
    """
    task = case.make()
    for some in case.examples:
        found = measured(task, some)
        score = found.get(task.score_name)
        number = isinstance(score, (int, float)) and math.isfinite(score)
        need(number, f"{some.what}: its {task.score_name} is {score!r}, among {', '.join(found) or 'nothing'}")
        for name, value in found.items():
            try:
                json.dumps(value, allow_nan=isinstance(value, float))
            except (TypeError, ValueError) as error:
                raise Broken(f"{some.what}: its {name} is no number or list: {error}") from error


def meter_counts_every_batch(case: TaskCase) -> None:
    """Batches of any size measure the same as one batch of all their examples."""
    task = case.make()
    for some in case.examples:
        whole = measured(task, some)[task.score_name]
        for size in (1, 5):
            parts = [some.some(slice(at, at + size)) for at in range(0, len(some.targets), size)]
            value = measured(task, *parts)[task.score_name]
            need(_near(whole, value), f"{some.what}: {whole:.6g}, but {value:.6g} in batches of {size}")


def meters_are_apart(case: TaskCase) -> None:
    """Each meter is new and shares nothing with others; `update` changes neither its inputs nor the task."""
    task = case.make()
    before = frozen(vars(task))
    for some in case.examples:
        half = len(some.targets) // 2
        first, second = some.some(slice(half)), some.some(slice(half, None))
        alone = measured(task, first)[task.score_name]
        one, other = task.meter(torch.device("cpu")), task.meter(torch.device("cpu"))
        outputs, targets = first.outputs.double(), first.targets.clone()
        with torch.no_grad():
            one.update(outputs, targets)
            other.update(second.outputs.double(), second.targets)
        value = float(one.compute()[task.score_name])
        need(_near(alone, value), f"{some.what}: {alone:.6g}, but {value:.6g} where another meter is in use")
        need(_same(first, outputs.float(), targets), f"{some.what}: update() changed its inputs in place")
    changed = first_change(before, task)
    need(not changed, f"a meter changed self.{changed}; the state of a run belongs to the run")


def higher_is_better(case: TaskCase) -> None:
    """Outputs that are moved down the loss have a lower loss, and no lower score."""
    task = case.make()
    for some in case.examples:
        outputs = some.outputs.clone().requires_grad_()
        optimizer = torch.optim.Adam([outputs], lr=0.1)
        first = float(task.loss(some.outputs, some.targets))
        for _ in range(150):
            optimizer.zero_grad()
            task.loss(outputs, some.targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        last = float(task.loss(outputs.detach(), some.targets))
        need(last < first, f"{some.what}: down its gradient the loss went from {first:.6g} to {last:.6g}")
        before, after = (
            measured(task, each)[task.score_name]
            for each in (some, Examples(some.what, outputs.detach(), some.targets))
        )
        need(
            after >= before, f"{some.what}: the loss fell, and {task.score_name} from {before:.6g} to {after:.6g}, too"
        )


# --- what a task may have ----------------------------------------------------------------------------


def smoothing_of_0_is_none(case: TaskCase) -> None:
    """If there is a smoothed loss, it is a number, and the loss itself at a smoothing of 0."""
    task = case.make()
    if type(task).smoothed_loss is Task.smoothed_loss:
        return
    for some in case.examples:
        plain, none, much = (
            task.loss(some.outputs, some.targets),
            *(task.smoothed_loss(some.outputs, some.targets, smoothing) for smoothing in (0.0, 0.5)),
        )
        need(_near(float(plain), float(none)), f"{some.what}: {float(plain):.6g}, but {float(none):.6g} at 0")
        need(math.isfinite(much), f"{some.what}: the loss at a smoothing of 0.5 is {float(much)}")


def teachers_are_followed(case: TaskCase) -> None:
    """If there is a distillation, it is 0-dim, finite, and lower for the teacher's own outputs than for others."""
    task = case.make()
    if type(task).distillation is Task.distillation:
        return
    for some in case.examples:
        teacher = some.outputs.flip(0)
        own, other = (task.distillation(each, teacher, 2.0) for each in (teacher, some.outputs))
        need(not own.dim() and math.isfinite(own), f"{some.what}: it is {_about(own)}")
        need(
            float(own) < float(other),
            f"{some.what}: {float(own):.6g} for its own outputs, {float(other):.6g} for others",
        )


def an_ensemble_of_equals_is_one_of_them(case: TaskCase) -> None:
    """The outputs of an ensemble of equal members, which come one at a time, score as a member does."""
    task = case.make()
    for some in case.examples:
        alone = measured(task, some)[task.score_name]
        for count in (1, 3):
            mean = task.mean_outputs(iter([some.outputs.double()] * count))
            value = measured(task, Examples(some.what, mean, some.targets))[task.score_name]
            need(_near(alone, value), f"{some.what}: {alone:.6g}, but {value:.6g} as an ensemble of {count}")


def predictions_are_of_examples(case: TaskCase) -> None:
    """What `predict` gives is None, or a tensor with an entry for each example."""
    for some in case.examples:
        found = case.make().predict(some.outputs)
        fine = found is None or (isinstance(found, Tensor) and found.shape[:1] == some.targets.shape[:1])
        need(fine, f"{some.what}: predict() gave {_about(found)} for {len(some.targets)} examples")


def single_examples_make_up_the_whole(case: TaskCase) -> None:
    """What `per_example` gives has an entry for each example, and its means are the measures of these names."""
    task = case.make()
    for some in case.examples:
        whole = measured(task, some)
        whole.setdefault("loss", float(task.loss(some.outputs.double(), some.targets)))
        for name, values in task.per_example(some.outputs.double(), some.targets).items():
            fine = isinstance(values, Tensor) and values.shape == some.targets.shape[:1]
            need(fine, f"{some.what}: {name} is {_about(values)} for {len(some.targets)} examples")
            need(name in whole, f"{some.what}: {name} is no measure of the meter, nor the loss")
            mean = float(values.double().mean())
            need(
                _near(mean, whole[name]), f"{some.what}: {name} is {whole[name]:.6g}, and {mean:.6g} over the examples"
            )


def constant_outputs_suit_best(case: TaskCase) -> None:
    """What `constant_outputs` gives is the outputs of one example, and others near them have no lower loss."""
    task = case.make()
    for some in case.examples:
        found = task.constant_outputs(some.targets)
        if found is None:
            continue
        fine = isinstance(found, Tensor) and found.dim() + 1 == some.outputs.dim()
        need(fine, f"{some.what}: constant_outputs() gave {_about(found)}; give one example's outputs, without [N]")

        def loss(values: Tensor, task: Task = task, some: Examples = some) -> float:
            return float(task.loss(values.expand(len(some.targets), *values.shape), some.targets))

        best = loss(found.double())
        for index in range(min(found.numel(), 4)):
            for change in (-0.3, 0.3):
                near = found.double().flatten().clone()
                near[index] += change
                other = loss(near.reshape(found.shape))
                need(other >= best - 1e-6 * abs(best), f"{some.what}: the loss is {best:.6g}, and {other:.6g} nearby")


# --- whole runs --------------------------------------------------------------------------------------


def ends_well(case: TaskCase) -> None:
    """A run with `gmp` and `uniform` ends with a finite model and a score on the held-out examples."""
    some = case.examples[0]
    try:
        run = case.run(some)
        score = run.setup.score(run.final, "held_out")
    except Exception as error:
        raise Broken(f"{some.what}: {describe(error)}") from error
    wrong = not_finite(run.final.named())
    need(not wrong, f"{some.what}: the finished model's {wrong} is not finite")
    need(math.isfinite(score.value) and math.isfinite(score.loss), f"{some.what}: the finished model has {score}")


def _same(some: Examples, outputs: Tensor, targets: Tensor) -> bool:
    return torch.equal(some.outputs, outputs) and torch.equal(some.targets, targets)


def _near(left: float, right: float, tolerance: float = 1e-4) -> bool:
    return math.isclose(left, right, rel_tol=tolerance, abs_tol=1e-6)


def _about(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


TASK_RULES = (*COMMON_RULES, *rules_of(globals()), *OPTION_RULES)
