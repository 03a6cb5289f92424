"""The contract tests that plugins import: sound classes pass, and every rule catches the fault that it is there for."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from sparsekit import masks, pruning
from sparsekit.api import (
    Budget,
    Candidate,
    CoefficientMerge,
    MergeStep,
    MergeStrategy,
    PruningMethod,
    PruningStep,
    Schedule,
    Segment,
    Soup,
    Stage,
    TrainingStep,
)
from sparsekit.config import DataConfig
from sparsekit.data import ImageData
from sparsekit.errors import RunError
from sparsekit.registry import discover
from sparsekit.stepping import MaskedStep
from sparsekit.testing import ContractError, check_merge, check_method, command
from sparsekit.testing.merge_case import MergeCase
from sparsekit.testing.merge_rules import MERGE_RULES
from sparsekit.testing.method_case import MethodCase
from sparsekit.testing.method_rules import METHOD_RULES
from sparsekit.testing.rules import Outcome, outcomes

Tensors = dict[str, Tensor]
BUILT_IN = [plugin for plugin in discover().plugins if plugin.distribution == "sparsekit-soups"]


@pytest.mark.parametrize("plugin", BUILT_IN, ids=str)
def test_every_built_in_passes(plugin: Any) -> None:
    {"method": check_method, "merge": check_merge}[plugin.kind](plugin.load())


# --- sound classes to break ---------------------------------------------------------------------------


class Once(PruningMethod):
    """Prune once, halfway."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return Segment(0.0, budget.epochs / 2), Segment(budget.sparsity, budget.epochs / 2)


