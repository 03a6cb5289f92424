"""Files made byte by byte are what `sparsekit.data.files` reads; damaged ones are refused with the file's name."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import (
    CIFAR,
    IDX,
    classes,
    hwc,
    idx,
    pickled,
    pixels,
    publish,
    python2,
    write,
    write_cifar,
    write_idx,
)
from torchvision import datasets
from torchvision.datasets import utils

from sparsekit.config.options import DataConfig
from sparsekit.data import ImageData
from sparsekit.data.built_in import DATA_SETS
from sparsekit.data.files import read
from sparsekit.errors import UserError
from sparsekit.plugins.registry import BUILT_IN

FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("folder", ["", "raw", "MNIST/raw"])
def test_idx_files(tmp_path: Path, folder: str, zipped: bool) -> None:
    images, labels, test_images, test_labels = write_idx(tmp_path / folder, zipped=zipped)
    raw = read("mnist", str(tmp_path))
    np.testing.assert_array_equal(raw.train_images[..., 0], images)
    np.testing.assert_array_equal(raw.test_images[..., 0], test_images)
    np.testing.assert_array_equal(raw.train_labels, labels)
    np.testing.assert_array_equal(raw.test_labels, test_labels)
    assert raw.train_labels.dtype == np.int64
    assert raw.train_images.shape == (40, 28, 28, 1)
    assert raw.num_classes == 10


def test_classes_have_their_published_names(tmp_path: Path) -> None:
    write_idx(tmp_path)
    assert read("mnist", str(tmp_path)).class_names == read("digits", None).class_names == tuple("0123456789")
    assert list(read("fashion_mnist", str(tmp_path)).class_names) == datasets.FashionMNIST.classes


def test_a_root_shared_by_both_mnists(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST/raw", train=40)
    write_idx(tmp_path / "FashionMNIST/raw", train=30)
    assert len(read("mnist", str(tmp_path)).train_labels) == 40
    assert len(read("fashion_mnist", str(tmp_path)).train_labels) == 30


@pytest.mark.parametrize(
    ("folder", "of", "encode"),
    [
        ("cifar-10-batches-py", 10, python2),
        ("", 10, pickled(2)),
        ("", 10, pickled(5)),
        ("cifar-100-python", 100, pickled(4, "fine_labels")),
    ],
)
def test_cifar_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, of: int, encode: Callable[..., bytes]
) -> None:
    *train, test = write_cifar(tmp_path / folder, of, 100, encode)
    publish(monkeypatch, tmp_path / folder, of)
    raw = read(f"cifar{of}", str(tmp_path))
    np.testing.assert_array_equal(raw.train_images, hwc(np.concatenate([data for data, _ in train])))
    np.testing.assert_array_equal(raw.train_labels, np.concatenate([labels for _, labels in train]))
    np.testing.assert_array_equal(raw.test_images, hwc(test[0]))
    np.testing.assert_array_equal(raw.test_labels, test[1])
    assert raw.train_images.dtype == np.uint8
    assert raw.train_labels.dtype == np.int64
    assert raw.num_classes == of
    assert raw.class_names == tuple(map(str, range(of)))  # as `publish` names them in the file of names


class Payload:
    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_file_with_another_md5_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    write_cifar(tmp_path, 10, 10, pickled(2))
    publish(monkeypatch, tmp_path, 10)
    read("cifar10", str(tmp_path))
    payload = pickle.dumps({"data": Payload(os.mkdir, str(tmp_path / "ran")), "labels": [0]})
    (tmp_path / file).write_bytes(payload)
    with pytest.raises(UserError) as caught:
        read("cifar10", str(tmp_path))
    assert str(caught.value).startswith(f"--data.root: '{tmp_path / file}' ")
    assert "MD5" in str(caught.value)
    assert "give the published files" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    pickle.loads(payload)  # a reader that trusts would have run it
    assert (tmp_path / "ran").exists()


def test_an_unreadable_cifar_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> bool:
        raise PermissionError(13, "Permission denied", "data_batch_1")

    write_cifar(tmp_path, 10, 10, pickled(2))
    publish(monkeypatch, tmp_path, 10)
    monkeypatch.setattr(utils, "check_md5", denied)
    with pytest.raises(UserError, match=r"^--data\.root: .* cannot be read .*Permission denied: 'data_batch_1'"):
        read("cifar10", str(tmp_path))


@pytest.mark.parametrize("of", [10, 100])
def test_torchvision_lists_the_md5_of_every_file(tmp_path: Path, of: int) -> None:
    """Or else any content would do; what is not published is refused by its first file."""
    write_cifar(tmp_path, of, 10, pickled(2))
    write(tmp_path / CIFAR[of][-1], b"")
    with pytest.raises(UserError, match=f"{CIFAR[of][0]}' has another MD5"):
        read(f"cifar{of}", str(tmp_path))
    dataset = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[of]
    listed = [*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])]
    assert [name for name, _ in listed] == CIFAR[of]
    assert all(len(md5) == 32 for _, md5 in listed)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IDX[0], idx(pixels(40, 28, 28))[:-1], "has 31359 bytes of data, but its header announces 31360"),
        (IDX[0], idx(pixels(40, 28, 28)) + b"x", "has 31361 bytes"),
        (IDX[0], idx(pixels(40, 28, 28))[:10], "starts with"),
        (IDX[0], idx(classes(40)), "starts with 00000801"),
        (IDX[0], b"", "starts with nothing"),
        (IDX[0], idx(pixels(40, 28, 20)), "28 x 20"),
        (IDX[0], idx(pixels(40, 0, 0)), "0 x 0"),
        (IDX[1], idx(classes(39)), "holds 39 labels for 40 images"),
        (IDX[1], idx(np.full(40, 10, np.uint8)), "has label 10, but labels run from 0 to 9"),
        (IDX[3], idx(classes(0)), "holds 0 labels"),
    ],
)
def test_damaged_idx_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_idx(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read("mnist", str(tmp_path))
    assert str(caught.value).startswith("--data.root: ")
    assert f"{name}' " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"x" + data, lambda data: data[:-3] + b"abc"])
def test_damaged_gz_files(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_idx(tmp_path, zipped=True)
    path = tmp_path / f"{IDX[2]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz' cannot be read"):
        read("mnist", str(tmp_path))


def test_images_of_two_sizes(tmp_path: Path) -> None:
    write_idx(tmp_path)
    write(tmp_path / IDX[2], idx(pixels(20, 14, 14)))
    with pytest.raises(UserError, match="training images of 28 pixels a side, but test images of 14"):
        read("mnist", str(tmp_path))


def test_missing_roots_and_files(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^--data\.root: .* no folder .*fashion_mnist give .*FashionMNIST\(root, download"
    ):
        read("fashion_mnist", None)
    with pytest.raises(UserError, match=r"^--data\.root: .*/nowhere' does not exist; .*give .*MNIST\(root, download"):
        read("mnist", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=rf"^--data\.root: '{tmp_path}' lacks train, test, meta; .*give .*CIFAR100\("):
        read("cifar100", str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="/file' is not a folder"):
        read("cifar10", str(tmp_path / "file"))
    write_idx(tmp_path)
    (tmp_path / IDX[1]).unlink()
    with pytest.raises(UserError, match=rf"'{tmp_path}' lacks train-labels-idx1-ubyte;"):
        read("mnist", str(tmp_path))
    write_cifar(tmp_path / "cifar-10-batches-py", 10, 10, pickled(2))
    with pytest.raises(UserError, match=r"cifar-10-batches-py' lacks batches\.meta;"):
        read("cifar10", str(tmp_path))
    with pytest.raises(UserError, match=r"^--data\.name: no data set 'cifar1'; .* Did you mean 'cifar10'\?"):
        read("cifar1", None)


def test_digits_are_all_there_once() -> None:
    sklearn = pytest.importorskip("sklearn.datasets").load_digits()
    raw = read("digits", None)
    images = np.concatenate([raw.train_images, raw.test_images])[..., 0]
    labels = np.concatenate([raw.train_labels, raw.test_labels])
    scaled = np.rint(sklearn.images * 255 / 16).astype(np.uint8)
    expected = zip((image.tobytes() for image in scaled), sklearn.target, strict=True)
    assert sorted(zip((image.tobytes() for image in images), labels, strict=True)) == sorted(expected)
    assert raw.held_out == 397
    assert (np.bincount(raw.train_labels[:400]) == 40).all()
    assert set(np.bincount(raw.train_labels[400:])) == {39, 40}
    assert len(raw.test_labels) == 1000


@pytest.mark.skipif(not FASHION.exists(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_published_fashion_mnist() -> None:
    raw = read("fashion_mnist", str(FASHION))
    assert raw.train_images.shape == (60000, 28, 28, 1)
    assert raw.test_images.shape == (10000, 28, 28, 1)
    assert (np.bincount(raw.train_labels) == 6000).all()
    data = ImageData.load(DataConfig("fashion_mnist", str(FASHION), batch_size=128), torch.device("cpu"), True)
    assert (data.train_size, data.held_out_size, data.test_size, data.steps_per_epoch) == (54000, 6000, 10000, 421)
    assert data.mean == pytest.approx([0.2860], abs=1e-3)  # as widely published
    assert data.std == pytest.approx([0.3530], abs=1e-3)
    held_out = torch.cat([labels for _, labels in data.evaluation_batches("held_out")])
    assert (held_out.bincount() == 600).all()


def test_every_built_in_data_set_has_its_entry() -> None:
    assert list(DATA_SETS) == list(BUILT_IN["dataset"])
