"""torchvision's own transforms and arithmetic are what batches, splits and subsets of images are held against."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import pickled, pixels, publish, write_cifar, write_idx
from torchvision.transforms.v2 import functional as transforms

from sparsekit.config.options import DataConfig
from sparsekit.data import ImageData
from sparsekit.data.files import read
from sparsekit.errors import UserError
from sparsekit.seeds import derive

CPU = torch.device("cpu")


# --- batches --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return ImageData.load(DataConfig(), CPU, True)


def numbered(count: int, channels: int, size: int, shift: int, flip: bool) -> tuple[torch.Tensor, ImageData]:
    """Random images whose labels are their numbers."""
    images = torch.from_numpy(pixels(count, channels, size, size))
    split = (images, torch.arange(count))
    options = {"batch_size": 50, "shift": shift, "flip": flip, "device": CPU, "channels_last": True}
    return images, ImageData({"train": split, "held_out": split, "test": split}, num_classes=count, **options)  # type: ignore[arg-type]


def grey(data: ImageData, images: torch.Tensor) -> torch.Tensor:
    """The uint8 images that were normalised."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    values = (images * std + mean) * 255
    torch.testing.assert_close(values, values.round(), atol=1e-3, rtol=0)
    return values.round().to(torch.uint8)


@pytest.mark.parametrize(("channels", "size", "shift", "flip"), [(1, 16, 2, False), (3, 8, 1, True), (1, 6, 0, True)])
def test_augmentation_is_crop_and_flip(channels: int, size: int, shift: int, flip: bool) -> None:
    images, data = numbered(200, channels, size, shift, flip)
    corners = list(itertools.product(range(2 * shift + 1), repeat=2))
    seen: dict[tuple[int, int, bool], int] = {}
    for batch, labels in data.train_batches(0, steps=12):
        for image, label in zip(grey(data, batch), labels, strict=True):
            padded = transforms.pad(images[label], [shift] * 4, fill=0)
            for (top, left), flipped in itertools.product(corners, [False, True]):
                crop = transforms.crop(padded, top, left, size, size)
                if torch.equal(transforms.horizontal_flip(crop) if flipped else crop, image):
                    seen[top, left, flipped] = seen.get((top, left, flipped), 0) + 1
                    break
    assert sum(seen.values()) == 600  # every image is some crop, perhaps mirrored
    assert {(top, left) for top, left, _ in seen} == set(corners)
    assert {flipped for _, _, flipped in seen} == ({False, True} if flip else {False})
    expected = 600 / len(corners) / (2 if flip else 1)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in seen.values())


@pytest.mark.parametrize(("strength", "shift"), [(0.0, 0), (0.25, 1), (0.5, 1), (2.0, 4), (4.0, 8)])
def test_shifts_and_flips_grow_with_the_strength(strength: float, shift: int) -> None:
    """Every image is a crop at most that far away, from a frame of black; flips grow up to strength 1 alone."""
    images, data = numbered(200, 1, 16, 2, True)
    side, seen, mirrored = 2 * shift + 1, set[tuple[int, int]](), 0
    for batch, labels in data.at_strength(strength).train_batches(0, steps=8):
        padded = transforms.pad(images[labels], [shift] * 4, fill=0)
        crops = padded.unfold(2, 16, 1).unfold(3, 16, 1)[:, 0]  # [B, side, side, 16, 16]
        for flipped, shown in ((False, grey(data, batch)), (True, grey(data, batch).flip(-1))):
            same = (crops == shown[:, :, None]).flatten(3).all(-1)
            mirrored += flipped and int(same.flatten(1).any(1).sum())
            seen |= {(top, left) for _, top, left in same.nonzero().tolist()}
    assert crops.shape[1:3] == (side, side)
    assert {top for top, _ in seen} == {left for _, left in seen} == set(range(side))
    assert mirrored / 400 == pytest.approx(0.5 * min(strength, 1.0), abs=0.08)  # 3 standard deviations


