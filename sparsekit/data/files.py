"""Read data sets from their published files, without downloading.

`digits.npz` beside this module holds the test set of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten
Digits, UCI Machine Learning Repository, 1998 (https://doi.org/10.24432/C50P49, CC BY 4.0), as scikit-learn's
`load_digits` returns it: `images` [1797, 8, 8] with values 0 to 16, `labels` [1797], and `order` [1797], which we
added, a fixed class-balanced shuffle: the first 400 are for training, the next 397 held out, the last 1,000 for tests.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
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

_NUMERALS = tuple(map(str, range(10)))
_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
"""As its authors name them (github.com/zalandoresearch/fashion-mnist)."""


@dataclass(frozen=True)
class RawData:
    """A data set as published.

    Attributes:
        train_images: uint8 [N, H, W, C] with H = W, 0 (black) to 255.
        train_labels: int64 [N], each an index of `class_names`.
        test_images: uint8 [M, H, W, C].
        test_labels: int64 [M].
        class_names: The classes' names, by label.
        held_out: Number of images at the end of the training images that the data set itself holds out; None if it
            defines no such split.
        flip: Whether a mirrored image keeps its label, which a digit does not.
        shown: Side in pixels in which images are shown by default; None for that of the files.
    """

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    class_names: tuple[str, ...]
    held_out: int | None = None
    flip: bool = False
    shown: int | None = None

    @property
    def side(self) -> int:
        """Side in pixels in which images are shown by default."""
        return self.shown or int(self.train_images.shape[1])

    def record(self) -> dict[str, Any]:
        """The arrays of each published split with the SHA-256 of their values, for `Contents`."""
        train = {"train images": _checksum(self.train_images), "train labels": _checksum(self.train_labels)}
        test = {"test images": _checksum(self.test_images), "test labels": _checksum(self.test_labels)}
        return {"images": {"train": train, "test": test}, "bytes": {}}

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def read(name: str, root: str | None) -> RawData:
    """Read a data set from its published files.

    Args:
        name: Name of the data set.
        root: Folder of the files; not needed for `digits`.

    Raises:
        UserError: the name or the folder does not exist, or a file is missing, unreadable or not the published one.
    """
    if name not in _READERS:
        raise UserError(
            f"--data.name: no data set {name!r}; choose from {', '.join(_READERS)}.{nearest(name, _READERS)}"
        )
    return _READERS[name](name, root)


def _checksum(array: Images | Labels) -> str:
    return f"{array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def _digits(name: str, root: str | None) -> RawData:
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        order = file["order"]
        images = np.rint(file["images"][order] * (255 / 16)).astype(np.uint8)[..., None]
        labels = file["labels"][order].astype(np.int64)
    return RawData(images[:797], labels[:797], images[797:], labels[797:], _NUMERALS, held_out=397, shown=16)


@dataclass(frozen=True)
class _Downloaded:
    """A data set in the files that torchvision downloads.

    Attributes:
        published: Its class in torchvision.datasets.
        read: Reads the files: `read(folder, self, hint)`.
        names: The classes' names, by label; empty where the files hold them.
        flip: Whether a mirrored image keeps its label.
        others: Which other folders will do, for messages.
    """

    published: str
    read: Callable[[Path, _Downloaded, str], RawData]
    names: tuple[str, ...] = ()
    flip: bool = True
    others: str = ""

    def __call__(self, name: str, root: str | None) -> RawData:
        hint = f"for {name} give the folder that torchvision's datasets.{self.published}(root, download=True) fills"
        hint += self.others
        if root is None:
            raise UserError(f"--data.root: {name} is read from files and no folder is given; {hint}")
        folder = expanded(root)
        if not os.path.isdir(folder):  # unlike Path.is_dir, also False where a parent may not be read
            state = "is not a folder" if os.path.exists(folder) else "does not exist"
            raise UserError(f"--data.root: '{root}' {state}; {hint}")
        return self.read(folder, self, hint)


def _cifar(root: Path, which: _Downloaded, hint: str) -> RawData:
    """Read CIFAR's pickles after checking the MD5 sums that torchvision lists, as unpickling can run code."""
    from torchvision import datasets  # costs 1.6 s
    from torchvision.datasets.utils import check_integrity

    base = getattr(datasets, which.published)
    files = dict([*base.train_list, *base.test_list, (base.meta["filename"], base.meta["md5"])])
    folder = _complete([root / base.base_folder, root], list(files), hint, Path)
    reader = type(which.published, (base,), {"base_folder": ""})  # the files may also be in the root itself
    try:
        for file, md5 in files.items():
            if not check_integrity(folder / file, md5):
                _bad(folder / file, "has another MD5 than the published file and was not unpickled")
        train, test = reader(folder, train=True), reader(folder, train=False)
    except OSError as error:
        _bad(folder, f"cannot be read ({error})")
    labels = np.array(train.targets), np.array(test.targets)
    return RawData(train.data, labels[0], test.data, labels[1], tuple(train.classes), flip=which.flip)


