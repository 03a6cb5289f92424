"""Known answers, worked by hand, for every merge, and the contract kit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import exp, inf, log, nan
from typing import Any

import pytest
import torch
from sparsekit_merges.dare import DARE
from sparsekit_merges.fisher import Fisher
from sparsekit_merges.learned import Learned
from sparsekit_merges.likelihood import Likelihood
from sparsekit_merges.model_stock import ModelStock
from sparsekit_merges.swa import SWA
from sparsekit_merges.ties import TIES
from torch import Tensor

from sparsekit import Candidate, MergeStep, MergeStrategy, Score, Soup, Tensors
from sparsekit.testing import check_merge

MERGES: dict[str, Callable[[], MergeStrategy]] = {
    "fisher": Fisher,
    "learned": Learned,
    "learned per tensor": lambda: Learned(per="tensor"),
    "model_stock": ModelStock,
    "likelihood": Likelihood,
    "swa": SWA,
    "ties": lambda: TIES(density=1.0),
    "dare": lambda: DARE(density=1.0),
}
ALL = MERGES | {"ties, trimming": lambda: TIES(density=0.2), "dare, dropping": lambda: DARE(density=0.2)}


class InMemory(Candidate):
    def __init__(self, index: int, tensors: Tensors, loss: float = 1.0) -> None:
        self.index, self.tensors, self.score = index, tensors, Score(0.5, loss)

    def names(self) -> Sequence[str]:
        return sorted(self.tensors)

    def read(self, name: str) -> Tensor:
        return self.tensors[name].clone()


def average(candidates: Sequence[Candidate], coefficients: Sequence[float]) -> Tensors:
    assert sum(coefficients) == pytest.approx(1.0, abs=1e-9)
    mixed: Tensors = {}
    for name in candidates[0].names():
        stack = torch.stack([c.read(name) for c in candidates])
        if stack.is_floating_point():
            weights = torch.tensor(coefficients, dtype=torch.float64)
            mixed[name] = torch.tensordot(weights, stack.double(), 1).to(stack.dtype)
        else:
            mixed[name] = stack[0]
    return mixed


def unused(*_: Any, **__: Any) -> Any:
    raise AssertionError("this merge must not ask for it")


def merge_step(parent: Tensors, **given: Any) -> MergeStep:
    generator = torch.Generator().manual_seed(0)
    step = MergeStep(average=average, score=unused, loss=unused, fisher=unused, parent=parent, generator=generator)
    return replace(step, **given)


def as_models(rows: Sequence[Sequence[float]], losses: Sequence[float] | None = None) -> list[Candidate]:
    values = losses or [1.0] * len(rows)
    return [InMemory(i, {"w": torch.tensor(row)}, loss) for i, (row, loss) in enumerate(zip(rows, values, strict=True))]


def merged(merge: MergeStrategy, rows: Sequence[Sequence[float]], parent: Sequence[float], **given: Any) -> list[float]:
    soup = merge.merge(as_models(rows), merge_step({"w": torch.tensor(parent)}, **given))
    return [float(value) for value in soup.tensors["w"]]


# --- what all of them keep ---------------------------------------------------------------------------


@pytest.mark.slow
def test_likelihood_keeps_the_contract() -> None:
    check_merge(Likelihood)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Fisher, {"images": 32}),
        (Learned, {"steps": 3}),
        (Learned, {"steps": 3, "per": "tensor"}),
        (ModelStock, {}),
        (SWA, {}),
        (TIES, {}),
        (TIES, {"density": 0.05, "scale": 2.0}),
        (DARE, {}),
        (DARE, {"density": 0.05}),
    ],
)
def test_keeps_the_contract(cls: type[MergeStrategy], options: dict[str, Any]) -> None:
    check_merge(cls, **options)


def a_model(seed: int, masks: Tensors | None = None) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    model = {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "bn.bias": torch.randn(4, generator=generator),
        "bn.num_batches_tracked": torch.tensor(7 + seed),
        "bn.running_mean": torch.randn(4, generator=generator),
        "bn.running_var": torch.rand(4, generator=generator) + 0.1,
        "extra.threshold": torch.randn((), generator=generator),
        "fc.weight": torch.randn(5, 4, generator=generator),
    }
    return {name: tensor * masks[name] if masks and name in masks else tensor for name, tensor in model.items()}


def a_step(parent: Tensors) -> MergeStep:
    def loss(tensors: Tensors) -> Tensor:
        assert not tensors["bn.running_var"].requires_grad, "BatchNorm cannot differentiate its statistics"
        return sum((t - 0.5).square().mean() for t in tensors.values() if t.is_floating_point())  # type: ignore[return-value]

    def fisher(candidate: Candidate, images: int = 256) -> Tensors:
        return {name: candidate.read(name).square() for name in candidate.names() if "bn." not in name}

    return merge_step(parent, loss=loss, fisher=fisher)


def assert_same(soup: Soup, model: Tensors) -> None:
    assert sorted(soup.tensors) == sorted(model)
    for name, tensor in model.items():
        assert soup.tensors[name].dtype is tensor.dtype
        assert torch.equal(soup.tensors[name], tensor), name


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_equal_candidates_give_the_common_model(name: str, count: int) -> None:
    model = a_model(0)
    soup = MERGES[name]().merge([InMemory(i, model) for i in range(count)], a_step(a_model(1)))
    assert_same(soup, model)
    assert soup.ingredients == tuple(range(count))


@pytest.mark.parametrize("merge", [TIES(density=0.2), DARE(density=0.2), ModelStock()], ids=["ties", "dare", "stock"])
def test_unchanged_candidates_give_the_parent(merge: MergeStrategy) -> None:
    model = a_model(0)
    assert_same(merge.merge([InMemory(i, model) for i in range(3)], a_step(model)), model)


@pytest.mark.parametrize("merge", [TIES(density=0.2), DARE(density=0.2), ModelStock(), Fisher()])
def test_a_single_candidate_is_not_merged_and_keeps_its_optimizer_state(merge: MergeStrategy) -> None:
    soup = merge.merge([InMemory(4, a_model(0))], a_step(a_model(1)))
    assert_same(soup, a_model(0))
    assert soup.coefficients == (1.0,)
    assert soup.ingredients == (4,)


@pytest.mark.parametrize("name", ALL)
def test_common_zeros_stay_exactly(name: str) -> None:
    generator = torch.Generator().manual_seed(9)
    masks = {k: torch.rand(v.shape, generator=generator) < 0.3 for k, v in a_model(0).items() if k.endswith(".weight")}
    merge = ALL[name]()
    candidates = [InMemory(i, a_model(i + 1, masks), loss=1.0 + i / 100) for i in range(3)]
    soup = merge.merge(candidates, a_step(a_model(0, masks)))
    for key, mask in masks.items():
        assert not soup.tensors[key][~mask].any(), key
        assert soup.tensors[key][mask].any(), key
    assert soup.tensors["bn.num_batches_tracked"] == 8
    assert (soup.tensors["bn.running_var"] > 0.0).all()
    again = merge.merge(candidates, a_step(a_model(0, masks)))
    assert_same(again, soup.tensors)


@pytest.mark.parametrize("merge", [TIES(density=0.2), DARE(density=0.2), ModelStock()], ids=["ties", "dare", "stock"])
def test_statistics_take_the_plain_mean(merge: MergeStrategy) -> None:
    candidates = [InMemory(i, a_model(i + 1)) for i in range(3)]
    plain = average(candidates, [1 / 3] * 3)
    soup = merge.merge(candidates, a_step(a_model(0)))
    for name in ("bn.running_mean", "bn.running_var"):
        assert torch.equal(soup.tensors[name], plain[name])


# --- known answers -----------------------------------------------------------------------------------


def test_fisher_weighs_by_information_and_falls_back_to_the_mean() -> None:
    information = [[3.0, 0.0, 0.0], [1.0, 2.0, 0.0]]

    def fisher(candidate: Candidate, images: int) -> Tensors:
        assert images == 12
        return {"w": torch.tensor(information[candidate.index])}

    # norms 3 and √5: (1·1 + 5/√5)/(1 + 1/√5) = √5; the second weight is known to the second, to 1e-6; the third to none
    found = merged(Fisher(images=12), [[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]], [0.0] * 3, fisher=fisher)
    assert found == pytest.approx([5**0.5, 6.0, 5.0], abs=1e-5)


@pytest.mark.parametrize("factor", [5.0, 1e4, 1e-4])
def test_fisher_does_not_favour_the_candidate_with_the_larger_gradients(factor: float) -> None:
    """Gradients five times as large are squared gradients 25 times as large."""
    models = [[1.0, 2.0, 3.0], [5.0, -6.0, 7.0], [0.5, 0.25, 2.0]]
    information = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 4.0], [0.1, 0.3, 0.2]])

    def fisher(candidate: Candidate, images: int) -> Tensors:
        size = factor**2 if candidate.index == 1 else 1.0
        return {"w": size * information[candidate.index]}

    found = merged(Fisher(), models, [0.0] * 3, fisher=fisher)
    shares = (information.double() / information.double().norm(dim=1, keepdim=True)).clamp(min=1e-6)
    assert found == pytest.approx(((shares * torch.tensor(models)).sum(0) / shares.sum(0)).tolist(), rel=1e-5)


def test_fisher_of_a_candidate_without_information_leaves_it_to_the_others() -> None:
    def fisher(candidate: Candidate, images: int) -> Tensors:
        return {"w": torch.full((2,), float(candidate.index))}

    assert merged(Fisher(), [[9.0, 9.0], [1.0, 2.0]], [0.0] * 2, fisher=fisher) == pytest.approx([1.0, 2.0], abs=1e-4)


def test_learned_finds_the_best_mixture() -> None:
    # loss (x − 0.75)² of the mixture x of 0 and 1: three quarters of the second
    merge = Learned(steps=300, lr=0.05)
    step = merge_step({"w": torch.zeros(1)}, loss=lambda tensors: (tensors["w"] - 0.75).square().sum())
    soup = merge.merge(as_models([[0.0], [1.0]]), step)
    assert soup.coefficients == pytest.approx((0.25, 0.75), abs=1e-3)
    assert float(soup.tensors["w"]) == pytest.approx(0.75, abs=1e-3)


def test_learned_takes_its_first_step_from_the_mean() -> None:
    # Adam's first step moves each logit by the learning rate, whatever the size of its gradient
    step = merge_step({"w": torch.zeros(1)}, loss=lambda tensors: -tensors["w"].sum())
    shares = Learned(steps=1, lr=0.5).coefficients(as_models([[0.0], [1.0]]), step)
    assert shares == pytest.approx([exp(-0.5) / (exp(0.5) + exp(-0.5)), exp(0.5) / (exp(0.5) + exp(-0.5))])


def test_learned_per_tensor_mixes_each_on_its_own() -> None:
    models = [
        {"a": torch.tensor([0.0]), "b": torch.tensor([1.0])},
        {"a": torch.tensor([1.0]), "b": torch.tensor([0.0])},
    ]

    def loss(tensors: Tensors) -> Tensor:
        return (tensors["a"] - 0.75).square().sum() + (tensors["b"] - 0.4).square().sum()

    step = merge_step(models[0], loss=loss)
    soup = Learned(per="tensor", steps=300, lr=0.05).merge([InMemory(i, m) for i, m in enumerate(models)], step)
    assert soup.coefficients is None
    assert float(soup.tensors["a"]) == pytest.approx(0.75, abs=1e-3)
    assert float(soup.tensors["b"]) == pytest.approx(0.4, abs=1e-3)


def test_learned_keeps_the_best_it_saw_and_stops_where_the_loss_is_not_finite() -> None:
    losses = iter([1.0, 0.5, 0.7, inf])
    seen: list[float] = []

    def loss(tensors: Tensors) -> Tensor:
        seen.append(float(tensors["w"].detach()))
        return tensors["w"].sum() * 0.0 + next(losses) - 0.1 * (tensors["w"] - tensors["w"].detach()).sum()

    soup = Learned(steps=10).merge(as_models([[0.0], [1.0]]), merge_step({"w": torch.zeros(1)}, loss=loss))
    assert len(seen) == 4
    assert float(soup.tensors["w"]) == pytest.approx(seen[1])


def test_model_stock_of_two_at_60_degrees() -> None:
    # parent 1; changes (2, 0) and (1, √3): cos θ = 1/2, t = 2·½/(1 + ½) = 2/3; mean change (3/2, √3/2)
    root = 3.0**0.5
    assert merged(ModelStock(), [[3.0, 1.0], [2.0, 1.0 + root]], [1.0, 1.0]) == pytest.approx([2.0, 1.0 + root / 3.0])


def test_model_stock_of_three_uses_the_mean_cosine() -> None:
    # e1, e1 + e2, e2 over √1, √2, √1: cosines 1/√2, 0, 1/√2, mean √2/3; t = √2/(1 + 2√2/3); mean change (2/3, 2/3)
    ratio = 2**0.5 / (1 + 2 * 2**0.5 / 3)
    found = merged(ModelStock(), [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], [0.0, 0.0])
    assert found == pytest.approx([2 / 3 * ratio] * 2)


@pytest.mark.parametrize("other", [[0.0, 2.0], [-1.0, 0.0], [0.0, 0.0]], ids=["right angle", "opposite", "unchanged"])
def test_model_stock_leaves_the_parent_where_nothing_agrees(other: list[float]) -> None:
    rows = [[1.0 + 4.0, 4.0], [other[0] + 4.0, other[1] + 4.0]]
    assert merged(ModelStock(), rows, [4.0, 4.0]) == pytest.approx([4.0, 4.0])


def test_model_stock_gives_each_tensor_its_own_angle() -> None:
    parent = {"a": torch.zeros(2), "b": torch.zeros(2)}
    one = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([1.0, 0.0])}
    two = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    soup = ModelStock().merge([InMemory(0, one), InMemory(1, two)], merge_step(parent))
    assert soup.tensors["a"].tolist() == pytest.approx([2.0, 0.0])
    assert soup.tensors["b"].tolist() == pytest.approx([0.0, 0.0])


def test_likelihood_weighs_by_loss() -> None:
    # ln 2 · T above the best weighs half of it, 2 ln 2 · T a quarter: 4/7, 2/7, 1/7
    losses = [0.3, 0.3 + 0.1 * log(2), 0.3 + 0.2 * log(2)]
    models = as_models([[7.0], [14.0], [0.0]], losses)
    soup = Likelihood(temperature=0.1).merge(models, merge_step({"w": torch.zeros(1)}))
    assert soup.coefficients == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    assert float(soup.tensors["w"]) == pytest.approx(8.0)


def test_likelihood_leaves_out_infinite_losses_and_survives_them() -> None:
    step = merge_step({"w": torch.zeros(1)})
    assert Likelihood().merge(as_models([[1.0], [2.0]], [inf, 0.5]), step).ingredients == (1,)
    assert Likelihood().coefficients(as_models([[1.0], [2.0]], [inf, inf]), step) == [0.5, 0.5]
    assert Likelihood(1e-300).coefficients(as_models([[1.0], [2.0]], [900.0, 0.5]), step) == [0.0, 1.0]


def test_swa_asks_for_trajectory_means_and_takes_their_mean() -> None:
    assert SWA().average_from == 0.75
    assert SWA(start=0.0).average_from == 0.0
    assert (SWA().average_decay, SWA(decay=0.99).average_decay) == (1.0, 0.99)
    assert merged(SWA(), [[1.0, 0.0], [3.0, 0.0]], [9.0, 9.0]) == [2.0, 0.0]


def test_ties_trims_elects_and_merges() -> None:
    parent = [10.0, 10.0, 10.0, 10.0, 0.0]
    # four live weights, the fifth is masked: half of them, two, keep their change
    changes = [
        [4.0, -3.0, 1.0, 0.0, 0.0],  # keeps 4 and −3
        [2.0, 5.0, -1.0, 0.5, 0.0],  # keeps 2 and 5
        [0.1, 2.0, 0.2, -3.0, 0.0],  # keeps 2 and −3
    ]
    rows = [[p + c for p, c in zip(parent, change, strict=True)] for change in changes]
    # first: 4 and 2; second: −3 + 5 + 2 > 0 elects plus, mean of 5 and 2; third: all trimmed; fourth: −3 alone
    assert merged(TIES(density=0.5), rows, parent) == pytest.approx([13.0, 13.5, 10.0, 7.0, 0.0])
    assert merged(TIES(density=0.5, scale=2.0), rows, parent) == pytest.approx([16.0, 17.0, 10.0, 4.0, 0.0])


def test_ties_trims_over_the_whole_model() -> None:
    parent = {"a": torch.zeros(2), "b": torch.zeros(2)}
    moved = {"a": torch.tensor([5.0, 4.0]), "b": torch.tensor([3.0, 1.0])}
    soup = TIES(density=0.5).merge([InMemory(0, moved), InMemory(1, moved)], merge_step(parent))
    assert soup.tensors["a"].tolist() == [5.0, 4.0]
    assert soup.tensors["b"].tolist() == [0.0, 0.0]


def test_ties_keeps_the_parent_where_changes_cancel() -> None:
    assert merged(TIES(density=1.0), [[3.0, 1.0], [1.0, 1.0]], [2.0, 0.0]) == [2.0, 1.0]


def test_ties_counts_weights_that_grew_from_zero_as_live() -> None:
    # three live weights of four: a third of them is one
    assert merged(TIES(density=1 / 3), [[0.0, 3.0, 2.0, 1.0]] * 2, [0.0, 0.0, 0.0, 1.0]) == [0.0, 3.0, 0.0, 1.0]


def test_dare_drops_and_rescales() -> None:
    draws = torch.rand((2, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64) < 0.5
    assert 0 < draws.sum() < draws.numel()
    parent = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    rows = [[2.0, 2.0, 2.0, 2.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0, 5.0, 0.0]]
    # a kept change of 1 becomes 2, one of 4 becomes 8; then the mean of both candidates
    expected = [1.0 + (2.0 * float(a) + 8.0 * float(b)) / 2.0 for a, b in zip(*draws[:, :5], strict=True)]
    assert merged(DARE(density=0.5), rows, parent) == pytest.approx([*expected, 0.0])


def test_dare_keeps_its_density_and_the_expected_change() -> None:
    model = {"w": torch.ones(40_000)}
    soup = DARE(density=0.25).merge([InMemory(0, model), InMemory(1, model)], merge_step({"w": torch.zeros(40_000)}))
    found = soup.tensors["w"]
    # two independent draws, each kept with probability 1/4: both 1/16, one 3/8
    assert float((found == 4.0).float().mean()) == pytest.approx(1 / 16, abs=0.01)
    assert float((found == 2.0).float().mean()) == pytest.approx(3 / 8, abs=0.01)
    assert float(found.mean()) == pytest.approx(1.0, abs=0.02)


# --- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Fisher(images=0), "--merge.images is 0; give 1 or more"),
        (lambda: Learned(steps=0), "--merge.steps is 0; give 1 or more"),
        (lambda: Learned(lr=0.0), "--merge.lr is 0; give a number above 0"),
        (lambda: Learned(lr=inf), "--merge.lr is inf; give a number above 0"),
        (lambda: Learned(per="banana"), "--merge.per is 'banana'; give model or tensor"),  # type: ignore[arg-type]
        (lambda: Likelihood(temperature=0.0), "--merge.temperature is 0; give a number of nats above 0"),
        (lambda: SWA(start=1.0), "--merge.start is 1; give a fraction of the segment from 0 to below 1"),
        (lambda: SWA(start=nan), "--merge.start is nan; give a fraction of the segment from 0 to below 1"),
        (lambda: TIES(density=0.0), "--merge.density is 0; give a fraction above 0 and up to 1"),
        (lambda: TIES(scale=-1.0), "--merge.scale is -1; give a number above 0"),
        (lambda: DARE(density=1.5), "--merge.density is 1.5; give a fraction above 0 and up to 1"),
    ],
)
def test_options_out_of_range_are_refused(build: Callable[[], MergeStrategy], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        build()
