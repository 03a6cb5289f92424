"""Examples whose inputs are Pillow images: read and augmented as those of an image folder are."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from sparsekit.config.options import DataConfig
from sparsekit.data import choose
from sparsekit.data.batches import check_classes
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
    if config.fold is not None and data.held_out is not None:
        raise UserError(f"--data.fold {config.fold}: {config.name} holds examples out itself; leave the option out")
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


def _labels(dataset: Any, what: str) -> torch.Tensor:
    """The class numbers of all examples: its `targets`, as torchvision calls them, or else read one by one."""
    known, count = getattr(dataset, "targets", None), len(dataset)
    tried = {round(i * (count - 1) / 19) for i in range(20)}
    if known is None or len(known) != count or any(dataset[i][1] != known[i] for i in tried):
        known = [dataset[index][1] for index in range(count)]  # as a wrapper gives them, which may change them
    try:
        labels = torch.as_tensor(known)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"data.{what}: its targets are no numbers ({first_line(error)}); give class numbers") from error
    if labels.dim() != 1 or not len(labels) or labels.is_floating_point() or bool((labels < 0).any()):
        raise UserError(
            f"data.{what}: targets {labels.dtype} of shape {tuple(labels.shape)} are no class numbers; images need "
            "those, for other tasks return tensors"
        )
    return labels.long()
