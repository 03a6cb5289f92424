"""Which of two shapes are in an image, one, both or none: binary cross-entropy, scored by mAP."""

import torch

import sparsekit


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    there = (torch.rand(count, 2, generator=generator) < 0.5).float()
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    shapes = torch.stack([(x - 4) ** 2 + (y - 4) ** 2 < 12, (x - 11).abs().maximum((y - 11).abs()) < 3]).float()
    drawn = (there @ shapes.flatten(1)).reshape(count, 1, 16, 16)
    return drawn + 0.7 * torch.randn(drawn.shape, generator=generator), there


run = sparsekit.fit(
    task="multilabel", data=sparsekit.Data(train=images(600, 0), test=images(300, 1)), merge="greedy",
    sparsity=0.9, epochs=10, out="runs/multilabel",
)  # fmt: skip
print(run.summary["test.mAP"], run.summary["sparsity"])