@pytest.mark.parametrize("strength", [0.25, 0.75, 1.1])
def test_between_two_whole_shifts_each_image_takes_one_of_them(strength: float) -> None:
    images, data = numbered(400, 1, 16, 2, False)
    whole, part = divmod(strength * 2, 1)
    shift, inside = int(whole) + 1, 0
    for batch, labels in data.at_strength(strength).train_batches(0, steps=8):
        crops = transforms.pad(images[labels], [shift] * 4, fill=0).unfold(2, 16, 1).unfold(3, 16, 1)[:, 0]
        same = (crops == grey(data, batch)[:, :, None]).flatten(3).all(-1)
        inside += int(same[:, 1:-1, 1:-1].flatten(1).any(1).sum())
    smaller, larger = (2 * whole + 1) ** 2, (2 * whole + 3) ** 2
    assert inside / 400 == pytest.approx(1 - part + part * smaller / larger, abs=0.075)


def test_another_strength_leaves_the_data_set_as_it_was(digits: ImageData) -> None:
    before = list(digits.train_batches(7, steps=3))
    strong = digits.at_strength(3.0)
    assert digits.at_strength(1.0) is digits
    for (images, labels), (other, same), (again, _) in zip(
        before, strong.train_batches(7, steps=3), digits.train_batches(7, steps=3), strict=True
    ):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
        assert not torch.equal(images, other)
    for one, other in zip(digits.raw_batches("train"), strong.raw_batches("train"), strict=True):
        assert torch.equal(one[0], other[0])
    loaded = ImageData.load(DataConfig(augment_strength=3.0), CPU, True)
    pairs = zip(strong.train_batches(7, steps=3), loaded.train_batches(7, steps=3), strict=True)
    assert all(torch.equal(one, other) for (one, _), (other, _) in pairs)
    late = list(strong.train_batches(7, steps=3, start=2))
    assert torch.equal(late[0][0], list(strong.train_batches(7, steps=3))[2][0])


def test_an_epoch_shows_each_image_once_in_another_order() -> None:
    _, data = numbered(210, 1, 8, 0, False)
    assert data.steps_per_epoch == 4
    labels = torch.stack([labels for _, labels in data.train_batches(3, steps=8)])
    for epoch in (labels[:4].flatten(), labels[4:].flatten()):
        assert len(epoch.unique()) == 200  # the last 10 are dropped
    assert not torch.equal(labels[:4], labels[4:])


def test_a_stream_depends_on_its_seed_alone(digits: ImageData) -> None:
    stream = list(digits.train_batches(7, steps=20))
    state = torch.get_rng_state()
    for start in (0, 3, 8, 19, 20):
        again = list(digits.train_batches(7, steps=20, start=start))
        assert len(again) == 20 - start
        for (images, labels), (images_again, labels_again) in zip(stream[start:], again, strict=True):
            assert torch.equal(images, images_again)
            assert torch.equal(labels, labels_again)
    assert torch.equal(state, torch.get_rng_state())
    other = next(iter(digits.train_batches(8, steps=1)))
    assert not torch.equal(other[1], stream[0][1])


def test_one_image_is_augmented_anew_each_time() -> None:
    images, data = numbered(50, 1, 16, 2, False)
    first, second = (batch[labels.argsort()] for batch, labels in data.train_batches(0, steps=2))
    assert (first != second).flatten(1).any(1).float().mean() > 0.8
    assert images.shape == first.shape


def test_without_augmentation_images_are_as_they_are() -> None:
    images, data = numbered(100, 3, 8, 0, False)
    for batch, labels in data.train_batches(0, steps=2):
        assert torch.equal(grey(data, batch), images[labels])


def test_normalisation(digits: ImageData) -> None:
    train = torch.cat([images for images, _ in digits.evaluation_batches("train")])
    assert train.mean().item() == pytest.approx(0, abs=1e-4)
    assert train.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    raw = read("digits", None).train_images[:400, ..., 0]
    expected = transforms.resize(torch.from_numpy(raw)[:, None], [16, 16], antialias=True).double() / 255
    assert digits.mean == pytest.approx([expected.mean().item()], abs=1e-6)
    assert digits.std == pytest.approx([expected.std(correction=0).item()], abs=1e-6)
    torch.testing.assert_close(train.double(), (expected - digits.mean[0]) / digits.std[0], atol=1e-5, rtol=0)


