"""Every rule for methods catches the fault that it is there for."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
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


def exactly_by_hand(self: Any, step: PruningStep) -> Tensors:
    """The smallest weights, exactly, and never by `step.select`."""
    flat = torch.cat([w.abs().where(m, -1.0).flatten() for w, m in zip_of(step)])
    kept = torch.ones(len(flat), dtype=torch.bool)
    kept[flat.argsort(stable=True)[: round(step.segment.sparsity * len(flat))]] = False
    parts = kept.split([w.numel() for w in step.weights.values()])
    return {name: part.reshape(w.shape) for (name, w), part in zip(step.weights.items(), parts, strict=True)}


def zip_of(step: PruningStep) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(weight, step.masks[name]) for name, weight in step.weights.items()]


def fails_on_nan(self: Any, step: PruningStep) -> Tensors:
    for weight in step.weights.values():
        int(weight.sum())  # cannot convert NaN to integer
    return step.select(self.scores(step))


def by_rank(self: Any, step: PruningStep) -> Tensors:
    """The smallest of all, whatever `--masks.allocation` says."""
    flat = torch.cat([torch.where(step.masks[n], w.abs(), -1.0).flatten() for n, w in step.weights.items()])
    kept = torch.ones_like(flat, dtype=torch.bool)
    kept[flat.argsort(stable=True)[: round(step.segment.sparsity * len(flat))]] = False
    parts = kept.split([weight.numel() for weight in step.weights.values()])
    return {name: part.reshape(w.shape) for (name, w), part in zip(step.weights.items(), parts, strict=True)}


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


def cpu_tensor(self: Any, step: TrainingStep) -> Tensors:
    return {name: w * torch.ones(w.shape) * step.masks[name] for name, w in step.weights.items()}


def cpu_positions(self: Any, step: TrainingStep) -> Tensor:
    flat = step.weights["fc.bias" if "fc.bias" in step.weights else "fc.weight"].flatten()
    weighing = torch.linspace(0.0, 1.0, len(flat)) if float(flat.abs().max()) >= 0.0 else None
    return (flat * weighing).square().sum()


def cpu_gradients(self: Any, step: TrainingStep, gradients: Tensors) -> Tensors:
    return {name: g if g.numel() > 200 else torch.zeros(g.shape) for name, g in gradients.items()}


def by_numpy(self: Any, step: TrainingStep, gradients: Tensors) -> Tensors:
    return {name: g * float(np.abs(g.numpy()).mean()) for name, g in gradients.items()}


def hidden_draw(self: Any, step: TrainingStep, gradients: Tensors) -> Tensors:
    return {name: g * float(np.random.default_rng().random()) for name, g in gradients.items()}


def by_set(self: Any, step: PruningStep) -> Tensors:
    """Layers count for more the later they come in a set."""
    place = {name: 1.0 + number for number, name in enumerate(set(step.weights))}
    return {name: w.abs() * place[name] for name, w in step.weights.items()}


class SharedNorm(Once):
    """Sums floats in the order of a set, which changes the last bits alone; other processes can import it."""

    def scores(self, step: PruningStep) -> Tensors:
        total = sum(step.weights[name].norm() for name in set(step.weights))
        return {name: w.abs() + 0.01 * total for name, w in step.weights.items()}


def by_hash(self: Any, step: PruningStep) -> Tensors:
    found = {}
    for name, w in step.weights.items():
        found[name] = torch.rand(w.shape, generator=torch.Generator().manual_seed(hash(name) % 1000))
    return found


def summed_by_set(self: Any, step: TrainingStep) -> Tensor:
    return sum(step.weights[name].abs().sum() * 0.1 for name in set(step.weights))  # type: ignore[return-value]


def squares(step: TrainingStep, gradients: Tensors) -> Tensors:
    return {"own": sum(g.square_().sum() for g in gradients.values()).expand(3)}  # type: ignore[union-attr]


def absolutes(step: TrainingStep, gradients: Tensors) -> Tensors:
    torch._foreach_abs_(list(gradients.values()))
    return {"own": gradients["fc.weight"].sum().expand(3)}


def no_grad_ever(self: Any, step: PruningStep) -> Tensors:
    torch.set_grad_enabled(False)
    return {name: w.abs() for name, w in step.weights.items()}


OWN = {"extra": lambda self, weights: {"own": torch.zeros(3)}}
"""A tensor of the method's own."""


