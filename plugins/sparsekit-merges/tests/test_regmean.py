"""RegMean: regressions worked by hand on a network of two layers, patches against torch's own convolution, a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparsekit_merges.regmean import RegMean, layer_grams, layer_inputs, solved, takes_rows
from torch import Tensor, nn

from sparsekit import Candidate, MergeStep, Score, Tensors
from sparsekit.testing import check_merge


class InMemory(Candidate):
    def __init__(self, index: int, tensors: Tensors) -> None:
        self.index, self.tensors, self.score = index, tensors, Score(0.5, 1.0)

    def names(self) -> Sequence[str]:
        return sorted(self.tensors)

    def read(self, name: str) -> Tensor:
        return self.tensors[name].clone()


def average(candidates: Sequence[Candidate], coefficients: Sequence[float]) -> Tensors:
    mixed: Tensors = {}
    for name in candidates[0].names():
        stack = torch.stack([candidate.read(name) for candidate in candidates])
        if stack.is_floating_point():
            weights = torch.tensor(coefficients, dtype=torch.float64)
            mixed[name] = torch.tensordot(weights, stack.double(), 1).to(stack.dtype)
        else:
            mixed[name] = stack[0]
    return mixed


def unused(*_: Any, **__: Any) -> Any:
    raise AssertionError("this merge must not ask for it")


def step_of(make: Callable[[], nn.Module], inputs: Tensor, masks: Tensors | None = None, limit: int = 256) -> MergeStep:
    def model(tensors: Tensors) -> nn.Module:
        made = make().eval()
        made.load_state_dict({name: t for name, t in tensors.items() if not name.startswith("extra.")})
        return made

    def images(split: str, given: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        assert (split, given) == ("train", limit)
        for part in inputs.split(2):
            yield part, torch.zeros(len(part))

    return MergeStep(
        average=average,
        score=unused,
        loss=unused,
        fisher=unused,
        parent={},
        generator=torch.Generator(),
        masks=masks or {},
        model=model,
        images=images,
    )


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1))


def candidates() -> list[Candidate]:
    """Two networks; for the inputs (1, 0) and (0, 1) their second layers see (1, 1), (0, 1) and (1, 0), (0, 1)."""
    first = {"0.weight": [[1.0, 0.0], [1.0, 1.0]], "1.weight": [[1.0, 0.0]], "1.bias": [1.0]}
    second = {"0.weight": [[1.0, 0.0], [0.0, 1.0]], "1.weight": [[0.0, 1.0]], "1.bias": [4.0]}
    return [InMemory(i, {n: torch.tensor(v) for n, v in each.items()}) for i, each in enumerate((first, second))]


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        # G = ((1, 1), (1, 2)) and 1; Σ G = ((2, 1), (1, 3)), Σ G w = (1, 1) + (0, 1): ((3 − 2)/5, (4 − 1)/5)
        (1.0, [0.2, 0.6]),
        # Σ G = ((2, ½), (½, 3)) of determinant 5.75, Σ G w = (1, ½) + (0, 1)
        (0.5, [(3.0 - 0.75) / 5.75, (3.0 - 0.5) / 5.75]),
        # each weight by the mean square of its input: (1 · 1 + 1 · 0) / 2, (2 · 0 + 1 · 1) / 3
        (0.0, [1 / 2, 1 / 3]),
    ],
)
def test_two_layers_by_hand(alpha: float, expected: list[float]) -> None:
    soup = RegMean(alpha, images=2).merge(candidates(), step_of(two_layers, torch.eye(2), limit=2))
    assert soup.tensors["1.weight"][0].tolist() == pytest.approx(expected, abs=1e-6)
    # the first layers see the same inputs: the plain mean, which other tensors take in any case
    assert soup.tensors["0.weight"].tolist() == [[1.0, 0.0], [0.5, 1.0]]
    assert soup.tensors["1.bias"].tolist() == [2.5]
    assert soup.coefficients is None
    assert soup.ingredients == (0, 1)


def test_the_regression_is_over_the_weights_that_are_kept() -> None:
    # only the second weight stays: Σ g₂₂ w₂ / Σ g₂₂ = (2 · 3 + 1 · 1) / 3, whatever lies off the diagonal
    found = candidates()
    for candidate, value in zip(found, (3.0, 1.0), strict=True):
        candidate.tensors["1.weight"] = torch.tensor([[0.0, value]])  # type: ignore[attr-defined]
    masks = {"1.weight": torch.tensor([[False, True]]), "0.weight": torch.tensor([[True, True], [True, True]])}
    for alpha in (0.0, 1.0):
        soup = RegMean(alpha).merge(found, step_of(two_layers, torch.eye(2), masks))
        assert soup.tensors["1.weight"][0].tolist() == pytest.approx([0.0, 7.0 / 3.0], abs=1e-6)
        assert soup.tensors["1.weight"][0, 0] == 0.0


def test_it_has_the_least_squared_error_of_all_layers_with_these_zeros() -> None:
    torch.manual_seed(0)
    rows = [torch.randn(30, 5).double() @ torch.randn(5, 5).double() for _ in range(3)]
    weights = [torch.randn(4, 5).double() for _ in rows]
    kept = torch.rand(4, 5) < 0.6
    kept[0] = True
    mean = sum(weights) / 3 * kept  # type: ignore[operator]
    grams = [x.T @ x for x in rows]
    pull = sum((w * kept - mean) @ g for w, g in zip(weights, grams, strict=True))
    found = mean + solved(sum(grams), pull, kept)  # type: ignore[arg-type]
    for output in range(4):  # torch's own least squares, output by output
        stacked = torch.cat(rows)[:, kept[output]]
        wanted = torch.cat([x @ (w * kept)[output] for x, w in zip(rows, weights, strict=True)])
        expected = torch.linalg.lstsq(stacked, wanted[:, None]).solution[:, 0]
        torch.testing.assert_close(found[output, kept[output]], expected, rtol=1e-5, atol=1e-6)
        assert not found[output, ~kept[output]].any()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4, bias=False),
        nn.Conv2d(6, 4, 3, padding=1, bias=False),
        nn.Conv2d(6, 4, (3, 2), stride=2, padding=(0, 1), dilation=(1, 2), bias=False),
        nn.Conv2d(6, 4, 3, groups=2, bias=False),
        nn.Conv2d(6, 6, 3, groups=6, bias=False),
    ],
    ids=str,
)
def test_a_layers_rows_times_its_weights_are_its_outputs(layer: nn.Linear | nn.Conv2d) -> None:
    inputs = torch.randn(3, 6) if isinstance(layer, nn.Linear) else torch.randn(3, 6, 7, 8)
    rows = layer_inputs(layer, inputs)
    groups = len(rows)
    weights = layer.weight.detach().reshape(groups, -1, rows.shape[2])
    found = (rows @ weights.mT).transpose(1, 2).flatten(0, 1)  # [outputs, images · places]
    outputs = layer(inputs).detach()
    torch.testing.assert_close(found, outputs.transpose(0, 1).flatten(1), rtol=1e-4, atol=1e-5)
    gram = layer_grams(nn.Sequential(layer), [inputs[:2], inputs[2:]])["0.weight"]
    torch.testing.assert_close(gram, rows.double().mT @ rows.double(), rtol=1e-5, atol=1e-5)


def test_what_is_no_linear_map_of_its_inputs_is_averaged() -> None:
    class Scaled(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return F.linear(inputs, 2.0 * self.weight)

    assert not takes_rows(Scaled(2, 2))
    assert not takes_rows(nn.Conv2d(2, 2, 3, padding="same"))
    assert not takes_rows(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"))
    assert layer_grams(nn.Sequential(Scaled(2, 2)), [torch.eye(2)]) == {}


def test_inputs_that_are_always_zero_leave_the_mean() -> None:
    found = candidates()
    soup = RegMean(1.0).merge(found, step_of(two_layers, torch.zeros(2, 2)))
    assert soup.tensors["1.weight"].tolist() == [[0.5, 0.5]]


def norm_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def a_model(seed: int, masks: Tensors | None = None) -> Tensors:
    torch.manual_seed(seed)
    tensors = {name: t.clone() for name, t in norm_net().state_dict().items()}
    tensors["1.num_batches_tracked"] += 7 + seed
    tensors["1.running_mean"] += torch.randn(4)
    tensors["extra.threshold"] = torch.randn(())
    return {name: t * masks[name] if masks and name in masks else t for name, t in tensors.items()}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_equal_candidates_give_the_common_model(count: int) -> None:
    model = a_model(0)
    step = step_of(norm_net, torch.randn(6, 1, 4, 4))
    soup = RegMean().merge([InMemory(index, model) for index in range(count)], step)
    assert soup.ingredients == tuple(range(count))
    assert sorted(soup.tensors) == sorted(model)
    for name, tensor in model.items():
        assert torch.equal(soup.tensors[name], tensor), name


def test_zeros_stay_exactly_and_integers_are_the_firsts() -> None:
    generator = torch.Generator().manual_seed(9)
    masks = {name: torch.rand(a_model(0)[name].shape, generator=generator) < 0.4 for name in ("0.weight", "4.weight")}
    models = [a_model(seed, masks) for seed in range(3)]
    step = step_of(norm_net, torch.randn(20, 1, 4, 4), masks)
    found = RegMean().merge([InMemory(index, model) for index, model in enumerate(models)], step).tensors
    for name, mask in masks.items():
        assert not found[name][~mask].any()
    assert int(found["1.num_batches_tracked"]) == 7
    mean = average([InMemory(0, model) for model in models], [1 / 3] * 3)
    for name in ("0.bias", "1.weight", "1.running_mean", "4.bias", "extra.threshold", "0.weight"):
        torch.testing.assert_close(found[name], mean[name])  # all see the same images
    assert not torch.allclose(found["4.weight"], mean["4.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.1}, "--merge.alpha is 1.1; give a factor from 0 to 1"),
        ({"alpha": float("nan")}, "--merge.alpha is nan; give a factor from 0 to 1"),
        ({"images": 0}, "--merge.images is 0; give 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegMean(**options)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"images": 32}, {"images": 8, "alpha": 1.0}])
def test_keeps_the_contract(options: dict[str, Any]) -> None:
    check_merge(RegMean, **options)
