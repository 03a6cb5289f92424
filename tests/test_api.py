"""The arithmetic that the contracts promise to plugins, and a merge made of coefficients."""

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest

import sparsekit
from sparsekit import Budget, Candidate, CoefficientMerge, MergeStep, PruningMethod, Schedule, Score, Segment, Stage

PLAN = (Segment(0.0, 4.0), Segment(0.36, 2.0), Segment(0.68, 2.0), Segment(0.9, 0.0))


def falling(done: float) -> float:
    return 1.0 - done


class Chosen(CoefficientMerge):
    """Coefficients given beforehand."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = weights

    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        return self.weights


class Plain(PruningMethod):
    """Nothing but the one method that a plugin must give."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return (Segment(budget.sparsity, budget.epochs),)


class Number(Candidate):
    """A candidate that is one number."""

    def __init__(self, index: int, value: float) -> None:
        self.index, self.value, self.score = index, value, Score(0.5, 1.0)

    def names(self) -> Sequence[str]:
        return ["weight"]

    def read(self, name: str) -> Any:
        return self.value


def averaging_step() -> MergeStep:
    def average(candidates: Sequence[Candidate], weights: Sequence[float]) -> dict[str, Any]:
        return {"weight": sum(w * c.read("weight") for c, w in zip(candidates, weights, strict=True))}

    return cast(MergeStep, SimpleNamespace(average=average))


def test_every_public_name_is_there() -> None:
    assert all(hasattr(sparsekit, name) for name in sparsekit.__all__)


@pytest.mark.parametrize(
    ("fraction", "rate"),
    [(0.0, 0.0), (0.05, 0.25), (0.1, 0.5), (0.2, 1.0), (0.4, 0.75), (0.6, 0.5), (1.0, 0.0)],
)
def test_the_original_schedule_warms_up_linearly_and_then_falls(fraction: float, rate: float) -> None:
    # warm-up over a fifth, then 1 - (fraction - 0.2) / 0.8
    assert Budget(10, 0.9, warmup=0.2, decay=falling).rate(fraction) == pytest.approx(rate)


def test_without_a_warm_up_the_original_schedule_starts_at_its_peak() -> None:
    assert Budget(10, 0.9, decay=falling).rate(0.0) == 1.0
    assert Budget(10, 0.9).rate(0.7) == 1.0


@pytest.mark.parametrize(
    ("index", "start", "previous", "pruned"),
    [
        (0, 0.0, 0.0, 0.0),
        (1, 4.0, 0.0, 0.36),  # 36 % of all
        (2, 6.0, 0.36, 0.5),  # 64 % are left, 32 % stay: a half
        (3, 8.0, 0.68, 0.6875),  # 32 % are left, 10 % stay: 22 / 32
    ],
)
def test_a_stage_knows_where_it_lies(index: int, start: float, previous: float, pruned: float) -> None:
    stage = Stage(Budget(8, 0.9), PLAN, index)
    assert stage.segment == PLAN[index]
    assert stage.start == start
    assert stage.previous_sparsity == previous
    assert stage.pruned_fraction == pytest.approx(pruned)


def test_continued_schedules_are_one_schedule_cut_into_pieces() -> None:
    budget = Budget(8, 0.9, warmup=0.25, decay=falling)
    pieces = [Stage(budget, PLAN, index).continued() for index in range(3)]
    assert not any(piece.restarts for piece in pieces)
    # segment 1 holds epochs 0 to 4 of 8; its middle is a quarter of the budget, where the warm-up ends
    assert pieces[0](0.5) == pytest.approx(1.0)
    # epochs 4 to 6 and 6 to 8: done 0.5, 0.625, 0.75 and so on, (1 - done) / 0.75
    assert [pieces[1](x) for x in (0.0, 0.5, 1.0)] == pytest.approx([0.5 / 0.75, 0.375 / 0.75, 0.25 / 0.75])
    assert [pieces[2](x) for x in (0.0, 0.5, 1.0)] == pytest.approx([0.25 / 0.75, 0.125 / 0.75, 0.0])
    for left, right in pairwise(pieces):
        assert left(1.0) == pytest.approx(right(0.0))


def test_a_schedule_starts_with_a_fresh_optimizer_unless_it_says_otherwise() -> None:
    schedule = Schedule(lambda done: 2.0 * done)
    assert schedule.restarts
    assert schedule(0.25) == 0.5


def test_a_method_that_gives_only_a_plan_has_one_schedule_and_no_extras() -> None:
    method, budget = Plain(), Budget(8, 0.9, decay=falling)
    rate = method.learning_rate(Stage(budget, method.plan(budget), 0))
    assert [rate(x) for x in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]
    assert not rate.restarts
    assert method.extra({}) == {}


def test_contracts_cannot_be_used_without_their_one_method() -> None:
    for contract in (PruningMethod, CoefficientMerge):
        with pytest.raises(TypeError, match="abstract"):
            contract()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("weights", "merged", "ingredients"),
    [
        ((0.25, 0.25, 0.5), 0.25 * 1 + 0.25 * 10 + 0.5 * 100, (3, 4, 7)),
        ((0.0, 1.0, 0.0), 10.0, (4,)),
        ((1.5, 0.0, -0.5), 1.5 - 50.0, (3, 7)),  # outside the simplex is allowed
    ],
)
def test_a_coefficient_merge_averages_and_names_what_went_in(
    weights: tuple[float, ...], merged: float, ingredients: tuple[int, ...]
) -> None:
    candidates = [Number(3, 1.0), Number(4, 10.0), Number(7, 100.0)]
    soup = Chosen(weights).merge(candidates, averaging_step())
    assert soup.tensors == {"weight": pytest.approx(merged)}
    assert soup.coefficients == weights
    assert soup.ingredients == ingredients


def test_a_coefficient_merge_needs_a_coefficient_for_each_candidate() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Chosen([0.5, 0.5]).merge([Number(i, 1.0) for i in range(3)], averaging_step())


def test_the_default_scores_masks_and_effective_weights_are_magnitudes_and_products() -> None:
    torch = pytest.importorskip("torch")
    method = Plain()
    weights = {"a": torch.tensor([-3.0, 1.0, 2.0])}
    asked: list[Any] = []
    step = SimpleNamespace(weights=weights, select=lambda scores: asked.append(scores) or "masks")
    assert method.masks(cast(Any, step)) == "masks"
    assert asked[0]["a"].tolist() == [3.0, 1.0, 2.0]
    training = sparsekit.TrainingStep(weights, {"a": torch.tensor([1.0, 0.0, 1.0])}, {}, 0.5)
    assert method.effective(training)["a"].tolist() == [-3.0, 0.0, 2.0]
