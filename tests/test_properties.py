"""What holds of every installed merge and schedule, whatever the tensors, the budget and the sparsity."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn

from sparsekit import Candidate, MergeStep, MergeStrategy, PruningMethod, Score, Soup, Tensors
from sparsekit.api import Budget
from sparsekit.config.options import FitConfig, OptimizerConfig
from sparsekit.merging.average import average
from sparsekit.planning.plan import decay_shape, make_stages
from sparsekit.plugins.registry import discover, find

# --- merges -----------------------------------------------------------------------------------------

MERGES: dict[str, type[MergeStrategy]] = {name: find("merge", name).load() for name in discover().of("merge")}
MIXTURES = {"uniform", "greedy", "best", "none", "learned", "likelihood", "swa", "fisher"}  # of the candidates alone
DRAWN_IN = {"model_stock", "ties"}  # between the candidates and the parent
SYMMETRIC = sorted((MIXTURES | DRAWN_IN) - {"none"})
WHOLE: dict[str, dict[str, Any]] = {"ties": {"density": 1.0}, "dare": {"density": 1.0}}  # options that drop no change


class InMemory(Candidate):
    def __init__(self, index: int, accuracy: float, tensors: Tensors) -> None:
        self.index, self.tensors = index, tensors
        self.score = Score(accuracy, 2.0 - accuracy)

    def names(self) -> Sequence[str]:
        return sorted(self.tensors)

    def read(self, name: str) -> Tensor:
        return self.tensors[name].clone()


EXACT = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0])  # their sums do not round
EXTREME = st.sampled_from([1e-30, -1e-30, 1e-45, 3e18, -3e18])
VALUES = EXACT | EXTREME | st.floats(-4.0, 4.0, width=32)


@st.composite
def problems(
    draw: st.DrawFn, alike: bool = False, values: st.SearchStrategy[float] = VALUES
) -> tuple[Tensors, list[InMemory]]:
    """A parent and its candidates: ties, zeros in common and not, a live weight or none, any shapes."""
    shapes = {"a.weight": draw(arrays.array_shapes(max_dims=4, max_side=3)), "b.bias": (draw(st.integers(1, 3)),)}
    masks = {name: draw(arrays.arrays(np.bool_, shape)) for name, shape in shapes.items()}

    def model(step: int) -> Tensors:
        drawn = {n: draw(arrays.arrays(np.float32, s, elements=values)) * masks[n] for n, s in shapes.items()}
        tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in drawn.items()}
        return tensors | {"bn.running_var": torch.full((2,), 1.0 + step), "bn.num_batches_tracked": torch.tensor(step)}

    count = draw(st.integers(1, 5))
    accuracies = draw(st.permutations([0.1, 0.3, 0.5, 0.7, 0.9]))
    first = model(1)
    return model(0), [InMemory(i, accuracies[i], first if alike or not i else model(1 + i)) for i in range(count)]


def loss(tensors: Tensors) -> Tensor:
    return torch.stack([(t.clamp(-9, 9) ** 2).mean() for t in tensors.values() if t.is_floating_point()]).sum()


def network(tensors: Tensors) -> nn.Module:
    """The layer that a matrix may be of."""
    weight = tensors["a.weight"]
    if weight.dim() != 2:
        return nn.Sequential(nn.Identity())
    layer = nn.Linear(*reversed(weight.shape), bias=False)
    layer.load_state_dict({"weight": weight})
    return nn.Sequential(OrderedDict(a=layer))


def merged(name: str, parent: Tensors, candidates: Sequence[InMemory], **options: Any) -> Soup:
    names = candidates[0].names()

    def score(tensors: Tensors) -> Score:
        size = sum(float(t.double().abs().clamp(max=9.0).mean()) for t in tensors.values())
        return Score(1.0 / (1.0 + size), size)

    def fisher(candidate: Candidate, images: int = 256) -> Tensors:
        return {n: candidate.read(n).clamp(-2, 2).abs().sqrt() for n in names if n.endswith(("weight", "bias"))}

    def images(split: str, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.linspace(-1.0, 1.0, 5 * parent["a.weight"].shape[-1]).reshape(5, -1), torch.zeros(5)

    tensors = [parent["a.weight"], *(candidate.tensors["a.weight"] for candidate in candidates)]
    step = MergeStep(
        average=lambda some, coefficients: average(some, coefficients, names),
        score=score,
        loss=loss,
        fisher=fisher,
        parent=parent,
        generator=torch.Generator().manual_seed(0),
        masks={"a.weight": torch.stack(tensors).ne(0.0).any(0)},
        model=network,
        images=images,
    )
    return MERGES[name](**options).merge(candidates, step)


def floats(tensors: Tensors) -> list[str]:
    return [name for name, tensor in tensors.items() if tensor.is_floating_point()]


@pytest.mark.parametrize("name", MERGES)
@given(problem=problems())
def test_zeros_in_common_stay_exactly_zero_and_all_is_finite(
    name: str, problem: tuple[Tensors, list[InMemory]]
) -> None:
    parent, candidates = problem
    soup = merged(name, parent, candidates)
    assert sorted(soup.tensors) == list(candidates[0].names())
    assert set(soup.ingredients) <= {candidate.index for candidate in candidates}
    for key in floats(soup.tensors):
        dead = torch.stack([parent[key], *(c.tensors[key] for c in candidates)]).eq(0.0).all(0)
        assert not soup.tensors[key][dead].any(), key
        assert torch.isfinite(soup.tensors[key]).all(), key
        assert soup.tensors[key].dtype is parent[key].dtype
    assert soup.tensors["bn.num_batches_tracked"].dtype is torch.int64


@pytest.mark.parametrize("name", MERGES)
@given(problem=problems(alike=True))
def test_equal_candidates_give_the_candidate(name: str, problem: tuple[Tensors, list[InMemory]]) -> None:
    parent, candidates = problem
    soup = merged(name, parent, candidates, **WHOLE.get(name, {}))
    for key, tensor in candidates[0].tensors.items():
        # a change from a parent of 3e18 has no digits left for a weight of 1
        lost = 1e-9 * parent[key].abs().double() if name in WHOLE or name == "model_stock" else torch.zeros(())
        error = (soup.tensors[key].double() - tensor.double()).abs()
        assert (error <= 1e-6 * tensor.abs().double() + lost + (1e-12 if name == "model_stock" else 2e-45)).all(), key


@pytest.mark.parametrize("name", sorted(MIXTURES | DRAWN_IN))
@given(problem=problems())
def test_every_weight_lies_between_the_smallest_and_the_largest(
    name: str, problem: tuple[Tensors, list[InMemory]]
) -> None:
    parent, candidates = problem
    soup = merged(name, parent, candidates)
    for key in floats(soup.tensors):
        corners = [c.tensors[key] for c in candidates] + ([parent[key]] if name in DRAWN_IN else [])
        low, high = torch.stack(corners).double().aminmax(dim=0)
        slack = 1e-6 * torch.maximum(low.abs(), high.abs()) + 2e-45
        assert (soup.tensors[key].double() >= low - slack).all(), key
        assert (soup.tensors[key].double() <= high + slack).all(), key


@pytest.mark.parametrize("name", SYMMETRIC)
@given(data=st.data())
def test_the_order_of_the_candidates_does_not_matter(name: str, data: st.DataObject) -> None:
    """But for rounding, where they differ in accuracy; `none` takes the first, and `dare` drops at random.

    `ties` elects signs, which a rounded sum may turn: it gets values whose sums do not round. So does `learned`, which
    fits shares by gradient: where the loss is flat, rounding decides between shares that are equally good.
    """
    parent, candidates = data.draw(problems(values=EXACT if name in ("ties", "learned") else VALUES))
    soup, other = (merged(name, parent, order) for order in (candidates, data.draw(st.permutations(candidates))))
    assert sorted(soup.ingredients) == sorted(other.ingredients)
    if name == "learned":
        assert loss(soup.tensors).item() == pytest.approx(loss(other.tensors).item(), rel=1e-2, abs=1e-6)
        return
    for key in floats(soup.tensors):
        largest = torch.stack([t.tensors[key] for t in candidates] + [parent[key]]).abs().amax(0).double()
        within = 1e-6 * largest + 2e-45
        assert ((soup.tensors[key].double() - other.tensors[key].double()).abs() <= within).all(), key


# --- schedules --------------------------------------------------------------------------------------

METHODS: dict[str, type[PruningMethod]] = {name: find("method", name).load() for name in discover().of("method")}


@pytest.mark.parametrize("name", METHODS)
@given(
    epochs=st.integers(3, 300),
    sparsity=st.sampled_from([0.0, 1e-9, 0.5, 0.999999, math.nextafter(1.0, 0.0)]) | st.floats(0.0, 0.9999),
    shape=st.sampled_from(["cosine", "linear", "constant"]),
    warmup=st.floats(0.0, 0.99),
    low=st.floats(0.0, 1.0),
    change=st.floats(0.0, 1.0) | st.just(math.inf),
)
def test_every_learning_rate_is_a_fraction_of_the_largest(
    name: str, epochs: int, sparsity: float, shape: Any, warmup: float, low: float, change: float
) -> None:
    optimizer = OptimizerConfig(schedule=shape, warmup=warmup, min_lr=low)
    config = FitConfig(METHODS[name](), MERGES["uniform"](), sparsity=sparsity, epochs=epochs, optimizer=optimizer)
    stages = make_stages(config)
    assert sum(stage.segment.epochs for stage in stages) == pytest.approx(epochs)
    assert stages[-1].segment.sparsity == sparsity
    for stage in stages:
        object.__setattr__(stage, "relative_change", change)
        rate = stage.budget and config.method.learning_rate(stage)
        for i in range(21):
            assert 0.0 <= rate(i / 20) <= 1.0 + 1e-9, (stage.index, i)


def test_the_original_schedule_ends_where_it_is_told_to() -> None:
    for shape, end in (("cosine", 0.25), ("linear", 0.25), ("constant", 1.0)):
        budget = Budget(10.0, 0.9, 0.0, decay_shape(OptimizerConfig(schedule=shape, min_lr=0.25)))  # type: ignore[arg-type]
        assert budget.rate(1.0) == pytest.approx(end)
