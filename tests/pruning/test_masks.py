"""Masks against sorting, allocation against published formulas, and what counts as prunable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn

from sparsekit.config.nm_pattern import Pattern
from sparsekit.errors import RunError, UserError
from sparsekit.pruning import allocation, masks

INF = math.inf
SPARSITIES = [0.0, 0.1, 0.5, 0.9, 0.99]
SHAPES = {"stem": (8, 1, 3, 3), "wide": (32, 16, 3, 3), "deep": (64, 32, 1, 1), "head": (10, 64), "tiny": (2, 1)}


def by_sorting(scores: Mapping[str, Tensor], among: Mapping[str, Tensor], keep: int) -> dict[str, Tensor]:
    """The definition: sort by falling score, then by place; the first `keep` of those allowed stay."""
    everything = [float(s) for t in scores.values() for s in t.flatten()]
    allowed = [bool(a) for name in scores for a in among[name].flatten()]
    order = sorted((i for i in range(len(everything)) if allowed[i]), key=lambda i: (-everything[i], i))
    chosen = set(order[:keep])
    flags: Iterator[bool] = iter([i in chosen for i in range(len(everything))])
    return {name: torch.tensor([next(flags) for _ in range(t.numel())]).reshape(t.shape) for name, t in scores.items()}


def kept(chosen: Mapping[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in chosen.values())


def everything(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.ones(t.shape, dtype=torch.bool) for name, t in scores.items()}


def normal(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=generator).abs() for name, shape in shapes.items()}


# --- selection ------------------------------------------------------------------------------------

# few distinct values, so that ties are the rule
SCORES = st.sampled_from([-INF, -1.5, -1.0, -0.0, 0.0, 1e-45, 0.5, 1.0, 3.0, INF])


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Scores of one to three layers, what may stay, and a sparsity that it allows."""
    scores, among = {}, {}
    for number in range(draw(st.integers(1, 3))):
        shape = draw(arrays.array_shapes(max_dims=3, max_side=5))
        values = draw(arrays.arrays(np.float32, shape, elements=SCORES.map(np.float32)))
        alive = draw(arrays.arrays(np.bool_, shape))
        scores[f"layer{number}"], among[f"layer{number}"] = torch.from_numpy(values), torch.from_numpy(alive)
    total = sum(t.numel() for t in scores.values())
    pruned = draw(st.integers(total - kept(among), total))
    return scores, among, pruned / total


@given(problems())
@settings(max_examples=3 * settings().max_examples)
def test_global_selection_is_what_sorting_gives(problem: tuple[dict[str, Tensor], dict[str, Tensor], float]) -> None:
    scores, among, sparsity = problem
    total = sum(t.numel() for t in scores.values())
    keep = total - round(sparsity * total)
    chosen = masks.select(scores, among, sparsity, "global")
    expected = by_sorting(scores, among, keep)
    assert list(chosen) == list(scores)
    for name, mask in chosen.items():
        assert mask.dtype is torch.bool
        assert torch.equal(mask, expected[name]), name
    assert kept(chosen) == keep
    assert masks.sparsity(chosen) == round(sparsity * total) / total


@given(problems(), st.sampled_from(["uniform", "erk"]))
@settings(max_examples=2 * settings().max_examples)
def test_allocated_selection_is_sorting_in_each_layer(
    problem: tuple[dict[str, Tensor], dict[str, Tensor], float], rule: str
) -> None:
    scores, among, sparsity = problem
    total = sum(t.numel() for t in scores.values())
    chosen = masks.select(scores, among, sparsity, rule)
    assert kept(chosen) == total - round(sparsity * total)
    for name, mask in chosen.items():
        one = {name: scores[name]}
        assert torch.equal(mask, by_sorting(one, {name: among[name]}, int(mask.sum()))[name])


