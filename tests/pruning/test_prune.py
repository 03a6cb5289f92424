"""Pruning a parent: what the method decides is applied exactly, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import assert_equal, masked_are_zero

from sparsekit import Budget, Probe, PruningMethod, PruningStep, Segment, Stage, Tensors, TrainingStep
from sparsekit.config.options import MasksConfig
from sparsekit.errors import RunError
from sparsekit.methods.dpf import DPF
from sparsekit.models.state import State, effective
from sparsekit.pruning import masks
from sparsekit.pruning.prune import prune
from sparsekit.testing import pruning_step

PLAN = (Segment(0.0, 1.0), Segment(0.5, 1.0), Segment(0.75, 1.0))
GLOBAL = MasksConfig()
PROBE = Probe(buffers=frozenset({"mean", "count"}))


class Ramp(PruningMethod):
    """Magnitude pruning, or whatever `choose` says."""

    def __init__(self, choose: Callable[[PruningStep], Tensors] | None = None) -> None:
        self.choose = choose

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return PLAN

    def masks(self, step: PruningStep) -> Tensors:
        return self.choose(step) if self.choose else super().masks(step)


def stage(index: int) -> Stage:
    return Stage(Budget(3.0, 0.75), PLAN, index)


def parent() -> State:
    """Two layers of 12 and 8 weights, a bias, a counter, and optimizer state for all."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(*shape, generator=generator) for name, shape in (("a", (3, 4)), ("b", (2, 4)))}
    tensors |= {"bias": torch.randn(3, generator=generator), "count": torch.tensor(7)}
    optimizer = {f"{name}/momentum": torch.ones_like(tensors[name]) for name in ("a", "b", "bias")}
    optimizer |= {"a/step": torch.tensor(3.0), "group/0": torch.tensor(3)}
    return State(tensors, masks.full({"a": tensors["a"], "b": tensors["b"]}), optimizer=optimizer)


def test_the_smallest_weights_go_and_their_momentum_too() -> None:
    before = parent()
    after, _ = prune(Ramp(), before, stage(1), GLOBAL, 0)
    flat = torch.cat([before.tensors["a"].flatten(), before.tensors["b"].flatten()]).abs()
    threshold = flat.sort().values[10]
    for name in ("a", "b"):
        expected = before.tensors[name].abs() >= threshold
        assert torch.equal(after.masks[name], expected)
        assert torch.equal(after.tensors[name], torch.where(expected, before.tensors[name], 0.0))
        assert torch.equal(after.optimizer[f"{name}/momentum"], expected.float())
    assert masks.sparsity(after.masks) == 0.5
    for name in ("bias", "count"):
        assert torch.equal(after.tensors[name], before.tensors[name])
    for name in ("bias/momentum", "a/step", "group/0"):
        assert torch.equal(after.optimizer[name], before.optimizer[name])


def test_the_parent_is_left_as_it_was() -> None:
    before, same = parent(), parent()
    prune(Ramp(), before, stage(1), GLOBAL, 0)
    for part in ("tensors", "masks", "optimizer"):
        assert_equal(getattr(before, part), getattr(same, part))


def test_relative_change_by_hand() -> None:
    tensors = {
        "a": torch.tensor([3.0, -4.0, 0.0, 1.0]),
        "b": torch.tensor([12.0, -2.0]),
        "bias": torch.full((9,), 5.0),
        "half": torch.full((3,), 5.0, dtype=torch.bfloat16),
        "mean": torch.full((9,), 50.0),
        "count": torch.tensor(7),
    }
    state = State(tensors, masks.full({"a": tensors["a"], "b": tensors["b"]}))
    # of 9 + 16 + 0 + 1 + 144 + 4 the three smallest squares go: 0, 1 and 4; 12 · 25 of biases stay; no buffers
    after, at = prune(Ramp(), state, stage(1), GLOBAL, 0, probe=PROBE)
    assert at.relative_change == pytest.approx(math.sqrt(5 / (174 + 300)), rel=1e-12)
    # to 75 %, which is round(4.5) = 4 of 6: 9 more goes, of what was left
    _, at = prune(Ramp(), after, stage(2), GLOBAL, 0, probe=PROBE)
    assert at.relative_change == pytest.approx(math.sqrt(9 / (169 + 300)), rel=1e-12)
    assert at == replace(stage(2), relative_change=at.relative_change)


