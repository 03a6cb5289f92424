"""The speed of an export, as ratios of times measured in alternation."""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from sparsekit.exporting.formats import Format, Loaded
from sparsekit.exporting.model import ExportModel

ROUNDS = 15
BATCH = 64
_ROUND_SECONDS = 0.05
"""A model's turn in a round takes at least about this long."""
GAIN = 1.05
"""Smallest ratio that counts as a speed-up."""


@dataclass(frozen=True)
class Ratio:
    """A speed-up: its median over rounds, and its first and third quartile."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} times as fast ({self.low:.2f} to {self.high:.2f})"


def measure(export_model: ExportModel, exporter: Format, exported: Loaded, images: Tensor) -> tuple[Ratio, Ratio]:
    """The speed-up of an export over the same export of a model without zeros, and over plain PyTorch.

    Args:
        export_model: The model that was exported.
        exporter: The format.
        exported: The export.
        images: Normalised images; up to 64 of them are used.
    """
    full = replace(export_model, model=filled(export_model.model))
    with tempfile.TemporaryDirectory() as folder:
        if exporter.reference is Format.reference:
            path = Path(folder) / "dense"
            exporter.write(full, path)
            baseline = exporter.load(path, full)
        else:  # the format cannot hold a model without zeros
            baseline = exporter.reference(full)
        dense, plain = timed([exported, baseline, Loaded.from_module(export_model.model)], images[:BATCH])
    return dense, plain


def timed(candidates: list[Loaded], images: Tensor) -> list[Ratio]:
    """The speed-up of the first candidate over each of the others, measured in rounds of one turn each."""
    first, *others = zip(*_rounds(candidates, images), strict=True)
    found = [[b / a for a, b in zip(first, other, strict=True)] for other in others]
    return [Ratio(median(ratios), *_quartiles(ratios)) for ratios in found]


@dataclass(frozen=True)
class Paired:
    """Seconds of two models, medians of rounds in which both take turns, and their ratio with quartiles over rounds."""

    first: float
    second: float
    ratio: Ratio


def paired(first: Loaded, second: Loaded, images: Tensor) -> Paired:
    """Time two models on the same images."""
    rounds = _rounds([first, second], images)
    own, other = (median(seconds) for seconds in zip(*rounds, strict=True))
    return Paired(own, other, Ratio(own / other, *_quartiles([a / b for a, b in rounds])))


def _rounds(models: list[Loaded], images: Tensor) -> list[list[float]]:
    """Seconds that each model takes for the images, in rounds in which all take a turn."""
    placed = [(one, one.place(images)) for one in models]  # not timed: the copy to the device
    slowest = max(min(_seconds(*each) for _ in range(3)) for each in placed)
    repeats = max(1, round(_ROUND_SECONDS / slowest))
    return [[_seconds(*each, repeats) / repeats for each in placed] for _ in range(ROUNDS)]


def _quartiles(ratios: list[float]) -> tuple[float, float]:
    """The first and the third quartile over the rounds."""
    ordered = sorted(ratios)
    return ordered[ROUNDS // 4], ordered[-1 - ROUNDS // 4]


def verdict(dense: Ratio, name: str) -> str:
    """A line for the user: whether the zeros make the export faster, and if not, what would.

    Args:
        dense: The speed-up over the same export of a model without zeros.
        name: The format, as given by `--format`.
    """
    if dense.median >= GAIN and dense.low > 1.0:
        return "the zeros make it faster here"
    advice = {
        "2:4": "the layers are too small for the units to pay; larger matrices and batches do",
    }.get(name, "dense kernels multiply zeros too; --masks.pattern 2:4 with --format 2:4 is what CUDA devices can use")
    return f"the zeros gain nothing here: {advice}"


@torch.no_grad()
def filled(model: nn.Module) -> nn.Module:
    """A copy of the model with its zeros replaced by random numbers of the weights' scale."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for weight in model.parameters():
        scale = float(weight.abs().mean()) or 1e-2
        noise = torch.randn(weight.shape, generator=generator) * scale
        weight.copy_(torch.where(weight == 0, noise, weight))
    return model


def _seconds(loaded: Loaded, images: Tensor, repeats: int = 1) -> float:
    _finish(images)
    start = time.perf_counter()
    for _ in range(repeats):
        loaded.predict(images)
    _finish(images)
    return time.perf_counter() - start


def _finish(images: Tensor) -> None:
    """Wait for the images' device to finish its work."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