@pytest.mark.parametrize("rule", ["global", "uniform", "erk"])
@pytest.mark.parametrize("sparsity", [*SPARSITIES, 1 - 1 / 7000, 0.123456789])
@pytest.mark.parametrize("equal", [None, 0.0, 1.0, INF, -INF])
def test_counts_are_exact_whatever_the_scores(rule: str, sparsity: float, equal: float | None) -> None:
    scores = normal(SHAPES) if equal is None else {n: torch.full(s, equal) for n, s in SHAPES.items()}
    total = sum(t.numel() for t in scores.values())
    assert kept(masks.select(scores, everything(scores), sparsity, rule)) == total - round(sparsity * total)


@pytest.mark.parametrize("rule", ["global", "uniform", "erk"])
def test_one_weight_left_and_none_pruned(rule: str) -> None:
    scores = normal(SHAPES)
    total = sum(t.numel() for t in scores.values())
    one = masks.select(scores, everything(scores), 1 - 1 / total, rule)
    assert kept(one) == 1
    if rule == "global":
        (best,) = [scores[name][mask] for name, mask in one.items() if mask.any()]
        assert best == max(t.max() for t in scores.values())
    assert kept(masks.select(scores, everything(scores), 0.0, rule)) == total


def test_of_equal_scores_the_first_stay() -> None:
    scores = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    chosen = masks.select(scores, everything(scores), 0.5, "global")
    assert chosen["a"].flatten().tolist() == [True] * 5 + [False]
    assert not chosen["b"].any()
    assert torch.equal(chosen["a"], by_sorting(scores, everything(scores), 5)["a"])


def test_many_ties_at_a_large_size() -> None:
    scores = {"a": torch.zeros(300, 1000)}
    scores["a"][::3, ::7] = 1.0  # fewer than are kept, so that zeros fill up the rest
    chosen = masks.select(scores, everything(scores), 0.5, "global")["a"]
    assert int(chosen.sum()) == 150_000
    assert chosen[scores["a"] == 1.0].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_scores_of_any_type(dtype: torch.dtype) -> None:
    scores = {"a": torch.tensor([[3, 1, 2], [6, 5, 4]]).to(dtype)}
    chosen = masks.select(scores, everything(scores), 0.5, "global")["a"]
    assert chosen.tolist() == [[False, False, False], [True, True, True]]


def test_scores_that_need_gradients_or_lie_transposed() -> None:
    base = torch.tensor([[3.0, 1.0], [2.0, 6.0], [5.0, 4.0]])
    scores = {"a": base.clone().requires_grad_().T}
    chosen = masks.select(scores, everything(scores), 0.5, "global")["a"]
    assert torch.equal(chosen, base.T > 3.5)


def test_what_is_masked_stays_masked_unless_it_may_regrow() -> None:
    scores = {"a": torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])}
    alive = {"a": torch.tensor([False, True, True, True, True, True])}
    assert masks.select(scores, alive, 0.5, "global")["a"].tolist() == [False, True, True, True, False, False]
    assert masks.select(scores, masks.full(alive), 0.5, "global")["a"].tolist() == [True] * 3 + [False] * 3


def test_selecting_again_changes_nothing() -> None:
    scores = normal(SHAPES)
    for rule in ("global", "uniform", "erk"):
        once = masks.select(scores, everything(scores), 0.8, rule)
        for name, mask in masks.select(scores, once, 0.8, rule).items():
            assert torch.equal(mask, once[name])


@pytest.mark.parametrize("rule", ["global", "uniform", "erk"])
def test_nan_is_refused_where_it_matters(rule: str) -> None:
    scores = {"a": torch.tensor([1.0, math.nan, 2.0, 3.0])}
    with pytest.raises(RunError, match="NaN"):
        masks.select(scores, everything(scores), 0.5, rule)
    among = {"a": torch.tensor([True, False, True, True])}  # what is pruned already needs no score
    assert masks.select(scores, among, 0.5, rule)["a"].tolist() == [False, False, True, True]