def test_relative_change_is_the_same_to_the_bit_in_whatever_order_tensors_come() -> None:
    generator = torch.Generator().manual_seed(0)
    others = {f"bias.{i}": torch.randn(3, generator=generator) for i in range(40)}
    one = replace(parent(), tensors=parent().tensors | others)
    for names in (reversed(one.tensors), [*reversed(others), *parent().tensors]):
        other = replace(one, tensors={name: one.tensors[name] for name in names})
        changes = {prune(Ramp(), each, stage(1), GLOBAL, 0, probe=PROBE)[1].relative_change for each in (one, other)}
        assert len(changes) == 1


def test_nothing_changes_where_nothing_is_pruned() -> None:
    before = parent()
    after, at = prune(Ramp(), before, stage(0), GLOBAL, 0)
    assert at.relative_change == 0.0
    assert_equal(after.tensors, before.tensors)
    assert_equal(after.optimizer, before.optimizer)
    zero = before.with_weights({name: torch.zeros_like(w) for name, w in before.weights.items()})
    assert prune(Ramp(), zero, stage(1), GLOBAL, 0)[1].relative_change == 0.0


def test_what_is_pruned_stays_so_in_later_segments() -> None:
    first, _ = prune(Ramp(), parent(), stage(1), GLOBAL, 0)
    trained = first.with_weights({name: w + first.masks[name] for name, w in first.weights.items()})
    second, _ = prune(Ramp(), trained, stage(2), GLOBAL, 0)
    assert masks.sparsity(second.masks) == 0.75
    assert all(not (second.masks[name] & ~first.masks[name]).any() for name in first.masks)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"sparsity": 2.0}, ["sparsity=2.0", "0 to 1"]),
        ({"sparsity": float("nan")}, ["sparsity=nan", "0 to 1"]),
        ({"floor": float("inf")}, ["floor=inf", "0 or more"]),
        ({"floor": -1.0}, ["floor=-1.0", "0 or more"]),
        ({"among": {}}, ["among", "missing"]),
        ({"among": {"a": torch.ones(2, 3)}}, ["among", "float32", "(2, 3)"]),
        ({"among": {"a": torch.ones(1, dtype=torch.bool)}}, ["among", "(1,)", "(2, 3)"]),
        ({"scores": {"a": torch.ones(2)}}, ["scores", "(2,)", "(2, 3)"]),
        ({"scores": {"a": torch.ones(2, 3), "b": torch.ones(1)}}, ["scores", "'b'"]),
    ],
    ids=str,
)
def test_what_nothing_can_be_selected_by_is_told(arguments: dict[str, Any], parts: list[str]) -> None:
    step = pruning_step({"a": torch.arange(6.0).reshape(2, 3)}, [Segment(0.5, 1.0)])
    with pytest.raises(RunError) as caught:
        step.select(**{"scores": step.weights, **arguments})
    assert all(part in str(caught.value) for part in ("select()", *parts))


def test_masks_to_choose_among_bring_nothing_back() -> None:
    weights = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])}
    step = pruning_step(weights, [Segment(0.5, 1.0)], masks={"a": torch.tensor([1, 1, 1, 1, 0, 0]).bool()})
    among = {"a": torch.tensor([1, 1, 1, 0, 1, 1]).bool()}
    given = {"a": torch.arange(6.0)}
    assert step.select(given, among=among)["a"].tolist() == [True, True, True, False, False, False]
    assert step.select(given, regrow=True, among=among)["a"].tolist() == [False, False, True, False, True, True]
    assert step.select(given, sparsity=5 / 6, among=among)["a"].tolist() == [False, False, True, False, False, False]


