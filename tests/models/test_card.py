"""What config.json says of images and classes holds, whoever wrote it and whichever command reads it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from cards import CLASSES, card_of, copied, quartered, reordered
from tiny import ARGUMENTS, tiny_setup
from torchvision.transforms.v2 import functional

from sparsekit.cli import main
from sparsekit.config.options import DataConfig, ModelConfig
from sparsekit.data import ImageData, load
from sparsekit.data.inputs import InputConfig
from sparsekit.errors import UserError
from sparsekit.files import load_tensors
from sparsekit.models.card import class_names, class_order, made_as, seen_by
from sparsekit.models.create import pretrained
from sparsekit.models.saved import SavedModel, open_saved_model
from sparsekit.run.progress import first_progress

CPU = torch.device("cpu")
OWN = InputConfig(3, (16, 16), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
ORDER = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def source(kwargs: dict[str, Any] | None = None, **card: Any) -> SavedModel:
    return SavedModel("MODEL", Path("there"), Path("there"), "resnet18", kwargs or {}, card)


def described(**pretrained_cfg: Any) -> SavedModel:
    return source(pretrained_cfg={"mean": list(MEAN), "std": list(STD), **pretrained_cfg})


# --- images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"input_size": [3, 32, 32], "crop_pct": 0.9, "crop_mode": "squash", "interpolation": "nearest"},
        {"input_size": [3, 32, 48], "crop_pct": 1, "interpolation": "bilinear"},
        {"input_size": [3, 32, 32], "test_input_size": [3, 64, 64], "test_crop_pct": 0.5},
        {"input_size": [3, 32, 32]},
    ],
)
def test_a_card_is_read_as_timm_reads_it(given: dict[str, Any]) -> None:
    found, notes = made_as(described(**given), OWN)
    theirs = timm.data.resolve_data_config(pretrained_cfg={"mean": MEAN, "std": STD, **given})
    assert (found.channels, *found.size) == tuple(theirs["input_size"])
    assert (found.mean, found.std) == (theirs["mean"], theirs["std"])
    assert [getattr(found, key) for key in ("crop_pct", "crop_mode", "interpolation")] == [
        theirs[key] for key in ("crop_pct", "crop_mode", "interpolation")
    ]
    assert notes == []


def test_what_a_card_does_not_say_is_the_datas(capsys: pytest.CaptureFixture[str]) -> None:
    found, notes = made_as(source(pretrained_cfg={"input_size": [3, 8, 8]}), OWN)
    assert found == replace(OWN, size=(8, 8))
    assert "no mean and std" in notes[0]
    assert made_as(source(), OWN)[0] == OWN


def test_older_cards_have_one_level_and_the_size_of_other_weights() -> None:
    """timm before 1.0 wrote all in one; timm before 1.0.31 left the size of the weights that were started from."""
    flat = source(architecture="resnet18", num_classes=4, mean=list(MEAN), std=list(STD), input_size=[3, 32, 32])
    found, _ = made_as(flat, OWN)
    assert (found.size, found.mean, flat.num_classes, flat.channels) == ((32, 32), MEAN, 4, 3)
    for fixed, size in ((True, (24, 24)), (None, (24, 24)), (False, (224, 224))):
        vit = {"input_size": [3, 224, 224], **({} if fixed is None else {"fixed_input_size": fixed})}
        assert made_as(source({"img_size": 24}, pretrained_cfg=vit), OWN)[0].size == size
    assert made_as(source({"img_size": [16, 32]}), OWN)[0].size == (16, 32)


@pytest.mark.parametrize(
    ("mean", "channels", "expected"),
    [
        ([0.5], 3, (0.5, 0.5, 0.5)),
        (0.5, 3, (0.5, 0.5, 0.5)),
        ([0.5], 1, (0.5,)),
        ([0.2, 0.4, 0.6], 1, (0.4,)),
        ([0.2, 0.4], 3, (0.3, 0.3, 0.3)),
    ],
)
def test_means_for_other_channels_are_adapted_as_timm_adapts_them(
    mean: Any, channels: int, expected: tuple[float, ...]
) -> None:
    own = InputConfig(channels, (16, 16), (0.0,) * channels, (1.0,) * channels)
    found, notes = made_as(described(mean=mean, std=[0.5]), own)
    assert found.mean == pytest.approx(expected)
    assert found.std == (0.5,) * channels
    adapted = isinstance(mean, list) and len(mean) not in (1, channels)
    assert [f"{len(mean)} values of mean" in note for note in notes] == [True] * adapted


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"mean": ["a"]}, "mean|'a'|numbers"),
        ({"mean": [float("nan")]}, "mean|nan"),
        ({"std": [0.2, 0.0, 0.2]}, "std|above 0"),
        ({"crop_pct": 0}, "crop_pct 0|above 0"),
        ({"crop_pct": "whole"}, "crop_pct 'whole'"),
        ({"input_size": [3, "a", 8]}, "input_size|[channels, height, width]"),
        ({"input_size": 224}, "input_size 224|[channels, height, width]"),
        ({"input_size": [3, 0, 8]}, "input_size|[channels, height, width]"),
    ],
)
def test_a_card_that_means_nothing_is_refused_in_a_line(card: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        made_as(described(**card), OWN)
    message = str(caught.value)
    assert all(word in message for word in ["MODEL there", "config.json", *words.split("|")]), message
    assert "\n" not in message


def test_what_the_user_sets_holds_over_the_card_and_is_told(tiny_run: Path) -> None:
    saved = open_saved_model("MODEL", tiny_run)
    seen, notes = seen_by(saved, load(DataConfig(), CPU, False), DataConfig())
    assert (seen.inputs.size, notes) == ((8, 8), [])
    options = DataConfig(image_size=12)
    seen, notes = seen_by(saved, load(options, CPU, False), options)
    assert seen.inputs.size == (12, 12)
    assert ["--data.image_size hold (12×12 pixels)" in note and "8×8 pixels" in note for note in notes] == [True]


def test_small_images_are_resized_from_the_published_ones(tiny_run: Path) -> None:
    """Digits have 8×8 pixels; by default they are enlarged to 16×16."""
    seen, _ = seen_by(open_saved_model("MODEL", tiny_run), load(DataConfig(), CPU, False), DataConfig())
    expected = load(DataConfig(image_size=8), CPU, False)
    for split in ("train", "held_out", "test"):
        pairs = zip(seen.evaluation_batches(split), expected.evaluation_batches(split), strict=True)
        for (images, labels), (others, theirs) in pairs:
            assert torch.equal(images, others)
            assert torch.equal(labels, theirs)


def test_images_need_not_be_square() -> None:
    base = load(DataConfig(augment=False), CPU, False)
    inputs = replace(base.inputs, size=(8, 12), mean=(0.5,), std=(0.25,))
    seen = base.seen_by(inputs)
    images, _ = next(iter(seen.evaluation_batches("test")))
    raw = torch.cat([images for images, _ in load(DataConfig(image_size=8), CPU, False).raw_batches("test")])
    expected = (functional.resize(raw[:500], [8, 12], antialias=True).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    assert next(iter(seen.train_batches(0, 1)))[0].shape == (50, 1, 8, 12)


# --- classes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({"label_names": ["a", "b"]}, ("a", "b")),
        ({"label_names": {"1": "b", "0": "a"}}, ("a", "b")),
        ({"pretrained_cfg": {"label_names": ["a", "b"]}}, ("a", "b")),
        ({"label_names": ["a", "b"], "pretrained_cfg": {"label_names": ["b", "a"]}}, ("a", "b")),
        ({"labels": ["a", "b"]}, ("a", "b")),
        ({"label_names": ["a", "b"], "num_classes": 2}, ("a", "b")),
        ({"label_names": ["a", "b"], "num_classes": 3}, None),
        ({"label_names": {"0": "a", "2": "c"}}, None),
        ({"label_names": {"first": "a"}}, None),
        ({"label_names": [1, 2]}, None),
        ({}, None),
    ],
)
def test_names_of_classes_are_read_wherever_they_are(card: dict[str, Any], expected: tuple[str, ...] | None) -> None:
    found = source(**card)
    assert class_names(found) == expected
    order, notes = class_order(found, ["b", "a"], "the data")
    assert order == (None if expected is None else (1, 0))
    assert [("by name" if expected else "by number") in note for note in notes] == [True] * bool(card)


def test_other_classes_are_refused_by_name_with_the_fix() -> None:
    with pytest.raises(UserError) as caught:
        class_order(source(label_names=["cat", "dog", "cow"]), ["cat", "horse", "cow"], "--data.name x")
    message = str(caught.value)
    assert all(word in message for word in ("MODEL there", "--data.name x", "'dog'", "'horse'", "label_names"))
    assert "'cat'" not in message
    with pytest.raises(UserError, match="twice"):
        class_order(source(label_names=["cat", "cat", "dog"]), ["dog", "cat"], "the data")
    order, notes = class_order(source(label_names=["a"]), ["b"], "the data", other_classes=True)
    assert (order, len(notes)) == (None, 1)


def test_descriptions_are_names_too() -> None:
    found = source(label_names=["n1", "n2"], label_descriptions={"n1": "tench", "n2": "goldfish"})
    assert class_order(found, ["goldfish", "tench"], "the data")[0] == (1, 0)
    assert class_order(found, ["tench", "goldfish"], "the data")[0] is None
    assert class_order(found, ["n1", "n2"], "the data")[0] is None


def test_labels_follow_the_models_order_whatever_is_asked_of_the_data() -> None:
    base = load(DataConfig(), CPU, False)
    assert base.class_names == tuple(CLASSES)
    order = tuple(ORDER.index(label) for label in range(10))
    seen = base.seen_by(replace(base.inputs, size=(8, 8)), order)
    assert list(seen.class_names) == [CLASSES[label] for label in ORDER]
    assert seen.class_order == order
    for split in ("train", "held_out", "test"):
        before, after = (torch.cat([y for _, y in data.evaluation_batches(split)]) for data in (base, seen))
        assert [seen.class_names[y] for y in after.tolist()] == [base.class_names[y] for y in before.tolist()]
    again = seen.seen_by(base.inputs)
    assert again.class_names == seen.class_names
    assert torch.equal(next(iter(again.train_batches(1, 1)))[1], next(iter(seen.train_batches(1, 1)))[1])
    back = seen.seen_by(base.inputs, ORDER)
    assert back.class_names == base.class_names
    assert torch.equal(next(iter(back.train_batches(1, 1)))[1], next(iter(base.train_batches(1, 1)))[1])


def test_a_run_names_its_classes_in_every_file(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert card_of(tiny_run / "model")["label_names"] == CLASSES
    for file in ("summary.json", "evaluation.json"):
        assert json.loads((tiny_run / file).read_text())["class_names"] == CLASSES
    assert list(timm.create_model(f"local-dir:{tiny_run / 'model'}").pretrained_cfg["label_names"]) == CLASSES


# --- a run that starts from a model ------------------------------------------------------------------


def test_a_run_trains_on_what_its_first_weights_were_trained_on(tiny_run: Path, tmp_path: Path) -> None:
    path = quartered(tiny_run / "model", tmp_path / "q")
    setup = tiny_setup(model=ModelConfig(init=str(path)), sparsity=0.5)
    plain = tiny_setup(model=ModelConfig(init=str(tiny_run)), sparsity=0.5)
    assert setup.data.std == (plain.data.std[0] / 4,)
    assert [n for n in setup.notes if f"std {setup.data.std[0]:.4g}" in n and "--model.init" in n]
    assert not any("config.json" in note for note in plain.notes)
    ours, theirs = (each.score(first_progress(each).parent, "test") for each in (setup, plain))
    assert ours == theirs
    assert ours.accuracy == json.loads((tiny_run / "summary.json").read_text())["test.accuracy"]
    started = tiny_setup(model=ModelConfig(f"local-dir:{path}", pretrained=True))
    assert started.data.std == setup.data.std
    assert started.score(first_progress(started).parent, "test") == theirs
    fresh = tiny_setup(model=ModelConfig(f"local-dir:{path}"))
    assert fresh.data.std == plain.data.std
    assert not any("config.json" in note for note in fresh.notes)


def test_the_size_of_small_images_is_the_users_and_a_difference_is_told(tiny_run: Path) -> None:
    setup = tiny_setup(model=ModelConfig(init=str(tiny_run)), data=DataConfig(), sparsity=0.5)
    assert setup.data.inputs.size == (16, 16)
    assert any("8×8 pixels" in note and "--data.image_size" in note for note in setup.notes)


def test_classes_in_another_order_are_matched_by_name_from_the_first_step(tiny_run: Path, tmp_path: Path) -> None:
    path = reordered(tiny_run / "model", tmp_path / "other", ORDER)
    setup = tiny_setup(model=ModelConfig(init=str(path)), sparsity=0.5)
    assert any("by name" in note for note in setup.notes)
    summary = json.loads((tiny_run / "summary.json").read_text())
    parent = first_progress(setup).parent
    assert setup.score(parent, "test").accuracy == summary["test.accuracy"]
    kept = load_tensors(tiny_run / "masks.safetensors")
    assert torch.equal(parent.masks["fc.weight"], kept["fc.weight"][ORDER])

    out = tmp_path / "run"
    given = ["--model.init", path, "--sparsity", 0.5, "--epochs", 1, "--method", "oneshot", "--merge", "none"]
    few = ["--replicas.count", 1, "--optimizer.lr", 1e-6, "--replicas.batchnorm", "average", "--out", out]
    assert main.main(["fit", *ARGUMENTS[:6], *map(str, [*given, *few])]) == 0
    assert card_of(out / "model")["label_names"] == [CLASSES[label] for label in ORDER]
    after = json.loads((out / "summary.json").read_text())
    assert after["test.accuracy"] == pytest.approx(summary["test.accuracy"], abs=0.02)
    assert after["class_names"][after["test.worst_class"]] == CLASSES[summary["test.worst_class"]]


def test_pretrained_weights_of_timm_have_a_card_too() -> None:
    found = pretrained(ModelConfig("vit_tiny_patch16_224.augreg_in21k", pretrained=True))
    assert found is not None
    inputs, _ = made_as(found, OWN)
    assert (inputs.size, inputs.mean, inputs.crop_pct, inputs.interpolation) == ((224, 224), (0.5,) * 3, 0.9, "bicubic")


@pytest.mark.parametrize("option", ["--model.init", "--distill"])
def test_other_classes_are_no_start_and_no_teacher(
    option: str, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(tiny_run / "model", tmp_path / "m", names=[*CLASSES[:-1], "zorilla"])
    assert main.main(["fit", *ARGUMENTS[:6], option, str(path), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(word in err for word in (option, "'zorilla'", "'9'"))
    assert not (tmp_path / "out").exists()


def test_a_model_without_names_is_compared_by_counts_as_ever(tiny_run: Path, tmp_path: Path) -> None:
    path = copied(tiny_run / "model", tmp_path / "m", names=False)
    seen, notes = seen_by(open_saved_model("MODEL", path), load(DataConfig(), CPU, False), DataConfig())
    assert (seen.class_order, seen.class_names, notes) == (None, tuple(CLASSES), [])
    assert isinstance(seen, ImageData)
