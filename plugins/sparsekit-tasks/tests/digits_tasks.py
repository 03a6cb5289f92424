"""Three tasks that the digits bring, and models for them, as a user's own module has them."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch
from torch import Tensor, nn

from sparsekit.data.examples import Data

LIT = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")
"""Which of a seven-segment display's segments are lit for each digit."""
TRAIN = 1000


def _digits() -> tuple[Tensor, Tensor]:
    """Images [N, 1, 8, 8] of 0 to 1, mixed, and their digits."""
    with np.load(str(files("sparsekit.data") / "digits.npz")) as file:
        order = file["order"]
        images, labels = file["images"][order], file["labels"][order]
    return torch.from_numpy(images).float()[:, None] / 16.0, torch.from_numpy(labels).long()


def _split(inputs: Tensor, targets: Tensor) -> Data:
    return Data((inputs[:TRAIN], targets[:TRAIN]), (inputs[TRAIN:], targets[TRAIN:]))


def segments() -> Data:
    """Which segments of the shape are lit."""
    images, labels = _digits()
    lit = torch.tensor([[float(segment in each) for segment in "abcdefg"] for each in LIT])
    return _split(images, lit[labels])


def moments() -> Data:
    """The centre of the ink, in pixels from the middle, across and down."""
    images, _ = _digits()
    place = torch.arange(8.0) - 3.5
    ink = images.sum((1, 2, 3))
    return _split(images, torch.stack([(images.sum((1, 2)) @ place) / ink, (images.sum((1, 3)) @ place) / ink], 1))


def ink() -> Data:
    """Which pixels have ink, seen through noise; 255 where the image itself is grey."""
    images, _ = _digits()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    labels = (images[:, 0] > 0.5).long().masked_fill((images[:, 0] - 0.5).abs() < 0.1, 255)
    return _split(images + 0.3 * noise, labels)


class Numbers(nn.Sequential):
    """A few layers that give two numbers an image."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * channels, 2),
        )


class Pixels(nn.Sequential):
    """A few layers that give two logits a pixel."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2, 1),
        )
