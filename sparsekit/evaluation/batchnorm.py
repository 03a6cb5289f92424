"""BatchNorm recalibration: running statistics measured again on training images, as a soup needs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

RECALIBRATION_IMAGES = 10_000


def batchnorm_layers(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The BatchNorm layers that keep running statistics."""
    kinds = nn.modules.batchnorm._BatchNorm
    return [m for m in model.modules() if isinstance(m, kinds) and m.track_running_stats]


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], autocast: torch.autocast) -> None:
    """Replace BatchNorm's running statistics by their plain mean over the batches, in place.

    Only the BatchNorm layers are in training mode meanwhile, so that dropout does not change the statistics. Batches
    smaller than the largest before them are skipped, as each would count as much as a full batch.
    """
    layers = batchnorm_layers(model)
    if not layers:
        return
    model.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
    hooks = [layer.register_forward_pre_hook(_CumulativeMean()) for layer in layers]
    size = 0
    try:
        for images, _ in batches:
            if len(images) < size:
                continue
            size = len(images)
            with autocast:
                model(images)
    finally:
        for layer, momentum, hook in zip(layers, momenta, hooks, strict=True):
            hook.remove()
            layer.momentum = momentum
            layer.eval()


class _CumulativeMean:
    """Sets a layer's momentum to 1/k before its k-th call, so that its running statistics are a plain mean.

    As `momentum = None` does, for which torch reads the number of calls from the device: a wait a layer and batch.
    """

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, layer: nn.modules.batchnorm._BatchNorm, _: tuple[Tensor, ...]) -> None:
        self.calls += 1
        layer.momentum = 1.0 / self.calls
