"""A model's cost: operations, parameters, bytes, time; dense, and as if zeros could be skipped."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sparsekit._types import Tensors


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one image; a multiplication and an addition count as two.

    Attributes:
        dense: PyTorch's count of convolutions and matrix products, including attention; nothing elementwise.
        sparse: The dense count, with that of each masked layer multiplied by the fraction of its weights that is kept.
        layers: Dense count of each layer that has a mask, by parameter name.
        modules: Dense count of each module, with all in it, by its path.
    """

    dense: int
    sparse: float
    layers: Mapping[str, int]
    modules: Mapping[str, int] = field(default_factory=dict)


@torch.no_grad()
def flops(model: nn.Module, image: Tensor, masks: Tensors) -> Flops:
    """Count the operations of one forward pass with torch's FlopCounterMode.

    Args:
        model: The model; it is left in evaluation mode.
        image: Any image, [1, C, S, S].
        masks: Masks of the prunable weights, True keeps, by parameter name.
    """
    model.eval()
    counter = FlopCounterMode(display=False)
    # The counter does not know every fused attention kernel that torch picks; the math backend is plain products.
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(image)
    root = type(model).__name__
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    layers = {name: counts.get(f"{root}.{name.rpartition('.')[0]}", 0) for name in masks}
    inside = {name.removeprefix(f"{root}."): count for name, count in counts.items()}
    dense = counter.get_total_flops()
    kept = {name: float(mask.double().mean()) for name, mask in masks.items()}
    return Flops(dense, dense - sum(count * (1.0 - kept[name]) for name, count in layers.items()), layers, inside)


def sizes(parameters: Iterable[Tensor], masks: Tensors, file: Path | None = None) -> dict[str, int]:
    """Count a model's parameters and bytes.

    Args:
        parameters: All parameters.
        masks: Masks of the prunable weights.
        file: The model's file.

    Returns:
        `parameters` and `nonzero`, counts; `bytes.dense`, of all parameters; `bytes.compressed`, of all nonzero values
        and a bitmask of the prunable weights; `bytes.disk`, the size of the file if given.
    """
    tensors = list(parameters)
    count = {
        "parameters": sum(p.numel() for p in tensors),
        "nonzero": sum(int(p.count_nonzero()) for p in tensors),
        "bytes.dense": sum(p.numel() * p.element_size() for p in tensors),
    }
    stored = sum(int(p.count_nonzero()) * p.element_size() for p in tensors)
    count["bytes.compressed"] = stored + (sum(mask.numel() for mask in masks.values()) + 7) // 8
    return count | ({"bytes.disk": file.stat().st_size} if file else {})


@torch.no_grad()
def latency(model: nn.Module, images: Tensor, autocast: torch.autocast, times: int = 10) -> float:
    """Seconds of a forward pass of a batch on this machine: the median of `times` passes after two to warm up."""
    model.eval()
    found = []
    for _ in range(times + 2):
        start = time.perf_counter()
        with autocast:
            model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        found.append(time.perf_counter() - start)
    return median(found[2:])


def training_images(lengths: Iterable[tuple[int, ...]], batch_size: int) -> dict[str, int]:
    """Count the training images that a run processes.

    Args:
        lengths: For each segment, the optimizer steps of each of its replicas.
        batch_size: Images per step.

    Returns:
        `images.total`, of all replicas, and `images.critical`, of the longest replica of each segment.
    """
    steps = [each for each in lengths if each]
    return {
        "images.total": batch_size * sum(sum(each) for each in steps),
        "images.critical": batch_size * sum(max(each) for each in steps),
    }
