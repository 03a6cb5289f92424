"""Images that timm's readers and torchvision's data sets read: a tar, `torch/NAME`, `hfds/NAME`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparsekit.data.examples import Data
from sparsekit.errors import UserError, first_line
from sparsekit.files import expanded

if TYPE_CHECKING:
    from PIL import Image


class ReadImages:
    """Some images of a timm reader as a map-style data set; timm's own would pass over damaged files.

    Attributes:
        targets: The class number of every image.
    """

    def __init__(self, reader: Any, numbers: Sequence[int], targets: Sequence[int]) -> None:
        self.reader, self.numbers, self.targets = reader, numbers, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        from PIL import Image

        with self.reader[self.numbers[index]][0] as file:
            return Image.open(file).convert("RGB"), self.targets[index]


def tar(root: str | None, test_root: str | None = None, test_fraction: float = 0.2) -> Data:
    """Images in a .tar file, each in the folder of its class.

    Args:
        root: The .tar file of training images, or a folder of such files.
        test_root: That of the test images; without one they are cut off the training images.
        test_fraction: Fraction of the images that is cut off for tests, above 0 and below 1.
    """
    if root is None:
        raise UserError("--data.root: no tar is given; give a .tar file of images in one folder a class")
    reader, labels = _open_tar(root, "--data.root")
    names = tuple(reader.class_name_to_idx)  # in the order of their numbers
    if test_root is not None:
        tests, test_labels = _open_tar(test_root, "--data.test_root")
        if unknown := [name for name in test_labels if name not in names]:
            raise UserError(
                f"--data.test_root {test_root!r} has a class {unknown[0]!r} that --data.root lacks; remove it"
            )
        parts: Any = [(reader, range(len(labels)), labels), (tests, range(len(test_labels)), test_labels)]
    else:
        import torch

        from sparsekit.data.choose import cut_test

        targets = torch.tensor([names.index(name) for name in labels])
        cut = [part.tolist() for part in cut_test(len(labels), targets, test_fraction, "--data.test_fraction")]
        parts = [(reader, part, [labels[i] for i in part]) for part in cut]
    number = {name: index for index, name in enumerate(names)}
    train, test = (ReadImages(source, part, [number[name] for name in texts]) for source, part, texts in parts)
    return Data(train, test, class_names=names)  # type: ignore[arg-type]


def torchvision(root: str | None, name: str, test_split: str = "validation") -> Data:
    """A data set of torchvision: `torch/qmnist`, `torch/imagenet` and the others that timm names so.

    Args:
        root: Its folder; nothing is downloaded.
        name: Its name, as timm's create_dataset takes it.
        test_split: The split for tests, as timm names it.
    """
    from timm.data.dataset_factory import create_dataset

    folder = str(expanded(root)) if root is not None else None
    found: list[Any] = []
    for split in ("train", test_split):
        try:
            found.append(create_dataset(f"torch/{name}", root=folder, split=split, is_training=split == "train"))
        except Exception as error:  # torchvision may raise anything
            reason = first_line(error).rstrip(".") or type(error).__name__
            raise UserError(
                f"--data.name torch/{name} with --data.root {root}: {reason}; give the folder that torchvision fills"
            ) from error
    classes = getattr(found[0], "classes", ())
    return Data(
        found[0], found[1], class_names=[each if isinstance(each, str) else ", ".join(each) for each in classes]
    )


def hugging_face(
    root: str | None,
    name: str,
    train_split: str = "train",
    test_split: str = "test",
    image: str = "image",
    label: str = "label",
) -> Data:
    """A data set of images of Hugging Face, as the package `datasets` loads it: `hfds/cifar10`, `hfds/OWNER/NAME`.

    Args:
        root: Folder of its cache; by default that of `datasets`.
        name: Its name on the hub, or a folder of files.
        train_split: The split to train on, such as `train` or `train[:80%]`.
        test_split: The split for tests.
        image: The column of the images.
        label: The column of the class numbers.
    """
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f"--data.name hfds/{name} needs the package datasets; install it: pip install datasets")
    from timm.data.readers.reader_hfds import ReaderHfds

    found: list[Any] = []
    names: tuple[str, ...] = ()
    for split in (train_split, test_split):
        try:
            reader = ReaderHfds(name, root=root, split=split, input_key=image, target_key=label)
            names = names or tuple(sorted(reader.class_to_idx, key=reader.class_to_idx.__getitem__))
            targets = [int(target) for target in reader.iter_targets()]  # type: ignore[no-untyped-call]
        except Exception as error:  # datasets may raise anything
            reason = first_line(error).rstrip(".") or type(error).__name__
            raise UserError(f"--data.name hfds/{name}, split {split}: {reason}; give what datasets can load") from error
        found.append(ReadImages(reader, range(len(targets)), targets))
    return Data(found[0], found[1], class_names=names)


def _open_tar(path: str, option: str) -> tuple[Any, list[str]]:
    """Open a tar by timm's reader, and tell the name of every image's class."""
    from timm.data.readers.reader_image_in_tar import ReaderImageInTar

    found = expanded(path)
    if not (found.is_dir() or (found.is_file() and found.suffix.lower() == ".tar")):
        raise UserError(f"{option} {path!r} is neither a .tar file nor a folder of some; give one")
    try:  # each image opens the tar anew: workers would move one another's place in a file that they share
        reader = ReaderImageInTar(str(found), cache_tarfiles=False, cache_tarinfo=False)  # type: ignore[no-untyped-call]
    except Exception as error:  # timm and tarfile may raise anything
        reason = "it holds no image" if isinstance(error, ValueError) else first_line(error).rstrip(".")
        raise UserError(f"{option} {path!r}: {reason}; give a .tar file of images in one folder a class") from error
    above = sorted({os.path.dirname(os.path.dirname(info.path)) for info, _, _ in reader.samples})
    if len(above) > 1 or {"", "."} & reader.class_name_to_idx.keys():
        where = f"folders of classes in {above[0] or '.'}/ and {above[1]}/" if len(above) > 1 else "images in no folder"
        raise UserError(f"{option} {path!r} holds {where}; give one tar a split, with one folder of images a class")
    return reader, [reader.class_idx_to_name[int(number)] for number in reader.targets]
