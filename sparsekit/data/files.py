"""Readers for the files data sets are published in. They trust nothing: no code in a file ever runs.

`digits.npz` beside this module holds the test set of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten
Digits, UCI Machine Learning Repository, 1998 (https://doi.org/10.24432/C50P49, CC BY 4.0), as scikit-learn's
`load_digits` gives it: `images` [1797, 8, 8] with values 0 to 16, `labels` [1797], and `order` [1797], added by us, a
fixed class-balanced shuffle: the first 400 are to train, the next 397 are held out, the last 1,000 are to test.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import pickle
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from sparsekit.errors import UserError, nearest
from sparsekit.files import expanded

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class RawData:
    """A data set as published.

    Attributes:
        train_images: uint8 [N, H, W, C] with H = W, 0 (black) to 255.
        train_labels: int64 [N], 0 to `num_classes` - 1.
        test_images: uint8 [M, H, W, C].
        test_labels: int64 [M].
        num_classes: How many classes there are.
        held_out: How many of the training images, the last ones, the data set itself holds out; None leaves it open.
    """

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    num_classes: int
    held_out: int | None = None


@dataclass(frozen=True)
class _Layout:
    """One way in which a data set lies on disk: its files, where below the root, and how to read them."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    folders: tuple[str, ...]
    parse: Callable[[Sequence[Path], int], tuple[Images, Labels]]


@dataclass(frozen=True)
class _DataSet:
    classes: int
    source: str
    layouts: tuple[_Layout, ...]


def read(name: str, root: str | None) -> RawData:
    """Read the data set `name` from the folder `root` (`digits` needs none).

    Raises:
        UserError: No such data set or folder, or a file that is missing, damaged or not what its name says.
    """
    if name == "digits":
        return _digits()
    if name not in _DATA_SETS:
        known = ["digits", *_DATA_SETS]
        raise UserError(f"--data.name: no data set {name!r}; choose from {', '.join(known)}.{nearest(name, known)}")
    data_set = _DATA_SETS[name]
    layout, folder = _find(name, data_set, root)
    images, labels = layout.parse([_file(folder, file) for file in layout.train], data_set.classes)
    test_images, test_labels = layout.parse([_file(folder, file) for file in layout.test], data_set.classes)
    if (side := images.shape[1]) != (test_side := test_images.shape[1]):
        _bad(folder, f"has training images of {side} pixels a side, but test images of {test_side}")
    return RawData(images, labels, test_images, test_labels, data_set.classes)


def _digits() -> RawData:
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        order = file["order"]
        images = np.rint(file["images"][order] * (255 / 16)).astype(np.uint8)[..., None]
        labels = file["labels"][order].astype(np.int64)
    return RawData(images[:797], labels[:797], images[797:], labels[797:], num_classes=10, held_out=397)


# --- finding files --------------------------------------------------------------------------------


def _find(name: str, data_set: _DataSet, root: str | None) -> tuple[_Layout, Path]:
    """The first layout of which all files are there, and their folder."""
    wanted = f"give the folder with {data_set.layouts[0].train[0]}(.gz) and its companions ({data_set.source})"
    if root is None:
        raise UserError(f"--data.root: {name} is read from files and no folder is given; {wanted}")
    base = expanded(root)
    if not os.path.isdir(base):  # unlike Path.is_dir, also False where a parent may not be read
        state = "is not a folder" if os.path.exists(base) else "does not exist"
        raise UserError(f"--data.root: '{root}' {state}; {wanted}")
    incomplete = ""
    for layout in data_set.layouts:
        for folder in (base / below for below in layout.folders):
            files = layout.train + layout.test
            missing = [file for file in files if not os.path.isfile(_file(folder, file))]
            if not missing:
                return layout, folder
            if len(missing) < len(files) and not incomplete:
                incomplete = f"'{folder}' lacks {', '.join(missing)}"
    raise UserError(f"--data.root: {incomplete or f'{root!r} holds no files of {name}'}; {wanted}")


def _file(folder: Path, name: str) -> Path:
    """The file `name`, or where there is none, `name.gz`: torchvision leaves both, and the plain one is read faster."""
    plain = folder / name
    return plain if os.path.isfile(plain) else folder / f"{name}.gz"