@pytest.mark.parametrize("wrong", [-1.0, math.inf, -math.inf])
def test_lamp_refuses_what_its_squares_would_turn_over(wrong: float) -> None:
    scores = {"a": torch.tensor([1.0, wrong, 2.0, 3.0])}
    with pytest.raises(RunError, match=r"^--masks\.allocation lamp takes finite scores of 0 or more, but a has "):
        masks.select(scores, everything(scores), 0.5, "lamp")
    among = {"a": torch.tensor([True, False, True, True])}
    assert masks.select(scores, among, 0.5, "lamp")["a"].tolist() == [False, False, True, True]


def test_too_few_weights_left_to_keep() -> None:
    scores = {"a": torch.ones(4)}
    with pytest.raises(RunError, match="3 weights of the model are to be kept, but 2 are left"):
        masks.select(scores, {"a": torch.tensor([True, False, True, False])}, 0.25, "global")


# --- allocation -----------------------------------------------------------------------------------


def erk_densities(shapes: Mapping[str, Sequence[int]], keep: int) -> dict[str, float]:
    """min(1, ε · Σ dims / Π dims), ε by bisection so that `keep` weights stay."""

    def densities(epsilon: float) -> dict[str, float]:
        return {name: min(1.0, epsilon * sum(shape) / math.prod(shape)) for name, shape in shapes.items()}

    low, high = 0.0, float(max(math.prod(shape) for shape in shapes.values()))
    for _ in range(200):
        middle = (low + high) / 2
        size = sum(d * math.prod(shapes[name]) for name, d in densities(middle).items())
        low, high = (middle, high) if size < keep else (low, middle)
    return densities(high)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_erk_counts_follow_the_formula(sparsity: float) -> None:
    sizes = {name: math.prod(shape) for name, shape in SHAPES.items()}
    keep = sum(sizes.values()) - round(sparsity * sum(sizes.values()))
    counts = allocation.erk(SHAPES, sparsity, sizes)
    assert sum(counts.values()) == keep
    for name, density in erk_densities(SHAPES, keep).items():
        assert abs(counts[name] - density * sizes[name]) < 1.0, name


def test_erk_by_hand() -> None:
    # Σ dims 4 and 20, 4 and 100 weights: ε = 52/24 would give "a" 8.7 of its 4, so it is dense and "b" takes 48
    assert allocation.erk({"a": (2, 2), "b": (10, 10)}, 0.5, {"a": 4, "b": 100}) == {"a": 4, "b": 48}
    # ε = 10/24: 1.67 and 8.33
    assert allocation.erk({"a": (2, 2), "b": (10, 10)}, 94 / 104, {"a": 4, "b": 100}) == {"a": 2, "b": 8}


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_uniform_counts_are_one_density(sparsity: float) -> None:
    sizes = {name: math.prod(shape) for name, shape in SHAPES.items()}
    counts = allocation.uniform(SHAPES, sparsity, sizes)
    assert sum(counts.values()) == sum(sizes.values()) - round(sparsity * sum(sizes.values()))
    for name, size in sizes.items():
        assert abs(counts[name] - (1 - sparsity) * size) < 1.0 + 1e-6, name


def test_uniform_by_hand() -> None:
    # 1.5, 2.5 and 6 of 10 in all: the two halves compete, the first layer wins
    shapes = {"a": (3,), "b": (5,), "c": (12,)}
    assert allocation.uniform(shapes, 0.5, {"a": 3, "b": 5, "c": 12}) == {"a": 2, "b": 2, "c": 6}
    # a layer that has only one left passes its share on
    counts = allocation.uniform(shapes, 0.5, {"a": 1, "b": 5, "c": 12})
    assert (counts["a"], sum(counts.values())) == (1, 10)


