"""LAMP's scores and n:m patterns, against hand-worked cases and plain loops."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from sparsekit.cli.main import main
from sparsekit.config.nm_pattern import Pattern
from sparsekit.errors import UserError
from sparsekit.pruning.masks import full, lamp, prunable_names, select

TWO_OF_FOUR = Pattern(2, 4)


def alive(count: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.ones(count, dtype=bool)


def test_lamp_by_hand() -> None:
    """Squares 1, 4, 9: each over itself and all that are larger; the largest always scores 1."""
    scores = lamp(np.array([-1.0, 3.0, 2.0]), alive(3))
    np.testing.assert_allclose(scores, [1 / 14, 1.0, 4 / 13])


def test_lamp_counts_equal_weights_together() -> None:
    """Two 2s and a 1: the sum over |v| >= 2 is 8 for both."""
    np.testing.assert_allclose(lamp(np.array([2.0, 1.0, 2.0]), alive(3)), [4 / 8, 1 / 9, 4 / 8])


def test_lamp_of_zeros_is_zero() -> None:
    np.testing.assert_array_equal(lamp(np.zeros(4), alive(4)), np.zeros(4))


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=30))
def test_lamp_against_its_formula(weights: list[int]) -> None:
    squares = [float(w * w) for w in weights]
    expected = [u / sum(v for v in squares if v >= u) if u else 0.0 for u in squares]
    np.testing.assert_allclose(lamp(np.array(weights, dtype=np.float32), alive(len(weights))), expected)


def test_lamp_spares_small_layers() -> None:
    """Global magnitude would empty the layer of small weights; LAMP keeps the largest of every layer."""
    scores = {"large": torch.tensor([10.0, 11.0, 12.0, 13.0]), "small": torch.tensor([0.1, 0.2])}
    assert int(select(scores, full(scores), 0.5, "global")["small"].sum()) == 0
    kept = select(scores, full(scores), 0.5, "lamp")
    assert kept["small"].tolist() == [False, True]
    # large: 169/169, 144/313, 121/434, 100/534; small: 0.04/0.04, 0.01/0.05
    assert kept["large"].tolist() == [False, False, True, True]


def test_two_of_four_by_hand() -> None:
    scores = {"w": torch.tensor([[1.0, 5.0, 4.0, 2.0, 9.0, 8.0, 7.0, 6.0]])}
    kept = select(scores, full(scores), 0.5, "global", TWO_OF_FOUR)
    assert kept["w"].tolist() == [[False, True, True, False, True, True, False, False]]


def test_blocks_run_along_the_input_channels() -> None:
    """A convolution's blocks are four input channels at one place of the kernel, not four neighbouring places."""
    weight = torch.zeros(1, 4, 1, 2)
    weight[0, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    weight[0, :, 0, 1] = torch.tensor([8.0, 7.0, 6.0, 5.0])
    kept = select({"w": weight}, full({"w": weight}), 0.5, "global", TWO_OF_FOUR)["w"]
    assert kept[0, :, 0, 0].tolist() == [False, False, True, True]
    assert kept[0, :, 0, 1].tolist() == [True, True, False, False]


def test_a_gradual_schedule_prunes_what_breaks_the_pattern_first() -> None:
    """At 25 % two of the four weights that must go are gone, the smallest; none of the fitting ones is."""
    scores = {"w": torch.tensor([[1.0, 5.0, 4.0, 2.0, 9.0, 8.0, 7.0, 6.0]])}
    kept = select(scores, full(scores), 0.25, "global", TWO_OF_FOUR)
    assert kept["w"].tolist() == [[False, True, True, False, True, True, True, True]]
    # and above 50 % the smallest of the fitting ones go too
    kept = select(scores, kept, 0.625, "global", TWO_OF_FOUR)
    assert kept["w"].tolist() == [[False, True, False, False, True, True, False, False]]


@given(
    seed=st.integers(0, 999),
    rule=st.sampled_from(["global", "uniform", "erk", "lamp"]),
    sparsities=st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), max_size=3).map(sorted),
    ties=st.booleans(),
)
def test_patterns_hold_whatever_the_schedule(seed: int, rule: str, sparsities: list[float], ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv": (6, 8, 3, 3), "linear": (10, 16)}
    kept = full({name: torch.zeros(shape) for name, shape in shapes.items()})
    for sparsity in [*sparsities, 0.9]:
        scores: dict[str, Tensor] = {n: torch.rand(shape, generator=generator) for n, shape in shapes.items()}
        if ties:
            scores = {name: (score * 3).round() for name, score in scores.items()}
        before, kept = kept, select(scores, kept, sparsity, rule, TWO_OF_FOUR)
        total = sum(mask.numel() for mask in kept.values())
        assert sum(int((~mask).sum()) for mask in kept.values()) == round(sparsity * total)
        for name, mask in kept.items():
            assert not (mask & ~before[name]).any()
            assert TWO_OF_FOUR.holds(mask.numpy()) or sparsity < 0.5


@pytest.mark.parametrize("text", ["2", "4:2", "0:4", "2:2", "2:4:8", "a:b", ""])
def test_malformed_patterns_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--masks.pattern .*; give n:m with 0 < n < m"):
        Pattern.parse(text)


FIT = ["fit", "--wandb.mode", "disabled", "--epochs", "6", "--replicas.count", "2"]


def test_impossible_patterns_are_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*FIT, "--out", str(out), "--masks.pattern", "2:4", "--sparsity", "0.5"]) == 2
    err = capsys.readouterr().err
    assert all(
        part in err for part in ("--masks.pattern 2:4", "1 of 14 layers", "(1 in conv1.weight)", "no multiple of 4")
    )
    exclude = shlex.split(err[err.index("--masks.exclude") :])
    assert main([*FIT, "--out", str(out), "--masks.pattern", "2:4", "--sparsity", "0.4", *exclude]) == 2
    assert "--masks.pattern 2:4 needs --sparsity 0.5 or more, not 0.4" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gmp", "dpf"])
