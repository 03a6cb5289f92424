"""The built-in methods' plans and learning rates, against values worked by hand from the papers' formulas."""

from itertools import accumulate, pairwise
from math import cos, inf, pi
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparsekit.api import Budget, PruningMethod, PruningStep, Segment, Stage, TrainingStep
from sparsekit.methods.bimp import BIMP
from sparsekit.methods.dpf import DPF
from sparsekit.methods.gmp import GMP
from sparsekit.methods.imp import IMP
from sparsekit.methods.oneshot import OneShot
from sparsekit.schedules import Retraining, allr_factor, cubic_sparsity, retraining_schedule
from sparsekit.testing import run

METHODS: dict[str, type[PruningMethod]] = {"gmp": GMP, "imp": IMP, "bimp": BIMP, "dpf": DPF, "oneshot": OneShot}
LAST = 0.01
BUDGET = Budget(60.0, 0.9)


def cosine(done: float) -> float:
    """The default original schedule after its warm-up: 1 to 0.01."""
    return LAST + (1.0 - LAST) * (1.0 + cos(pi * done)) / 2.0


def linear(done: float) -> float:
    return LAST + (1.0 - LAST) * (1.0 - done)


def epochs(plan: tuple[Segment, ...]) -> list[float]:
    return [segment.epochs for segment in plan]


def sparsities(plan: tuple[Segment, ...]) -> list[float]:
    return [segment.sparsity for segment in plan]


def stages(method: PruningMethod, budget: Budget) -> list[Stage]:
    plan = method.plan(budget)
    return [Stage(budget, plan, index) for index in range(len(plan))]


# --- the cubic ramp -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "sparsity"),
    [
        (0.0, 0.0),  # before it starts
        (0.1, 0.0),
        (0.3, 0.9 * (1 - 8 / 27)),  # a third: (2/3)³ is still to come
        (0.4, 0.9 * 7 / 8),  # half: (1/2)³
        (0.5, 0.9 * 26 / 27),  # two thirds
        (0.7, 0.9),
        (1.0, 0.9),
    ],
)
def test_the_cubic_ramp_from_nothing(time: float, sparsity: float) -> None:
    assert cubic_sparsity(time, 0.1, 0.7, 0.0, 0.9) == pytest.approx(sparsity)


def test_the_cubic_ramp_from_an_initial_sparsity_in_any_unit_of_time() -> None:
    # steps 100 to 300, half way: 0.8 + (0.5 - 0.8) / 8
    assert cubic_sparsity(200, 100, 300, 0.5, 0.8) == pytest.approx(0.7625)
    assert cubic_sparsity(0, 100, 300, 0.5, 0.8) == pytest.approx(0.5)
    assert cubic_sparsity(300, 100, 300, 0.5, 0.8) == 0.8


# --- gmp ------------------------------------------------------------------------------------------


