"""Which pixels are a disc: cross-entropy over pixels, scored by mean IoU."""

import torch
from torch import nn

import sparsekit


def discs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    middle = 4 + 8 * torch.rand(count, 2, 1, 1, generator=generator)
    inside = (x - middle[:, 0]) ** 2 + (y - middle[:, 1]) ** 2 < 10
    return inside[:, None] + torch.randn(count, 1, 16, 16, generator=generator), inside.long()


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 2, 1)
    )


run = sparsekit.fit(
    task="segmentation", model=network, data=sparsekit.Data(train=discs(400, 0), test=discs(200, 1)),
    sparsity=0.8, epochs=10, out="runs/segmentation",
)  # fmt: skip
print(run.summary["test.mean_IoU"], run.summary["sparsity"])