def test_a_run_ends_with_exactly_two_of_four(method: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--method", method, "--masks.pattern", "2:4", "--sparsity", "0.5", "--masks.exclude", "[^conv1]"]
    tiny = ["--model.kwargs", "{channels: [8, 8, 16, 16]}"]
    assert main([*FIT, *options, *tiny, "--out", str(out)]) == 0
    weights = load_file(out / "model" / "model.safetensors")
    for name, mask in load_file(out / "masks.safetensors").items():
        blocks = mask.movedim(1, -1).reshape(-1, 4).sum(1)
        assert (blocks == 2).all(), name
        assert (weights[name].movedim(1, -1).reshape(-1, 4) != 0).sum(1).max() <= 2


MODELS = ["vit_tiny_patch16_224", "regnety_004", "mobilenetv2_100", "convnext_atto"]


@pytest.mark.parametrize("name", MODELS)
def test_one_message_names_every_layer_and_its_exclusion_can_be_copied(name: str) -> None:
    model = timm.create_model(name, num_classes=10)
    shapes = {n: tuple(model.get_parameter(n).shape) for n in prunable_names(model)}
    wrong = {n for n, shape in shapes.items() if shape[1] % 4}
    assert wrong
    with pytest.raises(UserError) as caught:
        TWO_OF_FOUR.check(shapes, 0.4, ["^head", "it's"])
    text = str(caught.value)
    assert all(part in text for part in (f"{len(wrong)} of {len(shapes)}", "--sparsity 0.5 or more, not 0.4"))
    value = next(word for word in shlex.split(text[text.index("--masks.exclude") :]) if word.startswith("["))
    head, quoted, pattern = yaml.safe_load(value.rstrip(";"))  # what was excluded before stays so
    assert (head, quoted) == ("^head", "it's")
    assert set(prunable_names(model)) - set(prunable_names(model, [pattern])) == wrong
    TWO_OF_FOUR.check({n: shapes[n] for n in prunable_names(model, [pattern])}, 0.5)


def test_a_pattern_that_fits_no_layer_asks_for_another() -> None:
    with pytest.raises(UserError, match=r"--masks.pattern 2:4 does not fit 1 of 1 layers.*choose another"):
        TWO_OF_FOUR.check({"a.weight": (8, 3)}, 0.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--masks.floor -1", "--masks.floor is -1|1 or more|fraction"),
        ("--masks.floor 1.5", "--masks.floor is 1.5|1 or more|fraction"),
        ("--masks.floor 0.2 --sparsity 0.9", "--masks.floor 0.2|--sparsity 0.9|0.1"),
        ("--masks.floor 0.6 --sparsity 0.3 --masks.pattern 2:4", "--masks.floor 0.6|0.5|--masks.pattern 2:4"),
        ("--masks.floor 9999", "--masks.floor 9999|242,400|24,240"),
    ],
)
def test_a_floor_that_cannot_be_kept_is_refused_before_anything_is_made(
    arguments: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*FIT, "--out", str(out), *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words.split("|")), err
    assert not out.exists()
