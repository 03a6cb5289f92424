"""Averages against float64, the built-in merges on cases made by hand, and what a soup must be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import MERGES, METHODS, OnePrune, assert_equal, dense_then_pruned, masked_are_zero, tiny_setup, trained
from torch import Tensor

from sparsekit import Candidate, CoefficientMerge, MergeStep, MergeStrategy, Schedule, Score, Soup, Stage, Tensors
from sparsekit.config.options import DataConfig, ReplicasConfig
from sparsekit.data import Split
from sparsekit.errors import RunError
from sparsekit.merges.best import Best
from sparsekit.merges.greedy import Greedy
from sparsekit.merges.none import NoMerge
from sparsekit.merges.uniform import Uniform
from sparsekit.merging.average import average
from sparsekit.merging.candidates import FileCandidate
from sparsekit.merging.merge import merge
from sparsekit.models.state import State, effective
from sparsekit.planning.replicas import Replica
from sparsekit.training.setup import Setup


class InMemory(Candidate):
    """A candidate with tensors and a score of our choosing."""

    def __init__(self, index: int, accuracy: float = 0.5, loss: float = 1.0, **tensors: Tensor) -> None:
        self.index, self.score, self.tensors = index, Score(accuracy, loss), tensors

    def names(self) -> Sequence[str]:
        return list(self.tensors)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


# --- the average --------------------------------------------------------------------------------------


def three() -> list[InMemory]:
    generator = torch.Generator().manual_seed(0)
    return [
        InMemory(
            i,
            w=torch.randn(50, 20, generator=generator) * 10.0**i,
            b=torch.randn(20, generator=generator, dtype=torch.float64),
            half=torch.randn(30, generator=generator).bfloat16(),
            count=torch.tensor(10 + i),
            flag=torch.tensor([i == 0, True]),
        )
        for i in range(3)
    ]


FLOATS = ["w", "b", "half"]


@pytest.mark.cuda
def test_a_mean_on_the_device_has_the_same_bits() -> None:
    candidates, weights = three(), [0.2, 0.5, 0.3]
    on_cpu = average(candidates, weights, FLOATS)
    on_cuda = average(candidates, weights, FLOATS, torch.device("cuda"))
    assert all(torch.equal(on_cpu[name], on_cuda[name]) for name in FLOATS)


def test_equal_coefficients_give_the_mean_in_float64() -> None:
    candidates = three()
    mean = average(candidates, [1 / 3] * 3, candidates[0].names())
    assert list(mean) == ["w", "b", "half", "count", "flag"]
    for name in FLOATS:
        expected = torch.stack([c.read(name) for c in candidates]).double().mean(0)
        assert mean[name].dtype is candidates[0].read(name).dtype
        within = {"w": 1.2e-7, "b": 1e-12, "half": 4e-3}[name]  # one step of the type, at most
        torch.testing.assert_close(mean[name], expected.to(mean[name].dtype), rtol=within, atol=0.0)


@pytest.mark.parametrize("weights", [(0.2, 0.3, 0.5), (0.0, 0.25, 0.75), (2.0, 0.0, -1.0), (0.0, 0.0, 1.0)])
def test_any_coefficients(weights: tuple[float, ...]) -> None:
    candidates = three()
    mixed = average(candidates, weights, FLOATS)
    for name in FLOATS:
        parts = [weight * c.read(name).double() for weight, c in zip(weights, candidates, strict=True)]
        expected = torch.stack(parts).sum(0).to(mixed[name].dtype)
        torch.testing.assert_close(mixed[name], expected, rtol=1e-6, atol=1e-7)


def test_integers_are_never_averaged_but_come_from_the_first_that_is_used() -> None:
    candidates = three()
    for weights, first in (((0.2, 0.3, 0.5), 0), ((0.0, 0.25, 0.75), 1), ((0.0, 0.0, 1.0), 2)):
        mixed = average(candidates, weights, ["count", "flag"])
        assert int(mixed["count"]) == 10 + first
        assert mixed["count"].dtype is torch.int64
        assert torch.equal(mixed["flag"], candidates[first].read("flag"))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 10])
def test_identical_copies_average_to_themselves_bit_for_bit(count: int) -> None:
    copies = [InMemory(i, **three()[2].tensors) for i in range(count)]
    names = ["w", "half", "count", "flag"]
    mean = average(copies, [1 / count] * count, names)
    assert_equal(mean, {name: copies[0].tensors[name] for name in names})


def test_a_single_ingredient_comes_through_bit_for_bit() -> None:
    candidates = three()
    mixed = average(candidates, [0.0, 1.0, 0.0], candidates[0].names())
    assert_equal(mixed, candidates[1].tensors)


def test_only_what_is_used_is_read() -> None:
    class Gone(InMemory):
        def read(self, name: str) -> Tensor:
            raise AssertionError("read")

    average([Gone(0), *three()[:1], Gone(1)], [0.0, 1.0, 0.0], FLOATS)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.5, 0.5, 0.5), (1.0, math.nan, 0.0), (math.inf, -math.inf, 1.0)])
def test_coefficients_that_make_no_mean_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(RunError, match=r"coefficients .* for 3 candidates; they must sum to 1"):
        average(three(), weights, FLOATS)


def test_a_candidates_file_holds_all_of_it(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(3, 2).to(memory_format=torch.contiguous_format).T, "n": torch.tensor(3)}
    state = State(tensors, {"w": torch.ones(2, 3) > 0}, {"s": torch.ones(1)}, {"w/momentum": torch.rand(2, 3)})
    candidate = FileCandidate.write(tmp_path / "deep" / "0.safetensors", 4, state, Score(0.5, 1.5))
    assert (candidate.index, candidate.score) == (4, Score(0.5, 1.5))
    assert sorted(candidate.names()) == ["extra.s", "n", "w"]
    assert candidate.optimizer_names() == ["optimizer.w/momentum"]
    for name, tensor in (("w", tensors["w"]), ("extra.s", state.extra["s"])):
        assert torch.equal(candidate.read(name), tensor)
    assert torch.equal(candidate.read("optimizer.w/momentum"), state.optimizer["w/momentum"])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["0.safetensors"]


def test_a_candidates_file_is_read_as_safetensors_reads_it(tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool]
    kinds += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
    numbers = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0)) * 50
    tensors = {str(kind): numbers.abs().to(kind) for kind in kinds}
    tensors |= {"one": torch.tensor(2.5), "none": torch.empty(0, 4), "vector": numbers.flatten()}
    candidate = FileCandidate.write(tmp_path / "0.safetensors", 0, State(tensors, {}), Score(0.5, 1.5))
    expected = load_file(tmp_path / "0.safetensors")
    assert_equal({name: candidate.read(name) for name in sorted(candidate.names())}, dict(sorted(expected.items())))
    for name in (*map(str, kinds), "vector"):
        assert torch.equal(candidate.read_rows(name, slice(1, 3)), expected[name][1:3])
        assert torch.equal(candidate.read_rows(name, slice(4, 90)), expected[name][4:90])


def test_a_candidates_file_that_is_cut_short_or_gone_is_an_error_of_the_disk(tmp_path: Path) -> None:
    candidate = FileCandidate.write(tmp_path / "0.safetensors", 0, State({"w": torch.ones(9)}, {}), Score(0.5, 1.5))
    candidate.path.write_bytes(candidate.path.read_bytes()[:-5])
    with pytest.raises(OSError, match="cut short"):
        candidate.read("w")
    candidate.path.unlink()
    with pytest.raises(FileNotFoundError):
        candidate.read("w")


# --- the built-in merges, by hand -----------------------------------------------------------------------


def hand(table: dict[float, float] | None = None, tried: list[float] | None = None) -> MergeStep:
    """A step whose mixtures are numbers, scored by a table of their accuracies."""

    def score(tensors: Tensors) -> Score:
        value = round(float(tensors["w"]), 6)
        if tried is not None:
            tried.append(value)
        return Score((table or {})[value], 1.0)

    def refuse(*_: Any) -> Any:
        raise AssertionError("not for this merge")

    return MergeStep(
        average=lambda some, weights: average(some, weights, ["w"]),
        score=score,
        loss=refuse,
        fisher=refuse,
        parent={},
        generator=torch.Generator(),
    )


def numbers(*scores: tuple[float, float, float]) -> list[InMemory]:
    """Candidates from value, accuracy and loss."""
    return [InMemory(10 + i, a, loss, w=torch.tensor(v).double()) for i, (v, a, loss) in enumerate(scores)]


def test_uniform_takes_everything() -> None:
    soup = Uniform().merge(numbers((1.0, 0.1, 9.0), (2.0, 0.9, 1.0), (6.0, 0.5, 1.0)), hand())
    assert float(soup.tensors["w"]) == pytest.approx(3.0)
    assert soup.coefficients == (1 / 3, 1 / 3, 1 / 3)
    assert soup.ingredients == (10, 11, 12)


def test_none_takes_the_first() -> None:
    assert NoMerge.max_replicas == 1
    soup = NoMerge().merge(numbers((1.0, 0.1, 9.0)), hand())
    assert (float(soup.tensors["w"]), soup.coefficients, soup.ingredients) == (1.0, (1.0,), (10,))


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.5, 1.0), (0.7, 9.0), (0.6, 0.1)], 1),  # accuracy first
        ([(0.7, 1.0), (0.7, 0.5), (0.7, 0.9)], 1),  # then the lower loss
        ([(0.7, 0.5), (0.7, 0.5), (0.6, 0.5)], 0),  # then the first
        ([(0.7, math.inf), (0.7, 3.0)], 1),
    ],
)
def test_best_takes_one(scores: list[tuple[float, float]], best: int) -> None:
    soup = Best().merge(numbers(*[(float(i), *score) for i, score in enumerate(scores)]), hand())
    assert soup.ingredients == (10 + best,)
    assert soup.coefficients == tuple(float(i == best) for i in range(len(scores)))
    assert float(soup.tensors["w"]) == best


def test_greedy_adds_what_does_not_hurt_best_first() -> None:
    # in order of accuracy, then loss: 8, 4, 0, 2
    candidates = numbers((0.0, 0.80, 1.0), (8.0, 0.90, 1.0), (4.0, 0.80, 0.5), (2.0, 0.70, 1.0))
    tried: list[float] = []
    table = {
        6.0: 0.90,  # 8 and 4: no worse, in
        4.0: 0.89,  # 8, 4 and 0: worse, out
        round(14 / 3, 6): 0.95,  # 8, 4 and 2: better, in
    }
    soup = Greedy().merge(candidates, hand(table, tried))
    assert tried == [6.0, 4.0, round(14 / 3, 6)]
    assert soup.ingredients == (11, 12, 13)
    assert soup.coefficients == pytest.approx((0.0, 1 / 3, 1 / 3, 1 / 3))
    assert float(soup.tensors["w"]) == pytest.approx(14 / 3)


def test_greedy_measures_against_the_soup_so_far_and_may_keep_one() -> None:
    candidates = numbers((0.0, 0.5, 1.0), (2.0, 0.6, 1.0), (4.0, 0.4, 1.0))
    soup = Greedy().merge(candidates, hand({1.0: 0.70, 2.0: 0.65}))
    assert soup.ingredients == (10, 11)  # 0.65 is above every candidate, but below the soup of two
    soup = Greedy().merge(candidates, hand({1.0: 0.59, 3.0: 0.59}))
    assert soup.ingredients == (11,)
    assert soup.coefficients == (0.0, 1.0, 0.0)
    soup = Greedy().merge(numbers((3.0, 0.0, 1.0)), hand())
    assert soup.ingredients == (10,)


# --- merging in a run -----------------------------------------------------------------------------------

Run = tuple[Setup, State, Stage, list[State], list[FileCandidate]]


Trained = tuple[State, Stage, list[tuple[State, Score]]]
TRAINED: dict[str, Trained] = {}


def two_replicas(method: str | None, **changes: Any) -> Trained:
    """A pruned parent, and two replicas of it with their held-out scores."""
    setup = tiny_setup(METHODS[method]() if method else OnePrune(), **{"epochs": 2, **changes})
    parent, stage = dense_then_pruned(setup)
    states = [trained(setup, parent, stage, Replica(index, index, 0.2, 5e-4)) for index in (0, 1)]
    return parent, stage, [(state, setup.score(state, "held_out")) for state in states]


def run(tmp_path: Path, merge: MergeStrategy, method: str | None = None, **changes: Any) -> Run:
    """A pruned parent and its two trained replicas, in files."""
    case = f"{method} {changes}"
    if case not in TRAINED:  # once for all merges, which change none of it
        TRAINED[case] = two_replicas(method, **changes)
    parent, stage, found = TRAINED[case]
    setup = tiny_setup(METHODS[method]() if method else OnePrune(), merge, **{"epochs": 2, **changes})
    candidates = [
        FileCandidate.write(tmp_path / f"{index}.safetensors", index, state, score)
        for index, (state, score) in enumerate(found)
    ]
    return setup, parent, stage, [state for state, _ in found], candidates


class Given(CoefficientMerge):
    """Coefficients chosen beforehand."""

    def __init__(self, *weights: float) -> None:
        self.weights = weights

    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        return self.weights


def statistics(state: State) -> Tensors:
    return {name: t for name, t in state.tensors.items() if "running_" in name or "num_batches" in name}


def parameters(state: State) -> Tensors:
    return {name: t for name, t in state.tensors.items() if name not in statistics(state)}


def test_weights_extras_and_momentum_are_averaged_with_the_coefficients(tmp_path: Path) -> None:
    setup, parent, stage, (one, two), candidates = run(tmp_path, Given(0.25, 0.75))
    merged, soup = merge(setup, parent, candidates, stage)
    assert soup.coefficients == (0.25, 0.75)
    for name, tensor in parameters(merged).items():
        expected = 0.25 * one.tensors[name].double() + 0.75 * two.tensors[name].double()
        assert torch.equal(tensor, expected.float()), name
    assert list(merged.optimizer) == sorted(one.optimizer)
    for name, tensor in merged.optimizer.items():
        assert torch.equal(tensor, (0.25 * one.optimizer[name].double() + 0.75 * two.optimizer[name].double()).float())
    assert merged.progress == 1.0
    assert_equal(merged.masks, parent.masks)
    assert masked_are_zero(merged.weights, merged.masks)
    assert all(not merged.optimizer[f"{n}/momentum_buffer"][~m].any() for n, m in merged.masks.items())


def test_a_soup_without_coefficients_starts_a_fresh_optimizer(tmp_path: Path) -> None:
    class Unweighted(Uniform):
        def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
            return replace(super().merge(candidates, step), coefficients=None)

    setup, parent, stage, _, candidates = run(tmp_path, Unweighted())
    merged, _ = merge(setup, parent, candidates, stage)
    assert merged.optimizer == {}
    trained(setup, merged, stage, schedule=Schedule(lambda done: 1.0, restarts=False))


def test_batchnorm_is_measured_again_on_the_training_images(tmp_path: Path) -> None:
    setup, parent, stage, (one, two), candidates = run(tmp_path, Uniform())
    merged, _ = merge(setup, parent, candidates, stage)
    measured = setup.recalibrated(merged).tensors
    assert all(torch.equal(tensor, measured[name]) for name, tensor in statistics(merged).items())
    assert not torch.equal(merged.tensors["bn1.running_mean"], one.tensors["bn1.running_mean"])
    assert int(merged.tensors["bn1.num_batches_tracked"]) == 1

    averaging = replace(setup.config, replicas=replace(setup.config.replicas, batchnorm="average"))
    averaged, _ = merge(replace(setup, config=averaging), parent, candidates, stage)
    assert_equal(parameters(averaged), parameters(merged))
    for name, tensor in statistics(averaged).items():
        expected = one.tensors[name]
        if expected.is_floating_point():
            expected = ((expected.double() + two.tensors[name].double()) / 2).float()
        assert torch.equal(tensor, expected), name


def test_one_ingredient_keeps_its_own_statistics(tmp_path: Path) -> None:
    for strategy in (Best(), NoMerge(), Given(0.0, 1.0)):
        setup, parent, stage, trained_states, candidates = run(tmp_path, strategy)
        merged, soup = merge(setup, parent, candidates, stage)
        (used,) = soup.ingredients
        assert_equal(dict(sorted(merged.tensors.items())), dict(sorted(trained_states[used].tensors.items())))
        assert_equal(merged.optimizer, dict(sorted(trained_states[used].optimizer.items())))


def test_identical_replicas_merge_into_themselves(tmp_path: Path) -> None:
    setup, parent, stage, (one, _), _ = run(tmp_path, Uniform(), replicas=ReplicasConfig(3, batchnorm="average"))
    copies = [FileCandidate.write(tmp_path / f"copy-{i}", i, one, Score(0.5, 1.0)) for i in range(3)]
    merged, _ = merge(setup, parent, copies, stage)
    assert_equal(merged.tensors, dict(sorted(one.tensors.items())))
    assert_equal(merged.optimizer, dict(sorted(one.optimizer.items())))


def test_dpf_averages_the_dense_weights(tmp_path: Path) -> None:
    setup, parent, stage, (one, two), candidates = run(tmp_path, Uniform(), "dpf", epochs=6)
    assert masked_are_zero(effective(setup.method, one).weights, one.masks)
    merged, _ = merge(setup, parent, candidates, stage)
    for name, weight in merged.weights.items():
        assert torch.equal(weight, ((one.weights[name].double() + two.weights[name].double()) / 2).float())
    assert not masked_are_zero(merged.weights, merged.masks)
    assert masked_are_zero(effective(setup.method, merged).weights, merged.masks)
    # the statistics are those of the masked weights
    assert torch.equal(setup.recalibrated(merged).tensors["bn1.running_var"], merged.tensors["bn1.running_var"])


@pytest.mark.parametrize("name", MERGES)
def test_no_merge_sees_the_test_split(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setup, parent, stage, _, candidates = run(tmp_path, MERGES[name]())
    seen: set[str] = set()
    original = setup.data.evaluation_batches

    def spy(split: Split, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        assert split != "test"
        seen.add(split)
        return original(split, limit)

    monkeypatch.setattr(setup.data, "evaluation_batches", spy)
    merge(setup, parent, candidates, stage)
    assert seen == {"uniform": {"train"}, "greedy": {"train", "held_out"}, "best": set(), "none": set()}[name]


def test_what_a_merge_is_given(tmp_path: Path) -> None:
    drawn = []

    class Curious(Uniform):
        """Looks at everything."""

        def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
            drawn.append(torch.rand(3, generator=step.generator))
            assert_equal(step.parent, parent.tensors)
            assert [c.index for c in candidates] == [0, 1]
            for candidate, state in zip(candidates, trained_states, strict=True):
                assert sorted(candidate.names()) == sorted(state.tensors)
                tensors = {name: candidate.read(name) for name in candidate.names()}
                # scored alone, each with BatchNorm measured again
                assert step.score(tensors) == setup.score(setup.recalibrated(state), "held_out")
            return super().coefficients(candidates, step)

    setup, parent, stage, trained_states, candidates = run(tmp_path, Curious())
    merge(setup, parent, candidates, stage)
    merge(setup, parent, candidates, stage)
    assert torch.equal(*drawn)
    merge(replace(setup, config=replace(setup.config, seed=1)), parent, candidates, stage)
    assert not torch.equal(drawn[0], drawn[2])


def test_masks_that_differ_are_refused(tmp_path: Path) -> None:
    setup, parent, stage, (one, _), candidates = run(tmp_path, Uniform())
    other = {name: mask.clone() for name, mask in one.masks.items()}
    other["conv1.weight"].view(-1)[0] ^= True
    candidates[1] = FileCandidate.write(tmp_path / "other", 1, replace(one, masks=other), Score(0.5, 1.0))
    with pytest.raises(RunError, match="segment 2: the candidates' masks differ"):
        merge(setup, parent, candidates, stage)


def test_the_core_masks_every_soup_again(tmp_path: Path) -> None:
    class Dense(Uniform):
        def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
            soup = super().merge(candidates, step)
            return replace(soup, tensors={n: t + 1.0 if "weight" in n else t for n, t in soup.tensors.items()})

    setup, parent, stage, (one, two), candidates = run(tmp_path, Dense())
    merged, _ = merge(setup, parent, candidates, stage)
    assert masked_are_zero(merged.weights, merged.masks)
    mask = merged.masks["conv1.weight"]
    expected = ((one.tensors["conv1.weight"].double() + two.tensors["conv1.weight"].double()) / 2).float() + 1.0
    assert torch.equal(merged.tensors["conv1.weight"][mask], expected[mask])


Spoil = Callable[[Soup], Soup]
WRONG: dict[str, tuple[Spoil, str]] = {
    "missing": (
        lambda s: replace(s, tensors={n: t for n, t in s.tensors.items() if n != "fc.bias"}),
        "'fc.bias' is mis",
    ),
    "too many": (lambda s: replace(s, tensors={**s.tensors, "fc.gain": torch.ones(1)}), "'fc.gain' is missing or too"),
    "shape": (lambda s: replace(s, tensors={**s.tensors, "fc.bias": torch.ones(9)}), r"fc.bias has shape \(9,\)"),
    "dtype": (lambda s: replace(s, tensors={**s.tensors, "fc.bias": torch.ones(10).double()}), "and torch.float64"),
    "nan": (
        lambda s: replace(s, tensors={**s.tensors, "fc.bias": torch.full((10,), math.nan)}),
        "fc.bias .* not finite",
    ),
    "no ingredient": (lambda s: replace(s, ingredients=()), "names no ingredient"),
}


@pytest.mark.parametrize("case", WRONG)
def test_soups_that_break_the_contract_are_refused_by_name(tmp_path: Path, case: str) -> None:
    spoil, message = WRONG[case]

    class Spoilt(Uniform):
        def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
            return spoil(super().merge(candidates, step))

    setup, parent, stage, _, candidates = run(tmp_path, Spoilt())
    with pytest.raises(RunError, match=f"merge Spoilt: .*{message}"):
        merge(setup, parent, candidates, stage)


@pytest.mark.parametrize("weights", [(0.5,), (0.2, 0.3, 0.5), (0.5, 0.6), (math.nan, 1.0)])
def test_coefficients_that_break_the_contract_are_refused(tmp_path: Path, weights: tuple[float, ...]) -> None:
    setup, parent, stage, _, candidates = run(tmp_path, Given(*weights))
    with pytest.raises(RunError, match="coefficients"):
        merge(setup, parent, candidates, stage)


def test_data_of_another_size_is_no_obstacle(tmp_path: Path) -> None:
    """More training images than one batch of evaluation: several are averaged."""
    setup, parent, stage, _, candidates = run(tmp_path, Greedy(), data=DataConfig(image_size=12, batch_size=100))
    merged, soup = merge(setup, parent, candidates, stage)
    assert soup.ingredients
    assert masked_are_zero(merged.weights, merged.masks)
