"""Score a model on a split, and recalibrate its BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.api import Score
from sparsekit.errors import RunError
from sparsekit.evaluation.metrics import Metrics, Tally

RECALIBRATION_IMAGES = 10_000


@torch.no_grad()
def score_model(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], autocast: torch.autocast) -> Score:
    """Accuracy, 0 to 1, and mean cross-entropy in nats, in evaluation mode; computed in float64.

    A NaN loss becomes infinite.

    Raises:
        RunError: there are no batches.
    """
    model.eval()
    count = 0
    sums: list[tuple[Tensor, Tensor]] = []
    for images, labels in batches:
        with autocast:
            logits = model(images)
        logits = logits.double()
        sums.append(((logits.argmax(1) == labels).sum(), F.cross_entropy(logits, labels, reduction="sum")))
        count += len(labels)
    if not count:
        raise RunError("there is nothing to evaluate: the split is empty")
    correct = sum(int(hits) for hits, _ in sums)  # read only here, so as not to wait for the device at each batch
    loss = sum(float(total) for _, total in sums) / count
    return Score(correct / count, loss if loss == loss else float("inf"))


@torch.no_grad()
def predict_logits(model: nn.Module, images: Tensor, autocast: torch.autocast) -> Tensor:
    """Logits [B, K] of a model in evaluation mode, for normalised images [B, C, S, S]."""
    with autocast:
        logits: Tensor = model.eval()(images)
    return logits


@torch.no_grad()
def measure_model(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: int, autocast: torch.autocast
) -> tuple[Metrics, Tensor]:
    """Metrics in evaluation mode, and the predicted class of each image, int64 [N] on the CPU.

    Raises:
        RunError: there are no batches.
    """
    model.eval()
    tally: Tally | None = None
    predicted = []
    for images, labels in batches:
        with autocast:
            logits = model(images)
        tally = tally or Tally(classes, logits.device)
        predicted.append(tally.add(logits, labels))
    if tally is None:
        raise RunError("there is nothing to evaluate: the split is empty")
    return tally.result(), torch.cat(predicted).cpu()


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
        layer.momentum = None  # a cumulative mean
        layer.train()
    size = 0
    try:
        for images, _ in batches:
            if len(images) < size:
                continue
            size = len(images)
            with autocast:
                model(images)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
