"""Data sets: read from files, split, and augmented in batches on the device."""

from __future__ import annotations

import torch

from sparsekit.config.options import DataConfig
from sparsekit.data.folder import FolderData
from sparsekit.data.images import ImageData, Split
from sparsekit.errors import UserError

Data = ImageData | FolderData

__all__ = ["Data", "FolderData", "ImageData", "Split", "load"]


def load(config: DataConfig, device: torch.device, channels_last: bool) -> Data:
    """Load the data set of `--data`.

    Args:
        config: The options of `--data`.
        device: The device of its batches.
        channels_last: Memory format of its batches.

    Raises:
        UserError: an option is bad, or files are missing or damaged.
    """
    if config.name == "imagefolder":
        return FolderData.load(config, device, channels_last)
    if config.kwargs:
        raise UserError(f"--data.kwargs is for --data.name imagefolder, not for {config.name}; leave it out")
    return ImageData.load(config, device, channels_last)