def test_gmp_by_default_ramps_from_a_tenth_to_seven_tenths_of_the_budget() -> None:
    plan = GMP().plan(BUDGET)
    # the step at 6 epochs would prune nothing; then k sixths of the ramp for k = 1 to 6
    assert epochs(plan) == pytest.approx([12, 6, 6, 6, 6, 6, 18])
    cubes = [216, 125, 64, 27, 8, 1, 0]  # 6³ down to 0³, of 216 still to come
    assert sparsities(plan) == pytest.approx([0.9 * (216 - left) / 216 for left in cubes])
    assert plan[-1].sparsity == 0.9


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # an initial sparsity of half the target at the start, then 0.9 - 0.45 / 8 half way
        (
            {"start": 0.2, "end": 0.6, "interval": 0.2, "initial": 0.5},
            [(0.0, 12), (0.45, 12), (0.84375, 12), (0.9, 24)],
        ),
        # pruned from the very first step: no dense segment
        ({"start": 0.0, "end": 0.5, "interval": 0.25, "initial": 0.5}, [(0.45, 15), (0.84375, 15), (0.9, 30)]),
        # a start of 0 without an initial jump: dense up to the second step
        ({"start": 0.0, "end": 0.5, "interval": 0.25}, [(0.0, 15), (0.7875, 15), (0.9, 30)]),
        # an interval that does not divide the ramp: the last step is at its end all the same
        ({"start": 0.1, "end": 0.5, "interval": 0.3}, [(0.0, 24), (0.9 * 63 / 64, 6), (0.9, 30)]),
        # one longer than the ramp: one step
        ({"start": 0.1, "end": 0.5, "interval": 1.0}, [(0.0, 30), (0.9, 30)]),
        # one of the ramp's own length
        ({"start": 0.25, "end": 0.5, "interval": 0.25, "initial": 1.0}, [(0.0, 15), (0.9, 15), (0.9, 30)]),
    ],
)
def test_gmp_prunes_where_its_options_say(options: dict[str, float], expected: list[tuple[float, float]]) -> None:
    plan = GMP(**options).plan(BUDGET)
    assert sparsities(plan) == pytest.approx([sparsity for sparsity, _ in expected])
    assert epochs(plan) == pytest.approx([length for _, length in expected])


def test_a_target_of_0_trains_dense_with_the_same_pauses_for_merging() -> None:
    plan = GMP().plan(Budget(60.0, 0.0))
    assert sparsities(plan) == [0.0] * 8
    assert epochs(plan) == pytest.approx([6, 6, 6, 6, 6, 6, 6, 18])


ramps = st.builds(
    lambda start, length, interval, initial: (start, start + length * (0.999 - start), interval, initial),
    st.floats(0.0, 0.95),
    st.floats(0.01, 1.0),
    st.floats(0.005, 1.0),
    st.floats(0.0, 1.0),
)


@given(ramp=ramps, total=st.integers(1, 500), sparsity=st.floats(0.0, 0.9999))
@example(ramp=(1e-9, 0.999, 1.0, 0.0), total=11, sparsity=0.0)
def test_any_ramp_sums_up_to_the_budget_and_only_rises_to_the_target(
    ramp: tuple[float, float, float, float], total: int, sparsity: float
) -> None:
    start, end, interval, initial = ramp
    plan = GMP(start, end, interval, initial).plan(Budget(total, sparsity))
    assert sum(epochs(plan)) == pytest.approx(total, rel=1e-9)
    assert all(length > 0.0 for length in epochs(plan))
    assert plan[-1].sparsity == sparsity
    assert all(0.0 <= left <= right + 1e-15 for left, right in pairwise(sparsities(plan)))
    # nothing is pruned outside the ramp, and no two pruning steps are further apart than the interval
    pruned_at = [t / total for t in accumulate(epochs(plan))][:-1]
    assert all(start - 1e-9 <= t <= end + 1e-9 for t in pruned_at)
    assert all(right - left <= interval + 1e-9 for left, right in pairwise(pruned_at))


def test_gmp_has_one_schedule_over_the_whole_budget() -> None:
    budget = Budget(60.0, 0.9, warmup=0.05, decay=cosine)
    for stage in stages(GMP(), budget):
        schedule = GMP().learning_rate(stage)
        assert not schedule.restarts
        for done in (0.0, 0.3, 1.0):
            assert schedule(done) == pytest.approx(budget.rate((stage.start + done * stage.segment.epochs) / 60.0))


# --- imp ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "percent"),
    [(0.9, [53.58, 78.46, 90.0]), (0.95, [63.16, 86.43, 95.0]), (0.98, [72.86, 92.63, 98.0])],
)
def test_three_cycles_of_imp_prune_the_same_fraction_of_what_remains(target: float, percent: list[float]) -> None:
    # the table of Sparse Model Soups, arXiv 2306.16788
    plan = IMP().plan(Budget(60.0, target))
    assert [round(100 * s, 2) for s in sparsities(plan)] == [0.0, *percent]
    assert plan[-1].sparsity == target
    assert epochs(plan) == pytest.approx([24, 12, 12, 12])
    fractions = [stage.pruned_fraction for stage in stages(IMP(), Budget(60.0, target))[1:]]
    assert fractions == pytest.approx([1 - (1 - target) ** (1 / 3)] * 3)


