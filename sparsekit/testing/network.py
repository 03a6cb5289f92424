"""The network that plugins are tried on: what a convolutional network has, as small as that can be."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Network(nn.Module):
    """Three convolutions with BatchNorm and a classifier, for images of 8×8 pixels; some thousand weights."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits of a batch of images [N, C, H, W]."""
        x = self.bn1(self.conv1(images)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = self.bn3(self.conv3(x)).relu()
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))
        return logits
