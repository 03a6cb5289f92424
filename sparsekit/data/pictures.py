"""Examples whose inputs are Pillow images: read and augmented as those of an image folder are."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sparsekit.config.options import DataConfig
from sparsekit.data import choose
from sparsekit.data.batches import check_classes, class_numbers, targets_of
from sparsekit.data.contents import Contents, Part, cut_by, limited_by
from sparsekit.data.examples import Data
from sparsekit.data.folder import FolderData
from sparsekit.data.images import Split
from sparsekit.data.stream import Sample, random_states_kept
from sparsekit.errors import RunError, UserError, first_line


def has_pictures(data: Data) -> bool:
    """Whether the first training example is a Pillow image, with its target; False where it cannot be read."""
    train: Any = data.train
    if isinstance(train, (tuple, list)):
        return False
    try:
        with random_states_kept(None):
            first = train[0]
    except Exception:  # a data set may raise anything; what is wrong is told where its examples are read
        return False
    return isinstance(first, (tuple, list)) and len(first) == 2 and isinstance(first[0], Image.Image)


def load(data: Data, config: DataConfig, device: torch.device, channels_last: bool) -> FolderData:
    """Split the examples, and make their images as those of an image folder are made.

    Raises:
        UserError: a target is no class number, or an option does not fit.
    """
    for option in ("labels", "white"):
        if getattr(config, option):
            raise UserError(f"--data.{option} is for --data.name imagefolder, not for {config.name}; leave it out")
    labels = {"train": _labels(data.train, "train"), "test": _labels(data.test, "test")}
    if data.held_out is not None:
        labels["held_out"] = _labels(data.held_out, "held_out")
    num_classes = int(labels["train"].max()) + 1
    check_classes(labels, num_classes, data.class_names)
    names = tuple(map(str, data.class_names or range(num_classes)))
    train = labels["train"]
    kept, cut, _ = choose.split(len(train), train, num_classes, config, held_out=data.held_out is not None)
    samples: dict[Split, list[Sample]] = {
        "train": [(i, int(train[i])) for i in kept.tolist()],
        "held_out": list(enumerate(labels["held_out"].tolist())) if cut is None else [
            (i, int(train[i])) for i in cut.tolist()
        ],
        "test": list(enumerate(labels["test"].tolist())),
    }  # fmt: skip
    whole = f"from {config.name}"
    contents = Contents(
        Part(len(kept), num_classes, f"{whole}{limited_by(config)}"),
        Part(len(samples["held_out"]), num_classes, whole if cut is None else f"cut off by {cut_by(config)}"),
        Part(len(samples["test"]), num_classes, whole),
        record=lambda: {
            "classes": list(names),
            "images": {split: {str(i): label for i, label in part} for split, part in samples.items()},
            "bytes": {},
        },
    )
    reads: dict[Split, Any] = {
        "train": _Reader(data.train, "train"),
        "held_out": _Reader(
            data.train if cut is not None else data.held_out, "train" if cut is not None else "held_out"
        ),
        "test": _Reader(data.test, "test"),
    }
    return FolderData.of(samples, reads, names, contents, config, device, channels_last)


class _Reader:
    """Reads the image of an example as RGB."""

    def __init__(self, dataset: Any, what: str) -> None:
        self.dataset, self.what = dataset, what

    def __call__(self, index: int) -> Image.Image:
        try:
            image: Image.Image = self.dataset[index][0]
            return image.convert("RGB")
        except Exception as error:  # a data set may raise anything
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise RunError(
                f"data.{self.what}: example {index} cannot be read ({reason}); repair or remove it"
            ) from error


def _labels(dataset: Any, what: str) -> Tensor:
    """The class numbers of all examples; raises UserError where their targets are none."""

    def read(indices: Tensor) -> Tensor:
        return torch.as_tensor([dataset[index][1] for index in indices.tolist()])

    try:
        targets = targets_of(dataset, read)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"data.{what}: its targets are no numbers ({first_line(error)}); give class numbers") from error
    return class_numbers(targets, what)
