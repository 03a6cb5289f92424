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
    IDX,
    binary,
    binary100,
    classes,
    hwc,
    idx,
    pickled,
    pixels,
    python2,
    write,
    write_cifar,
    write_idx,
)

from sparsekit.config.options import DataConfig
from sparsekit.data import ImageData
from sparsekit.data.files import read
from sparsekit.errors import UserError

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


def test_a_root_shared_by_both_mnists(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST/raw", train=40)
    write_idx(tmp_path / "FashionMNIST/raw", train=30)
    assert len(read("mnist", str(tmp_path)).train_labels) == 40
    assert len(read("fashion_mnist", str(tmp_path)).train_labels) == 30


@pytest.mark.parametrize(
    ("name", "folder", "of", "encode", "suffix", "zipped"),
    [
        ("cifar10", "", 10, binary, ".bin", False),
        ("cifar10", "cifar-10-batches-bin", 10, binary, ".bin", True),
        ("cifar10", "cifar-10-batches-py", 10, python2, "", False),
        ("cifar10", "", 10, pickled(2), "", False),
        ("cifar10", "cifar-10-batches-py", 10, pickled(4), "", True),
        ("cifar10", "", 10, pickled(5), "", False),
        ("cifar100", "cifar-100-binary", 100, binary100, ".bin", False),
        ("cifar100", "cifar-100-python", 100, pickled(4, "fine_labels"), "", False),
    ],
)
def test_cifar_files(
    tmp_path: Path, name: str, folder: str, of: int, encode: Callable[..., bytes], suffix: str, zipped: bool
) -> None:
    *train, test = write_cifar(tmp_path / folder, of, 100, encode, suffix, zipped=zipped)
    raw = read(name, str(tmp_path))
    np.testing.assert_array_equal(raw.train_images, hwc(np.concatenate([data for data, _ in train])))
    np.testing.assert_array_equal(raw.train_labels, np.concatenate([labels for _, labels in train]))
    np.testing.assert_array_equal(raw.test_images, hwc(test[0]))
    np.testing.assert_array_equal(raw.test_labels, test[1])
    assert raw.num_classes == of


def test_cifar_arrays_in_fortran_order(tmp_path: Path) -> None:
    *train, _ = write_cifar(tmp_path, 10, 10, lambda data, labels: pickled(2)(np.asfortranarray(data), labels))
    np.testing.assert_array_equal(read("cifar10", str(tmp_path)).train_images[:10], hwc(train[0][0]))


class Payload:
    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.mkdir, eval, getattr])
def test_no_code_in_a_pickle_runs(tmp_path: Path, function: Callable[..., object], protocol: int) -> None:
    arguments = {
        os.mkdir: (str(tmp_path / "ran"),),
        eval: (f"__import__('os').mkdir({str(tmp_path / 'ran')!r})",),
        getattr: (dict, "get"),
    }
    write_cifar(tmp_path, 10, 10, pickled(2))
    payload = pickle.dumps({"data": Payload(function, *arguments[function]), "labels": [0]}, protocol)
    (tmp_path / "data_batch_3").write_bytes(payload)
    with pytest.raises(UserError, match=r"^--data\.root: .*data_batch_3' asks to call '\S*\.\w+', .* refused"):
        read("cifar10", str(tmp_path))
    assert not (tmp_path / "ran").exists()
    pickle.loads(payload)  # a reader that trusts would have run it
    assert (tmp_path / "ran").exists() or function is getattr


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04",
        b"\x80\x04\x8c\x02o\n\x8c\x01x\x93.",
        pickled(2)(pixels(4, 3072), classes(4))[:-5000],
        pickle.dumps([1, 2]),
        pickle.dumps({"data": pixels(4, 3072)}),
        pickle.dumps({"data": pixels(4, 3072), "labels": ["a"] * 4}),
        pickle.dumps({"data": pixels(4, 3072), "labels": [0, 1, 2]}),
        pickle.dumps({"data": pixels(4, 3072), "labels": [0, 1, 2, 10]}),
        pickle.dumps({"data": pixels(4, 3072), "labels": [0, 1, 2, -(10**30)]}),
        pickle.dumps({"data": pixels(4, 3072), "labels": []}),
        pickle.dumps({"data": pixels(4, 3071), "labels": [0, 1, 2, 3]}),
        pickle.dumps({"data": np.zeros((4, 3072), np.float32), "labels": [0, 1, 2, 3]}),
        pickle.dumps({"data": np.full((4, 3072), "x", object), "labels": [0, 1, 2, 3]}),
        pickle.dumps({"data": [0, 1, 2, 3], "labels": [0, 1, 2, 3]}),
    ],
)
def test_damaged_pickles(tmp_path: Path, content: bytes) -> None:
    write_cifar(tmp_path, 10, 10, pickled(2))
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match=r"^--data\.root: .*test_batch' ") as caught:
        read("cifar10", str(tmp_path))
    assert "\n" not in str(caught.value)


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


def test_damaged_binary_files(tmp_path: Path) -> None:
    write_cifar(tmp_path, 10, 10, binary, ".bin")
    path = tmp_path / "data_batch_2.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"data_batch_2\.bin' has 30729 bytes"):
        read("cifar10", str(tmp_path))
    path.write_bytes(b"\x0b" + content[1:])
    with pytest.raises(UserError, match=r"data_batch_2\.bin' has label 11"):
        read("cifar10", str(tmp_path))


def test_images_of_two_sizes(tmp_path: Path) -> None:
    write_idx(tmp_path)
    write(tmp_path / IDX[2], idx(pixels(20, 14, 14)))
    with pytest.raises(UserError, match="training images of 28 pixels a side, but test images of 14"):
        read("mnist", str(tmp_path))


def test_missing_roots_and_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--data\.root: .* no folder is given; give .*FashionMNIST\(root, download"):
        read("fashion_mnist", None)
    with pytest.raises(UserError, match=r"/nowhere' does not exist; .*train-images-idx3-ubyte\(\.gz\)"):
        read("mnist", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"holds no files of cifar100; .*cifar-100-python from torchvision"):
        read("cifar100", str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="/file' is not a folder"):
        read("cifar10", str(tmp_path / "file"))
    write_idx(tmp_path)
    (tmp_path / IDX[1]).unlink()
    with pytest.raises(UserError, match="lacks train-labels-idx1-ubyte;"):
        read("mnist", str(tmp_path))
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
