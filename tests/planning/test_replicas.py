"""Which replicas a segment trains, and in what they differ."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tiny import OnePrune

from sparsekit import Tensor, TrainingStep
from sparsekit.api import Budget, PruningMethod, Segment, Stage, Task
from sparsekit.config.checks import check
from sparsekit.config.options import DataConfig, FitConfig, OptimizerConfig, ReplicasConfig
from sparsekit.errors import UserError
from sparsekit.merges.none import NoMerge
from sparsekit.merges.uniform import Uniform
from sparsekit.methods.gmp import GMP
from sparsekit.planning.plan import make_plan, make_stages, summarize, varied
from sparsekit.planning.replicas import Replica, replicas_of

PLAN = (Segment(0.0, 4.0), Segment(0.5, 4.0), Segment(0.7, 0.0), Segment(0.9, 2.0))
LR, WEIGHT_DECAY = 0.2, 0.001


def config(merge: Any = None, **replicas: Any) -> FitConfig:
    forking = ReplicasConfig(**{"count": 3, "start": 0.0, **replicas})
    optimizer = OptimizerConfig(lr=LR, weight_decay=WEIGHT_DECAY)
    return FitConfig(GMP(), merge or Uniform(), epochs=10, replicas=forking, optimizer=optimizer)


def forked(made: FitConfig, index: int = 0) -> list[Replica]:
    return replicas_of(made, Stage(Budget(10.0, 0.9), PLAN, index))


def test_replicas_differ_in_their_seed_alone() -> None:
    assert forked(config()) == [Replica(i, i, LR, WEIGHT_DECAY, 1.0, 1.0) for i in range(3)]


@pytest.mark.parametrize(
    ("axis", "attribute", "values"),
    [
        ("weight_decay", "weight_decay", [0.0005, 0.001 * 2**-0.5, 0.001, 0.001 * 2**0.5, 0.002]),
        ("lr", "lr", [0.1, 0.2 * 2**-0.5, 0.2, 0.2 * 2**0.5, 0.4]),
        ("epochs", "length", [0.5, 0.625, 0.75, 0.875, 1.0]),
        ("subsample", "subsample", [0.8] * 5),
        ("label_smoothing", "label_smoothing", [0.0, 0.05, 0.1, 0.15, 0.2]),
        ("augment", "augment", [0.5, 2**-0.5, 1.0, 2**0.5, 2.0]),
    ],
)
def test_the_default_values_of_each_axis(axis: Any, attribute: str, values: list[float]) -> None:
    replicas = forked(config(count=5, vary=axis))
    assert [getattr(replica, attribute) for replica in replicas] == pytest.approx(values)
    # the other axes stay, and seeds differ all the same
    plain = Replica(0, 0, LR, WEIGHT_DECAY)
    for other in {"lr", "weight_decay", "length", "subsample", "label_smoothing", "augment"} - {attribute}:
        assert {getattr(replica, other) for replica in replicas} == {getattr(plain, other)}
    assert [replica.seed for replica in replicas] == [replica.index for replica in replicas] == list(range(5))


@pytest.mark.parametrize(
    ("axis", "replica"),
    [
        ("seed", Replica(0, 0, LR, WEIGHT_DECAY)),
        ("weight_decay", Replica(0, 0, LR, WEIGHT_DECAY)),
        ("lr", Replica(0, 0, LR, WEIGHT_DECAY)),
        ("epochs", Replica(0, 0, LR, WEIGHT_DECAY)),
        ("subsample", Replica(0, 0, LR, WEIGHT_DECAY, 1.0, 0.8)),
        ("label_smoothing", Replica(0, 0, LR, WEIGHT_DECAY)),
        ("augment", Replica(0, 0, LR, WEIGHT_DECAY)),
    ],
)
def test_a_single_replica_gets_the_base_values(axis: Any, replica: Replica) -> None:
    made = forked(config(count=1, vary=axis))
    assert len(made) == 1
    assert made[0].lr == pytest.approx(replica.lr)
    assert made[0].weight_decay == pytest.approx(replica.weight_decay)
    assert (made[0].seed, made[0].length, made[0].subsample) == (replica.seed, replica.length, replica.subsample)
    assert made[0].label_smoothing == replica.label_smoothing
    assert made[0].augment == pytest.approx(replica.augment)


@pytest.mark.parametrize(
    ("axis", "values", "attribute"),
    [
        ("seed", [7.0, -3.0], "seed"),
        ("weight_decay", [0.0, 0.5], "weight_decay"),
        ("lr", [0.01, 3.0], "lr"),
        ("epochs", [0.1, 1.0], "length"),
        ("subsample", [0.1, 1.0], "subsample"),
        ("label_smoothing", [0.0, 0.9], "label_smoothing"),
        ("augment", [0.0, 4.0], "augment"),
    ],
)
def test_given_values_are_taken_as_they_are(axis: Any, values: list[float], attribute: str) -> None:
    replicas = forked(config(count=2, vary=axis, values=values))
    assert [getattr(replica, attribute) for replica in replicas] == values
    assert all(isinstance(replica.seed, int) for replica in replicas)


@pytest.mark.parametrize(
    ("axis", "values", "message"),
    [
        ("seed", [1.0], "has 1 values for --replicas.count 2; give one a replica"),
        ("seed", [1.0, 2.0, 3.0], "has 3 values for --replicas.count 2"),
        ("seed", [], "has 0 values for --replicas.count 2"),
        ("seed", [1.5, 2.0], "1.5 does not suit --replicas.vary seed; give integers"),
        ("seed", [1.0, float("nan")], "nan does not suit"),
        ("seed", [1.0, float("inf")], "inf does not suit"),
        ("seed", [4.0, 4.0], "equal seeds make equal replicas; give different integers"),
        ("weight_decay", [0.1, -0.1], "-0.1 does not suit --replicas.vary weight_decay; give numbers of 0 or more"),
        ("weight_decay", [0.1, float("nan")], "nan does not suit"),
        ("weight_decay", [0.1, float("inf")], "inf does not suit"),
        ("lr", [0.1, 0.0], "0 does not suit --replicas.vary lr; give numbers above 0"),
        ("lr", [0.1, float("inf")], "inf does not suit"),
        ("lr", [0.1, float("nan")], "nan does not suit"),
        ("epochs", [0.5, 1.5], "1.5 does not suit --replicas.vary epochs; give fractions of the segment's length"),
        ("epochs", [0.0, 0.5], "0 does not suit"),
        ("subsample", [0.5, 1.01], "1.01 does not suit --replicas.vary subsample; give fractions of the training data"),
        ("subsample", [0.0, 0.5], "0 does not suit"),
        ("label_smoothing", [0.0, 1.0], "1 does not suit --replicas.vary label_smoothing; give fractions from 0"),
        ("label_smoothing", [-0.1, 0.1], "-0.1 does not suit"),
        ("label_smoothing", [0.1, float("nan")], "nan does not suit"),
        ("augment", [1.0, 4.5], "4.5 does not suit --replicas.vary augment; give strengths from 0 to 4"),
        ("augment", [-1.0, 1.0], "-1 does not suit"),
        ("augment", [1.0, float("nan")], "nan does not suit"),
    ],
)
def test_values_that_do_not_suit_are_refused(axis: Any, values: list[float], message: str) -> None:
    with pytest.raises(UserError) as caught:
        forked(config(count=2, vary=axis, values=values))
    assert str(caught.value).startswith("--replicas.values")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("start", "counts"),
    [
        (0.0, [3, 3, 0, 3]),  # the third segment has no epochs
        (0.1, [1, 3, 0, 3]),
        (0.4, [1, 3, 0, 3]),  # the second segment starts at 4 of 10 epochs, not before them
        (0.41, [1, 1, 0, 3]),
        (0.8, [1, 1, 0, 3]),
        (0.9, [1, 1, 0, 1]),
    ],
)
def test_one_model_trains_alone_before_the_start(start: float, counts: list[int]) -> None:
    assert [len(forked(config(start=start), index)) for index in range(4)] == counts


def test_a_start_that_rounding_misses_counts_all_the_same() -> None:
    plan = (*[Segment(0.0, 0.1)] * 8, Segment(0.9, 0.2))
    stage = Stage(Budget(1.0, 0.9), plan, 8)
    assert stage.start < 0.8  # by rounding alone
    assert len(replicas_of(config(start=0.8), stage)) == 3


@pytest.mark.parametrize("axis", ["weight_decay", "lr", "epochs", "subsample"])
def test_a_model_that_trains_alone_is_not_varied(axis: Any) -> None:
    assert forked(config(vary=axis, start=0.9)) == [Replica(0, 0, LR, WEIGHT_DECAY)]
    assert forked(config(merge=NoMerge(), vary=axis)) == [Replica(0, 0, LR, WEIGHT_DECAY)]


def test_no_merge_trains_one_replica_whatever_the_count() -> None:
    assert [len(forked(config(merge=NoMerge(), count=8), index)) for index in range(4)] == [1, 1, 0, 1]


def test_a_segment_may_ask_for_fewer_replicas() -> None:
    stage = Stage(Budget(10.0, 0.9), (Segment(0.0, 5.0, replicas=2), Segment(0.9, 5.0, replicas=9)), 0)
    assert replicas_of(config(vary="lr"), stage) == [Replica(i, i, LR, WEIGHT_DECAY) for i in range(2)]
    assert len(replicas_of(config(), Stage(stage.budget, stage.plan, 1))) == 3


def test_what_replicas_share_is_the_runs_own() -> None:
    made = replace(config(), label_smoothing=0.3, data=DataConfig(augment_strength=2.0))
    assert {(each.label_smoothing, each.augment, each.method) for each in forked(made)} == {(0.3, 2.0, None)}
    smooth = replace(made, replicas=replace(made.replicas, vary="label_smoothing"))
    assert [each.label_smoothing for each in forked(smooth)] == pytest.approx([0.0, 0.3, 0.6])
    strong = replace(made, replicas=replace(made.replicas, vary="augment"))
    assert [each.augment for each in forked(strong)] == pytest.approx([1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("axis", "changes", "parts"),
    [
        ("label_smoothing", {"label_smoothing": 0.5}, ["--label_smoothing 0.5", "up to 1 ", "give --replicas.values"]),
        ("augment", {"data": DataConfig(augment_strength=3.0)}, ["strength 3", "up to 6 ", "give --replicas.values"]),
        ("augment", {"data": DataConfig(augment_strength=0.0)}, ["--data.augment_strength is 0", "--replicas.values"]),
    ],
)
def test_default_values_beyond_their_range_are_refused(axis: str, changes: Any, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        forked(replace(config(vary=axis), **changes))
    assert all(part in str(caught.value) for part in [f"--replicas.vary {axis}", *parts])


# --- an option of the method ---------------------------------------------------------------------------


class Pulled(OnePrune):
    """A method with numbers for training, for the plan, for the scores and for its own tensors."""

    def __init__(
        self, pull: float = 0.5, times: int = 2, limit: float | None = None, dense: float = 1.0, name_of: str = "x",
        batches: int = 1, first: float = 1.0,
    ) -> None:  # fmt: skip
        if pull < 0.0:
            raise ValueError(f"--method.pull is {pull:g}; give 0 or more")
        super().__init__(dense)
        self.pull, self.times, self.limit, self.name_of = pull, times, limit, name_of
        self.batches, self.first = batches, first

    def scores(self, step: Any) -> dict[str, Tensor]:
        return {name: gradient.abs() for name, gradient in step.gradients(self.batches).items()}

    def extra(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        import torch

        return {"own": torch.tensor(self.first)}

    def penalty(self, step: TrainingStep) -> Tensor:
        scale = self.pull * self.times if self.limit is None else self.limit
        return scale * sum(weight.square().sum() for weight in step.weights.values())  # type: ignore[return-value]


def of(axis: str, values: list[float] | None, method: PruningMethod | None = None, **changes: Any) -> FitConfig:
    """A run of two replicas that differ in an option of the method; all checks without data are passed."""
    replicas = ReplicasConfig(2, vary=axis, values=values, start=0.0)
    made = FitConfig(method or Pulled(), Uniform(), epochs=10, replicas=replicas, **changes)
    check(made)
    return made


def test_each_replica_has_a_method_with_its_value_and_the_other_options() -> None:
    made = of("method.pull", [0.1, 0.4], Pulled(times=3, dense=2.0))
    methods = [replica.method for segment in make_plan(made, make_stages(made)) for replica in segment.replicas]
    assert [(type(m), m.pull, m.times, m.dense) for m in methods] == [(Pulled, 0.1, 3, 2.0), (Pulled, 0.4, 3, 2.0)] * 2  # type: ignore[union-attr]
    whole = make_plan(made := of("method.times", [1.0, 4.0]), make_stages(made))[1].replicas
    assert [(each.method.times, type(each.method.times)) for each in whole] == [(1, int), (4, int)]  # type: ignore[union-attr]
    none = make_plan(made := of("method.limit", [0.5, 1.0]), make_stages(made))[1].replicas
    assert [each.method.limit for each in none] == [0.5, 1.0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("axis", "values", "parts"),
    [
        ("method.pul", [1.0, 2.0], ["'pul' is no option of method", "Did you mean 'method.pull'?"]),
        ("method.", [1.0, 2.0], ["no option", "method.pull, method.times"]),
        ("method.name", [1.0, 2.0], ["'name' is no option"]),
        ("method.name_of", [1.0, 2.0], ["'name_of' is no number", "method.pull, method.times, method.limit"]),
        ("method.pull", None, ["has no default values", "give --replicas.values"]),
        ("method.pull", [0.1], ["1 values for --replicas.count 2"]),
        ("method.times", [1.0, 1.5], ["--replicas.values: 1.5", "method.times", "give integers"]),
        ("method.times", [1.0, float("inf")], ["inf", "give integers"]),
        ("method.pull", [0.1, -2.0], ["--replicas.values: -2", "--replicas.vary method.pull", "give 0 or more"]),
        ("method.dense", [1.0, 2.0], ["--replicas.vary method.dense", "with 2 ", "one plan", "sparsekit sweep"]),
        ("methods.pull", [1.0, 2.0], ["'methods.pull'", "seed, weight_decay", "method.OPTION"]),
        ("label_smoothin", None, ["Did you mean 'label_smoothing'?"]),
    ],
)
def test_an_axis_that_cannot_be_varied_is_refused(axis: str, values: Any, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        make_plan(made := of(axis, values), make_stages(made))
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in ["--replicas.v", *parts])


def test_values_that_no_plan_suits_are_refused() -> None:
    class Short(Pulled):
        def plan(self, budget: Budget) -> tuple[Segment, ...]:
            if self.pull > 1.0:
                raise ValueError("--method.pull leaves no time")
            return super().plan(budget)

    with pytest.raises(UserError, match=r"--replicas.values: 2 does not suit .*pull leaves no time"):
        make_plan(made := of("method.pull", [0.5, 2.0], Short()), make_stages(made))


class Hookless(OnePrune):
    """Prunes once, with an option that no training sees."""

    def __init__(self, start: float = 0.1) -> None:
        self.start = start


def test_a_method_without_hooks_of_training_is_not_varied() -> None:
    with pytest.raises(UserError, match=r"--replicas.vary method.start: method .*Hookless.* training.*sparsekit sweep"):
        of("method.start", [0.1, 0.2], Hookless())


def test_what_the_task_or_the_data_lack_is_refused() -> None:
    class Plain(Task):
        score_name = "score"

    plain: Any = type("Plain", (Plain,), dict.fromkeys(Plain.__abstractmethods__))
    with pytest.raises(UserError, match=r"--replicas.vary label_smoothing: --task .*Plain has no such loss"):
        of("label_smoothing", None, task=plain())
    with pytest.raises(UserError, match=r"--replicas.vary augment: --data.augment is false"):
        of("augment", None, data=DataConfig(augment=False))


def told(made: FitConfig) -> list[str]:
    return varied(made, make_plan(made, make_stages(made)))


def test_the_plan_says_what_replicas_differ_in() -> None:
    made = of("method.pull", [0.1, 0.4])
    assert told(made) == ["replicas differ in method.pull: 0.1, 0.4"]
    plan = summarize(made, make_plan(made, make_stages(made)))
    assert (plan.vary, plan.values) == ("method.pull", (0.1, 0.4))
    assert told(of("label_smoothing", None)) == ["replicas differ in label_smoothing: 0, 0.2"]
    assert told(of("seed", None)) == []
    assert told(of("seed", [3.0, 4.0])) == ["replicas differ in seed: 3, 4"]
    (line,) = told(replace(of("lr", None), merge=NoMerge()))
    assert all(part in line for part in ("--replicas.vary lr", "no effect", "--replicas.count 2"))


def test_an_option_that_no_hook_of_training_reads_is_told() -> None:
    first, second = told(of("method.batches", [1.0, 2.0]))
    assert first == "replicas differ in method.batches: 1, 2"
    assert all(part in second for part in ("--replicas.vary method.batches", "no hook", "--method.batches"))