@pytest.mark.parametrize("rule", ["global", "uniform", "erk"])
def test_a_ramp_never_runs_out_in_any_layer(rule: str) -> None:
    scores = normal(SHAPES)
    chosen = masks.full(scores)
    total = sum(t.numel() for t in scores.values())
    for step in range(1, 41):
        sparsity = 0.98 * (1 - (1 - step / 40) ** 3)
        after = masks.select(normal(SHAPES, step), chosen, sparsity, rule)
        assert kept(after) == total - round(sparsity * total)
        assert all(not (mask & ~chosen[name]).any() for name, mask in after.items())
        chosen = after


# --- a floor --------------------------------------------------------------------------------------


@pytest.mark.parametrize("floor", [3.0, 0.05])
def test_with_a_floor_each_layer_keeps_its_best_and_the_rest_is_by_score(floor: float) -> None:
    scores = {name: t * (10.0 if name == "head" else 1.0) for name, t in normal(SHAPES).items()}
    total = sum(t.numel() for t in scores.values())
    keep = total - round(0.9 * total)
    least = {n: min(3, t.numel()) if floor >= 1 else math.ceil(floor * t.numel()) for n, t in scores.items()}
    ranked = sorted(((float(v), n, i) for n, t in scores.items() for i, v in enumerate(t.flatten())), reverse=True)
    safe = {(n, i) for n in scores for _, _, i in [r for r in ranked if r[1] == n][: least[n]]}
    rest = [(n, i) for _, n, i in ranked if (n, i) not in safe][: keep - len(safe)]
    chosen = masks.select(scores, masks.full(scores), 0.9, "global", floor=floor)
    assert {(n, i) for n, m in chosen.items() for i in m.flatten().nonzero().flatten().tolist()} == safe | set(rest)


@pytest.mark.parametrize("pattern", [None, Pattern(2, 4)])
@pytest.mark.parametrize("rule", ["global", "lamp", "uniform", "erk"])
def test_a_floor_holds_through_a_whole_ramp_and_the_total_stays_exact(rule: str, pattern: Pattern | None) -> None:
    shapes = {"first": (6, 4, 3, 3), "small": (1, 8), "wide": (64, 32), "last": (10, 16)}
    total = sum(math.prod(shape) for shape in shapes.values())
    chosen = masks.full(normal(shapes))
    for step in range(1, 21):
        sparsity = 0.98 * (1 - (1 - step / 20) ** 3)
        scores = {n: t.abs() * (100.0 if n == "wide" else 1.0) for n, t in normal(shapes, step).items()}
        after = masks.select(scores, chosen, sparsity, rule, pattern, floor=6.0)
        assert kept(after) == total - round(sparsity * total)
        assert all(not (mask & ~chosen[name]).any() for name, mask in after.items())
        least = {name: 4 if pattern and name == "small" else 6 for name in shapes}  # the pattern keeps half of 8
        assert all(int(mask.sum()) >= least[name] for name, mask in after.items())
        chosen = after
    assert not pattern or all(pattern.holds(mask.numpy()) for mask in chosen.values())


def test_without_a_floor_a_layer_may_lose_all() -> None:
    scores = {"a": torch.ones(2, 4), "b": torch.full((4, 4), 2.0)}
    assert masks.empty(masks.select(scores, masks.full(scores), 0.5, "global")) == ["a"]
    assert masks.empty(masks.select(scores, masks.full(scores), 0.5, "global", floor=1.0)) == []


# --- what can be pruned ---------------------------------------------------------------------------


