"""From options to a checked plan: rows, learning-rate bounds, costs and optimizer steps."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsekit._types import Tensors
from sparsekit.api import Budget, MergeStrategy, PruningMethod, PruningStep, Schedule, Segment, Stage
from sparsekit.config.options import FitConfig, OptimizerConfig, ReplicasConfig
from sparsekit.errors import UserError
from sparsekit.merges.none import NoMerge
from sparsekit.merges.uniform import Uniform
from sparsekit.methods.bimp import BIMP
from sparsekit.methods.gmp import GMP
from sparsekit.methods.imp import IMP
from sparsekit.methods.oneshot import OneShot
from sparsekit.planning.plan import (
    check_plan,
    check_rates,
    decay_shape,
    make_budget,
    make_plan,
    make_stages,
    nothing_to_merge,
    segment_steps,
    summarize,
    table_rows,
)

BUDGET = Budget(10.0, 0.9)


class Planned(PruningMethod):
    """A method with whatever plan it is told."""

    def __init__(self, plan: Any) -> None:
        self.segments = plan

    def plan(self, budget: Budget) -> Any:
        if isinstance(self.segments, Exception):
            raise self.segments
        return self.segments


def config(method: PruningMethod | None = None, **changes: Any) -> FitConfig:
    forking = ReplicasConfig(count=3, start=0.0)
    return FitConfig(method or GMP(), changes.pop("merge", Uniform()), **{"epochs": 60, "replicas": forking, **changes})


# --- the original schedule ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("cosine", [1.0, 0.1 + 0.9 * (1 + 0.5**0.5) / 2, 0.55, 0.1]),
        ("linear", [1.0, 0.775, 0.55, 0.1]),
        ("constant", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_shapes_of_the_original_schedule(schedule: Any, rates: list[float]) -> None:
    decay = decay_shape(OptimizerConfig(schedule=schedule, min_lr=0.1))
    assert [decay(x) for x in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(rates)


def test_the_budget_carries_the_options_of_the_optimizer() -> None:
    budget = make_budget(config(sparsity=0.8, optimizer=OptimizerConfig(schedule="linear", warmup=0.2, min_lr=0.0)))
    assert (budget.epochs, budget.sparsity) == (60.0, 0.8)
    assert [budget.rate(x) for x in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])


# --- a plan held against the contract -------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ((), "must return at least one Segment"),
        (((0.9, 10.0),), "must return at least one Segment"),
        ((Segment(1.0, 5.0), Segment(0.9, 5.0)), "segment 1 has sparsity 1.0"),
        ((Segment(0.0, 5.0), Segment(-0.1, 5.0)), "segment 2 has sparsity -0.1"),
        ((Segment(float("nan"), 10.0),), "segment 1 has sparsity nan"),
        ((Segment(0.0, 11.0), Segment(0.9, -1.0)), "segment 2 has -1.0 epochs"),
        ((Segment(0.9, float("nan")),), "segment 1 has nan epochs"),
        ((Segment(0.9, float("inf")),), "segment 1 has inf epochs"),
        ((Segment(0.0, 5.0), Segment(0.9, 4.0)), "sum up to 9 epochs, not to the budget's 10"),
        ((Segment(0.0, 5.0), Segment(0.8, 5.0)), "its last segment has sparsity 0.8, not 0.9"),
        ((Segment(0.9, 10.0, average_from=1.0),), "segment 1 averages from 1.0"),
        ((Segment(0.9, 10.0, replicas=0),), "segment 1 allows 0 replicas"),
    ],
)
def test_a_plan_that_breaks_the_contract_is_refused(plan: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_plan("method 'odd'", plan, BUDGET)
    assert str(caught.value).startswith("method 'odd': ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "plan",
    [
        (Segment(0.9, 10.0),),
        (Segment(0.0, 10.0), Segment(0.9, 0.0)),  # pruned once at the very end
        (Segment(0.95, 5.0), Segment(0.9, 5.0)),  # regrowing is allowed
        tuple(Segment(0.9, 0.1) for _ in range(100)),  # 100 · 0.1 is not quite 10
        (Segment(0.9, 10.0, average_from=0.0, replicas=1),),
    ],
)
def test_a_plan_that_keeps_the_contract_passes(plan: tuple[Segment, ...]) -> None:
    check_plan("method 'odd'", plan, BUDGET)


def test_what_a_method_refuses_is_bad_input() -> None:
    with pytest.raises(UserError, match="no plan of such a kind"):
        make_stages(config(Planned(ValueError("no plan of such a kind"))))
    with pytest.raises(UserError, match=r"--method\.retrain lrw"):
        make_stages(config(IMP(dense=0.1, retrain="lrw")))


class Falling(GMP):
    """A plan that prunes less at its end."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        third = budget.epochs / 3
        return Segment(0.2, third), Segment(0.95, third), Segment(budget.sparsity, third)


class Regrowing(Falling):
    """The same, with masks of its own."""

    def masks(self, step: PruningStep) -> Tensors:
        return step.select(self.scores(step), regrow=True)