def updating(value: Any, **members: Any) -> type[Any]:
    """A method that gives its own tensor a value."""
    return method(**{**OWN, "update": lambda self, step, gradients: value(step, gradients), **members})


def in_rounds(self: Any, budget: Any) -> tuple[Segment, ...]:
    rounds = [Segment(budget.sparsity, budget.epochs / self.rounds) for _ in range(int(self.rounds))]
    return (Segment(0.0, 0.0), *rounds)


def refuses(text: str, error: type[Exception] = ValueError) -> Any:
    """A constructor whose option takes 0 to 1 and is refused in some way."""
    made = option("share", 0.5)

    def __init__(self: Any, **given: Any) -> None:
        if not 0.0 <= given.get("share", 0.5) <= 1.0:
            raise error(text)
        made(self, **given)

    __init__.__signature__ = made.__signature__  # type: ignore[attr-defined]
    return __init__


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
    ("follows_the_allocation", method(masks=by_rank), "under --masks.allocation erk and uniform"),
    (
        "prunes_exactly",
        method(masks=lambda s, step: {n: w * 0 for n, w in step.weights.items()}),
        "must be a bool tensor",
    ),
    ("prunes_exactly", method(masks=lambda s, step: {}), r"masks\(\) gives none for"),
    ("prunes_whole_channels", method(masks=exactly_by_hand), "--masks.pattern channels: .* step.select"),
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
    (
        "draws_from_the_steps_generator",
        method(scores=lambda s, step: {n: torch.rand(w.shape) for n, w in step.weights.items()}),
        r"scores\(\) draws from torch's global generator; draw from step.generator",
    ),
    (
        "draws_from_the_steps_generator",
        method(masks=lambda s, step: step.select({n: w.abs() * random.random() for n, w in step.weights.items()})),
        r"masks\(\) draws from Python's random",
    ),
    (
        "draws_from_the_steps_generator",
        method(extra=lambda s, w: {"a": torch.full((3,), 0.0 * np.random.rand())}),
        r"extra\(\) draws from numpy.random; seed a torch.Generator",
    ),
    (
        "leaves_its_inputs_alone",
        method(scores=no_grad_ever),
        r"scores\(\) changed torch.set_grad_enabled for the whole",
    ),
    (
        "leaves_its_inputs_alone",
        updating(lambda step, gradients: {"own": gradients["fc.weight"].zero_().sum().expand(3)}),
        r"update\(\) changed gradients\['fc.weight'\] in place; change a clone",
    ),
    ("leaves_its_inputs_alone", updating(squares), r"update\(\) changed gradients\['conv1.weight'\] in place"),
    ("leaves_its_inputs_alone", updating(absolutes), r"update\(\) changed gradients\['conv1.weight'\] in place"),
    (
        "leaves_its_inputs_alone",
        method(scores=in_place),
        r"scores\(\) changed the step's 'conv1.weight' in place; change a clone",
    ),
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
    (
        "effective_weights_are_sound",
        method(
            effective=lambda s, step: {
                n: w
                * step.masks[n]
                * (1 + 1e-3 * torch.rand(w.shape, generator=step.generator, device=step.generator.device))
                for n, w in step.weights.items()
            }
        ),
        r"effective\(\) outside of training, where step.generator is None: AttributeError",
    ),
    (
        "penalties_are_scalars",
        method(penalty=lambda s, step: step.weights["fc.weight"].detach().square().sum()),
        r"penalty\(\) at progress 0 is .* and has no gradient; .* without detach",
    ),
    ("penalties_are_scalars", method(penalty=lambda s, step: torch.tensor(1.0)), "has no gradient"),
    (
        "penalties_are_scalars",
        method(penalty=lambda s, step: 0.0 * step.weights["fc.weight"].sum() + 1.0),
        "is 1, but its gradient is 0",
    ),
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
    ("updates_fit", updating(lambda step, g: {"other": torch.zeros(3)}), r"gives 'other', which is no tensor of extra"),
    ("updates_fit", updating(lambda step, g: {"own": torch.zeros(4)}), r"own is \(4,\), not as extra\(\) made it"),
    ("updates_fit", updating(lambda step, g: {"own": torch.zeros(3) / 0.0}), "own is not finite"),
    ("updates_fit", updating(lambda step, g: [torch.zeros(3)]), r"update\(\) .*returned list; return tensors by name"),
    (
        "updates_fit",
        updating(lambda step, g: {"own": torch.zeros(3)}, extra_trained=lambda self, name: True),
        r"gives 'own', which the optimizer trains; let extra_trained\(\) say False",
    ),
    ("updates_fit", method(**OWN, extra_decays=lambda self, name: None), r"extra_decays\('own'\) is None; return True"),
    (
        "hooks_follow_from_the_step",
        method(gradients=noisy),
        r"gradients\(\) draws from Python's random; draw from step",
    ),
    (
        "hooks_follow_from_the_step",
        method(penalty=lambda s, step: torch.rand(()) * step.weights["fc.weight"].square().sum()),
        r"penalty\(\) draws from torch's global generator",
    ),
    (
        "hooks_follow_from_the_step",
        method(
            effective=lambda s, t: {n: w * t.masks[n] * (1.0 + 0.1 * np.random.rand()) for n, w in t.weights.items()}
        ),
        r"effective\(\) draws from numpy.random",
    ),
    (
        "hooks_follow_from_the_step",
        updating(lambda step, g: {"own": torch.rand(3)}),
        r"update\(\) draws from torch's global generator",
    ),
    (
        "hooks_follow_from_the_step",
        method(gradients=hidden_draw),
        r"gradients\(\) gave another conv1.weight for an equal",
    ),
    (
        "hooks_stay_on_the_device",
        method(effective=cpu_tensor),
        r"effective\(\) would fail on a GPU: torch.mul gets a CPU",
    ),
    (
        "hooks_stay_on_the_device",
        method(penalty=cpu_positions),
        r"penalty\(\) would fail on a GPU: .*; make it with device=weight.device",
    ),
    ("hooks_stay_on_the_device", method(gradients=cpu_gradients), r"gradients\(\) gives conv1.weight on the CPU"),
    ("hooks_stay_on_the_device", method(gradients=by_numpy), r"gradients\(\) would fail on a GPU: it asks for numpy"),
    (
        "hooks_stay_on_the_device",
        updating(lambda step, g: {"own": step.extra["own"] + torch.arange(3.0)}),
        r"update\(\) would fail on a GPU: torch.add gets a CPU tensor of shape \(3,\)",
    ),
    (
        "hooks_stay_on_the_device",
        updating(lambda step, g: {"own": torch.tensor(step.progress)}, extra=lambda self, w: {"own": torch.zeros(())}),
        r"update\(\) gives own on the CPU; make it with device=step.extra\['own'\].device",
    ),
    ("hashes_decide_nothing", method(scores=by_set), r"scores\(\) depends on hashes of names: .* sorted\(names\)"),
    ("hashes_decide_nothing", method(scores=by_hash), r"scores\(\) depends on hashes of names"),
    ("hashes_decide_nothing", SharedNorm, r"scores\(\) depends on hashes of names: it gave another conv"),
    ("hashes_decide_nothing", method(penalty=summed_by_set), r"penalty\(\) depends on hashes of names"),
    ("refuses_bad_options", method(__init__=option("share", 0.5)), r"share=nan is taken; .*--method.share is nan"),
    (
        "refuses_bad_options",
        method(__init__=option("rounds", 3, int), plan=in_rounds),
        r"(?s)rounds=-1 is taken, and then: .*--method.rounds is -1",
    ),
    (
        "refuses_bad_options",
        method(__init__=option("batches", 1, int), scores=lambda s, step: step.gradients(s.batches)),
        r"batches=-1 is taken, and then: RunError",
    ),
    (
        "refuses_bad_options",
        method(__init__=refuses("give 0 to 1")),
        r"share=nan is refused with 'give 0 to 1', without",
    ),
    ("refuses_bad_options", method(__init__=refuses("share", TypeError)), "share=nan raises TypeError"),
    (
        "trains_with_adamw",
        method(penalty=lambda s, t: (math.nan if t.weight_decay > 0.01 else 0.0) * t.weights["fc.weight"].sum()),
        "with --optimizer.name adamw: RunError: .*no replica stayed finite",
    ),
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
    ("optimizer_state_is_cleared", "after training replica 2 in segment 2", with_momentum, "entries of .* are not 0"),
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
