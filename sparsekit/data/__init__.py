"""Data sets: read from files, split, and augmented in batches on the device.

Importing this package does not import torch, so that `sparsekit plan` can list an image folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from sparsekit.config.options import DataConfig
from sparsekit.data.built_in import DATA_SETS
from sparsekit.data.contents import Contents
from sparsekit.data.examples import Data
from sparsekit.data.sources import open_data
from sparsekit.tasks.classification import Classification

if TYPE_CHECKING:
    import torch

    from sparsekit.api import Task
    from sparsekit.data.batches import ExampleData
    from sparsekit.data.folder import FolderData
    from sparsekit.data.images import ImageData, Split

    LoadedData: TypeAlias = ImageData | FolderData | ExampleData

__all__ = ["Data", "ExampleData", "FolderData", "ImageData", "LoadedData", "Split", "contents_at_hand", "load"]


def __getattr__(name: str) -> Any:
    """The data sets' types, which import torch."""
    if name not in ("ExampleData", "FolderData", "ImageData", "LoadedData", "Split"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sparsekit.data.batches import ExampleData
    from sparsekit.data.folder import FolderData
    from sparsekit.data.images import ImageData, Split

    found = {"ExampleData": ExampleData, "FolderData": FolderData, "ImageData": ImageData, "Split": Split}
    return found.get(name, ImageData | FolderData | ExampleData)


def load(config: DataConfig, device: torch.device, channels_last: bool, task: Task | None = None) -> LoadedData:
    """Load the data set of `--data`.

    Args:
        config: The options of `--data`.
        device: The device of its batches.
        channels_last: Memory format of its batches.
        task: What the model is trained for; a classification by default.

    Raises:
        UserError: an option is bad, or files are missing or damaged.
    """
    task = task or Classification()
    if (own := open_data(config)) is not None:
        from sparsekit.data import pictures
        from sparsekit.data.batches import ExampleData

        if pictures.has_pictures(own) and task.stratified:
            return pictures.load(own, config, device, channels_last)
        return ExampleData.load(own, config, device, channels_last, task)
    data = DATA_SETS[config.name].load(config, device, channels_last)
    if not task.stratified:
        from sparsekit.data.batches import count_outputs

        _, targets = next(iter(data.evaluation_batches("held_out")))
        data.num_classes = count_outputs(task, targets)
    return data


def contents_at_hand(config: DataConfig) -> Contents | None:
    """What the data set of `--data` holds, where that can be told without torch and without reading more than a sample.

    Raises:
        UserError: the folder of images is there, but its layout is not clear.
    """
    known = DATA_SETS.get(config.name)
    return known.at_hand(config) if known else None