def test_channels_are_normalised_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *train, _ = write_cifar(tmp_path, 10, 20, lambda data, labels: pickled(4)(data // np.uint8(3), labels))
    publish(monkeypatch, tmp_path, 10)
    data = ImageData.load(DataConfig("cifar10", str(tmp_path), batch_size=10), CPU, False)
    images = torch.cat([images for images, _ in data.evaluation_batches("train")])
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    assert data.channels == 3
    assert len(train) * 20 == data.train_size + data.held_out_size


def test_black_images_can_be_normalised() -> None:
    split = (torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.arange(4))
    options = {"batch_size": 2, "shift": 0, "flip": False, "device": CPU, "channels_last": False}
    data = ImageData({"train": split, "held_out": split, "test": split}, num_classes=4, **options)  # type: ignore[arg-type]
    assert all(images.eq(0).all() for images, _ in data.train_batches(0, 2))


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels_last: bool) -> None:
    write_cifar(tmp_path, 10, 20, pickled(4))
    publish(monkeypatch, tmp_path, 10)
    data = ImageData.load(DataConfig("cifar10", str(tmp_path), batch_size=16), CPU, channels_last)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    for images, labels in itertools.chain(data.train_batches(0, 2), data.evaluation_batches("test")):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.is_contiguous(memory_format=memory)
        assert images.shape == (len(labels), 3, 32, 32)


def test_resizing(tmp_path: Path) -> None:
    images = write_idx(tmp_path, side=28)[2]
    data = ImageData.load(DataConfig("mnist", str(tmp_path), batch_size=10, image_size=12, held_out=0.5), CPU, True)
    batch, labels = next(iter(data.evaluation_batches("test")))
    expected = transforms.resize(torch.from_numpy(images)[:, None], [12, 12], antialias=True)
    assert torch.equal(grey(data, batch), expected)
    assert labels.tolist() == [number % 10 for number in range(20)]
    assert data.image_size == 12


# --- splits and subsets ---------------------------------------------------------------------------


def test_digits_by_default(digits: ImageData) -> None:
    sizes = (digits.train_size, digits.held_out_size, digits.test_size, digits.steps_per_epoch)
    assert sizes == (400, 397, 1000, 8)
    assert (digits.num_classes, digits.channels, digits.image_size) == (10, 1, 16)


def test_splits_are_disjoint_balanced_and_fixed(tmp_path: Path) -> None:
    images, labels, _, _ = write_idx(tmp_path, train=203)
    config = DataConfig("mnist", str(tmp_path), batch_size=20, held_out=0.25, augment=False)
    data = ImageData.load(config, CPU, False)
    number = {image.tobytes(): position for position, image in enumerate(images)}
    parts = {}
    for split in ("train", "held_out"):
        batches = list(data.evaluation_batches(split))  # type: ignore[arg-type]
        shown = torch.cat([grey(data, batch)[:, 0] for batch, _ in batches])
        parts[split] = [number[image.numpy().tobytes()] for image in shown]
        assert torch.cat([batch for _, batch in batches]).tolist() == labels[parts[split]].tolist()
    assert sorted(parts["train"] + parts["held_out"]) == list(range(203))
    counts = np.bincount(labels[parts["held_out"]])
    assert counts.sum() == round(0.25 * 203)
    assert counts.max() - counts.min() <= 1
    again = torch.cat([batch for batch, _ in ImageData.load(config, CPU, False).evaluation_batches("held_out")])
    assert torch.equal(again, torch.cat([batch for batch, _ in data.evaluation_batches("held_out")]))


def test_evaluation_shows_every_image_once(digits: ImageData) -> None:
    batches = [labels for _, labels in digits.evaluation_batches("test")]
    assert [len(labels) for labels in batches] == [500, 500]
    assert torch.cat(batches).tolist() == read("digits", None).test_labels.tolist()
    _, data = numbered(501, 1, 4, 0, False)
    assert torch.equal(torch.cat([labels for _, labels in data.evaluation_batches("test")]), torch.arange(501))
    assert [len(labels) for _, labels in data.evaluation_batches("test")] == [500, 1]


@pytest.mark.parametrize("split", ["train", "held_out", "test"])
def test_limited_evaluation_is_fixed_and_balanced(digits: ImageData, split: Any) -> None:
    batches = list(digits.evaluation_batches(split, limit=100))
    labels = torch.cat([labels for _, labels in batches])
    counts = labels.bincount()
    assert len(labels) == 100
    assert counts.max() - counts.min() <= 2
    again = list(digits.evaluation_batches(split, limit=100))
    assert torch.equal(torch.cat([images for images, _ in batches]), torch.cat([images for images, _ in again]))
    assert len(torch.cat([images for images, _ in digits.evaluation_batches(split, limit=10**6)])) >= 397


def test_subsets(digits: ImageData) -> None:
    labels = torch.cat([labels for _, labels in digits.evaluation_batches("train")])
    subset = digits.subset(0.8, seed=1)
    assert len(subset.unique()) == len(subset) == 320
    assert (labels[subset].bincount() == 32).all()
    assert torch.equal(subset, digits.subset(0.8, seed=1))
    assert not torch.equal(subset, digits.subset(0.8, seed=2))
    assert sorted(labels[digits.subset(1e-9, seed=0)].tolist()) == list(range(10))
    assert torch.equal(digits.subset(1.0, seed=0), torch.arange(400))
    for fraction in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(UserError, match=r"^--replicas\.values: "):
            digits.subset(fraction, seed=0)


def test_training_on_a_subset() -> None:
    _, data = numbered(200, 1, 8, 1, False)
    subset = torch.arange(0, 200, 2)
    shown = torch.cat([labels for _, labels in data.train_batches(0, steps=2, subset=subset)])
    assert torch.equal(shown.sort().values, subset)
    few = torch.tensor([3, 5, 150])
    for images, labels in data.train_batches(0, steps=3, subset=few):
        assert torch.equal(labels.sort().values, few)
        assert len(images) == 3
    late = list(data.train_batches(0, steps=5, start=3, subset=subset))
    early = list(data.train_batches(0, steps=5, subset=subset))[3:]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(late, early, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": 0.0}, "--data.held_out: 0.0"),
        ({"held_out": 1.0}, "--data.held_out: 1.0"),
        ({"held_out": float("nan")}, "--data.held_out: nan"),
        ({"held_out": 0.1}, "--data.held_out: 0.1 of 40 images leaves no"),
        ({"held_out": 0.9}, "--data.held_out: 0.9 of 40 images leaves no"),
        ({"batch_size": 0}, "--data.batch_size: 0"),
        ({"batch_size": 21}, "--data.batch_size: 21 is more than there are training images; give at most 20 for mnist"),
        ({"image_size": 3}, "--data.image_size: 3"),
        ({"image_size": 0}, "--data.image_size: 0"),
        ({"root": "~nobody-of-that-name/x"}, "--data.root: '~nobody-of-that-name/x' does not exist"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_idx(tmp_path)
    config = DataConfig("mnist", str(tmp_path), batch_size=20, held_out=0.5)
    assert ImageData.load(config, CPU, True).steps_per_epoch == 1
    with pytest.raises(UserError) as caught:
        ImageData.load(replace(config, **change), CPU, True)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# --- seeds, devices -------------------------------------------------------------------------------


def test_derived_seeds() -> None:
    seeds = {
        derive(*parts) for parts in [(0,), ("0",), (0, 0), (1, 23), (12, 3), ("1", "23"), (-1,), ("a, b",), ("a", "b")]
    }
    assert len(seeds) == 9
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive(0, "order", 1) == 5249872406361022209  # the same for ever: saved runs depend on it
    for part in (np.int64(1), 1.0, True, None):
        with pytest.raises(TypeError, match="ints and strs"):
            derive(0, part)  # type: ignore[arg-type]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gets_the_same_batches_and_is_never_waited_for(digits: ImageData) -> None:
    data = ImageData.load(DataConfig(), torch.device("cuda"), True)
    next(iter(data.train_batches(7, steps=1)))
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(data.train_batches(7, steps=20, subset=data.subset(0.8, seed=0)))
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    for (images, labels), (expected, expected_labels) in zip(
        batches, digits.train_batches(7, steps=20, subset=digits.subset(0.8, seed=0)), strict=True
    ):
        assert torch.equal(images.cpu(), expected)
        assert torch.equal(labels.cpu(), expected_labels)