@given(
    dense=st.floats(0.01, 0.99), cycles=st.integers(1, 30), total=st.integers(1, 500), sparsity=st.floats(0.0, 0.9999)
)
def test_any_cycles_sum_up_to_the_budget_and_only_rise_to_the_target(
    dense: float, cycles: int, total: int, sparsity: float
) -> None:
    for method in (IMP(dense, cycles), BIMP(dense, cycles), OneShot(dense)):
        plan = method.plan(Budget(total, sparsity))
        assert sum(epochs(plan)) == pytest.approx(total, rel=1e-9)
        assert plan[-1].sparsity == sparsity
        assert all(0.0 <= left <= right for left, right in pairwise(sparsities(plan)))
        assert plan[0] == Segment(0.0, pytest.approx(dense * total))  # type: ignore[arg-type]


def test_one_shot_trains_half_of_the_budget_dense_and_prunes_once() -> None:
    assert OneShot().plan(BUDGET) == (Segment(0.0, 30.0), Segment(0.9, 30.0))
    assert OneShot(dense=0.8).plan(BUDGET)[0].epochs == pytest.approx(48.0)
    dense, retraining = stages(OneShot(), Budget(60.0, 0.9, warmup=0.05, decay=cosine))
    assert OneShot().learning_rate(dense)(1.0) == pytest.approx(LAST)
    assert OneShot().learning_rate(retraining)(0.55) == pytest.approx(0.5)  # llr
    assert OneShot(retrain="ft").learning_rate(retraining)(0.55) == pytest.approx(LAST)


@pytest.mark.parametrize("retrain", ["ft", "lrw", "slr", "clr", "llr", "allr"])
def test_every_cycle_of_imp_starts_with_a_fresh_optimizer(retrain: Retraining) -> None:
    method = IMP(dense=0.4, cycles=3, retrain=retrain)
    budget = Budget(60.0, 0.9, warmup=0.05, decay=cosine)
    for stage in stages(method, budget):
        assert method.learning_rate(stage).restarts


def test_the_dense_phase_of_imp_is_the_whole_original_schedule() -> None:
    budget = Budget(60.0, 0.9, warmup=0.05, decay=cosine)
    schedule = IMP().learning_rate(stages(IMP(), budget)[0])
    # warm-up over a twentieth; the middle of the rest is at 0.525
    assert [schedule(x) for x in (0.0, 0.025, 0.05, 0.525, 1.0)] == pytest.approx([0, 0.5, 1, 0.505, LAST])


# --- retraining schedules -------------------------------------------------------------------------

# Dense for 24 epochs, then 12: an original schedule with a warm-up over a twentieth, then down to 0.01.
PLAN = (Segment(0.0, 24.0), Segment(0.36, 12.0), Segment(0.68, 6.0), Segment(0.9, 36.0))


def retraining(
    name: Retraining, index: int = 1, decay: Any = cosine, warmup: float = 0.05, change: float = 0.0
) -> list[float]:
    stage = Stage(Budget(78.0, 0.9, warmup, decay), PLAN, index, change)
    schedule = retraining_schedule(name, stage)
    assert schedule.restarts
    return [schedule(done) for done in (0.0, 0.05, 0.1, 0.325, 0.55, 1.0)]


ROOT_HALF = 0.5**0.5
WARM = [0.0, 0.5, 1.0]  # half a cosine from 0 over the first tenth


