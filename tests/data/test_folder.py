"""Image folders: labels, splits, determinism for any number of workers, resuming, and folders that are not right."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from resuming import contents, strike
from torch import Tensor

from sparsekit.cli.main import main
from sparsekit.config import parser
from sparsekit.config.options import DataConfig
from sparsekit.data import FolderData
from sparsekit.data import load as load_data
from sparsekit.errors import RunError, UserError
from sparsekit.models.card import seen_by
from sparsekit.models.saved import SavedModel
from sparsekit.training.prepare import prepare

CPU = torch.device("cpu")
CLASSES = {"n2": 10, "n10": 12, "n1": 14}  # natural order: n1, n2, n10


def paint(path: Path, red: int, side: int = 12, noise: int = 0) -> None:
    """An image of one red tone, or of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((side, side + 4, 3), np.uint8)
    pixels[..., 0] = red
    if noise:
        pixels = np.random.default_rng(noise).integers(0, 256, pixels.shape).astype(np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 10 to 14 noisy training images and 4 validation images, PNG and JPEG."""
    folder = tmp_path_factory.mktemp("images")
    for part, fewer in (("train", 0), ("val", 6)):
        for number, (name, count) in enumerate(CLASSES.items()):
            for i in range(count - fewer):
                kind = "png" if i % 2 else "jpg"
                paint(folder / part / name / f"{i}.{kind}", 0, noise=1 + 1000 * fewer + 100 * number + i)
    return folder


def config(root: Path, **changes: Any) -> DataConfig:
    base = DataConfig("imagefolder", str(root), batch_size=4, image_size=8, held_out=0.2, workers=0)
    return replace(base, **changes)


def load(root: Path, **changes: Any) -> FolderData:
    data = load_data(replace(config(root), **changes), CPU, channels_last=True)
    assert isinstance(data, FolderData)
    return data


def equal(left: list[tuple[Tensor, Tensor]], right: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = list(zip(left, right, strict=True))
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


# --- what is in a batch -------------------------------------------------------------------------------


def test_splits_are_disjoint_complete_and_stratified(root: Path) -> None:
    data = load(root)
    parts = {name: {path for path, _ in samples} for name, samples in data._samples.items()}
    assert parts["train"] | parts["held_out"] == {str(p) for p in (root / "train").glob("*/*")}
    assert not parts["train"] & parts["held_out"]
    assert parts["test"] == {str(p) for p in (root / "val").glob("*/*")}
    assert (data.train_size, data.held_out_size, data.test_size, data.num_classes) == (29, 7, 18, 3)
    assert {path.split("/")[-2] for path in parts["held_out"]} == set(CLASSES)
    assert data.steps_per_epoch == 7
    order = ["n1", "n2", "n10"]
    assert list(data.class_names) == order
    for samples in data._samples.values():
        assert all(order[label] == Path(path).parent.name for path, label in samples)


def test_without_a_validation_folder_test_images_are_cut_off(root: Path) -> None:
    data = load(root / "train")
    paths = [path for samples in data._samples.values() for path, _ in samples]
    assert sorted(paths) == sorted(str(p) for p in (root / "train").glob("*/*"))
    assert (data.train_size, data.held_out_size, data.test_size) == (23, 7, 6)


def test_validation_images_are_held_out_where_there_are_test_images(root: Path, tmp_path: Path) -> None:
    for part, folder in (("train", "train"), ("valid", "val"), ("test", "val")):
        shutil.copytree(root / folder, tmp_path / part)
    data = load(tmp_path)
    parts = {name: sorted(path for path, _ in samples) for name, samples in data._samples.items()}
    named = {"train": "train", "held_out": "valid", "test": "test"}
    assert parts == {name: sorted(str(p) for p in (tmp_path / part).glob("*/*")) for name, part in named.items()}
    told = data.contents
    counts = [(part.images, part.classes) for part in (told.train, told.held_out, told.test)]
    assert counts == [(36, 3), (18, 3), (18, 3)]
    assert sum(len(labels) for _, labels in data.evaluation_batches("held_out")) == 18


@pytest.mark.parametrize("part", ["", "train"])
def test_what_is_told_is_what_is_loaded(root: Path, part: str) -> None:
    data = load(root / part, held_out=0.17)
    told = data.contents
    assert [told.train.images, told.held_out.images, told.test.images] == [
        data.train_size,
        data.held_out_size,
        data.test_size,
    ]


def test_images_are_normalised_and_labelled(tmp_path: Path) -> None:
    for part in ("train", "validation"):
        for label, red in enumerate((0, 100, 255)):
            for i in range(5):
                paint(tmp_path / part / f"c{label}" / f"{i}.png", red)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    red = torch.tensor([0.0, 100 / 255, 1.0])
    data = load(tmp_path, workers=2, augment=False)
    for images, labels in [*data.evaluation_batches("test"), *data.train_batches(0, 2)]:
        assert images.shape == (len(labels), 3, 8, 8)
        assert images.is_contiguous(memory_format=torch.channels_last)
        colours = torch.stack([torch.tensor([float(red[label]), 0.0, 0.0]) for label in labels.tolist()])
        expected = ((colours - mean) / std)[:, :, None, None].expand_as(images)
        torch.testing.assert_close(images, expected, atol=1e-4, rtol=0.0)


def test_an_epoch_shows_every_image_once_and_evaluation_all(root: Path) -> None:
    data = load(root, augment=False, batch_size=29)
    (first, labels), (second, _) = data.train_batches(3, 2)
    assert sorted(labels.tolist()) == sorted(data._labels["train"].tolist())
    assert not torch.equal(first, second)
    sums = [batch.sum((1, 2, 3)).sort().values for batch in (first, second)]
    torch.testing.assert_close(*sums)
    seen = [label for _, labels in data.evaluation_batches("test") for label in labels.tolist()]
    assert seen == data._labels["test"].tolist()
    assert sum(len(labels) for _, labels in data.evaluation_batches("train", limit=10)) == 10


def test_batchnorm_is_measured_on_batches_with_a_share_of_each_class(root: Path) -> None:
    data = load(root, batch_size=6)
    batches = [labels for _, labels in data.evaluation_batches("train", limit=10_000)]
    assert sum(map(len, batches)) == data.train_size
    assert all(len(labels.unique()) == 3 for labels in batches)
    assert torch.equal(torch.cat(batches).bincount(), data._labels["train"].bincount())


# --- determinism ----------------------------------------------------------------------------------------

AUGMENTED = {"auto_augment": "rand-m9-mstd0.5", "re_prob": 0.5, "re_mode": "pixel"}


@pytest.fixture
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})


@pytest.mark.usefixtures("three_cores")
def test_neither_workers_nor_the_start_change_a_stream(root: Path) -> None:
    alone = load(root, kwargs=AUGMENTED)
    whole = list(alone.train_batches(7, 17))
    assert not equal(whole, list(alone.train_batches(8, 17)))
    for workers in (1, 2, 3):
        data = load(root, workers=workers, kwargs=AUGMENTED)
        assert equal(list(data.train_batches(7, 17)), whole)
        assert equal(list(data.train_batches(7, 17, start=9)), whole[9:])
        assert equal(list(data.evaluation_batches("train")), list(alone.evaluation_batches("train")))
    some = alone.subset(0.5, 1)
    batches = list(load(root, workers=2).train_batches(7, 9, subset=some))
    assert equal(batches[4:], list(load(root).train_batches(7, 9, start=4, subset=some)))
    assert [len(labels) for _, labels in load(root).train_batches(7, 3, subset=some[:3])] == [3, 3, 3]


def test_parts_of_a_batch_make_up_the_whole(root: Path) -> None:
    digits = load_data(DataConfig(image_size=8, batch_size=10), CPU, channels_last=True)
    for data in (load(root, kwargs={"hflip": 0.5, "auto_augment": "rand-m5-n2"}), digits):
        whole = list(data.train_batches(7, 12, start=3))
        parts = [list(data.train_batches(7, 12, start=3, part=(k, 2))) for k in range(2)]
        joined = [tuple(torch.cat(pair) for pair in zip(*both, strict=True)) for both in zip(*parts, strict=True)]
        assert equal(whole, [(images, labels) for images, labels in joined])


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_leaves_random_states_alone(root: Path, workers: int) -> None:
    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    def seeded() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seeded()
    expected = [draw() for _ in range(6)]
    seeded()
    data = load(root, workers=workers, kwargs=AUGMENTED)
    assert [draw() for _ in data.train_batches(0, 6)] == expected


TINY = ["--model.name", "test_resnet", "--model.kwargs", "{drop_rate: 0.3}", "--optimizer.lr", "0.01"]


def arguments(root: Path, out: Path, *options: str) -> list[str]:
    data = ["--data.name", "imagefolder", "--data.root", str(root), "--data.image_size", "32", "--data.held_out", "0.2"]
    run = ["--epochs", "6", "--replicas.count", "2", "--replicas.start", "0.0", "--wandb.mode", "disabled"]
    return ["fit", *data, "--data.batch_size", "6", *TINY, *run, "--out", str(out), *options]


@pytest.mark.slow
def test_a_run_stopped_inside_an_epoch_goes_on_to_the_same_bits(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(arguments(root, tmp_path / "whole", "--data.workers", "0")) == 0
    with monkeypatch.context() as patch:
        strike(patch, 14)  # in the middle of the third epoch's four batches
        assert main(arguments(root, tmp_path / "cut", "--data.workers", "2")) == 143
    assert main(arguments(root, tmp_path / "cut", "--data.workers", "1", "--resume")) == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["status"] == "done"
    saved = json.loads((tmp_path / "whole" / "model" / "config.json").read_text())
    assert saved["pretrained_cfg"]["input_size"] == [3, 32, 32]


# --- what a model's config.json says ---------------------------------------------------------------------


def scenes(folder: Path, train: int, test: int) -> Path:
    """Disks of two sizes, with little noise or much: what a crop and an interpolation change."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:44, :52]
    for part, count in (("train", train), ("val", test)):
        for size, radius in (("small", 7), ("large", 11)):
            for look, noise in (("calm", 10), ("noisy", 70)):
                for i in range(count):
                    shift, disk = random.uniform(-2, 2, 2), radius + random.uniform(-1.5, 1.5)
                    inside = (rows - 22 + shift[0]) ** 2 + (columns - 26 + shift[1]) ** 2 < disk**2
                    pixels = np.where(inside[..., None], (180, 120, 90), (60, 90, 120))
                    pixels = pixels + random.normal(0, noise, pixels.shape) * random.uniform(0.6, 1.4)
                    path = folder / part / f"{size}-{look}" / f"{i}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return folder


def accuracy_in_timm(model: Path, root: Path, **changes: Any) -> float:
    """What a user of plain timm measures: its model, its transform, its config.json, the names of its classes."""
    loaded = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    settings = timm.data.resolve_data_config(loaded.pretrained_cfg) | changes
    transform = timm.data.create_transform(**settings, is_training=False)
    hits: list[bool] = []
    for label, name in enumerate(loaded.pretrained_cfg["label_names"]):
        files = sorted((root / "val" / name).glob("*.png"))
        images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
        with torch.no_grad():
            hits += (loaded(images).argmax(1) == label).tolist()
    return sum(hits) / len(hits)


def fitted(root: Path, out: Path, *options: str) -> dict[str, Any]:
    data = ["--data.batch_size", "16", "--data.workers", "0", "--data.augment", "false", "--data.held_out", "0.1"]
    run = ["--method", "oneshot", "--sparsity", "0.5", "--merge", "none", "--replicas.count", "1"]
    given = [*data, *run, "--optimizer.lr", "0.03", "--evaluation.report", "false", *options]
    assert main(arguments(root, out, *given)) == 0
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(
    "crop", [{}, {"crop_pct": 0.7}, {"crop_pct": 0.9, "crop_mode": "squash"}, {"crop_pct": 1.0, "crop_mode": "border"}]
)
def test_plain_timm_measures_the_accuracy_of_the_summary(
    crop: dict[str, Any], interpolation: str, tmp_path: Path
) -> None:
    root = scenes(tmp_path / "scenes", 40, 40)
    kwargs = json.dumps({**crop, "interpolation": interpolation})
    summary = fitted(root, tmp_path / "run", "--data.kwargs", kwargs)
    model = tmp_path / "run" / "model"
    card = json.loads((model / "config.json").read_text())
    assert card["label_names"] == summary["class_names"] == sorted(card["label_names"])
    assert {key: card["pretrained_cfg"][key] for key in crop} == crop
    measured = accuracy_in_timm(model, root)
    assert measured == pytest.approx(summary["test.accuracy"], abs=1.001 / 160)
    assert measured > 0.7
    zoomed = max(abs(accuracy_in_timm(model, root, crop_pct=pct) - measured) for pct in (0.6, 1.3))
    assert zoomed > 5 / 160  # the crop decides
    if interpolation == "nearest":
        pairs = [
            [accuracy_in_timm(model, root, crop_pct=pct, interpolation=kind) for kind in ("nearest", "bilinear")]
            for pct in (0.8, 0.9, 1.0, 1.15)
        ]
        assert max(abs(one - other) for one, other in pairs) > 3 / 160  # so does the interpolation


def test_a_run_is_saved_with_what_it_was_tested_with(tmp_path: Path) -> None:
    root = scenes(tmp_path / "scenes", 12, 6)
    kwargs = "{crop_pct: 0.8, crop_mode: border, interpolation: nearest, mean: [0.4], std: [0.3, 0.25, 0.2]}"
    summary = fitted(root, tmp_path / "run", "--epochs", "2", "--data.kwargs", kwargs)
    card = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["pretrained_cfg"]
    assert (card["crop_pct"], card["crop_mode"], card["interpolation"]) == (0.8, "border", "nearest")
    assert (card["mean"], card["std"], card["input_size"]) == ([0.4] * 3, [0.3, 0.25, 0.2], [3, 32, 32])
    assert accuracy_in_timm(tmp_path / "run" / "model", root) == pytest.approx(summary["test.accuracy"], abs=1.001 / 24)


@pytest.mark.parametrize(
    "card",
    [
        {"crop_pct": 0.6, "interpolation": "nearest"},
        {"crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bicubic", "input_size": [3, 16, 16]},
        {"crop_pct": 1.0, "crop_mode": "border", "mean": [0.1, 0.5, 0.9], "std": [0.3]},
        {"input_size": [3, 16, 24]},
        {"interpolation": None, "crop_pct": None, "crop_mode": None},
    ],
)
def test_images_are_those_of_timms_transform(card: dict[str, Any], tmp_path: Path) -> None:
    root = scenes(tmp_path / "scenes", 6, 2)
    described = {"input_size": [3, 20, 20], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "lanczos"}
    described = {key: value for key, value in (described | card).items() if value is not None}
    source = SavedModel("MODEL", tmp_path, tmp_path, "resnet18", card={"pretrained_cfg": described})
    options = config(root, image_size=None, batch_size=3)
    seen, notes = seen_by(source, load_data(options, CPU, False), options)
    assert notes == []
    images = torch.cat([images for images, _ in seen.evaluation_batches("test")])
    transform = timm.data.create_transform(
        **timm.data.resolve_data_config({"mean": described["mean"], "std": described["std"]}, described),
        is_training=False,
    )
    assert isinstance(seen, FolderData)
    expected = torch.stack([transform(Image.open(path).convert("RGB")) for path, _ in seen._samples["test"]])
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
    raw = torch.cat([images for images, _ in seen.raw_batches("test")])
    torch.testing.assert_close(seen.normalise(raw), images, atol=1e-4, rtol=0)
    trained, _ = next(iter(seen.train_batches(0, 1)))
    assert trained.shape == (3, *described["input_size"])


def test_a_run_that_starts_from_a_model_takes_its_crop_unless_told_otherwise(tmp_path: Path) -> None:
    root = scenes(tmp_path / "scenes", 12, 6)
    model = timm.create_model("test_resnet", num_classes=4)
    model.pretrained_cfg |= {"input_size": (3, 24, 24), "crop_pct": 0.6, "interpolation": "nearest", "mean": (0.5,) * 3}
    timm.models.save_for_hf(model, tmp_path / "first", safe_serialization=True)
    options = ["--model.init", str(tmp_path / "first"), "--model.name", "test_resnet", "--model.kwargs", "{}"]
    whole = arguments(root, tmp_path / "a", *options)[1:]
    at = whole.index("--data.image_size")
    whole = [*whole[:at], *whole[at + 2 :], "--data.batch_size", "16", "--data.workers", "0", "--data.held_out", "0.1"]
    parse = parser.build("sparsekit fit", "")
    setup = prepare(parser.parse(parse, whole))
    expected = (0.6, "nearest", (24, 24), (0.5,) * 3)
    inputs = setup.data.inputs
    assert (inputs.crop_pct, inputs.interpolation, inputs.size, inputs.mean) == expected
    assert any("crop_pct 0.6" in note and "24×24" in note and "--model.init" in note for note in setup.notes)
    told = prepare(parser.parse(parse, [*whole, "--data.image_size", "32", "--data.kwargs", "{crop_pct: 0.9}"]))
    inputs = told.data.inputs
    assert (inputs.crop_pct, inputs.interpolation, inputs.size, inputs.mean) == (0.9, "nearest", (32, 32), (0.5,) * 3)
    assert any("crop_pct 0.9" in note and "crop_pct 0.6" in note for note in told.notes)


def test_a_card_that_timm_refuses_is_one_line(root: Path, tmp_path: Path) -> None:
    for card in ({"interpolation": "sharp"}, {"crop_mode": "anywhere"}):
        source = SavedModel("MODEL", tmp_path, tmp_path, "resnet18", card={"pretrained_cfg": card})
        with pytest.raises(UserError, match=next(iter(card.values()))) as caught:
            seen_by(source, load(root), config(root))
        assert all(word in str(caught.value) for word in ("MODEL", str(tmp_path), "config.json"))
        assert "\n" not in str(caught.value)


# --- folders that are not right -------------------------------------------------------------------------


def nothing(root: Path) -> None:
    (root / "train" / "a").mkdir(parents=True)


def one_class(root: Path) -> None:
    paint(root / "train" / "a" / "1.png", 0)


def stray(root: Path) -> None:
    paint(root / "train" / "1.png", 0)
    paint(root / "train" / "a" / "1.png", 0)


def unknown_class(root: Path) -> None:
    for name in ("a", "b"):
        for i in range(9):
            paint(root / "train" / name / f"{i}.png", 0)
    paint(root / "val" / "c" / "1.png", 0)


def lone_image(root: Path) -> None:
    paint(root / "train" / "a" / "1.png", 0)
    for i in range(9):
        paint(root / "train" / "b" / f"{i}.png", 0)


def empty_validation(root: Path) -> None:
    lone_image(root)
    (root / "val").mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, "train' holds no images; give the folder with train/ and val/"),
        (one_class, "train' holds images of one class, 'a'"),
        (stray, "train/1.png' is not in the folder of a class"),
        (unknown_class, "val' holds a class 'c' that .*train' lacks"),
        (lone_image, "--data.held_out: 0.2 of 10 images leaves no training image of class 0"),
        (empty_validation, "val' holds no images"),
        (lambda root: None, "' does not exist; give the folder"),
        (lambda root: root.write_text("no folder"), "' is not a folder"),
    ],
)
def test_folders_that_will_not_do(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    make(tmp_path / "data")
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "data")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "~nosuchuser/images"}, "--data.root: '~nosuchuser/images' does not exist; give the folder"),
        ({"root": None}, "--data.root: imagefolder is read from files and no folder is given"),
        ({"batch_size": 30}, "--data.batch_size: 30 is more .* at most 29"),
        ({"kwargs": {"re_prop": 0.5}}, "'re_prop' is not an argument .* Did you mean 're_prob'"),
        ({"kwargs": {"batch_size": 3}}, "'batch_size' is not an argument of timm's loader"),
        ({"kwargs": {"auto_augment": "nonsense"}}, "--data.kwargs {'auto_augment': 'nonsense'}: timm's transforms"),
        ({"kwargs": {"mean": 0.5}}, "--data.kwargs {'mean': 0.5}: timm's transforms refuse them"),
        ({"kwargs": {"interpolation": "sharp"}}, "--data.kwargs"),
        ({"kwargs": {"crop_mode": "middle"}}, "--data.kwargs.* crop_mode is 'middle'"),
        ({"kwargs": {"std": [0.5, 0.5]}}, "--data.kwargs.* std has 2 values for 3 channels"),
        ({"name": "digits", "kwargs": {"re_prob": 0.5}}, "--data.kwargs is for --data.name imagefolder"),
        ({"name": "digits", "labels": "path"}, "--data.labels is for --data.name imagefolder"),
    ],
)
def test_options_that_will_not_do(changes: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_data(replace(config(root), **changes), CPU, channels_last=True)


def test_a_missing_folder_ends_the_command_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "nowhere", tmp_path / "out")) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def truncated(path: Path) -> None:
    paint(path, 0, side=64, noise=5)
    path.write_bytes(path.read_bytes()[:2000])


def text(path: Path) -> None:
    path.write_text("no image at all")


@pytest.mark.parametrize("damage", [truncated, text, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named(
    root: Path, tmp_path: Path, damage: Callable[[Path], None], workers: int
) -> None:
    for name in ("a", "b"):
        for i in range(9):
            paint(tmp_path / "train" / name / f"{i}.jpg", 0, side=16)
    data = load(tmp_path, workers=workers)
    bad = next(path for path, label in data._samples["train"] if label)
    damage(Path(bad))
    with pytest.raises(RunError) as caught:
        list(data.train_batches(0, data.steps_per_epoch * 2))
    message = str(caught.value)
    assert message.startswith(f"{bad} cannot be read as an image (")
    assert message.endswith("repair or remove it")
    assert "\n" not in message
