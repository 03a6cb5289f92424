"""Score a model on a split, and recalibrate its BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.api import Score
from sparsekit.errors import RunError
from sparsekit.evaluation.metrics import Metrics, Tally


@torch.no_grad()
def score_model(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], autocast: torch.autocast) -> Score:
    """Accuracy, 0 to 1, and mean cross-entropy in nats, in evaluation mode; computed in float64.

    A NaN loss becomes infinite.

    Raises:
        RunError: there are no batches.
    """
    model.eval()
    count = 0
    hits: list[Tensor] = []
    losses: list[Tensor] = []
    for images, labels in batches:
        with autocast:
            logits = model(images)
        logits = logits.double()
        hits.append((logits.argmax(1) == labels).sum())
        losses.append(F.cross_entropy(logits, labels, reduction="sum"))
        count += len(labels)
    if not count:
        raise RunError("there is nothing to evaluate: the split is empty")
    correct = sum(torch.stack(hits).tolist())  # read only here, so as not to wait for the device at each batch
    loss = sum(torch.stack(losses).tolist()) / count
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
