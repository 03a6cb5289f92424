"""Every rule for tasks catches the fault that it is there for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import pytest
import torch
from plugin_classes import option, tried
from torch import Tensor

from sparsekit.api import Task
from sparsekit.plugins.registry import discover
from sparsekit.tasks.classification import Classification
from sparsekit.testing import ContractError, check_rules, check_task
from sparsekit.testing.task_case import TaskCase
from sparsekit.testing.task_rules import TASK_RULES


class Errors:
    """The mean squared error below 0."""

    def __init__(self) -> None:
        self.total, self.count = torch.zeros((), dtype=torch.float64), 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.total = self.total + (outputs.reshape(targets.shape) - targets).square().sum()
        self.count += targets.numel()

    def compute(self) -> dict[str, Any]:
        return {"closeness": -self.total / self.count, "count": self.count, "lists": torch.ones(2)}


class Numbers(Task):
    """A number for each example, with everything that a task may define."""

    score_name: ClassVar[str] = "closeness"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.reshape(targets.shape) - targets).square().mean()

    def meter(self, device: Any) -> Errors:
        return Errors()

    def num_outputs(self, targets: Tensor) -> int:
        return 1

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if targets.dim() != 1 or outputs.shape != (len(targets), 1):
            raise ValueError("there must be a number each")

    def smoothed_loss(self, outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        return (1.0 - smoothing) * self.loss(outputs, targets)

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return (outputs - teacher).square().mean() / temperature

    def predict(self, outputs: Tensor) -> Tensor | None:
        return outputs[:, 0] > 0


def broken(**members: Any) -> TaskCase:
    """`Numbers` with other members; None removes one."""
    made = type("Broken", (Numbers,), {"__doc__": "Broken.", **members})
    return TaskCase(made)


def metered(**members: Any) -> dict[str, Any]:
    """A meter with other members."""
    made = type("Meter", (Errors,), members)
    return {"meter": lambda self, device: made()}


SHARED = Errors()


def forgets(self: Errors, outputs: Tensor, targets: Tensor) -> None:
    Errors.__init__(self)
    Errors.update(self, outputs, targets)


def averages(self: Any, outputs: Tensor, targets: Tensor) -> None:
    """Means of batches, averaged over batches of any size."""
    self.total = self.total + (outputs.reshape(targets.shape) - targets).square().mean()
    self.count += 1


def spoils(self: Any, outputs: Tensor, targets: Tensor) -> None:
    Errors.update(self, outputs, targets)
    targets.zero_()


def in_place(self: Any, outputs: Tensor, targets: Tensor) -> Tensor:
    loss = Numbers.loss(self, outputs, targets)
    targets.mul_(2)
    return loss


def remembers(self: Any, outputs: Tensor, targets: Tensor) -> Tensor:
    self.seen = len(targets)
    return Numbers.loss(self, outputs, targets)


def at_random(self: Any, outputs: Tensor, targets: Tensor) -> Tensor:
    return Numbers.loss(self, outputs, targets) * torch.rand(())


def squared(self: Any, outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.reshape(targets.shape) - targets).square()


def refused(self: Any, outputs: Tensor, targets: Tensor) -> None:
    if targets.dim() != 1 or len(targets) != len(outputs):
        raise KeyError(0)


def total(self: Errors) -> dict[str, Any]:
    return {"closeness": self.total / self.count}


def sums(self: Any, outputs: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(outputs)).sum(0)


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("is_well_formed", {"score_name": "mean IoU"}, "score_name is 'mean IoU'"),
    ("is_well_formed", {"score_name": "loss"}, "score_name is 'loss'"),
    ("keeps_its_options", {"__init__": option("scale", 2.0, keep=False)}, "there is no self.scale"),
    ("refuses_bad_options", {"__init__": option("scale", 2.0)}, "scale=nan is taken; refuse it in __init__"),
    ("suits_some_examples", {"check": Numbers.check, "loss": lambda s, o, t: o @ t}, "RuntimeError"),
    ("counts_outputs", {"num_outputs": lambda self, targets: True}, "num_outputs() gave True"),
    ("refuses_with_value_errors", {"check": refused}, "KeyError"),
    ("loss_is_one_number", {"loss": squared}, "the loss is torch.float32 of shape (12,)"),
    ("loss_is_one_number", {"loss": lambda s, o, t: Numbers.loss(s, o, t) / 0.0}, "the loss is inf"),
    ("loss_has_gradients", {"loss": lambda s, o, t: Numbers.loss(s, o, t) * 0.0}, "its gradient is 0"),
    ("loss_has_gradients", {"loss": lambda s, o, t: Numbers.loss(s, o.detach(), t)}, "does not require grad"),
    ("loss_is_a_mean", {"loss": lambda s, o, t: squared(s, o, t).sum()}, "for the same examples twice"),
    ("loss_is_a_mean", {"loss": lambda s, o, t: squared(s, o, t).var()}, "twice"),
    ("loss_depends_on_its_inputs_alone", {"loss": at_random}, "the loss of the same outputs is"),
    ("loss_depends_on_its_inputs_alone", {"loss": in_place}, "changed its inputs in place"),
    ("loss_depends_on_its_inputs_alone", {"loss": remembers}, "loss() changed self.seen"),
    ("meter_measures_the_score", metered(compute=lambda self: {"other": 1.0}), "its closeness is None, among other"),
    ("meter_measures_the_score", metered(compute=lambda self: {"closeness": math.nan}), "its closeness is nan"),
    ("meter_measures_the_score", metered(compute=lambda self: {"closeness": 0.0, "x": {1}}), "its x is no number"),
    ("meter_measures_the_score", metered(compute=lambda self: {"closeness": 0.0, "x": [math.nan]}), "its x is no"),
    ("meter_counts_every_batch", metered(update=forgets), "in batches of 1"),
    ("meter_counts_every_batch", metered(update=averages), "in batches of 5"),
    ("meters_are_apart", {"meter": lambda self, device: SHARED}, "where another meter is in use"),
    ("meters_are_apart", metered(update=spoils), "update() changed its inputs"),
    ("higher_is_better", metered(compute=total), "the loss fell, and closeness from"),
    ("smoothing_of_0_is_none", {"smoothed_loss": lambda s, o, t, x: 2 * Numbers.loss(s, o, t)}, "at 0"),
    ("teachers_are_followed", {"distillation": lambda s, o, t, x: -(o - t).square().mean()}, "for its own outputs"),
    ("an_ensemble_of_equals_is_one_of_them", {"mean_outputs": sums}, "as an ensemble of 3"),
    ("constant_outputs_suit_best", {"constant_outputs": lambda s, t: t.double().mean()}, "without [N]"),
    ("constant_outputs_suit_best", {"constant_outputs": lambda s, t: t.double().mean()[None] + 1}, "nearby"),
    ("single_examples_make_up_the_whole", {"per_example": lambda s, o, t: {"loss": o.sum()}}, "for 12 examples"),
    ("single_examples_make_up_the_whole", {"per_example": lambda s, o, t: {"loss": o[:, 0] + 9}}, "over the examples"),
    ("single_examples_make_up_the_whole", {"per_example": lambda s, o, t: {"size": o[:, 0]}}, "size is no measure"),
    ("predictions_are_of_examples", {"predict": lambda self, outputs: outputs.sum()}, "for 12 examples"),
]


@pytest.mark.parametrize(("rule", "members", "finding"), FAULTS)
def test_a_rule_catches_its_fault(rule: str, members: dict[str, Any], finding: str) -> None:
    outcome = tried(TASK_RULES, rule, broken(**members))
    assert outcome.state == "FAIL", outcome
    assert finding in outcome.finding


def test_every_rule_has_its_fault() -> None:
    assert {rule for rule, *_ in FAULTS} == {rule.__name__ for rule in TASK_RULES} - {"ends_well"}


def test_a_sound_task_passes() -> None:
    check_task(Numbers)
    assert {outcome.state for outcome in check_rules("task", Classification)} == {"pass"}


def test_a_run_that_fails_breaks_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: TaskCase, examples: object) -> None:
        raise ZeroDivisionError("no run")

    monkeypatch.setattr(TaskCase, "run", run)
    outcome = tried(TASK_RULES, "ends_well", broken())
    assert (outcome.state, "ZeroDivisionError: no run" in outcome.finding) == ("FAIL", True)


class Pairs(Numbers):
    """A number for each pair of outputs, which none of the kit's examples has."""

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if targets.dim() != 1 or outputs.shape != (len(targets), 2, 1, 1):
            raise ValueError("there must be a pair each")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return Numbers.loss(self, outputs.sum((1, 2)), targets)

    def meter(self, device: Any) -> Errors:
        made = Errors()
        update = made.update
        made.update = lambda outputs, targets: update(outputs.sum((1, 2)), targets)  # type: ignore[method-assign]
        return made

    def predict(self, outputs: Tensor) -> Tensor | None:
        return None