def _content(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return file.read()
        return path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:  # gzip raises all three on damaged files
        _bad(path, f"cannot be read ({error})")


def _bad(path: Path, what: str) -> NoReturn:
    raise UserError(f"--data.root: '{path}' {what}; give the published files")


def _checked(path: Path, labels: NDArray[Any], images: Images, classes: int) -> Labels:
    """`labels` of the file `path` as int64: as many as `images`, and within 0 to `classes` - 1."""
    if len(labels) != len(images) or len(labels) == 0:
        _bad(path, f"holds {len(labels)} labels for {len(images)} images")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        _bad(path, f"has label {wrong[0]}, but labels run from 0 to {classes - 1}")
    return labels.astype(np.int64)


# --- idx: MNIST and Fashion-MNIST -----------------------------------------------------------------


def _read_idx(paths: Sequence[Path], classes: int) -> tuple[Images, Labels]:
    images = _idx(paths[0], 3)
    if not images.shape[1] == images.shape[2] > 0:
        _bad(paths[0], f"holds images of {images.shape[1]} x {images.shape[2]} pixels, not square ones")
    return images[..., None], _checked(paths[1], _idx(paths[1], 1), images, classes)


def _idx(path: Path, dimensions: int) -> Images:
    """The uint8 array in an idx file: a magic number, big-endian uint32 sizes, then the bytes."""
    data = _content(path)
    start, magic = 4 + 4 * dimensions, bytes((0, 0, 8, dimensions))
    if len(data) < start or data[:4] != magic:
        _bad(path, f"starts with {data[:4].hex() or 'nothing'}, not with {magic.hex()} and {dimensions} sizes")
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    if len(data) - start != math.prod(shape):
        _bad(path, f"has {len(data) - start} bytes of data, but its header announces {math.prod(shape)}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


# --- CIFAR, binary and Python versions ------------------------------------------------------------


def _read_binary(paths: Sequence[Path], classes: int) -> tuple[Images, Labels]:
    """Records of a label (CIFAR-100: a coarse one, then the fine one) and 3,072 bytes of red, green and blue."""
    labels_each = 1 if classes == 10 else 2
    size = labels_each + 3072
    images, labels = [], []
    for path in paths:
        data = np.frombuffer(_content(path), np.uint8)
        if len(data) % size:
            _bad(path, f"has {len(data)} bytes, which is no multiple of {size}, the size of a record")
        records = data.reshape(-1, size)
        images.append(records[:, labels_each:])
        labels.append(_checked(path, records[:, labels_each - 1], images[-1], classes))
    return _planes_last(images), np.concatenate(labels)


def _read_pickles(paths: Sequence[Path], classes: int) -> tuple[Images, Labels]:
    """Pickled dicts of `data`, uint8 [N, 3072], and `labels` or `fine_labels`, a list of N."""
    key = "labels" if classes == 10 else "fine_labels"
    images, labels = [], []
    for path in paths:
        batch = _unpickle(path)
        values = batch.get(key)
        if not isinstance(values, list) or {type(value) for value in values} - {int}:
            _bad(path, f"has no list of numbers under {key!r}")
        images.append(_decode(path, batch.get("data")))
        labels.append(_checked(path, np.asarray(values), images[-1], classes))
    return _planes_last(images), np.concatenate(labels)


def _planes_last(batches: list[Images]) -> Images:
    return np.concatenate(batches).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


class _Inert:
    """Stands in for numpy's arrays and dtypes while a pickle is read, and only keeps what it is told.

    numpy's own unpickling takes flags from the file that let it pass off bytes as pointers.
    """

    def __init__(self, *args: Any, state: Any = None) -> None:
        self.args = args
        self.state = state

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _from_buffer(data: object, dtype: object, shape: object, order: object) -> _Inert:
    """What arrays pickled in protocol 5 ask for."""
    return _Inert(state=(1, shape, dtype, order == "F", data))


def _decode(path: Path, array: object) -> Images:
    """uint8 [N, 3072] from the state of an array: version, shape, dtype, whether in Fortran order, bytes."""
    match array.state if isinstance(array, _Inert) else None:
        case (_, (int(rows), 3072), _Inert(args=("u1" | "|u1", *_)), fortran, str() | bytes() | bytearray() as data):
            data = data.encode("latin1") if isinstance(data, str) else data
            if len(data) == rows * 3072:
                return np.frombuffer(data, np.uint8).reshape((rows, 3072), order="F" if fortran else "C")
    _bad(path, "has no uint8 array in rows of 3072 as 'data'")


_ALLOWED: dict[str, Callable[..., object]] = {
    "numpy.ndarray": _Inert,
    "numpy.dtype": _Inert,
    "numpy.core.multiarray._reconstruct": _Inert,
    "numpy._core.multiarray._reconstruct": _Inert,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": lambda text, _: text.encode("latin1"),  # bytes that Python 3 pickled in protocol 2
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path) -> None:
        super().__init__(io.BytesIO(_content(path)), encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ALLOWED:
            _bad(self.path, f"asks to call {f'{module}.{name}'!r}, which no CIFAR file needs, and was refused")
        return _ALLOWED[f"{module}.{name}"]


def _unpickle(path: Path) -> dict[object, object]:
    try:
        batch = _Unpickler(path).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        _bad(path, f"is no pickle of a CIFAR batch ({error!r})")
    return batch if isinstance(batch, dict) else {}


# --- what there is --------------------------------------------------------------------------------


def _idx_set(name: str, elsewhere: str = "") -> _DataSet:
    train = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    test = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    source = f"from torchvision's datasets.{name}(root, download=True){elsewhere}"
    return _DataSet(10, source, (_Layout(train, test, (f"{name}/raw", "raw", ""), _read_idx),))


def _cifar_set(classes: int, train: tuple[str, ...], test: str, binary: str, python: str) -> _DataSet:
    names = tuple(f"{name}.bin" for name in train)
    source = f"or {python} from torchvision's datasets.CIFAR{classes}(root, download=True)"
    layouts = (
        _Layout(names, (f"{test}.bin",), (binary, ""), _read_binary),
        _Layout(train, (test,), (python, ""), _read_pickles),
    )
    return _DataSet(classes, source, layouts)


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_DATA_SETS = {
    "mnist": _idx_set("MNIST"),
    "fashion_mnist": _idx_set(
        "FashionMNIST", " or Debian's package dataset-fashion-mnist, in /usr/share/datasets/fashion-mnist"
    ),
    "cifar10": _cifar_set(10, _BATCHES, "test_batch", "cifar-10-batches-bin", "cifar-10-batches-py"),
    "cifar100": _cifar_set(100, ("train",), "test", "cifar-100-binary", "cifar-100-python"),
}
