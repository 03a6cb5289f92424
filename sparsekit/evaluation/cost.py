"""What a model costs: operations, numbers, bytes, time. Counted as if zeros could be skipped, and as they are."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sparsekit._types import Tensors


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one image, a multiplication and an addition being two.

    Attributes:
        dense: As PyTorch counts them: convolutions and matrix products, attention's too; nothing elementwise.
        sparse: The same with each layer's count multiplied by the share of its weights that is kept.
        layers: Dense count of each layer that has a mask, by parameter name.
    """

    dense: int
    sparse: float
    layers: Mapping[str, int]


@torch.no_grad()
def flops(model: nn.Module, image: Tensor, masks: Tensors) -> Flops:
    """Count one forward pass of `image`, [1, C, S, S], by torch's FlopCounterMode.

    Args:
        model: Left in evaluation mode.
        image: Any image.
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
    dense = counter.get_total_flops()
    kept = {name: float(mask.double().mean()) for name, mask in masks.items()}
    return Flops(dense, dense - sum(count * (1.0 - kept[name]) for name, count in layers.items()), layers)


def sizes(parameters: Iterable[Tensor], masks: Tensors, file: Path | None = None) -> dict[str, int]:
    """Numbers and bytes of a model.

    Args:
        parameters: All parameters.
        masks: Masks of the prunable weights.
        file: Where the model lies on disk.

    Returns:
        `parameters`, `nonzero`; `bytes.dense` of all parameters, `bytes.compressed` where every nonzero is stored and
        every weight that has a mask adds a bit which says whether it is there; `bytes.disk`.
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
    """Seconds that a forward pass of a batch takes here, the median of some, after two to warm up."""
    model.eval()
    found = []
    for _ in range(times + 2):
        began = time.perf_counter()
        with autocast:
            model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        found.append(time.perf_counter() - began)
    return median(found[2:])


def seen(lengths: Iterable[tuple[int, ...]], batch_size: int) -> dict[str, int]:
    """Training images, from the optimizer steps of each replica, a tuple a segment.

    Returns:
        `images.total`, seen by all replicas, and `images.critical`, along the critical path: by the
        replica of each segment that sees the most.
    """
    steps = [each for each in lengths if each]
    return {
        "images.total": batch_size * sum(sum(each) for each in steps),
        "images.critical": batch_size * sum(max(each) for each in steps),
    }