@pytest.mark.parametrize(
    ("name", "decay", "rates"),
    [
        ("ft", cosine, [LAST] * 6),
        ("ft", lambda done: 1.0, [1.0] * 6),
        # after the warm-up, at a quarter and a half of what is left: 0.25 and 0.5 of the whole original schedule, whose
        # decay began at 0.05
        ("slr", linear, [*WARM, 0.01 + 0.99 * (1 - 0.2 / 0.95), 0.01 + 0.99 * (1 - 0.45 / 0.95), LAST]),
        ("slr", cosine, [*WARM, *(0.01 + 0.99 * (1 + cos(pi * x / 0.95)) / 2 for x in (0.2, 0.45)), LAST]),
        ("clr", linear, [*WARM, 0.01 + 0.99 * (1 + ROOT_HALF) / 2, 0.505, LAST]),
        ("clr", lambda done: 1.0, [*WARM, 1.0, 1.0, 1.0]),  # from its largest to its smallest rate: both 1
        ("llr", cosine, [*WARM, 0.75, 0.5, 0.0]),
        ("llr", lambda done: 1.0, [*WARM, 0.75, 0.5, 0.0]),
    ],
)
def test_retraining_schedules_at_points_worked_by_hand(name: Retraining, decay: Any, rates: list[float]) -> None:
    assert retraining(name, decay=decay) == pytest.approx(rates)


@pytest.mark.parametrize("name", ["slr", "clr", "llr", "allr"])
def test_a_restart_warms_up_on_half_a_cosine(name: Retraining) -> None:
    schedule = retraining_schedule(name, Stage(Budget(78.0, 0.9, 0.05, cosine), PLAN, 1, inf))
    # (1 − cos(π t)) / 2 at a fifth, a quarter, a third, a half and three quarters of the tenth
    expected = [(1 - (1 + 5**0.5) / 4) / 2, (1 - ROOT_HALF) / 2, 0.25, 0.5, (1 + ROOT_HALF) / 2]
    assert [schedule(t / 10) for t in (0.2, 0.25, 1 / 3, 0.5, 0.75)] == pytest.approx(expected)


def test_slr_stays_at_the_largest_rate_where_the_original_schedule_warmed_up() -> None:
    schedule = retraining_schedule("slr", Stage(Budget(78.0, 0.9, 0.2, linear), PLAN, 1))
    # the original schedule takes the last nine tenths: its warm-up ends at 0.1 + 0.9 · 0.2 = 0.28
    assert [schedule(t) for t in (0.1, 0.15, 0.2, 0.28)] == pytest.approx([1.0] * 4)
    # at 0.64 it is at 0.6 of the whole, half-way down
    assert [schedule(t) for t in (0.64, 1.0)] == pytest.approx([0.01 + 0.99 * 0.5, LAST])


def test_lrw_replays_the_last_stretch_of_the_original_schedule() -> None:
    # 12 of 24 epochs: from the middle on, 0.45 of 0.95 after the warm-up; no warm-up of its own
    def original(fraction: float) -> float:
        return 0.01 + 0.99 * (1 - (fraction - 0.05) / 0.95)

    expected = [original(0.5 + 0.5 * done) for done in (0.0, 0.05, 0.1, 0.325, 0.55, 1.0)]
    assert expected[0] == pytest.approx(0.01 + 0.99 * 0.5 / 0.95)
    assert retraining("lrw", decay=linear) == pytest.approx(expected)
    # 6 of 24 epochs: the last quarter
    assert retraining("lrw", index=2, decay=linear)[0] == pytest.approx(original(0.75))


def test_lrw_of_the_same_length_replays_everything_warm_up_included() -> None:
    plan = OneShot(dense=0.5, retrain="lrw").plan(BUDGET)
    schedule = retraining_schedule("lrw", Stage(Budget(60.0, 0.9, 0.05, cosine), plan, 1))
    assert [schedule(x) for x in (0.0, 0.025, 0.05, 0.525, 1.0)] == pytest.approx([0, 0.5, 1, 0.505, LAST])


