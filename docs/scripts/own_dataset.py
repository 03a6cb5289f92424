"""A data set of your own, drawn anew each time and read by two processes; stopped at any time, it resumes."""

import sys

import torch
from torch.utils.data import Dataset

import sparsekit


class Bars(Dataset):
    """Images of one bar in noise; the class is its place."""

    def __init__(self, count: int) -> None:
        self.targets = [index % 8 for index in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = 0.8 * torch.randn(1, 8, 8)  # the same noise for the same seed, epoch and example
        image[:, :, self.targets[index]] += 1.0
        return image, self.targets[index]


data = sparsekit.Data(train=Bars(800), test=Bars(400), class_names=[f"column {place}" for place in range(8)])
run = sparsekit.fit(data=data, epochs=10, out=sys.argv[1], resume="--resume" in sys.argv, **{"data.workers": 2})
print(run.summary["test.accuracy"], run.summary["sparsity"])
