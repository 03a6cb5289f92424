"""The contract kit: sound classes pass, and the error of a broken one names every rule that it breaks."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_functions import numbered_by_set
from plugin_classes import Once, Pulled, Tensors, Thresholds, Twice, by_zeros, merge, method, option, refuse, tried
from torch import Tensor

import sparsekit
from sparsekit.api import Budget, PruningMethod, PruningStep, Segment
from sparsekit.errors import RunError
from sparsekit.merges.uniform import Uniform
from sparsekit.methods.gmp import GMP
from sparsekit.plugins.registry import discover
from sparsekit.testing import (
    ContractError,
    check_dataset,
    check_merge,
    check_method,
    check_rules,
    check_task,
    command,
)
from sparsekit.testing.method_case import MethodCase
from sparsekit.testing.method_rules import METHOD_RULES
from sparsekit.testing.rules import after, need, outcomes

BUILT_IN = [plugin for plugin in discover().plugins if plugin.distribution == "sparsekit-soups"]


@pytest.mark.slow
@pytest.mark.parametrize("plugin", BUILT_IN, ids=str)
def test_every_built_in_passes(plugin: Any) -> None:
    checks = {"method": check_method, "merge": check_merge, "task": check_task, "dataset": check_dataset}
    checks[plugin.kind](plugin.load())


@pytest.mark.slow
def test_gmp_passes() -> None:
    check_method(GMP, interval=0.3)


@pytest.mark.slow
def test_uniform_passes() -> None:
    check_merge(Uniform)


@pytest.mark.slow
def test_sound_classes_that_define_everything_pass() -> None:
    check_method(Thresholds, pull=1e-2)
    check_merge(Pulled, only=["fc.bias"])


def test_the_error_has_the_requirement_and_the_finding_of_every_broken_rule() -> None:
    broken = method(Once, doc=None, __init__=option("share", 0.5, keep=False), plan=refuse("never"))
    with pytest.raises(ContractError) as caught:
        check_method(broken)
    text = str(caught.value)
    assert text.startswith("Broken breaks ")
    for rule in ("is_well_formed", "keeps_its_options", "plans_add_up"):
        assert f"\n\n{rule}: " in text
    assert "ends_well" not in text  # as no plan adds up, which is told
    assert "\n    there is no self.share\n" in text
    assert "exactly round(sparsity · N)" not in text  # a skipped rule is not reported as broken
    assert isinstance(caught.value, AssertionError)


def test_a_rule_that_follows_from_a_broken_one_is_skipped() -> None:
    def first(case: Any) -> None:
        need(not case, "the cause")

    @after("first")
    def second(case: Any) -> None:
        need(case != 1, "what follows")

    @after("second")
    def third(case: Any) -> None:
        need(False, "what follows from that, or a cause of its own")

    def told(case: int) -> list[tuple[str, str]]:
        return [(o.state, o.finding) for o in outcomes([first, second, third], case)]

    skipped = ("skipped", "it fails, too; see first")
    assert told(1) == [("FAIL", "the cause"), skipped, skipped]
    assert told(2) == [("FAIL", "the cause"), ("pass", ""), skipped]
    assert [state for state, _ in told(0)] == ["pass", "pass", "FAIL"]


CAUSES = {
    "masks()": method(masks=lambda s, step: {}),
    "effective()": method(effective=lambda s, step: dict(step.weights)),
    "gradients()": method(gradients=lambda s, step, g: {n: t * random.random() for n, t in g.items()}),
    "penalty()": method(penalty=lambda s, step: step.weights["fc.weight"].detach().square().sum()),
}


@pytest.mark.slow
@pytest.mark.parametrize("hook", CAUSES)
def test_a_cause_is_told_once_with_its_hook(hook: str) -> None:
    broken = [outcome for outcome in check_rules("method", CAUSES[hook]) if outcome.state == "FAIL"]
    assert len(broken) == 1
    assert hook in broken[0].finding


@pytest.mark.slow
def test_an_exception_of_the_plugin_is_the_cause() -> None:
    with pytest.raises(ContractError, match="ZeroDivisionError") as caught:
        check_merge(merge(coefficients=by_zeros))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_class_without_an_instance_skips_the_rest() -> None:
    found = list(outcomes(METHOD_RULES, MethodCase(method(PruningMethod))))
    assert [outcome.state for outcome in found] == ["FAIL"] + ["skipped"] * (len(METHOD_RULES) - 1)
    assert found[-1].finding.endswith("see is_well_formed")


def test_options_reach_the_class() -> None:
    with pytest.raises(ContractError, match=r"GMP\(start=0\.9, end=0\.1\) raised ValueError: --method\.end is 0\.1"):
        check_method(GMP, start=0.9, end=0.1)


def test_the_command_prints_the_requirement_and_the_finding(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = method(PruningMethod)
    monkeypatch.setattr(command, "find", lambda kind, name: type("P", (), {"load": lambda self: broken})())
    threads = torch.get_num_threads()
    try:
        assert command.check_here("method", "broken") == 1
    finally:
        torch.set_num_threads(threads)
    first, requirement, but, finding, *rest = capsys.readouterr().out.splitlines()
    assert first == "  FAIL     is_well_formed"
    assert requirement.strip().startswith("The class subclasses PruningMethod")
    assert (but.strip(), finding.strip()) == ("but:", "Broken lacks the method plan()")
    assert rest[-1] == f"  0 of {len(METHOD_RULES)} rules pass, 1 broken, {len(METHOD_RULES) - 1} skipped"


def test_the_kit_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    state = torch.get_rng_state(), random.getstate()
    with pytest.raises(ContractError):
        check_merge(merge(coefficients=lambda s, candidates, step: 1 / 0))
    assert list(tmp_path.iterdir()) == []
    assert random.getstate() == state[1]


def test_a_refused_sparsity_is_no_fault() -> None:
    def plan(self: Any, budget: Budget) -> tuple[Segment, ...]:
        if budget.sparsity < 0.5:
            raise ValueError(f"--sparsity is {budget.sparsity:g}; this method needs 0.5 or more")
        return Twice.plan(self, budget)

    case = MethodCase(method(plan=plan))
    for rule in ("plans_add_up", "learning_rates_are_usable", "prunes_exactly", "works_at_the_extremes"):
        assert tried(METHOD_RULES, rule, case).state == "pass"


def test_run_errors_are_an_answer_to_what_is_not_finite() -> None:
    def own(self: Any, step: PruningStep) -> Tensors:
        if not all(bool(torch.isfinite(w).all()) for w in step.weights.values()):
            raise RunError("a weight is not finite")
        return step.select(self.scores(step))

    assert tried(METHOD_RULES, "handles_non_finite", MethodCase(method(masks=own))).state == "pass"


def test_a_data_set_that_draws_anew_is_told() -> None:
    def moving() -> sparsekit.Data:
        """Random numbers."""
        return sparsekit.Data((torch.rand(8, 2), torch.zeros(8)), (torch.ones(8, 2), torch.zeros(8)))

    with pytest.raises(
        ContractError, match=r"moving breaks a rule[^$]*returns_the_same_again[^$]*train has other values"
    ):
        check_dataset(moving)


def test_a_data_set_whose_classes_are_numbered_by_a_set_is_told() -> None:
    with pytest.raises(ContractError, match=r"breaks a rule[^$]*hashes_decide_nothing[^$]*number sorted\(names\)"):
        check_dataset(numbered_by_set)


def given(inputs: Tensor, targets: Tensor) -> Any:
    """A data set's function."""

    def examples() -> sparsekit.Data:
        """What was given."""
        return sparsekit.Data((inputs, targets), (torch.zeros(5, 2), torch.zeros(5)))

    return examples