@pytest.mark.parametrize(
    ("method", "fits"),
    [
        (IMP(dense=0.25, cycles=3, retrain="lrw"), True),  # 15 and 15 epochs
        (IMP(dense=1 / 3, cycles=2, retrain="lrw"), True),  # 20 and 20 epochs, but for rounding
        (IMP(dense=0.24, cycles=3, retrain="lrw"), False),  # 14.4 and 15.2
        (IMP(dense=0.24, cycles=3, retrain="llr"), True),
        (IMP(dense=0.24, cycles=4, retrain="lrw"), True),
        (BIMP(dense=0.2, cycles=3, retrain="lrw"), False),
        (OneShot(dense=0.4, retrain="lrw"), False),
    ],
)
def test_lrw_is_refused_where_a_cycle_is_longer_than_the_dense_phase(method: PruningMethod, fits: bool) -> None:
    if fits:
        method.plan(BUDGET)
    else:
        with pytest.raises(ValueError, match=r"--method\.retrain lrw .* raise --method\.dense or --method\.cycles"):
            method.plan(BUDGET)


@pytest.mark.parametrize(
    ("index", "change", "factor"),
    [
        # segment 1 prunes 0.36 of what remains, √0.36 = 0.6, for 12 epochs after 24
        (1, 0.42, 0.7),  # 0.42 / 0.6
        (1, 0.3, 0.5),  # 0.3 / 0.6, and 12 / 24 as well
        (1, 0.12, 0.5),  # 0.2 is below 12 / 24
        (1, 0.9, 1.0),  # 1.5 is above 1
        (1, 0.0, 0.5),
        (1, inf, 1.0),
        # segment 2 prunes half of what remains, for 6 epochs: the lower bound is a quarter
        (2, 0.3, 0.3 / ROOT_HALF),
        (2, 0.1, 0.25),
        # segment 3 lasts longer than the dense phase: min(T_rt / T, 1) is 1
        (3, 0.3, 1.0),
    ],
)
def test_allr_adapts_its_peak_to_what_the_pruning_changed(index: int, change: float, factor: float) -> None:
    assert allr_factor(Stage(Budget(78.0, 0.9), PLAN, index, change)) == pytest.approx(factor)
    rates = retraining("allr", index, change=change)
    assert rates == pytest.approx([factor * x for x in (0.0, 0.5, 1.0, 0.75, 0.5, 0.0)])
    assert retraining_schedule("allr", Stage(Budget(78.0, 0.9), PLAN, index, change)).d == pytest.approx(factor)


def test_only_a_rate_that_the_pruning_decides_has_a_d() -> None:
    for name in ("ft", "lrw", "slr", "clr", "llr"):
        assert retraining_schedule(cast("Retraining", name), Stage(Budget(78.0, 0.9), PLAN, 1, 0.3)).d is None


def test_allr_where_nothing_is_pruned_takes_the_lower_bound() -> None:
    plan = (Segment(0.0, 24.0), Segment(0.0, 12.0))
    for change in (0.0, inf):
        assert allr_factor(Stage(Budget(36.0, 0.0), plan, 1, change)) == 0.5


# --- bimp -----------------------------------------------------------------------------------------


def test_bimp_falls_linearly_to_0_in_its_dense_phase_whatever_the_original_schedule() -> None:
    budget = Budget(60.0, 0.9, warmup=0.05, decay=cosine)
    assert epochs(BIMP().plan(budget)) == pytest.approx([36, 8, 8, 8])
    schedule = BIMP().learning_rate(stages(BIMP(), budget)[0])
    assert [schedule(x) for x in (0.0, 0.025, 0.05, 0.525, 0.81, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0.2, 0])