def test_regrown_weights_start_at_zero_with_no_momentum() -> None:
    """As SET and RigL have it: the mask moves, at one sparsity."""
    first, _ = prune(Ramp(), parent(), stage(1), GLOBAL, 0)
    full = {name: torch.ones_like(tensor) for name, tensor in first.optimizer.items()}
    first = replace(first, optimizer=full)
    again = Stage(Budget(3.0, 0.75), (PLAN[0], PLAN[1], PLAN[1]), 2)

    def other_way_round(step: PruningStep) -> Tensors:
        return step.select({name: -weight.abs() for name, weight in step.weights.items()}, regrow=True)

    second, at = prune(Ramp(other_way_round), first, again, GLOBAL, 0, probe=PROBE)
    # all that was kept is gone, and the bias stays
    kept, bias = (sum(float(first.tensors[name].square().sum()) for name in names) for names in ("ab", ["bias"]))
    assert at.relative_change == pytest.approx(math.sqrt(kept / (kept + bias)))
    assert masks.sparsity(second.masks) == 0.5
    for name, mask in second.masks.items():
        regrown = mask & ~first.masks[name]
        assert not second.tensors[name][regrown].any()
        assert not second.optimizer[f"{name}/momentum"][regrown].any()
    assert any((second.masks[name] & ~first.masks[name]).any() for name in second.masks)


def test_dense_weights_and_their_momentum_survive_behind_the_mask() -> None:
    method, before = DPF(), parent()
    first, at = prune(method, before, stage(1), GLOBAL, 0, probe=PROBE)
    assert_equal(first.tensors, before.tensors)
    assert_equal(first.optimizer, before.optimizer)
    shown = effective(method, first).weights
    assert masked_are_zero(shown, first.masks)
    assert_equal(shown, prune(Ramp(), before, stage(1), GLOBAL, 0)[0].weights)
    change = sum(float((before.weights[n] - shown[n]).square().sum()) for n in shown)
    bias = float(before.tensors["bias"].square().sum())
    whole = sum(float(w.square().sum()) for w in before.weights.values()) + bias
    assert at.relative_change == pytest.approx(math.sqrt(change / whole), rel=1e-6)

    # a masked weight that has grown meanwhile comes back as large as it is
    grown = first.with_weights({name: torch.where(first.masks[name], w, 99.0) for name, w in first.weights.items()})
    second, at = prune(method, grown, stage(1), GLOBAL, 0, probe=PROBE)
    kept = sum(float(w.square().sum()) for w in shown.values())
    assert at.relative_change == pytest.approx(math.sqrt((kept + 10 * 99.0**2) / (kept + bias)), rel=1e-6)
    assert all(torch.equal(second.masks[name], ~first.masks[name]) for name in second.masks)
    assert all(bool((w == 99.0)[second.masks[n]].all()) for n, w in effective(method, second).weights.items())


def test_a_method_sees_what_it_is_promised() -> None:
    before = replace(parent(), extra={"threshold": torch.ones(1)})
    seen: list[PruningStep] = []

    def look(step: PruningStep) -> Tensors:
        seen.append(step)
        return step.select({name: torch.rand(w.shape, generator=step.generator) for name, w in step.weights.items()})

    results = [prune(Ramp(look), before, stage(index), GLOBAL, seed)[0] for index, seed in ((1, 0), (1, 0), (1, 1))]
    step = seen[0]
    assert (step.budget, step.plan, step.index, step.segment) == (Budget(3.0, 0.75), PLAN, 1, PLAN[1])
    assert_equal(step.weights, before.weights)
    assert_equal(step.masks, before.masks)
    assert_equal(step.extra, before.extra)
    assert_equal(results[0].masks, results[1].masks)  # seeded by (seed, segment) alone
    assert any(not torch.equal(m, results[2].masks[name]) for name, m in results[0].masks.items())


def test_allocation_is_the_options_else_the_methods() -> None:
    class Evenly(Ramp):
        allocation = "uniform"

    before = parent()
    before = before.with_weights({"b": before.tensors["b"] * 1e-3})
    kept = {"global": (10, 0), "uniform": (6, 4)}
    for config, method, rule in (
        (GLOBAL, Ramp(), "global"),
        (MasksConfig("uniform"), Ramp(), "uniform"),
        (GLOBAL, Evenly(), "uniform"),
        (MasksConfig("global"), Evenly(), "global"),
    ):
        after, _ = prune(method, before, stage(1), config, 0)
        assert (int(after.masks["a"].sum()), int(after.masks["b"].sum())) == kept[rule]


# --- contract violations ------------------------------------------------------------------------------


def right(step: PruningStep) -> Tensors:
    return step.select({name: weight.abs() for name, weight in step.weights.items()})