def test_a_sparsity_that_falls_is_refused_unless_the_method_has_masks_of_its_own() -> None:
    falling = config(Falling())
    with pytest.raises(UserError, match=r"^method Falling: segment 3 has sparsity 0\.9 after 0\.95.*regrow=True"):
        make_stages(falling)
    make_stages(replace(falling, sparsity=0.95))
    make_stages(replace(falling, method=Regrowing()))


@pytest.mark.parametrize(
    ("merge", "replicas", "told"),
    [
        (Uniform(), ReplicasConfig(3), False),
        (Uniform(), ReplicasConfig(1), True),
        (Uniform(), ReplicasConfig(3, start=0.99), True),
        (NoMerge(), ReplicasConfig(1), False),
    ],
)
def test_a_plan_in_which_nothing_is_merged_says_so(merge: MergeStrategy, replicas: ReplicasConfig, told: bool) -> None:
    given = config(merge=merge, replicas=replicas)
    lines = nothing_to_merge(given, make_plan(given, make_stages(given)))
    assert len(lines) == told
    parts = ("--merge uniform", f"--replicas.count {replicas.count}", f"--replicas.start {replicas.start:g}")
    assert all(part in line for line in lines for part in parts)


def test_a_plan_names_the_method_that_broke_it() -> None:
    with pytest.raises(UserError, match="method Planned: its segments sum up to 9 epochs"):
        make_stages(config(Planned([Segment(0.9, 9.0)])))


def test_stages_know_their_places() -> None:
    stages = make_stages(config(IMP()))
    assert [stage.index for stage in stages] == [0, 1, 2, 3]
    assert [stage.start for stage in stages] == pytest.approx([0, 24, 36, 48])


# --- rows, learning rates and costs ---------------------------------------------------------------


def test_the_rows_of_gmp_follow_one_schedule() -> None:
    settings = OptimizerConfig(lr=0.2, schedule="linear", warmup=0.0, min_lr=0.0)
    made = config(optimizer=settings)
    plan = summarize(made, make_plan(made, make_stages(made)))
    assert [row.segment for row in plan.segments] == list(range(7))
    assert [row.start_epoch for row in plan.segments] == pytest.approx([0, 12, 18, 24, 30, 36, 42])
    # 0.2 · (1 - epoch / 60)
    assert [row.lr_first[0] for row in plan.segments] == pytest.approx([0.2, 0.16, 0.14, 0.12, 0.1, 0.08, 0.06])
    assert [row.lr_last[0] for row in plan.segments] == pytest.approx([0.16, 0.14, 0.12, 0.1, 0.08, 0.06, 0.0])
    assert all(row.lr_first[0] == row.lr_first[1] for row in plan.segments)
    assert [row.lr_points[len(row.lr_points) // 2][0] for row in plan.segments[:2]] == pytest.approx([0.18, 0.15])


def test_a_schedule_that_depends_on_the_weights_is_given_by_its_bounds() -> None:
    made = config(BIMP(), optimizer=OptimizerConfig(lr=0.1, schedule="cosine", warmup=0.05, min_lr=0.01))
    rows = summarize(made, make_plan(made, make_stages(made))).segments
    # ALLR between min(T_rt / T, 1) = 8 / 36 and 1 times the largest rate
    assert rows[1].lr_first == pytest.approx((0.1 * 8 / 36, 0.1))
    assert rows[1].d == pytest.approx((8 / 36, 1.0))
    assert rows[1].lr_last == pytest.approx((0.0, 0.0), abs=1e-12)
    assert rows[0].lr_first == pytest.approx((0.1, 0.1))
    text = table_rows(summarize(made, make_plan(made, make_stages(made))))
    assert [row["lr"] for row in text] == ["0.1 → 0", *["0.0222…0.1 → 0"] * 3]
    assert [row["d"] for row in text] == ["", *["0.222…1"] * 3]
    assert [row["segment"] for row in text] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "critical", "total"),
    [
        ({}, 60.0, 180.0),
        ({"replicas": ReplicasConfig(count=1, start=0.0)}, 60.0, 60.0),
        ({"merge": NoMerge()}, 60.0, 60.0),
        # the dense phase, 24 of 60 epochs, alone
        ({"replicas": ReplicasConfig(count=3, start=0.4)}, 60.0, 24.0 + 3 * 36.0),
        # the dense phase and the first cycle alone: the first segment that starts at 0.5 or later starts at 0.6
        ({"replicas": ReplicasConfig(count=2, start=0.5)}, 60.0, 36.0 + 2 * 24.0),
        # half, three quarters and all of each segment
        ({"replicas": ReplicasConfig(count=3, start=0.0, vary="epochs")}, 60.0, 60.0 * 2.25),
        # no replica trains a segment to its end: the longest is the critical path
        ({"replicas": ReplicasConfig(count=2, start=0.0, vary="epochs", values=[0.25, 0.5])}, 30.0, 45.0),
        ({"replicas": ReplicasConfig(count=3, start=0.0, vary="subsample")}, 60.0, 180.0),
    ],
)
def test_the_cost_is_in_replica_epochs(changes: dict[str, Any], critical: float, total: float) -> None:
    made = config(IMP(), **changes)
    plan = summarize(made, make_plan(made, make_stages(made)))
    assert (plan.critical_epochs, plan.total_epochs) == pytest.approx((critical, total))