def test_bimp_without_a_warm_up_starts_at_its_peak() -> None:
    schedule = BIMP().learning_rate(stages(BIMP(), Budget(60.0, 0.9))[0])
    assert [schedule(x) for x in (0.0, 0.25, 1.0)] == pytest.approx([1.0, 0.75, 0.0])


def test_bimp_adapts_its_cycles_by_default() -> None:
    budget = Budget(60.0, 0.9)
    plan = BIMP().plan(budget)
    # p = 1 - 0.1^(1/3) of what remains; 0.3 · √p lies between 8 / 36 and 1
    change = 0.3 * (1 - 0.1 ** (1 / 3)) ** 0.5
    schedule = BIMP().learning_rate(Stage(budget, plan, 2, change))
    assert [schedule(x) for x in (0.05, 0.1, 0.55, 1.0)] == pytest.approx([0.15, 0.3, 0.15, 0.0])
    assert BIMP().learning_rate(Stage(budget, plan, 2, 0.0)).d == pytest.approx(8 / 36)


@pytest.mark.parametrize("target", [0.95, 0.98])
def test_the_d_of_a_run_is_that_of_its_weights_and_is_not_clipped(target: float) -> None:
    trial = run("bimp", "none", sparsity=target, epochs=20, replicas={"count": 1})
    rows = [row for row in trial.rows if row["event"] == "segment"]
    assert "d" not in rows[0]
    for segment, row in zip(trial.segments[1:], rows[1:], strict=True):
        before, after = (
            sum(float(tensors[name].double().square().sum()) for name, _ in trial.model.named_parameters())
            for tensors in (segment.before, segment.pruned)
        )
        # what stays is unchanged, so that ‖W − W_p‖² = ‖W‖² − ‖W_p‖²; a cycle prunes 1 − (1 − S)^(1/3) of what remains
        d = ((before - after) / before / (1 - (1 - target) ** (1 / 3))) ** 0.5
        assert row["d"] == pytest.approx(d, rel=1e-9)
        assert 0.4 / 3 / 0.6 < d < 1.0
        used = [each["lr"] for each in trial.rows if each["event"] == "train" and each["segment"] == row["segment"]]
        steps = segment.stage.segment.epochs * 8
        assert used[-1] == pytest.approx(0.1 * d * 0.5 / steps / 0.9, rel=0.05)  # half a step before the end


@pytest.mark.parametrize(
    ("retrain", "rates"),
    [
        # 15 of 30 epochs: the dense phase from its middle on, which is linear after a warm-up of a fifth
        ("lrw", [0.5 / 0.8, 0.4 / 0.8, 0.25 / 0.8, 0.0]),
        # half-way up; at 1/9 of the schedule, which warmed up there; at 4/9; its end
        ("slr", [0.5, 1.0, (5 / 9) / 0.8, 0.0]),
        ("clr", [0.5, (1 + cos(pi / 9)) / 2, (1 + cos(pi * 4 / 9)) / 2, 0.0]),
    ],
)
def test_bimp_replays_the_linear_schedule_that_it_ran_and_not_the_optimizers(
    retrain: Retraining, rates: list[float]
) -> None:
    method = BIMP(dense=0.5, cycles=2, retrain=retrain)
    schedule = method.learning_rate(stages(method, Budget(60.0, 0.9, warmup=0.2, decay=cosine))[1])
    times = (0.0, 0.2, 0.5, 1.0) if retrain == "lrw" else (0.05, 0.2, 0.5, 1.0)
    assert [schedule(x) for x in times] == pytest.approx(rates, abs=1e-12)


@pytest.mark.parametrize("decay", [lambda done: 1.0 - done, lambda done: 0.0], ids=["linear", "none"])
def test_ft_is_refused_where_the_dense_phase_ends_at_0(decay: Any) -> None:
    for method in (IMP(retrain="ft"), OneShot(retrain="ft")):
        method.plan(Budget(60.0, 0.9, decay=cosine))
        with pytest.raises(ValueError, match=r"^--method\.retrain ft .* is 0; raise --optimizer\.min_lr"):
            method.plan(Budget(60.0, 0.9, decay=decay))
    with pytest.raises(ValueError, match=r"^--method\.retrain ft .* is 0; choose lrw, slr, clr, llr or allr"):
        BIMP(retrain="ft").plan(Budget(60.0, 0.9, decay=cosine))  # whatever the optimizer's schedule is


