"""Files of images as MNIST's and CIFAR's publishers wrote them, made byte by byte."""

from __future__ import annotations

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

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
    folder: Path, of: int, each: int, encode: Callable[[np.ndarray, np.ndarray], bytes], suffix: str = "", **kwargs: Any
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Write each batch as `encode` has it; returns what they hold, the test batch last."""
    ten = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    batches = []
    for number, name in enumerate(ten if of == 10 else ["train", "test"]):
        batches.append((pixels(each, 3072, seed=number), classes(each, of)))
        write(folder / f"{name}{suffix}", encode(*batches[-1]), **kwargs)
    return batches


def binary(data: np.ndarray, labels: np.ndarray) -> bytes:
    return b"".join(bytes([label]) + row.tobytes() for row, label in zip(data, labels, strict=True))


def binary100(data: np.ndarray, labels: np.ndarray) -> bytes:
    return b"".join(bytes([label % 20, label]) + row.tobytes() for row, label in zip(data, labels, strict=True))


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
