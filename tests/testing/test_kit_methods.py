"""Every rule for methods catches the fault that it is there for."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from plugin_classes import Mean, Once, Tensors, Twice, counting, method, option, refuse, tried
from torch import Tensor

from sparsekit.api import PruningMethod, PruningStep, Schedule, Segment, TrainingStep
from sparsekit.models.state import State
from sparsekit.pruning import masks
from sparsekit.testing.method_case import MethodCase
from sparsekit.testing.method_rules import METHOD_RULES


@cache
def case_of(cls: type[Any]) -> MethodCase:
    """One case a class, so that rules that look at its run train it once."""
    return MethodCase(cls)


class Any_(Once):
    """Takes whatever it gets."""

    def __init__(self, **options: float) -> None:
        self.options = options


class Untyped(Once):
    """Says not what it takes."""

    def __init__(self, share=0.5) -> None:  # type: ignore[no-untyped-def]
        self.share = share


def shifted(change: float) -> Any:
    return lambda self, budget: (*Twice.plan(self, budget)[:-1], Segment(budget.sparsity, budget.epochs / 3 + change))


def by_threshold(self: Any, step: PruningStep) -> Tensors:
    """What is written first: a threshold instead of an exact selection."""
    flat = torch.cat([w.abs().flatten() for w in step.weights.values()])
    threshold = flat.sort().values[min(round(step.segment.sparsity * len(flat)), len(flat) - 1)]
    return {name: w.abs() >= threshold for name, w in step.weights.items()}


def fails_on_nan(self: Any, step: PruningStep) -> Tensors:
    for weight in step.weights.values():
        int(weight.sum())  # cannot convert NaN to integer
    return step.select(self.scores(step))


class Hoards(Twice):
    """Keeps the masks and changes them while training."""

    def masks(self, step: PruningStep) -> Tensors:
        self.chosen = step.select(self.scores(step))
        return self.chosen

    def gradients(self, step: TrainingStep, gradients: Tensors) -> Tensors:
        self.chosen["fc.weight"].fill_(True)
        return gradients


def in_place(self: Any, step: PruningStep) -> Tensors:
    return {name: w.abs_() for name, w in step.weights.items()}


def revives(self: Any, step: TrainingStep) -> Tensors:
    return {name: w * (0.1 + 0.9 * step.masks[name]) for name, w in step.weights.items()}


def drops_one(self: Any, step: TrainingStep) -> Tensors:
    return dict(list(PruningMethod.effective(self, step).items())[1:])


def detaches(self: Any, step: TrainingStep) -> Tensors:
    return {name: (w * step.masks[name]).detach() for name, w in step.weights.items()}


def not_finite(self: Any, step: TrainingStep) -> Tensors:
    return {name: w / step.progress * step.masks[name] for name, w in step.weights.items()}


def writes_masks(self: Any, step: TrainingStep, gradients: Tensors) -> Tensors:
    for mask in step.masks.values():
        mask.mul_(0.5)
    return gradients


def dense_gradients(self: Any, step: TrainingStep, gradients: Tensors) -> Tensors:
    return {name: g + 0.1 for name, g in gradients.items()}


def per_masked(self: Any, step: TrainingStep, gradients: Tensors) -> Tensors:
    return {name: g * step.masks[name].numel() / (step.masks[name] == 0).sum() for name, g in gradients.items()}


def noisy(self: Any, step: TrainingStep, gradients: Tensors) -> Tensors:
    return {name: g * random.random() for name, g in gradients.items()}


def wants_to_be_alone(self: Any, step: TrainingStep) -> Tensor:
    """Spoils the loss where two replicas come by at one moment of the budget."""
    before, self.seen = getattr(self, "seen", None), step.progress
    return (math.nan if before == step.progress else 0.0) * step.weights["fc.weight"].sum()


def fails_late(self: Any, step: TrainingStep) -> Tensor | None:
    if step.progress > 0.5:
        raise KeyError("late")
    return None


DRIFTS = method(**counting("gradients", lambda s, n, t, g: {k: v * (1 + n / 50) for k, v in g.items()}))
"""Trains the faster the longer an instance lives."""


def counts_wrong(self: Any, step: PruningStep) -> Tensors:
    return masks.full(step.weights)


METHODS: list[tuple[str, type[Any], str]] = [
    ("is_well_formed", method(doc=None), "has no docstring"),
    ("is_well_formed", method(PruningMethod), r"lacks the method plan\(\)"),
    ("is_well_formed", method(object), "is no subclass of sparsekit.PruningMethod"),
    ("is_well_formed", Mean, "it is a merge"),
    ("is_well_formed", Any_, r"takes \*\*options;"),
    ("is_well_formed", Untyped, "'share' without a type"),
    ("is_well_formed", method(__init__=option("help", 1.0)), "reserved"),
    ("is_well_formed", method(allocation="layers"), "allocation is 'layers'; choose from global, uniform, erk, lamp"),
    ("is_well_formed", method(__init__=lambda self: 1 / 0), r"Broken\(\) raised ZeroDivisionError"),
    ("keeps_its_options", method(__init__=option("share", 0.5, keep=False)), "there is no self.share"),
    (
        "keeps_its_options",
        method(__init__=option("share", 0.5), share=property(lambda s: 2.0, lambda s, v: None)),
        "2.0",
    ),
    ("keeps_its_options", method(__init__=option("share", 0.5, int)), "cannot be written to YAML and read again"),
    ("keeps_its_options", method(__init__=option("share", object(), object)), "cannot be written to YAML"),
    ("plans_add_up", method(plan=shifted(1.0)), r"for 6 epochs and sparsity 0: .*sum up to 7 epochs"),
    ("plans_add_up", method(plan=lambda self, budget: ()), "at least one Segment"),
    ("plans_add_up", method(plan=lambda self, budget: None), "TypeError"),
    ("plans_add_up", method(plan=lambda self, b: (Segment(min(b.sparsity, 0.95), b.epochs),)), "last segment has"),
    (
        "plans_add_up",
        method(plan=lambda self, b: (Segment(2 * b.sparsity, 0.0), Segment(b.sparsity, b.epochs))),
        "lie in",
    ),
    (
        "plans_add_up",
        method(plan=lambda self, b: (Segment((1.0 + b.sparsity) / 2, 0.0), Segment(b.sparsity, b.epochs))),
        "segment 2 has sparsity 0 after 0.5",
    ),
    ("plans_add_up", method(plan=refuse("")), "an empty ValueError; say why"),
    ("plans_add_up", method(plan=refuse("never")), "every budget was refused"),
    (
        "plans_are_repeatable",
        method(plan=lambda s, b: (Segment(b.sparsity, b.epochs, random.random()),)),
        "was planned as",
    ),
    (
        "plans_are_repeatable",
        method(**counting("plan", lambda s, n, b: Twice.plan(s, b))),
        r"plan\(\) changed self.calls",
    ),
    (
        "learning_rates_are_usable",
        method(learning_rate=lambda s, stage: Schedule(lambda done: 0.5 - done)),
        r"is -0\.00\d+ at 0\.505",
    ),
    (
        "learning_rates_are_usable",
        method(learning_rate=lambda s, t: Schedule(lambda d: t.relative_change)),
        "is inf at 0",
    ),
    ("learning_rates_are_usable", method(learning_rate=lambda s, t: len(t.weights)), "no attribute 'weights'"),
    ("learning_rates_are_usable", method(learning_rate=lambda s, t: lambda done: 1.0), r"learning_rate\(\) returned"),
    (
        "learning_rates_are_usable",
        method(learning_rate=lambda s, t: Schedule(lambda d: random.random())),
        "asked twice",
    ),
    ("prunes_exactly", method(masks=counts_wrong), "must prune"),
    (
        "prunes_exactly",
        method(masks=lambda s, step: {n: w * 0 for n, w in step.weights.items()}),
        "must be a bool tensor",
    ),
    ("prunes_exactly", method(masks=lambda s, step: {}), r"masks\(\) gives none for"),
    ("handles_ties", method(masks=by_threshold), "all weights equal: .* must prune"),
    ("handles_non_finite", method(masks=fails_on_nan), "two weights nan: ValueError: cannot convert"),
    (
        "prunes_repeatably",
        method(scores=lambda s, step: {n: torch.rand(w.shape) for n, w in step.weights.items()}),
        "the same instance pruned .* otherwise",
    ),
    (
        "prunes_repeatably",
        method(**counting("scores", lambda s, n, step: {k: w * (-1) ** n for k, w in step.weights.items()})),
        "pruning changed self.calls",
    ),
    ("leaves_its_inputs_alone", method(scores=in_place), "pruning changed the step's 'conv1.weight' in place"),
    ("leaves_its_inputs_alone", method(gradients=writes_masks), r"gradients\(\) changed step.masks\['conv1.weight'\]"),
    ("extra_tensors_are_sound", method(extra=lambda s, w: {"count": torch.zeros(1, dtype=torch.long)}), "use floats"),
    (
        "extra_tensors_are_sound",
        method(extra=lambda s, w: dict(w)),
        "shares its memory with weight conv1.weight; clone it",
    ),
    ("extra_tensors_are_sound", method(extra=lambda s, w: {"a": torch.rand(3)}), "differs when asked again"),
    ("extra_tensors_are_sound", method(extra=lambda s, w: {"a": torch.tensor(math.inf)}), "is not finite"),
    ("extra_tensors_are_sound", method(extra=lambda s, w: {"a": 1.0}), "is float, not a tensor"),
    ("effective_weights_are_sound", method(effective=revives), "at progress 0.01: .* masked weights of .* are not 0"),
    ("effective_weights_are_sound", method(effective=drops_one), "is missing or too many"),
    ("effective_weights_are_sound", method(effective=detaches), "no gradient reaches the weights"),
    ("effective_weights_are_sound", method(effective=not_finite), "ZeroDivisionError|is not finite"),
    ("penalties_are_scalars", method(penalty=lambda s, step: step.weights["fc.weight"].abs()), "not a 0-dim tensor"),
    ("penalties_are_scalars", method(penalty=lambda s, step: torch.tensor(math.nan)), "is nan"),
    (
        "penalties_are_scalars",
        method(penalty=lambda s, step: (0 * step.weights["fc.weight"]).sum().sqrt()),
        "gradient of",
    ),
    (
        "gradients_fit",
        method(gradients=dense_gradients),
        "the gradients of .* masked weights of conv1.weight are not 0",
    ),
    ("gradients_fit", method(gradients=lambda s, step, g: {"nothing": g["fc.weight"]}), "is no prunable weight"),
    ("gradients_fit", method(gradients=lambda s, step, g: {n: t.double() for n, t in g.items()}), "is torch.float64"),
    ("gradients_fit", method(gradients=lambda s, step, g: {n: t / 0.0 for n, t in g.items()}), "is not finite"),
    ("ends_well", method(penalty=fails_late), "KeyError: 'late'\nraised through .*test_kit_methods.py:.*fails_late"),
    (
        "ends_well",
        method(penalty=lambda s, step: math.nan * step.weights["fc.weight"].sum()),
        "no replica stayed finite",
    ),
    ("masks_are_shared", Hoards, "a mask was changed in place afterwards"),
    ("works_at_the_extremes", method(gradients=per_masked), "to sparsity 0: .*no replica stayed finite"),
    ("keeps_no_state", DRIFTS, "a run changed self.calls"),
    ("keeps_no_state", Hoards, "a run changed self.chosen"),
    ("runs_repeatably", method(gradients=noisy), "after training replica 1 in segment 1, a second run .* has another"),
    ("runs_repeatably", DRIFTS, "a second run of the same instance has another"),
    ("resumes_exactly", DRIFTS, "resumed from a checkpoint, the finished model has another"),
    ("ranks_agree", DRIFTS, "shared by two ranks, the finished model has another"),
    ("stacks", method(penalty=wants_to_be_alone), "a replica did not stay finite among others"),
]
"""A rule, a class that breaks it, and part of the finding."""


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "cls", "finding"), METHODS, ids=[f"{row[0]}-{n}" for n, row in enumerate(METHODS)])
def test_every_rule_for_methods_catches_its_fault(rule: str, cls: type[Any], finding: str) -> None:
    outcome = tried(METHOD_RULES, rule, case_of(cls))
    assert outcome.state == "FAIL"
    assert re.search(finding, outcome.finding), outcome.finding
    assert len(outcome.requirement) > 40


# The core refuses what these rules look for, so that no class can break them: they get a sound run, changed afterwards.


def unmasked(state: State) -> State:
    return replace(state, masks=masks.full(state.weights))


def alive(state: State) -> State:
    return state.with_weights({name: torch.ones_like(w) for name, w in state.weights.items()})


def with_momentum(state: State) -> State:
    return replace(state, optimizer={name: torch.ones_like(t) for name, t in state.optimizer.items()})


CHANGES: list[tuple[str, str, Callable[[State], State], str]] = [
    ("zeros_are_exact", "after the pruning of segment 2", unmasked, "0 of .* instead of"),
    ("zeros_are_exact", "after the merge of segment 3", unmasked, "0 of .* instead of"),
    ("zeros_are_exact", "in the finished model", unmasked, "0 of .* instead of"),
    ("zeros_are_exact", "in the finished model", alive, "masked weights of conv1.weight are not 0"),
    ("optimizer_state_is_cleared", "after training replica 2 in segment 3", with_momentum, "entries of .* are not 0"),
    ("optimizer_state_is_cleared", "after the pruning of segment 3", with_momentum, "entries of .* are not 0"),
]


@pytest.mark.parametrize(("rule", "where", "change", "finding"), CHANGES)
def test_every_state_of_a_run_is_checked(rule: str, where: str, change: Callable[[State], State], finding: str) -> None:
    sound, case = case_of(Twice).run, MethodCase(Twice)
    moments = [replace(m, state=change(m.state)) if m.where == where else m for m in sound.moments]
    case.run = replace(sound, moments=tuple(moments))
    if where == "in the finished model":
        case.run = replace(sound, final=change(sound.final))
    assert tried(METHOD_RULES, rule, case_of(Twice)).state == "pass"
    outcome = tried(METHOD_RULES, rule, case)
    assert outcome.state == "FAIL"
    assert re.search(f"^{where}, .*{finding}", outcome.finding), outcome.finding


def test_the_weights_that_the_forward_pass_uses_are_checked() -> None:
    sound, case = case_of(Twice).run, MethodCase(Twice)
    config = replace(sound.setup.config, method=method(effective=lambda self, step: step.weights)())
    moments = tuple(replace(moment, state=alive(moment.state)) for moment in sound.moments)
    case.run = replace(sound, setup=replace(sound.setup, config=config), moments=moments)
    finding = tried(METHOD_RULES, "zeros_are_exact", case).finding
    assert re.search("^after the pruning of segment 2, .* masked weights of conv1.weight are not 0", finding), finding


def test_every_rule_is_in_a_table_above() -> None:
    assert {rule.__name__ for rule in METHOD_RULES} == {
        *(row[0] for row in METHODS),
        *(row[0] for row in CHANGES),
    }