class Zoo(nn.Module):
    """One layer of every kind that has a `weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(2, 3, 3)
        self.conv = nn.Conv2d(2, 3, 3)
        self.conv3d = nn.Conv3d(2, 3, 3)
        self.transposed = nn.ConvTranspose2d(2, 3, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.InstanceNorm2d(3)])
        self.embedding = nn.Embedding(5, 3)
        self.prelu = nn.PReLU(3)
        self.attention = nn.MultiheadAttention(4, 2)
        self.bilinear = nn.Bilinear(2, 2, 2)
        self.scale = nn.Parameter(torch.ones(3, 3))
        self.body = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 5, bias=False))
        self.head = nn.Linear(3, 2)


def test_only_conv_and_linear_weights_are_prunable() -> None:
    expected = ["conv1d", "conv", "conv3d", "transposed", "attention.out_proj", "body.0", "body.2", "head"]
    assert masks.prunable_names(Zoo()) == [f"{name}.weight" for name in expected]
    assert masks.prunable_names(nn.Linear(2, 2)) == ["weight"]


def test_shared_weights_are_refused() -> None:
    twice, tied, output = Zoo(), Zoo(), Zoo()
    twice.again = twice.body[0]  # a state dict names it twice, and a mask would stand by one of the names
    tied.tied = nn.Linear(3, 3)
    tied.tied.weight = tied.body[0].weight
    output.out = nn.Linear(3, 5)
    output.out.weight = output.embedding.weight
    for model, name in ((twice, "again"), (tied, "tied"), (output, "out")):
        with pytest.raises(UserError, match=rf"^--model\.name: two layers share {name}\.weight, "):
            masks.prunable_names(model)
    output.out = nn.Identity()
    output.norms.append(output.norms[0])  # what is not pruned may be shared
    assert masks.prunable_names(output) == masks.prunable_names(Zoo())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet"])
def test_prunable_weights_of_timm_models_are_matrices_and_kernels(name: str) -> None:
    model = timm.create_model(name, num_classes=10)
    found = set(masks.prunable_names(model))
    modules = dict(model.named_modules())
    for parameter, tensor in model.named_parameters():
        owner, _, key = parameter.rpartition(".")
        wanted = key == "weight" and type(modules[owner]).__name__.endswith(("Conv2d", "Conv2dSame", "Linear"))
        assert (parameter in found) == wanted, (parameter, type(modules[owner]))
        assert tensor.ndim > 1 or parameter not in found


def test_excluded_weights_are_found_by_regular_expressions() -> None:
    names = masks.prunable_names(Zoo(), ["conv", r"body\.\d", "^head"])
    assert names == ["transposed.weight", "attention.out_proj.weight"]


def test_exclusions_that_find_nothing_or_everything() -> None:
    with pytest.raises(UserError, match=r"--masks.exclude: 'fc' finds no Conv or Linear weight.*'conv1d.weight'"):
        masks.prunable_names(Zoo(), ["conv", "fc"])
    with pytest.raises(UserError, match="leaves nothing to prune"):
        masks.prunable_names(Zoo(), ["."])


# --- checks ---------------------------------------------------------------------------------------


def test_check_finds_a_masked_weight_that_is_not_zero() -> None:
    mask = {"w": torch.tensor([True, False, False])}
    masks.check({"w": torch.tensor([0.0, 0.0, -0.0]), "other": torch.ones(2)}, mask, "here")
    for value in (1e-45, math.nan, -INF):
        with pytest.raises(RunError, match="here: w has masked weights"):
            masks.check({"w": torch.tensor([1.0, 0.0, value])}, mask, "here")


def test_digests_are_equal_for_equal_masks_only() -> None:
    one = {"a": torch.tensor([[True, False], [True, True]]), "b": torch.tensor([True] * 9)}
    same = {name: mask.clone() for name, mask in reversed(one.items())}
    assert masks.digest(one) == masks.digest(same)
    for name, mask in one.items():
        for place in range(mask.numel()):
            other = {**one, name: mask.clone()}
            other[name].view(-1)[place] ^= True
            assert masks.digest(other) != masks.digest(one)


def test_sparsity_is_the_share_of_masked_weights() -> None:
    assert masks.sparsity({"a": torch.tensor([True, False, False]), "b": torch.tensor([True])}) == 0.5
    assert masks.sparsity(masks.full({"a": torch.zeros(7)})) == 0.0