def test_a_segment_may_allow_fewer_replicas_and_one_of_no_epochs_has_nothing_to_merge() -> None:
    made = config(Planned([Segment(0.0, 30.0, replicas=2), Segment(0.5, 30.0), Segment(0.9, 0.0)]))
    plan = summarize(made, make_plan(made, make_stages(made)))
    assert [row.replicas for row in plan.segments] == [2, 3, 1]
    assert plan.total_epochs == pytest.approx(2 * 30 + 3 * 30)
    rows = table_rows(plan)
    assert [row["merge"] for row in rows] == ["of 2", "of 3", ""]
    assert rows[2]["lr"] == ""


def test_plan_json_has_every_row_and_the_cost() -> None:
    made = config(IMP())
    stored = json.loads(json.dumps(summarize(made, make_plan(made, make_stages(made))).to_json()))
    assert stored["critical_epochs"] == pytest.approx(60.0)
    assert stored["total_epochs"] == pytest.approx(180.0)
    assert set(stored["segments"][0]) == {
        "segment", "start_epoch", "epochs", "sparsity", "lr_first", "lr_last", "replicas", "lr_points", "rewind",
        "d",
    }  # fmt: skip
    assert {row["d"] for row in stored["segments"]} == {None}
    assert [row["sparsity"] for row in stored["segments"]] == pytest.approx([0, 0.53584, 0.78456, 0.9], abs=1e-5)


class Half(GMP):
    """Its last segment trains at a rate of its own, or at what its pruning changed."""

    def __init__(self, falls_to: float = 0.0, depends: bool = False) -> None:
        super().__init__()
        self.falls_to, self.depends = falls_to, depends

    def learning_rate(self, stage: Stage) -> Schedule:
        low = min(stage.relative_change, 1.0) if self.depends else self.falls_to
        return Schedule(lambda done: low if stage.last else 1.0)


def test_a_segment_that_would_train_at_a_rate_of_0_is_refused() -> None:
    for method in (Half(0.1), Half(depends=True), GMP(), IMP(retrain="lrw"), OneShot()):  # at 0 at its end alone
        made = config(method, optimizer=OptimizerConfig(schedule="linear", min_lr=0.0))
        check_rates(made, make_plan(made, make_stages(made)))
    made = config(Half())
    with pytest.raises(
        UserError, match=r"Half, --optimizer\.schedule cosine: .* is 0 throughout segment 7 of 7.*choose"
    ):
        check_rates(made, make_plan(made, make_stages(made)))
    # the run's own method trains, but one of its replicas' does not
    varied = config(Half(0.1), replicas=ReplicasConfig(2, vary="method.falls_to", values=[0.1, 0.0]))
    with pytest.raises(UserError, match="segment 7 of 7"):
        check_rates(varied, make_plan(varied, make_stages(varied)))
    # what only prunes needs no rate
    last = config(Planned([Segment(0.0, 60.0), Segment(0.9, 0.0)]))
    check_rates(last, make_plan(last, make_stages(last)))


# --- optimizer steps ------------------------------------------------------------------------------


def test_segments_share_out_the_optimizer_steps() -> None:
    plan = (Segment(0.0, 1.3), Segment(0.5, 0.4), Segment(0.6, 0.0), Segment(0.9, 1.3))
    stages = tuple(Stage(Budget(3.0, 0.9), plan, index) for index in range(4))
    # of 8 steps an epoch: 10.4, 13.6, 13.6 and 24 rounded
    assert segment_steps(stages, 8) == [10, 4, 0, 10]


@given(
    lengths=st.lists(st.floats(0.0, 20.0), min_size=1, max_size=20).filter(lambda x: sum(x) > 0.1),
    per_epoch=st.integers(1, 1000),
)
def test_optimizer_steps_sum_up_to_the_budget(lengths: list[float], per_epoch: int) -> None:
    total = sum(lengths)
    plan = tuple(Segment(0.9, length) for length in lengths)
    steps = segment_steps(tuple(Stage(Budget(total, 0.9), plan, i) for i in range(len(plan))), per_epoch)
    assert sum(steps) == round(total * per_epoch)
    assert all(abs(count - length * per_epoch) <= 1 for count, length in zip(steps, lengths, strict=True))


@given(start=st.floats(0.0, 0.9), epochs=st.integers(6, 200), sparsity=st.floats(0.0, 0.999))
def test_the_rows_of_any_gmp_plan_join_up(start: float, epochs: int, sparsity: float) -> None:
    made = config(GMP(start, start + 0.09), epochs=epochs, sparsity=sparsity)
    rows = summarize(made, make_plan(made, make_stages(made))).segments
    for left, right in pairwise(rows):
        assert left.start_epoch + left.epochs == pytest.approx(right.start_epoch)
    assert rows[-1].start_epoch + rows[-1].epochs == pytest.approx(epochs)
    assert rows[-1].sparsity == sparsity
