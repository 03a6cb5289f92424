"""A network of your own on tensors of your own: five channels, three classes."""

import torch
from torch import nn

import sparsekit


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(5, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU())
        self.head = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


x = torch.randn(1500, 5, 8, 8, generator=torch.Generator().manual_seed(0))
y = x.mean((2, 3)).mul(8).sum(1).round().clamp(-1, 1).long() + 1  # which of three, from all channels

run = sparsekit.fit(
    method="gmp", merge="uniform", sparsity=0.9, epochs=12, replicas={"count": 3},
    model=Net, data=sparsekit.Data(train=(x[:1000], y[:1000]), test=(x[1000:], y[1000:])),
    optimizer={"lr": 0.1}, out="runs/own-model", display=True,
)  # fmt: skip
print(run.model, run.summary["test.accuracy"], run.summary["sparsity"])
