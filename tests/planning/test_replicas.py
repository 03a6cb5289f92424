"""Which replicas a segment trains, and in what they differ."""

from typing import Any

import pytest

from sparsekit.api import Budget, Segment, Stage
from sparsekit.config.options import FitConfig, OptimizerConfig, ReplicasConfig
from sparsekit.errors import UserError
from sparsekit.merges.none import NoMerge
from sparsekit.merges.uniform import Uniform
from sparsekit.methods.gmp import GMP
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
    ],
)
def test_the_default_values_of_each_axis(axis: Any, attribute: str, values: list[float]) -> None:
    replicas = forked(config(count=5, vary=axis))
    assert [getattr(replica, attribute) for replica in replicas] == pytest.approx(values)
    # the other axes stay, and seeds differ all the same
    plain = Replica(0, 0, LR, WEIGHT_DECAY)
    for other in {"lr", "weight_decay", "length", "subsample"} - {attribute}:
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
    ],
)
def test_a_single_replica_gets_the_base_values(axis: Any, replica: Replica) -> None:
    made = forked(config(count=1, vary=axis))
    assert len(made) == 1
    assert made[0].lr == pytest.approx(replica.lr)
    assert made[0].weight_decay == pytest.approx(replica.weight_decay)
    assert (made[0].seed, made[0].length, made[0].subsample) == (replica.seed, replica.length, replica.subsample)


@pytest.mark.parametrize(
    ("axis", "values", "attribute"),
    [
        ("seed", [7.0, -3.0], "seed"),
        ("weight_decay", [0.0, 0.5], "weight_decay"),
        ("lr", [0.01, 3.0], "lr"),
        ("epochs", [0.1, 1.0], "length"),
        ("subsample", [0.1, 1.0], "subsample"),
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
