"""The built-in data sets: how each is loaded, and what is known of it before. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sparsekit.config.options import DataConfig
from sparsekit.data.contents import Contents, sizes
from sparsekit.errors import UserError
from sparsekit.files import expanded

if TYPE_CHECKING:
    import torch

    from sparsekit.data.folder import FolderData
    from sparsekit.data.images import ImageData

    Images: TypeAlias = ImageData | FolderData


@dataclass(frozen=True)
class BuiltIn:
    """A data set that is no plugin.

    Attributes:
        load: Loads it: `load(config, device, channels_last)`.
        at_hand: What it holds, where that can be told without torch and without reading more than a sample; else None.
    """

    load: Callable[[DataConfig, torch.device, bool], Images]
    at_hand: Callable[[DataConfig], Contents | None] = lambda config: None


def _published(config: DataConfig, device: torch.device, channels_last: bool) -> ImageData:
    for option, value in (("kwargs", config.kwargs), ("labels", config.labels), ("white", config.white)):
        if value:
            raise UserError(f"--data.{option} is for --data.name imagefolder, not for {config.name}; leave it out")
    from sparsekit.data.images import ImageData

    return ImageData.load(config, device, channels_last)


def _digits(config: DataConfig) -> Contents:
    return Contents.of_published(config.name, (*sizes(400, 397, config), 1_000), 10, config, cut=False)


def _folder(config: DataConfig, device: torch.device, channels_last: bool) -> FolderData:
    from sparsekit.data.folder import FolderData

    return FolderData.load(config, device, channels_last)


def _listed(config: DataConfig) -> Contents | None:
    if config.root is None or not expanded(config.root).is_dir():
        return None
    from sparsekit.data.folder_labels import list_images

    listing = list_images(config)
    return Contents(*listing.parts(config), listing.notes)


DATA_SETS = {
    "digits": BuiltIn(_published, _digits),
    "fashion_mnist": BuiltIn(_published),
    "mnist": BuiltIn(_published),
    "cifar10": BuiltIn(_published),
    "cifar100": BuiltIn(_published),
    "imagefolder": BuiltIn(_folder, _listed),
}
"""By name, as `plugins.registry.BUILT_IN` lists them."""