# --- dpf ------------------------------------------------------------------------------------------


def test_dpf_chooses_its_mask_anew_after_the_ramp_until_it_freezes() -> None:
    plan = DPF().plan(BUDGET)
    # the choice at 3 epochs would prune nothing; eleven of the ramp, then at 0.65, 0.70 and 0.75 of the budget
    assert epochs(plan) == pytest.approx([6, *[3] * 13, 15])
    ramp = [0.9 * (1 - ((11 - k) / 11) ** 3) for k in range(1, 12)]
    assert sparsities(plan) == pytest.approx([0.0, *ramp, 0.9, 0.9, 0.9])


def test_dpf_that_freezes_with_its_ramp_chooses_no_more() -> None:
    plan = DPF(start=0.1, end=0.5, interval=0.2, freeze=0.5).plan(BUDGET)
    assert epochs(plan) == pytest.approx([18, 12, 30])
    assert sparsities(plan) == pytest.approx([0.0, 0.7875, 0.9])


@given(ramp=ramps, later=st.floats(0.0, 1.0))
def test_any_dpf_plan_sums_up_to_the_budget(ramp: tuple[float, float, float, float], later: float) -> None:
    start, end, interval, _ = ramp
    freeze = min(end + later * (1.0 - end), 1.0)
    plan = DPF(start, end, interval, freeze).plan(BUDGET)
    assert sum(epochs(plan)) == pytest.approx(60.0, rel=1e-9)
    assert plan[-1].sparsity == 0.9
    assert all(left <= right for left, right in pairwise(sparsities(plan)))
    assert sum(epochs(plan)[:-1]) <= max(end, freeze) * 60.0 + 1e-6


def test_dpf_forward_is_exactly_masked_and_its_gradient_reaches_masked_weights() -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(4000, generator=generator) * 10.0 ** torch.randint(-12, 12, (4000,), generator=generator)
    weight = values.requires_grad_()
    mask = (torch.rand(4000, generator=generator) < 0.3).float()
    used = DPF().effective(TrainingStep({"w": weight}, {"w": mask}, {}, 0.5))["w"]
    assert torch.equal(used.detach(), torch.where(mask.bool(), values.detach(), torch.zeros(())))
    upstream = torch.randn(4000, generator=generator)
    (used * upstream).sum().backward()
    assert torch.equal(weight.grad, upstream)