def test_a_task_that_takes_none_of_the_examples_is_tried_on_those_given() -> None:
    found = {outcome.rule: outcome for outcome in check_rules("task", Pairs)}
    assert found["suits_some_examples"].state == "skipped"
    assert "try it on your own: check_task(Pairs, (outputs, targets))" in found["suits_some_examples"].finding
    assert {outcome.state for outcome in found.values()} == {"pass", "skipped"}
    examples = torch.randn(8, 2, 1, 1, generator=torch.Generator().manual_seed(0)), torch.arange(8.0)
    check_task(Pairs, examples)
    with pytest.raises(ContractError, match=r"suits_some_examples(.|\n)*the examples given: ValueError: there must be"):
        check_task(Pairs, (examples[0][:, 0], examples[1]))


def test_a_task_without_check_is_tried_on_what_its_loss_and_meter_take() -> None:
    case = broken(check=Task.check)
    kinds = {some.what for some in case.examples}
    assert kinds == {"a class number each", "a number each", "a class number for each pixel"}  # as many outputs
    never = broken(check=Task.check, loss=lambda s, o, t: 1 / 0)
    outcome = tried(TASK_RULES, "suits_some_examples", never)
    assert (outcome.state, "a number each: ZeroDivisionError" in outcome.finding) == ("FAIL", True)


@pytest.mark.parametrize("name", [p.name for p in discover().plugins if p.kind == "task" and not p.flaw])
def test_every_installed_task_passes(name: str) -> None:
    (plugin,) = discover().of("task")[name]
    check_task(plugin.load())
