"""Files of images as MNIST's and CIFAR's publishers wrote them, made byte by byte."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

CIFAR = {
    10: [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"],
    100: ["train", "test", "meta"],
}
IDX = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(path: Path, content: bytes, zipped: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if zipped:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def classes(count: int, of: int = 10) -> np.ndarray:
    return (np.arange(count) % of).astype(np.uint8)


def write_idx(folder: Path, train: int = 40, test: int = 20, side: int = 28, zipped: bool = False) -> list[np.ndarray]:
    arrays = [pixels(train, side, side), classes(train), pixels(test, side, side, seed=1), classes(test)]
    for name, array in zip(IDX, arrays, strict=True):
        write(folder / name, idx(array), zipped)
    return arrays


def write_cifar(
    folder: Path, of: int, each: int, encode: Callable[[np.ndarray, np.ndarray], bytes]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Write each batch as `encode` has it; returns what they hold, the test batch last."""
    batches = []
    for number, name in enumerate(CIFAR[of][:-1]):
        batches.append((pixels(each, 3072, seed=number), classes(each, of)))
        write(folder / name, encode(*batches[-1]))
    return batches


def publish(monkeypatch: pytest.MonkeyPatch, folder: Path, of: int) -> None:
    """Add the file of class names, and put the MD5 of each file in `folder` where torchvision lists the published."""
    *train, test, meta = CIFAR[of]
    dataset = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[of]
    write(folder / meta, pickle.dumps({dataset.meta["key"]: [str(number) for number in range(of)]}))
    listed = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in CIFAR[of]}
    monkeypatch.setattr(dataset, "train_list", [(name, listed[name]) for name in train])
    monkeypatch.setattr(dataset, "test_list", [(test, listed[test])])
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": listed[meta]})


def pickled(protocol: int, key: str = "labels") -> Callable[[np.ndarray, np.ndarray], bytes]:
    def encode(data: np.ndarray, labels: np.ndarray) -> bytes:
        return pickle.dumps({"batch_label": "one", key: labels.tolist(), "data": data, "filenames": ["x"]}, protocol)

    return encode


def python2(data: np.ndarray, labels: np.ndarray) -> bytes:
    """The published files' own form: Python 2 byte strings throughout, in protocol 2."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNNJ" + b"\xff" * 4
    dtype += b"J" + b"\xff" * 4 + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    array += (
        b"(K\x01M" + struct.pack("<H", len(data)) + b"M\x00\x0c\x86" + dtype + b"\x89" + text(data.tobytes()) + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def hwc(rows: np.ndarray) -> np.ndarray:
    """Each pixel's three values from the three planes, one by one."""
    planes = rows.reshape(-1, 3, 1024)
    return np.stack([planes[:, 0], planes[:, 1], planes[:, 2]], -1).reshape(-1, 32, 32, 3)