def _mnist(root: Path, which: _Downloaded, hint: str) -> RawData:
    """Read idx files; torchvision reads them neither gzipped nor from other folders than its own."""
    files = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    folder = _complete([root / which.published / "raw", root / "raw", root], files, hint, _plain_or_gz)
    images, labels = _idx_split(*(_plain_or_gz(folder / file) for file in files[:2]))
    test_images, test_labels = _idx_split(*(_plain_or_gz(folder / file) for file in files[2:]))
    if (side := images.shape[1]) != (test_side := test_images.shape[1]):
        _bad(folder, f"has training images of {side} pixels a side, but test images of {test_side}")
    return RawData(images, labels, test_images, test_labels, which.names, flip=which.flip)


def _complete(folders: Sequence[Path], files: Sequence[str], hint: str, find: Callable[[Path], Path]) -> Path:
    """The first of `folders`, the last of which is the root, that has all `files`; raises UserError if none has."""
    missing = {folder: [file for file in files if not os.path.isfile(find(folder / file))] for folder in folders}
    folder = min(folders, key=lambda folder: len(missing[folder]))
    if missing[folder]:
        where = folder if len(missing[folder]) < len(files) else folders[-1]
        raise UserError(f"--data.root: '{where}' lacks {', '.join(missing[folder])}; {hint}")
    return folder


def _plain_or_gz(path: Path) -> Path:
    """The file, or `<file>.gz` if it does not exist; torchvision keeps both, and the plain file is read faster."""
    return path if os.path.isfile(path) else path.with_name(f"{path.name}.gz")


def _bad(path: Path, what: str) -> NoReturn:
    raise UserError(f"--data.root: '{path}' {what}; give the published files")


def _idx_split(images_file: Path, labels_file: Path) -> tuple[Images, Labels]:
    """Read images, uint8 [N, H, W, 1], and their labels, int64 [N]."""
    images, labels = _idx(images_file, 3), _idx(labels_file, 1)
    if not images.shape[1] == images.shape[2] > 0:
        _bad(images_file, f"holds images of {images.shape[1]} x {images.shape[2]} pixels, not square ones")
    if len(labels) != len(images) or len(labels) == 0:
        _bad(labels_file, f"holds {len(labels)} labels for {len(images)} images")
    if labels.max() > 9:
        _bad(labels_file, f"has label {labels.max()}, but labels run from 0 to 9")
    return images[..., None], labels.astype(np.int64)


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read the uint8 array of an idx file: a magic number, big-endian uint32 sizes, then the values."""
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


_IDX = ", or one with train-images-idx3-ubyte(.gz) and its companions"
_DEBIAN = ", as /usr/share/datasets/fashion-mnist of Debian's package dataset-fashion-mnist"
_READERS: dict[str, Callable[[str, str | None], RawData]] = {
    "digits": _digits,
    "mnist": _Downloaded("MNIST", _mnist, _NUMERALS, flip=False, others=_IDX),
    "fashion_mnist": _Downloaded("FashionMNIST", _mnist, _FASHION, others=f"{_IDX}{_DEBIAN}"),
    "cifar10": _Downloaded("CIFAR10", _cifar),
    "cifar100": _Downloaded("CIFAR100", _cifar),
}
"""By name, how each is read."""
