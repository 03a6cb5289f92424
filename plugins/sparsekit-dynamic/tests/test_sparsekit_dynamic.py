"""RigL, SET and GraNet: answers worked by hand, exact counts at every segment, and whole runs."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from math import prod

import pytest
import torch
from sparsekit_dynamic import SET, GraNet, RigL
from sparsekit_dynamic._shared import drop_and_grow, drop_fraction, updates
from torch import Tensor

from sparsekit import Budget, PruningMethod, PruningStep, Segment, Tensors
from sparsekit.testing import check_method, pruning_step, run

METHODS: dict[str, type[PruningMethod]] = {"rigl": RigL, "set": SET, "granet": GraNet}
SHAPES = {"stem": (8, 1, 3, 3), "conv": (16, 8, 3, 3), "point": (32, 16, 1, 1), "head": (10, 32)}


def no_gradients(batches: int = 1) -> Tensors:
    raise AssertionError("not to be asked for")


def step_of(
    weights: Tensors,
    plan: tuple[Segment, ...],
    index: int = 0,
    before: Tensors | None = None,
    gradients: Tensors | None = None,
    rule: str = "erk",
    pattern: str | None = None,
    seed: int = 0,
    asked: list[int] | None = None,
) -> PruningStep:
    """What the core would hand to a method; `asked` collects the batches of each gradient."""

    def given(batches: int = 1) -> Tensors:
        assert gradients is not None
        if asked is not None:
            asked.append(batches)
        return gradients

    return pruning_step(
        weights,
        plan,
        index,
        masks=before,
        gradients=no_gradients if gradients is None else given,
        allocation=rule,
        pattern=pattern,
        seed=seed,
    )


def normal(seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=generator) for name, shape in SHAPES.items()}


def counts(chosen: Tensors) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in chosen.items()}


def places(mask: Tensor) -> list[int]:
    return [int(i) for i in mask.flatten().nonzero()]


def row(*values: float) -> Tensor:
    return torch.tensor([values])


# --- schedules --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("time", "expected"), [(0.0, 0.3), (0.25, 0.225), (0.375, 0.15), (0.5, 0.075), (0.75, 0.0)])
def test_drop_fraction(time: float, expected: float) -> None:
    # α = 0.3, T_end = 0.75; the cosine of π t / T_end is 1, ½, 0, −½ and −1
    assert drop_fraction(0.3, time, 0.75) == pytest.approx(expected, abs=1e-12)
    assert RigL().fraction(time) == pytest.approx(expected, abs=1e-12)
    assert SET().fraction(time) == pytest.approx(expected, abs=1e-12)
    assert SET(decay="constant").fraction(time) == 0.3


def test_nothing_is_dropped_after_the_end() -> None:
    assert drop_fraction(0.3, 0.9, 0.75) == 0.0


def test_updates_stop_before_the_end() -> None:
    assert updates(0.25, 0.75, 0.25) == [0.25, 0.5]
    assert updates(0.1, 0.3, 0.1) == pytest.approx([0.1, 0.2])  # 0.1 + 2 · 0.1 is above 0.3 in floating point
    assert updates(0.5, 0.5, 0.1) == []
    assert updates(0.9, 0.5, 0.1) == []


def test_fixed_sparsity_plan() -> None:
    plan = RigL(interval=0.25, end=0.75).plan(Budget(8.0, 0.9))
    assert plan == (Segment(0.9, 2.0), Segment(0.9, 2.0), Segment(0.9, 4.0))
    assert SET(interval=1.0).plan(Budget(8.0, 0.9)) == (Segment(0.9, 8.0),)


def test_granet_plan() -> None:
    plan = GraNet(end=0.5, interval=0.25, freeze=1.0).plan(Budget(8.0, 0.8))
    # s(0.25) = 0.8 (1 − ½³) = 0.7
    assert [segment.epochs for segment in plan] == [2.0] * 4
    assert [segment.sparsity for segment in plan] == pytest.approx([0.0, 0.7, 0.8, 0.8])
    assert plan[-1].sparsity == 0.8
    late = GraNet(start=0.25, end=0.75, interval=0.25, freeze=0.75).plan(Budget(8.0, 0.8))
    assert [segment.epochs for segment in late] == [4.0, 2.0, 2.0]
    assert [segment.sparsity for segment in late] == pytest.approx([0.0, 0.7, 0.8])
    coarse = GraNet(end=0.5, interval=1.0, freeze=0.5).plan(Budget(8.0, 0.8))
    assert coarse == (Segment(0.0, 4.0), Segment(0.8, 4.0))


# --- the first masks --------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [RigL, SET])
def test_first_masks_follow_the_kernel(cls: type[PruningMethod]) -> None:
    # Σ dims 12 and 18, sizes 72 and 80: keep 76 of 152, ε = 76/30, so 30.4 and 45.6, rounded to 30 and 46
    weights = {"conv": torch.ones(4, 2, 3, 3), "head": torch.ones(10, 8)}
    assert cls.allocation == "erk"
    assert counts(cls().masks(step_of(weights, (Segment(0.5, 1.0),)))) == {"conv": 30, "head": 46}


def test_a_layer_that_the_kernel_overfills_is_dense() -> None:
    # keep 103 of 206: ε = 103/35 would give the small layer 14.7 of 6; it gets 6, the other 97
    weights = {"small": torch.ones(2, 3), "large": torch.ones(10, 20)}
    assert counts(RigL().masks(step_of(weights, (Segment(0.5, 1.0),)))) == {"small": 6, "large": 97}


def test_first_masks_are_random_and_seeded() -> None:
    plan = (Segment(0.5, 1.0),)
    first, again, other = (RigL().masks(step_of(normal(), plan, seed=s))["conv"] for s in (1, 1, 2))
    scaled = {name: 100.0 * w**3 for name, w in normal(9).items()}
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first, RigL().masks(step_of(scaled, plan, seed=1))["conv"])  # whatever the weights are


# --- drop and grow ----------------------------------------------------------------------------------

#                0    1     2    3    4    5    6    7
WEIGHTS = row(0.1, -0.4, 0.0, 0.0, 0.3, 0.0, 0.2, 0.0)
KEPT = row(1, 1, 0, 0, 1, 0, 1, 0).bool()
PLAN = (Segment(0.5, 1.0), Segment(0.5, 1.0), Segment(0.5, 1.0), Segment(0.5, 1.0))


def moved(fraction: float, growth: Tensor, rule: str = "erk") -> list[int]:
    step = step_of({"w": WEIGHTS}, PLAN, 1, {"w": KEPT}, rule=rule)
    return places(drop_and_grow(step, {"w": KEPT}, fraction, {"w": growth})["w"])


@pytest.mark.parametrize("rule", ["erk", "uniform", "global", "lamp"])
def test_drop_and_grow(rule: str) -> None:
    # half of four go, the smallest: 0 and 6; of what is free, 2 (|−5|) and 5 (4) have the largest growth
    assert moved(0.5, row(1, 9, -5, 2, 9, 4, 0, 3), rule) == [1, 2, 4, 5]


def test_what_was_dropped_may_grow_again() -> None:
    assert moved(0.5, row(10, 0, -5, 2, 0, 4, 0, 3)) == [0, 1, 2, 4]


def test_fractions_of_a_weight_are_not_dropped() -> None:
    assert moved(0.49, row(0, 0, 9, 8, 0, 0, 0, 0)) == [1, 2, 4, 6]
    assert moved(0.24, row(0, 0, 9, 8, 0, 0, 0, 0)) == [0, 1, 4, 6]
    assert moved(0.0, row(0, 0, 9, 8, 0, 0, 0, 0)) == [0, 1, 4, 6]
    assert moved(1.0, row(0, 0, 9, 8, 0, 7, 0, 6)) == [2, 3, 5, 7]


def test_ties_go_to_the_lower_index() -> None:
    assert moved(0.5, row(0, 0, 1, 1, 0, 1, 0, 1)) == [1, 2, 3, 4]


@pytest.mark.parametrize("rule", ["erk", "uniform", "global", "lamp"])
def test_layers_keep_their_counts(rule: str) -> None:
    weights = normal()
    before = step_of(weights, PLAN, rule=rule).select({name: w.abs() for name, w in weights.items()})
    growth = {name: w * 10.0**place for place, (name, w) in enumerate(normal(1).items())}
    step = step_of(weights, PLAN, 1, before, rule=rule)
    after = drop_and_grow(step, before, 0.3, growth)
    assert counts(after) == counts(before)
    for name, mask in after.items():
        kept = int(before[name].sum())
        smallest_first = (weights[name].abs() * before[name]).flatten().argsort(descending=True)
        assert mask.flatten()[smallest_first[: kept - int(0.3 * kept)]].all()


def test_growth_keeps_to_a_pattern() -> None:
    # 5 goes; 2 and 3 have the largest gradients, but their block of four is full: 6 is the best of the other
    weights, before = {"w": row(0.9, 0.8, 0, 0, 0.7, 0.1, 0, 0)}, {"w": row(1, 1, 0, 0, 1, 1, 0, 0).bool()}
    growth = {"w": row(0, 0, 10, 9, 0, 0.2, 1, 0.5)}
    free = drop_and_grow(step_of(weights, PLAN, 1, before), before, 0.25, growth)
    held = drop_and_grow(step_of(weights, PLAN, 1, before, pattern="2:4"), before, 0.25, growth)
    assert places(free["w"]) == [0, 1, 2, 4]
    assert places(held["w"]) == [0, 1, 4, 6]


def test_rigl_moves_by_its_schedule() -> None:
    # α = 1, T_end = 0.75: at 0.25 f = ¾, three of four go, at 0.5 f = ¼, one goes
    method, growth, asked = RigL(drop=1.0, interval=0.25, batches=4), {"w": row(0, 0, 9, 8, 0, 7, 0, 6)}, list[int]()
    move = partial(step_of, {"w": WEIGHTS}, PLAN, before={"w": KEPT}, gradients=growth, asked=asked)
    assert places(method.masks(move(index=1))["w"]) == [1, 2, 3, 5]
    assert places(method.masks(move(index=2))["w"]) == [1, 2, 4, 6]
    assert asked == [4, 4]


def test_rigl_with_a_broken_gradient_says_so() -> None:
    growth = {"w": row(0, 0, float("nan"), 8, 0, 7, 0, 6)}
    with pytest.raises(Exception, match="NaN"):
        RigL().masks(step_of({"w": WEIGHTS}, PLAN, 1, {"w": KEPT}, gradients=growth))


def test_set_grows_at_random_as_many_as_it_drops() -> None:
    weights = {"w": torch.randn(20, 20, generator=torch.Generator().manual_seed(0))}
    plan = (Segment(0.75, 1.0), Segment(0.75, 1.0))
    first = SET().masks(step_of(weights, plan))
    method = SET(drop=0.3, decay="constant")
    one, again, other = (method.masks(step_of(weights, plan, 1, first, seed=s))["w"] for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    largest = (weights["w"].abs() * first["w"]).flatten().argsort(descending=True)
    for mask in (one, other):  # 100 kept, 30 dropped, 30 grown
        assert int(mask.sum()) == 100
        assert mask.flatten()[largest[:70]].all()
        assert 0 < int((mask & ~first["w"]).sum()) <= 30


def test_granet_prunes_everywhere_and_regrows_in_each_layer() -> None:
    # at 0.25 the ramp keeps 6 of 20, over both layers: 10 of `a` and 14.5 to 10.5 of `b`. r = ½ and T = 1 give
    # f = ¼ (1 + cos ¼π) = 0.427: `a` drops none of 1, `b` 2 of 5, its places 5 and 6, and grows 0 and 6
    method = GraNet(end=0.5, interval=0.25, freeze=1.0)
    weights = {"a": row(*range(1, 11)), "b": -row(*(4.5 + i for i in range(1, 11)))}
    gradients = {"a": row(*[99.0] * 10), "b": row(7, 1, 2, 3, 0, 0.5, 8, 9, 9, 9)}
    asked = list[int]()
    plan = method.plan(Budget(8.0, 0.8))
    chosen = method.masks(step_of(weights, plan, 1, gradients=gradients, rule="global", asked=asked))
    assert places(chosen["a"]) == [9]
    assert places(chosen["b"]) == [0, 6, 7, 8, 9]
    assert asked == [1]


def test_granet_without_regrowth_is_gmp() -> None:
    method, weights = GraNet(regrow=0.0), normal()
    step = step_of(weights, method.plan(Budget(8.0, 0.9)), 5, rule="global")
    for name, mask in method.masks(step).items():
        assert torch.equal(mask, step.select({n: w.abs() for n, w in weights.items()})[name])


# --- whole plans ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["erk", "uniform", "global", "lamp"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95, 0.99])
@pytest.mark.parametrize("name", METHODS)
def test_every_segment_prunes_exactly(name: str, sparsity: float, rule: str) -> None:
    method = METHODS[name]()
    plan = method.plan(Budget(6.0, sparsity))
    total = sum(prod(shape) for shape in SHAPES.values())
    assert sum(segment.epochs for segment in plan) == pytest.approx(6.0)
    assert plan[-1].sparsity == sparsity
    chosen: Tensors | None = None
    seen = set()
    for index, segment in enumerate(plan):
        step = step_of(normal(index), plan, index, chosen, normal(100 + index), rule, seed=index)
        chosen = method.masks(step)
        assert list(chosen) == list(SHAPES)
        assert sum(counts(chosen).values()) == total - round(segment.sparsity * total)
        seen.add(tuple(tuple(places(mask)) for mask in chosen.values()))
    assert (len(seen) > 1) == (sparsity > 0.0)


# --- options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (RigL, {"drop": -0.1}, "--method.drop is -0.1; give a fraction of the kept weights from 0 to 1"),
        (RigL, {"drop": float("nan")}, "--method.drop is nan; "),
        (RigL, {"interval": 0.0}, "--method.interval is 0; give a fraction of the budget from 0.0001 to 1"),
        (RigL, {"end": 0.0}, "--method.end is 0; give a fraction of the budget above 0 and at most 1"),
        (RigL, {"batches": 0}, "--method.batches is 0; give 1 to 1000"),
        (SET, {"drop": 1.1}, "--method.drop is 1.1; "),
        (SET, {"decay": "linear"}, "--method.decay is 'linear'; give cosine or constant"),
        (GraNet, {"start": 1.0}, "--method.start is 1; give a fraction of the budget from 0 to below 1"),
        (GraNet, {"end": 1.0}, "--method.end is 1; give a fraction of the budget above --method.start (0) and below 1"),
        (GraNet, {"interval": 2.0}, "--method.interval is 2; "),
        (GraNet, {"regrow": 1.5}, "--method.regrow is 1.5; give a fraction of the kept weights from 0 to 1"),
        (GraNet, {"freeze": 0.6}, "--method.freeze is 0.6; give a fraction of the budget from --method.end (0.7) to 1"),
        (GraNet, {"batches": 1001}, "--method.batches is 1001; give 1 to 1000"),
    ],
)
def test_bad_options(cls: type[PruningMethod], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=r"--method\.") as error:
        cls(**options)
    assert str(error.value).startswith(message)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_keeps_the_contract(name: str) -> None:
    check_method(METHODS[name])


def test_planning_needs_no_torch() -> None:
    code = "import sys, sparsekit_dynamic as d, sparsekit; [m().plan(sparsekit.Budget(6.0, 0.9)) for m in "
    code += "(d.RigL, d.SET, d.GraNet)]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- whole runs -------------------------------------------------------------------------------------


RUNS = [(name, *run) for name in METHODS for run in (("uniform", 0.95), ("greedy", 0.99))]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "merge", "sparsity"), [*RUNS, ("rigl", "none", 0.5), ("granet", "none", 0.0)])
def test_run(name: str, merge: str, sparsity: float) -> None:
    segments = run(name, merge, sparsity=sparsity, seed=1).segments
    assert segments[-1].sparsity == pytest.approx(sparsity, abs=1e-3)
    assert len(segments) == len(METHODS[name]().plan(Budget(6.0, sparsity)))
    if name != "granet":
        assert all(
            counts(each.masks) == counts(segments[0].masks) for each in segments
        )  # what moves stays in its layer
    moved = [any(not torch.equal(each.masks[n], m) for n, m in segments[0].masks.items()) for each in segments]
    assert any(moved) == (sparsity > 0.0)