def test_inputs_that_are_not_finite_are_told_as_that_and_targets_may_be_unknown() -> None:
    unknown = torch.tensor([0.0, math.nan, 1.0, 0.0, math.nan])
    check_dataset(given(torch.ones(5, 2), unknown))
    with pytest.raises(ContractError, match=r"breaks a rule[^$]*train: the input of example 1 is not finite; correct"):
        check_dataset(given(unknown[:, None], torch.zeros(5)))


class Ordinal(sparsekit.Task):
    """Class numbers in order, by a row of sigmoids: one fewer than there are classes."""

    score_name = "accuracy"
    stratified = True

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        above = (targets[:, None] > torch.arange(outputs.shape[1])).to(outputs.dtype)
        return torch.nn.functional.binary_cross_entropy_with_logits(outputs, above)

    def meter(self, device: torch.device) -> Rights:
        return Rights()

    def num_outputs(self, targets: Tensor) -> int:
        return int(targets.max())

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        fits = outputs.dim() == 2 and len(outputs) == len(targets) and outputs.shape[1] >= targets.max()
        if targets.dim() != 1 or targets.is_floating_point() or not fits:
            raise ValueError("give class numbers, and an output fewer than classes")


class Rights:
    """The share of examples whose class is right."""

    def __init__(self) -> None:
        self.right, self.count = torch.zeros(()), 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.right = self.right + ((outputs > 0).sum(1) == targets).sum()
        self.count += len(targets)

    def compute(self) -> dict[str, float]:
        return {"accuracy": float(self.right) / self.count}


@pytest.mark.slow
def test_a_stratified_task_may_have_another_number_of_outputs() -> None:
    check_task(Ordinal)