WRONG: dict[str, tuple[Callable[[PruningStep], Tensors], str]] = {
    "a missing layer": (lambda s: {"a": right(s)["a"]}, "gives none for b$"),
    "a layer too many": (lambda s: {**right(s), "bias": torch.ones(3) > 0}, "gives 'bias', but expected is nothing"),
    "another order": (lambda s: dict(reversed(right(s).items())), "gives 'b', but expected is a; keep the order"),
    "numbers": (lambda s: {n: m.float() for n, m in right(s).items()}, r"a must be a bool tensor .* got torch.float32"),
    "another shape": (lambda s: {n: m.flatten() for n, m in right(s).items()}, r"of shape \(3, 4\), got .* \(12,\)"),
    "too few": (lambda s: {n: m | True for n, m in right(s).items()}, r"must prune 10 of 20 weights, pruned 0"),
    "too many": (lambda s: {n: m & False for n, m in right(s).items()}, r"must prune 10 of 20 weights, pruned 20"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_masks_are_refused_in_the_methods_name(case: str) -> None:
    wrong, message = WRONG[case]
    with pytest.raises(RunError, match=rf"^method Ramp, segment 2: masks\(\).*{message}"):
        prune(Ramp(wrong), parent(), stage(1), GLOBAL, 0)


def test_scores_that_forget_a_layer_are_told_as_scores() -> None:
    class Forgetful(PruningMethod):
        def plan(self, budget: Budget) -> tuple[Segment, ...]:
            return (Segment(budget.sparsity, budget.epochs),)

        def scores(self, step: PruningStep) -> Tensors:
            return {"a": step.weights["a"].abs()}

    with pytest.raises(RunError, match=r"^method Forgetful, segment 2: scores\(\) gives none for b$"):
        prune(Forgetful(), parent(), stage(1), GLOBAL, 0)


def test_scores_that_are_nan_are_refused() -> None:
    def broken(step: PruningStep) -> Tensors:
        return step.select({name: weight / 0.0 * 0.0 for name, weight in step.weights.items()})

    with pytest.raises(RunError, match="scores of a hold NaN"):
        prune(Ramp(broken), parent(), stage(1), GLOBAL, 0)


def test_effective_weights_that_ignore_the_mask_are_refused() -> None:
    class Leaky(Ramp):
        def effective(self, step: TrainingStep) -> Tensors:
            return dict(step.weights)

    with pytest.raises(RunError, match="pruning of segment 2: a has masked weights that are not 0"):
        prune(Leaky(), parent(), stage(1), GLOBAL, 0)


def test_the_count_is_exact_through_a_whole_ramp() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(37, 11, generator=generator), "b": torch.randn(5, 3, 3, 3, generator=generator).round()}
    total = 37 * 11 + 135
    plan = tuple(Segment(float(s), 1.0) for s in np.linspace(0.0, 0.97, 30))
    state = State(dict(weights), masks.full(weights))
    for index, segment in enumerate(plan):
        state, _ = prune(Ramp(), state, Stage(Budget(30.0, 0.97), plan, index), GLOBAL, 0)
        assert total - sum(int(m.sum()) for m in state.masks.values()) == round(segment.sparsity * total)
        assert masked_are_zero(state.weights, state.masks)


def test_masks_of_the_methods_own_below_the_floor_are_refused_and_those_of_select_keep_it() -> None:
    state = parent()
    state = replace(state, tensors={**state.tensors, "b": state.tensors["b"] * 0.01})  # "b" would go first
    floor = MasksConfig(floor=2.0)
    kept, _ = prune(Ramp(), state, stage(1), floor, 0)
    assert int(kept.masks["b"].sum()) == 2
    assert masks.kept(kept.masks) == 10

    def own(step: PruningStep) -> Tensors:
        return {"a": torch.arange(12).reshape(3, 4) < 10, "b": torch.zeros(2, 4, dtype=torch.bool)}

    with pytest.raises(
        RunError, match=r"Ramp, segment 2: .* keeps 0 weights of b, fewer than the 2 of --masks\.floor 2"
    ):
        prune(Ramp(own), state, stage(1), floor, 0)
    assert prune(Ramp(own), state, stage(1), GLOBAL, 0)