def test_the_other_methods_pass_no_gradient_to_masked_weights() -> None:
    torch = pytest.importorskip("torch")
    weight, mask = torch.tensor([2.0, -3.0], requires_grad=True), torch.tensor([1.0, 0.0])
    used = GMP().effective(TrainingStep({"w": weight}, {"w": mask}, {}, 0.5))["w"]
    used.sum().backward()
    assert used.tolist() == [2.0, 0.0]
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(("name", "regrows"), [("gmp", False), ("imp", False), ("dpf", True)])
def test_only_dpf_lets_masked_weights_compete_again(name: str, regrows: bool) -> None:
    torch = pytest.importorskip("torch")
    asked = []

    def select(scores: dict[str, Any], regrow: bool = False) -> dict[str, Any]:
        asked.append((scores["w"].tolist(), regrow))
        return scores

    method, weights = METHODS[name](), {"w": torch.tensor([-2.0, 1.0])}
    step = PruningStep(
        BUDGET,
        method.plan(BUDGET),
        1,
        weights=weights,
        masks={"w": torch.tensor([True, False])},
        extra={},
        generator=torch.Generator(),
        select=select,
        gradients=lambda batches=1: weights,
    )
    method.masks(step)
    assert asked == [([2.0, 1.0], regrows)]


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gmp", {"start": -0.1}, "--method.start is -0.1; give a fraction of the budget from 0 to below 1"),
        ("gmp", {"start": 1.0}, "--method.start is 1; give"),
        ("gmp", {"end": 1.0}, "--method.end is 1; give a fraction of the budget above --method.start (0.1) and below"),
        ("gmp", {"start": 0.7}, "--method.end is 0.7; give a fraction of the budget above --method.start (0.7)"),
        ("gmp", {"interval": 0.0}, "--method.interval is 0; give"),
        ("gmp", {"interval": 1e-9}, "--method.interval is 1e-09; give"),  # would plan a billion segments
        ("gmp", {"interval": 1.5}, "--method.interval is 1.5; give"),
        ("gmp", {"initial": 1.5}, "--method.initial is 1.5; give a fraction of the target from 0 to 1"),
        ("gmp", {"initial": float("nan")}, "--method.initial is nan; give"),
        ("dpf", {"start": float("nan")}, "--method.start is nan; give"),
        ("dpf", {"freeze": 0.5}, "--method.freeze is 0.5; give a fraction of the budget from --method.end (0.6) to 1"),
        ("dpf", {"interval": 1e-9}, "--method.interval is 1e-09; give"),
        ("dpf", {"end": 0.01}, "--method.end is 0.01; give"),
        ("imp", {"dense": -0.1}, "--method.dense is -0.1; give a fraction of the budget from 0 to below 1"),
        ("imp", {"dense": 1.0}, "--method.dense is 1; give"),
        ("imp", {"cycles": 0}, "--method.cycles is 0; give 1 to 1000"),
        ("bimp", {"cycles": 10**9}, "--method.cycles is 1e+09; give 1 to 1000"),
        ("oneshot", {"dense": 1.5}, "--method.dense is 1.5; give"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_name_and_rule(
    name: str, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        METHODS[name](**options)
    assert message in str(caught.value)


def test_imp_of_a_trained_model_has_no_dense_phase() -> None:
    with_one, without = IMP(dense=0.5).plan(Budget(60, 0.9)), IMP(dense=0.0).plan(Budget(30, 0.9))
    assert without == with_one[1:]
    stage = Stage(Budget(30, 0.9), without, 0)
    assert IMP(dense=0.0).learning_rate(stage).multiplier(0.55) == pytest.approx(0.5)  # llr, halfway after its warm-up
    for method in (BIMP(dense=0.0), IMP(dense=0.0, retrain="lrw")):
        with pytest.raises(ValueError, match=r"--method\.retrain (allr|lrw).*--method\.dense 0"):
            method.plan(Budget(30, 0.9))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("total", [6, 30, 300])
def test_every_method_plans_with_its_defaults_from_six_epochs_up(name: str, total: int) -> None:
    plan = METHODS[name]().plan(Budget(total, 0.9))
    assert min(epochs(plan)) * 8 >= 1  # an epoch of digits has eight optimizer steps


@pytest.mark.parametrize("method", [GMP(retrain="llr"), DPF(retrain="llr")])
def test_a_gradual_method_restarts_the_rate_at_each_pruning(method: PruningMethod) -> None:
    """The whole schedule in the first segment; then from 1 to 0, warmed up over a tenth."""
    first, *others = stages(method, Budget(60.0, 0.9, decay=cosine))
    assert method.learning_rate(first)(1.0) == pytest.approx(LAST)
    for stage in others:
        schedule = method.learning_rate(stage)
        assert schedule.restarts
        assert [schedule(done) for done in (0.0, 0.1, 0.55, 1.0)] == pytest.approx([0.0, 1.0, 0.5, 0.0])
    assert not type(method)().learning_rate(others[0]).restarts