class Twice(Once):
    """Prune twice."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        third = budget.epochs / 3
        return Segment(0.0, third), Segment(budget.sparsity / 2, third), Segment(budget.sparsity, third)


class Thresholds(Twice):
    """Learned thresholds, with everything that a method may define.

    Args:
        pull: Factor of the penalty.
        rates: Learning rate multipliers at the start and the end.
        allocate: How scores are compared.
    """

    allocation: ClassVar[Any] = "erk"

    def __init__(
        self, pull: float = 1e-3, rates: tuple[float, float] = (1.0, 0.1), allocate: str | None = None
    ) -> None:
        self.pull, self.rates, self.allocate = pull, rates, allocate

    def learning_rate(self, stage: Stage) -> Schedule:
        low = min(stage.relative_change, 1.0) * self.rates[1]
        return Schedule(lambda done: self.rates[0] + (low - self.rates[0]) * done)

    def extra(self, weights: Tensors) -> Tensors:
        return {f"threshold of {name}": torch.tensor(-5.0) for name in weights}

    def effective(self, step: TrainingStep) -> Tensors:
        found = {}
        for name, weight in step.weights.items():
            threshold = step.extra[f"threshold of {name}"].sigmoid() * weight.detach().abs().mean()
            found[name] = weight.sign() * (weight.abs() - threshold).relu() * step.masks[name]
        return found

    def penalty(self, step: TrainingStep) -> Tensor | None:
        return None if step.progress < 0.1 else -self.pull * torch.stack(list(step.extra.values())).sum()

    def gradients(self, step: TrainingStep, gradients: Tensors) -> Tensors:
        return {name: 0.5 * g for name, g in gradients.items()}

    def masks(self, step: PruningStep) -> Tensors:
        noise = {name: torch.rand(w.shape, generator=step.generator) for name, w in step.weights.items()}
        slope = step.gradients(2)
        scores = {name: (w * slope[name]).abs() + 1e-9 * noise[name] for name, w in step.weights.items()}
        return step.select(scores, regrow=True)


class Mean(CoefficientMerge):
    """The plain mean."""

    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        return [1.0 / len(candidates)] * len(candidates)


@dataclass
class Pulled(MergeStrategy):
    """The mean, pulled towards the parent at random.

    Args:
        most: Largest share of the parent.
        only: Names of the tensors that are pulled; by default all.
    """

    max_replicas: ClassVar[int | None] = 5

    most: float = 0.5
    only: list[str] = field(default_factory=list)

    @property
    def average_from(self) -> float | None:
        return 0.5

    def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
        tensors = step.average(candidates, [1.0 / len(candidates)] * len(candidates))
        share = self.most * float(torch.rand((), generator=step.generator)) * (len(candidates) > 1)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and (not self.only or name in self.only):
                tensors[name] = tensor.lerp(step.parent[name], share)
        step.score(tensors)
        return Soup(tensors, None, tuple(c.index for c in candidates))


def test_sound_classes_of_all_trades_pass() -> None:
    check_method(Thresholds, pull=1e-2)
    check_merge(Pulled, only=["fc.bias"])


# --- broken ones --------------------------------------------------------------------------------------


def method(base: type[Any] = Twice, doc: str | None = "A broken one.", **members: Any) -> type[Any]:
    return type("Broken", (base,), {"__doc__": doc, "__module__": __name__, **members})


def merge(base: type[Any] = Mean, **members: Any) -> type[Any]:
    return method(base, **members)


def option(name: str, default: object, kind: object = float, keep: bool = True) -> Any:
    """A constructor with one option."""

    def __init__(self: Any, **given: Any) -> None:
        if keep:
            setattr(self, name, given.get(name, default))

    from inspect import Parameter, Signature

    one = Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)
    __init__.__signature__ = Signature([Parameter("self", Parameter.POSITIONAL_OR_KEYWORD), one])  # type: ignore[attr-defined]
    return __init__


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


def counting(name: str, change: Any) -> Any:
    """A method of a plugin that counts its calls in the instance and answers by the count."""

    def hook(self: Any, *given: Any) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        return change(self, self.calls, *given)

    return {name: hook}


def refuse(message: str) -> Any:
    def plan(self: Any, budget: Budget) -> Any:
        raise ValueError(message)

    return plan


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
    if step.progress > 0.9 and step.masks["fc.weight"].sum() not in (80, 40):
        raise KeyError("late")
    return None


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
    ("prunes_exactly", method(masks=lambda s, step: {}), "must return a mask for each"),
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
    ("gradients_fit", method(gradients=dense_gradients), "gradients other than 0 where weights are masked"),
    ("gradients_fit", method(gradients=lambda s, step, g: {"nothing": g["fc.weight"]}), "is no prunable weight"),
    ("gradients_fit", method(gradients=lambda s, step, g: {n: t.double() for n, t in g.items()}), "is torch.float64"),
    ("gradients_fit", method(gradients=lambda s, step, g: {n: t / 0.0 for n, t in g.items()}), "is not finite"),
    ("ends_well", method(penalty=fails_late), "KeyError: 'late'\nraised through .*test_testing_kit.py:.*fails_late"),
    (
        "ends_well",
        method(penalty=lambda s, step: math.nan * step.weights["fc.weight"].sum()),
        "no replica stayed finite",
    ),
    ("masks_are_shared", Hoards, "a mask was changed in place afterwards"),
    ("works_at_the_extremes", method(gradients=per_masked), "to sparsity 0: .*no replica stayed finite"),
    ("runs_repeatably", method(gradients=noisy), "another run with the same options and seed, of another instance has"),
    ("keeps_no_state", method(**counting("gradients", lambda s, n, t, g: g)), "a run changed self.calls"),
    ("keeps_no_state", Hoards, "a run changed self.chosen"),
    (
        "resumes_exactly",
        method(**counting("gradients", lambda s, n, t, g: {k: v * (1 + n / 50) for k, v in g.items()})),
        "resumed from a checkpoint, the finished model has another",
    ),
    (
        "ranks_agree",
        method(**counting("gradients", lambda s, n, t, g: {k: v * (1 + n / 50) for k, v in g.items()})),
        "shared by two ranks, the finished model has another",
    ),
    ("stacks", method(penalty=wants_to_be_alone), "a replica did not stay finite among others"),
]
"""A rule, a class that breaks it, and what is told of the class."""


def tried(rules: Sequence[Any], name: str, case: Any) -> Outcome:
    (outcome,) = outcomes([rule for rule in rules if rule.__name__ == name], case)
    return outcome


@pytest.mark.parametrize(("rule", "cls", "did"), METHODS, ids=[f"{row[0]}-{n}" for n, row in enumerate(METHODS)])
def test_every_rule_for_methods_catches_its_fault(rule: str, cls: type[Any], did: str) -> None:
    outcome = tried(METHOD_RULES, rule, MethodCase(cls, {}))
    assert outcome.state == "FAIL"
    assert re.search(did, outcome.did), outcome.did
    assert len(outcome.asks) > 40


@pytest.mark.parametrize(
    ("fault", "did"),
    [
        ({"effective": revives}, "masked weights of conv1.weight are not 0"),
        ({"masks": counts_wrong}, "0 of .* instead of"),
    ],
)
def test_exact_zeros_are_checked_whether_or_not_the_core_does(
    monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any], did: str
) -> None:
    monkeypatch.setattr(masks, "check", lambda *given: None)
    monkeypatch.setattr(pruning, "_check", lambda *given: None)
    case = MethodCase(method(**fault), {})
    outcome = tried(METHOD_RULES, "zeros_are_exact", case)
    assert outcome.state == "FAIL"
    assert re.search(f"after the pruning of segment . , .*{did}".replace(" ,", ","), outcome.did), outcome.did


def test_cleared_optimizer_state_is_checked_whether_or_not_the_core_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MaskedStep, "_mask_gradients", lambda self: None)
    outcome = tried(METHOD_RULES, "optimizer_state_is_cleared", MethodCase(method(gradients=dense_gradients), {}))
    assert outcome.state == "FAIL"
    assert re.search("entries of .* are not 0 where weights are masked", outcome.did), outcome.did


# --- merges -------------------------------------------------------------------------------------------


def soup_of(change: Any, coefficients: bool = False) -> Any:
    """A merge() that does something to the plain mean's tensors."""

    def merge(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
        soup = Mean.merge(self, candidates, step)
        tensors = {name: change(name, tensor) for name, tensor in soup.tensors.items()}
        return Soup(
            {n: t for n, t in tensors.items() if t is not None},
            soup.coefficients if coefficients else None,
            soup.ingredients,
        )

    return merge


def floats(change: Any) -> Any:
    return lambda name, tensor: change(tensor) if tensor.is_floating_point() else tensor


def by_place(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
    soup = Mean.merge(self, candidates, step)
    return Soup(soup.tensors, soup.coefficients, tuple(range(len(candidates))))


def miscounts(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
    soup = Mean.merge(self, candidates, step)
    return Soup(soup.tensors, soup.coefficients, (candidates[0].index,))


def halves(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
    mean = Mean.merge(self, candidates, step)
    return Soup(mean.tensors, tuple(c / 2 for c in mean.coefficients or ()), mean.ingredients)


def peeks(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
    data = ImageData.load(DataConfig(image_size=8), torch.device("cpu"), False)
    next(iter(data.evaluation_batches("test")))
    return Mean.coefficients(self, candidates, step)


def sorts(self: Any, candidates: Any, step: MergeStep) -> Sequence[float]:
    candidates.sort(key=lambda c: -c.index)
    return Mean.coefficients(self, candidates, step)


def moves_parent(self: Any, candidates: Any, step: MergeStep) -> Sequence[float]:
    step.parent["fc.bias"].add_(1.0)
    return Mean.coefficients(self, candidates, step)


def at_random(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
    shares = torch.rand(len(candidates)).double()
    return [float(x) for x in shares / shares.sum()]


def ever_less(self: Any, count: int, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
    rest = len(candidates) - 1
    return [1.0 - rest * 0.1 / count] + [0.1 / count] * rest


def by_loss(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
    shares = [1.0 / c.score.loss for c in candidates]
    return [share / sum(shares) for share in shares]


def by_zeros(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
    zeros = [1.0 / int((c.read("fc.weight") == 0).sum()) for c in candidates]
    return [zero / sum(zeros) for zero in zeros]


def towards_parent(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
    soup = Mean.merge(self, candidates, step)
    tensors = {n: t.lerp(step.parent[n], 0.5) if t.is_floating_point() else t for n, t in soup.tensors.items()}
    return Soup(tensors, None, soup.ingredients)


def averages_all(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
    soup = Mean.merge(self, candidates, step)
    tensors = {
        name: torch.stack([c.read(name).double() for c in candidates]).mean(0).to(tensor.dtype)
        for name, tensor in soup.tensors.items()
    }
    return Soup(tensors, None, soup.ingredients)


def needs_own(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
    candidates[0].read("extra.own")
    return Mean.coefficients(self, candidates, step)


def below_zero(name: str, tensor: Tensor) -> Tensor:
    return tensor - 100.0 if name.endswith("running_var") else tensor


MERGES: list[tuple[str, type[Any], str]] = [
    ("is_well_formed", merge(doc=None), "has no docstring"),
    ("is_well_formed", merge(CoefficientMerge), r"lacks the method coefficients\(\)"),
    ("is_well_formed", merge(max_replicas=0), "max_replicas is 0"),
    ("is_well_formed", merge(average_from=1.0), "average_from is 1.0"),
    ("keeps_its_options", merge(__init__=option("share", 0.5, keep=False)), "there is no self.share"),
    ("soups_are_whole", merge(merge=lambda s, candidates, step: step.parent), r"merge\(\) must return a Soup"),
    ("soups_are_whole", merge(merge=soup_of(lambda n, t: None if n == "fc.bias" else t)), "'fc.bias' is missing"),
    ("soups_are_whole", merge(merge=soup_of(floats(lambda t: t * math.nan))), "is not finite"),
    ("soups_are_whole", merge(merge=soup_of(floats(lambda t: t.double()))), "torch.float64"),
    ("soups_are_whole", merge(merge=soup_of(below_zero)), "held-out loss is inf; is a running variance below 0"),
    ("soups_are_whole", merge(coefficients=lambda s, candidates, step: [1.0]), "coefficients"),
    ("zeros_stay", merge(merge=soup_of(floats(lambda t: t + 0.01))), "that all candidates have at 0 are not 0"),
    ("soups_are_whole", merge(merge=halves), "gave coefficients"),
    ("shares_sum_up", merge(merge=miscounts), r"ingredients \(0,\) for coefficients \[0.33"),
    ("ingredients_are_replicas", merge(merge=by_place), "names replica 0, which is no candidate"),
    ("sees_no_test_images", merge(coefficients=peeks), "it evaluated on the test split"),
    ("leaves_its_inputs_alone", merge(coefficients=sorts), "the order of the candidates"),
    ("leaves_its_inputs_alone", merge(coefficients=moves_parent), "changed fc.bias in place"),
    ("merges_repeatably", merge(coefficients=at_random), "made another .* of the same candidates"),
    ("merges_repeatably", merge(**counting("coefficients", ever_less)), "an instance that merged before made another"),
    (
        "merges_repeatably",
        merge(**counting("coefficients", lambda s, n, c, step: Mean.coefficients(s, c, step))),
        r"merge\(\) changed self.calls",
    ),
    ("equal_candidates_agree", merge(merge=soup_of(floats(lambda t: t * 1.01))), "three times the unchanged parent"),
    ("equal_candidates_agree", merge(merge=soup_of(floats(lambda t: t * 1.01), True)), "made another"),
    ("one_candidate_comes_back", merge(merge=towards_parent), "one candidate came back with another"),
    ("integers_are_not_averaged", merge(merge=averages_all), r"num_batches_tracked is 22 \(torch.int64\)"),
    ("handles_any_scores", merge(coefficients=by_loss), "perfect scores: ZeroDivisionError"),
    ("works_at_the_extremes", merge(coefficients=by_zeros), "nothing masked: ZeroDivisionError"),
    ("ends_well", merge(coefficients=needs_own), "with gmp: "),
]


@pytest.mark.parametrize(("rule", "cls", "did"), MERGES, ids=[f"{row[0]}-{n}" for n, row in enumerate(MERGES)])
def test_every_rule_for_merges_catches_its_fault(rule: str, cls: type[Any], did: str) -> None:
    with MergeCase(cls, {}) as case:
        outcome = tried(MERGE_RULES, rule, case)
        folder = case.__dict__.get("ground") and case.ground.folder
    assert outcome.state == "FAIL"
    assert re.search(did, outcome.did), outcome.did
    assert not folder or not folder.exists()


def test_every_rule_is_in_a_table_above() -> None:
    assert {rule.__name__ for rule in METHOD_RULES} == {
        *(row[0] for row in METHODS),
        "zeros_are_exact",
        "optimizer_state_is_cleared",
    }
    assert {rule.__name__ for rule in MERGE_RULES} == {row[0] for row in MERGES}


# --- what is told -------------------------------------------------------------------------------------


def test_the_error_tells_every_broken_rule_what_it_asks_and_what_the_class_did() -> None:
    broken = method(Once, doc=None, __init__=option("share", 0.5, keep=False), plan=refuse("never"))
    with pytest.raises(ContractError) as caught:
        check_method(broken)
    text = str(caught.value)
    assert text.startswith("Broken breaks ")
    for rule in ("is_well_formed", "keeps_its_options", "plans_add_up", "ends_well"):
        assert f"\n\n{rule}: " in text
    assert "\n    there is no self.share\n" in text
    assert "exactly round(sparsity · N)" not in text  # what could not be reached is not told as broken
    assert isinstance(caught.value, AssertionError)


def test_an_exception_of_the_plugin_is_the_cause() -> None:
    with pytest.raises(ContractError, match="ZeroDivisionError") as caught:
        check_merge(merge(coefficients=by_zeros))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_class_without_an_instance_skips_the_rest() -> None:
    found = list(outcomes(METHOD_RULES, MethodCase(method(PruningMethod), {})))
    assert [outcome.state for outcome in found] == ["FAIL"] + ["skipped"] * (len(METHOD_RULES) - 1)
    assert found[-1].did.endswith("see is_well_formed")


def test_options_reach_the_class() -> None:
    with pytest.raises(ContractError, match=r"GMP\(start=0\.9, end=0\.1\) raised ValueError: --method\.end is 0\.1"):
        check_method(discover_class("gmp"), start=0.9, end=0.1)


def discover_class(name: str) -> Any:
    return discover().of("method")[name][0].load()


def test_the_command_prints_what_is_asked_and_what_was_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = method(PruningMethod)
    monkeypatch.setattr(command, "find", lambda kind, name: type("P", (), {"load": lambda self: broken})())
    threads = torch.get_num_threads()
    try:
        assert command.child("method", "broken") == 1
    finally:
        torch.set_num_threads(threads)
    first, asks, but, did, *rest = capsys.readouterr().out.splitlines()
    assert first == "  FAIL     is_well_formed"
    assert asks.strip().startswith("The class subclasses PruningMethod")
    assert (but.strip(), did.strip()) == ("but:", "Broken lacks the method plan()")
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

    case = MethodCase(method(plan=plan), {})
    for rule in ("plans_add_up", "learning_rates_are_usable", "prunes_exactly", "works_at_the_extremes"):
        assert tried(METHOD_RULES, rule, case).state == "pass"


def test_run_errors_are_an_answer_to_what_is_not_finite() -> None:
    def own(self: Any, step: PruningStep) -> Tensors:
        if not all(bool(torch.isfinite(w).all()) for w in step.weights.values()):
            raise RunError("a weight is not finite")
        return step.select(self.scores(step))

    assert tried(METHOD_RULES, "handles_non_finite", MethodCase(method(masks=own), {})).state == "pass"
