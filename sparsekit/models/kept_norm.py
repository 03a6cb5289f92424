"""LayerNorm over the channels that are kept: removed ones, which are 0, count neither in its mean nor its variance.

Without it a model with masked channels would differ from the one without them. The channels are a buffer `kept`, so
that they are saved with the model, and software that does not know of them refuses the file instead of normalising
over channels that are not there.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

NAME = "kept"


def _normalise(layer: nn.LayerNorm, x: Tensor, axis: int) -> Tensor:
    shape = [1] * x.dim()
    shape[axis] = -1
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # as torch's own does under autocast
    kept = layer.get_buffer(NAME).to(x.dtype).view(shape)
    count = kept.sum()
    mean = (x * kept).sum(axis, keepdim=True) / count
    centred = (x - mean) * kept
    variance = centred.square().sum(axis, keepdim=True) / count
    found = centred * (variance + layer.eps).rsqrt() * layer.weight.view(shape)
    found = found if layer.bias is None else found + layer.bias.view(shape)
    return found.to(layer.weight.dtype)  # float32 under autocast, as torch's


class KeptLayerNorm(nn.LayerNorm):
    """LayerNorm over the kept ones of the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return _normalise(self, x, -1)


class KeptLayerNorm2d(nn.LayerNorm):
    """LayerNorm over the kept channels of [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return _normalise(self, x, 1)


HELD = (KeptLayerNorm, KeptLayerNorm2d)
"""The classes of layers that leave out removed channels."""


def hold(model: nn.Module, paths: Iterable[str]) -> None:
    """Let LayerNorms normalise over a buffer of kept channels, all of them to begin with; in place.

    Raises:
        ValueError: a layer is no LayerNorm that can.
    """
    for path in paths:
        layer = model.get_submodule(path)
        if isinstance(layer, HELD):
            continue
        if not able(layer):
            raise ValueError(f"{path} is a {type(layer).__name__}, which cannot normalise over some channels")
        layer.held_class = type(layer)  # type: ignore[assignment]
        layer.__class__ = KeptLayerNorm2d if type(layer).__name__ == "LayerNorm2d" else KeptLayerNorm
        layer.register_buffer(NAME, torch.ones(layer.weight.shape, dtype=torch.bool, device=layer.weight.device))  # type: ignore[arg-type]


def able(layer: nn.Module) -> bool:
    """Whether `hold` knows how a layer normalises: torch's LayerNorm and timm's, over one dimension, with weights."""
    known = type(layer) in (nn.LayerNorm, KeptLayerNorm, KeptLayerNorm2d) or (
        type(layer).__module__ == "timm.layers.norm" and type(layer).__name__ in ("LayerNorm", "LayerNorm2d")
    )
    return known and len(layer.normalized_shape) == 1 and layer.weight is not None  # type: ignore[arg-type]


def plain(layer: nn.LayerNorm) -> None:
    """Turn a layer that `hold` changed back: nothing is left of the channels that it left out."""
    if isinstance(layer, HELD):
        del layer._buffers[NAME]
        layer.__class__ = layer.held_class  # type: ignore[assignment]
        del layer.held_class


def held(names: Iterable[str]) -> list[str]:
    """The paths of layers that `hold` changed, from the names of a model's tensors."""
    return [name.removesuffix(f".{NAME}") for name in names if name.endswith(f".{NAME}")]
