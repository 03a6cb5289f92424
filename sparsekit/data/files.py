"""Read data sets from the files in which they are published, without a download.

`digits.npz` beside this module holds the test set of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten
Digits, UCI Machine Learning Repository, 1998 (https://doi.org/10.24432/C50P49, CC BY 4.0), as scikit-learn's
`load_digits` gives it: `images` [1797, 8, 8] with values 0 to 16, `labels` [1797], and `order` [1797], added by us, a
fixed class-balanced shuffle: the first 400 are to train, the next 397 are held out, the last 1,000 are to test.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from sparsekit.errors import UserError, nearest
from sparsekit.files import expanded

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

_TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
"""The class in torchvision.datasets that downloads each data set."""


@dataclass(frozen=True)
class RawData:
    """A data set as published.

    Attributes:
        train_images: uint8 [N, H, W, C] with H = W, 0 (black) to 255.
        train_labels: int64 [N], 0 to `num_classes` - 1.
        test_images: uint8 [M, H, W, C].
        test_labels: int64 [M].
        num_classes: Number of classes.
        held_out: How many of the training images, the last ones, the data set itself holds out; None leaves it open.
    """

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    num_classes: int
    held_out: int | None = None


def read(name: str, root: str | None) -> RawData:
    """Read the data set `name` from the folder `root`, which `digits` does not need.

    Raises:
        UserError: The name or the folder does not exist, or a file is missing, unreadable or not the published one.
    """
    if name == "digits":
        return _digits()
    if name not in _TORCHVISION:
        known = ["digits", *_TORCHVISION]
        raise UserError(f"--data.name: no data set {name!r}; choose from {', '.join(known)}.{nearest(name, known)}")
    wanted = f"for {name} give the folder that torchvision's datasets.{_TORCHVISION[name]}(root, download=True) fills"
    if name == "fashion_mnist":
        wanted += ", or /usr/share/datasets/fashion-mnist of Debian's package dataset-fashion-mnist"
    if root is None:
        raise UserError(f"--data.root: {name} is read from files and no folder is given; {wanted}")
    folder = expanded(root)
    if not os.path.isdir(folder):  # unlike Path.is_dir, also False where a parent may not be read
        state = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise UserError(f"--data.root: '{root}' {state}; {wanted}")
    return (_cifar if name.startswith("cifar") else _mnist)(folder, _TORCHVISION[name], wanted)


def _digits() -> RawData:
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        order = file["order"]
        images = np.rint(file["images"][order] * (255 / 16)).astype(np.uint8)[..., None]
        labels = file["labels"][order].astype(np.int64)
    return RawData(images[:797], labels[:797], images[797:], labels[797:], num_classes=10, held_out=397)


def _cifar(root: Path, published: str, wanted: str) -> RawData:
    """Read CIFAR's pickles, once each has the MD5 that torchvision lists: unpickling can run code in a file."""
    from torchvision import datasets  # costs 1.6 s
    from torchvision.datasets.utils import check_integrity

    base = getattr(datasets, published)
    files = dict([*base.train_list, *base.test_list, (base.meta["filename"], base.meta["md5"])])
    folder = _complete([root / base.base_folder, root], list(files), wanted, Path)
    reader = type(published, (base,), {"base_folder": ""})  # its folder may also be the root itself
    try:
        for file, md5 in files.items():
            if not check_integrity(folder / file, md5):
                _bad(folder / file, "has another MD5 than the published file and was not unpickled")
        train, test = reader(folder, train=True), reader(folder, train=False)
    except OSError as error:
        _bad(folder, f"cannot be read ({error})")
    return RawData(train.data, np.array(train.targets), test.data, np.array(test.targets), len(train.classes))


def _mnist(root: Path, published: str, wanted: str) -> RawData:
    """Read idx files, which torchvision itself reads neither gzipped nor from any folder but its own."""
    files = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    folder = _complete([root / published / "raw", root / "raw", root], files, wanted, _plain_or_gz)
    images, labels = _idx_split(*(_plain_or_gz(folder / file) for file in files[:2]))
    test_images, test_labels = _idx_split(*(_plain_or_gz(folder / file) for file in files[2:]))
    if (side := images.shape[1]) != (test_side := test_images.shape[1]):
        _bad(folder, f"has training images of {side} pixels a side, but test images of {test_side}")
    return RawData(images, labels, test_images, test_labels, num_classes=10)


def _complete(folders: Sequence[Path], files: Sequence[str], wanted: str, find: Callable[[Path], Path]) -> Path:
    """The first of `folders`, of which the last is the root, that holds all `files`; raises UserError."""
    missing = {folder: [file for file in files if not os.path.isfile(find(folder / file))] for folder in folders}
    folder = min(folders, key=lambda folder: len(missing[folder]))
    if missing[folder]:
        where = folder if len(missing[folder]) < len(files) else folders[-1]
        raise UserError(f"--data.root: '{where}' lacks {', '.join(missing[folder])}; {wanted}")
    return folder


def _plain_or_gz(path: Path) -> Path:
    """The file, or if there is none, `<file>.gz`: torchvision leaves both, and the plain one is read faster."""
    return path if os.path.isfile(path) else path.with_name(f"{path.name}.gz")


def _bad(path: Path, what: str) -> NoReturn:
    raise UserError(f"--data.root: '{path}' {what}; give the published files")


def _idx_split(images_file: Path, labels_file: Path) -> tuple[Images, Labels]:
    """Images [N, H, W, 1] and as many labels."""
    images, labels = _idx(images_file, 3), _idx(labels_file, 1)
    if not images.shape[1] == images.shape[2] > 0:
        _bad(images_file, f"holds images of {images.shape[1]} x {images.shape[2]} pixels, not square ones")
    if len(labels) != len(images) or len(labels) == 0:
        _bad(labels_file, f"holds {len(labels)} labels for {len(images)} images")
    if labels.max() > 9:
        _bad(labels_file, f"has label {labels.max()}, but labels run from 0 to 9")
    return images[..., None], labels.astype(np.int64)


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The uint8 array in an idx file: a magic number, big-endian uint32 sizes, then the bytes."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:  # gzip raises all three on damaged files
        _bad(path, f"cannot be read ({error})")
    start, magic = 4 + 4 * dimensions, bytes((0, 0, 8, dimensions))
    if len(data) < start or data[:4] != magic:
        _bad(path, f"starts with {data[:4].hex() or 'nothing'}, not with {magic.hex()} and {dimensions} sizes")
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    if len(data) - start != math.prod(shape):
        _bad(path, f"has {len(data) - start} bytes of data, but its header announces {math.prod(shape)}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
