"""How fast an export is, as ratios of times that were taken in turns."""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from sparsekit.export.formats import Format, Loaded, of_module
from sparsekit.export.model import ExportModel

ROUNDS = 15
BATCH = 64
_LEAST = 0.05
GAIN = 1.05
"""From this ratio on, something was gained."""


@dataclass(frozen=True)
class Ratio:
    """How many times as fast: the median over rounds, and the first and third quartile."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} times as fast ({self.low:.2f} to {self.high:.2f})"


def measure(subject: ExportModel, form: Format, exported: Loaded, images: Tensor) -> tuple[Ratio, Ratio]:
    """How fast an export is against the same export of a model without zeros, and against plain PyTorch."""
    full = replace(subject, model=filled(subject.model))
    with tempfile.TemporaryDirectory() as folder:
        if form.reference is Format.reference:
            path = Path(folder) / "twin"
            form.write(full, path)
            twin = form.load(path, full)
        else:  # a model without zeros cannot have this format
            twin = form.reference(full)
        dense, plain = timed([exported, twin, of_module(subject.model)], images[:BATCH])
    return dense, plain


def timed(candidates: list[Loaded], images: Tensor) -> list[Ratio]:
    """The first one's speed against each of the others, over rounds in which each has its turn."""
    placed = [(one, one.place(images)) for one in candidates]  # the copy to a device is not the model's time
    first = [min(_seconds(*each) for _ in range(3)) for each in placed]
    repeats = max(1, round(_LEAST / max(first)))
    rounds = [[_seconds(*each, repeats) for each in placed] for _ in range(ROUNDS)]
    found = []
    for other in range(1, len(candidates)):
        ratios = sorted(times[other] / times[0] for times in rounds)
        found.append(Ratio(median(ratios), ratios[ROUNDS // 4], ratios[-1 - ROUNDS // 4]))
    return found


def verdict(dense: Ratio, form: str) -> str:
    """What was gained by the zeros, and which pattern would gain something."""
    if dense.median >= GAIN and dense.low > 1.0:
        return "the zeros make it faster here"
    advice = {
        "2:4": "the layers are too small for the units to pay; larger matrices and batches do",
    }.get(form, "dense kernels multiply zeros too; --masks.pattern 2:4 with --format 2:4 is what CUDA devices can use")
    return f"the zeros gain nothing here: {advice}"


@torch.no_grad()
def filled(model: nn.Module) -> nn.Module:
    """A copy whose zeros are ordinary numbers."""
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
    """Wait for what was started on the images' device."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
