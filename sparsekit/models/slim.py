"""Channels taken out of a module, and a module of a dense architecture made to fit tensors without them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparsekit.models import kept_norm

Axes = Mapping[tuple[str, int], Tensor]
"""For the axes of parameters and buffers that lose channels, by name and dimension, bools: True keeps."""

_SIZES = (
    "in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels",
    "num_groups", "num_parameters", "normalized_shape", "num_heads", "attn_dim",
)  # fmt: skip
"""Attributes of layers that say how many channels they have."""


def without(model: nn.Module, axes: Axes) -> nn.Module:
    """A copy of a model without channels.

    Args:
        model: The model; what it has in the channels to remove must be 0, or the copy gives other outputs.
        axes: The channels that stay.
    """
    small = copy.deepcopy(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors = {}
    for name, tensor in model.state_dict().items():
        for axis in range(tensor.dim()):
            if (name, axis) in axes:
                tensor = tensor.index_select(axis, axes[name, axis].nonzero().flatten().to(tensor.device))
        tensors[name] = tensor
    _put(small, tensors)
    for path, layer in small.named_modules():
        _fit(layer, f"{path}." if path else "", shapes)
    return small


def described(dense: nn.Module, small: nn.Module) -> dict[str, Any]:
    """What makes a dense model the small one, for config.json: attributes of `layers`, and shapes of `tensors`."""
    layers: dict[str, dict[str, Any]] = {}
    known = dict(dense.named_modules())
    for path, layer in small.named_modules():
        pairs = {key: getattr(layer, key) for key in _SIZES if key in vars(layer)}
        changed = {key: value for key, value in pairs.items() if value != getattr(known[path], key)}
        if changed:
            layers[path] = {key: list(v) if isinstance(v, tuple) else v for key, v in changed.items()}
    before = dense.state_dict()
    shapes = {n: list(t.shape) for n, t in small.state_dict().items() if t.shape != before[n].shape}
    return {"layers": layers, "tensors": shapes}


def apply(model: nn.Module, what: Mapping[str, Any]) -> None:
    """Make a dense model the one that config.json describes, in place; weights are the first ones of the dense model's.

    Args:
        model: The dense model.
        what: What `described` returned, and `norms`, the paths of LayerNorms that leave out removed channels.

    Raises:
        ValueError: it is not of this architecture.
    """
    known, layers = model.state_dict(), dict(model.named_modules())
    shapes: Mapping[str, list[int]] = what.get("tensors") or {}
    if odd := sorted(shapes.keys() - known.keys()) or sorted((what.get("layers") or {}).keys() - layers.keys()):
        raise ValueError(f"it has no {odd[0]}")
    for path, attributes in (what.get("layers") or {}).items():
        for key, value in attributes.items():
            if key not in _SIZES or key not in vars(layers[path]):
                raise ValueError(f"{path} has no {key}")
            setattr(layers[path], key, tuple(value) if isinstance(value, list) else value)
    tensors = {}
    for name, shape in shapes.items():
        old = known[name].shape
        if len(shape) != len(old) or not all(0 < new <= side for new, side in zip(shape, old, strict=True)):
            raise ValueError(f"{name} cannot have the shape {shape}")
        tensors[name] = known[name][tuple(slice(side) for side in shape)]
    _put(model, tensors)
    kept_norm.hold(model, what.get("norms") or ())


def _put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace parameters and buffers by tensors of other shapes; parameters that share stay shared."""
    made: dict[int, nn.Parameter] = {}
    for name, tensor in tensors.items():
        path, _, key = name.rpartition(".")
        layer = model.get_submodule(path)
        old = getattr(layer, key)
        if isinstance(old, nn.Parameter):
            new = made.setdefault(id(old), nn.Parameter(tensor.detach().clone(), requires_grad=old.requires_grad))
            layer.register_parameter(key, new)
        else:
            layer.register_buffer(key, tensor.detach().clone())


def _fit(layer: nn.Module, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Set a layer's attributes to the sizes that its tensors have now; `shapes` has the old ones."""
    weight = getattr(layer, "weight", None)
    if isinstance(layer, nn.modules.conv._ConvNd) and isinstance(weight, Tensor):
        rows = 1 if layer.transposed else 0
        old = shapes[f"{prefix}weight"]
        if layer.groups > 1:
            layer.groups = layer.groups * weight.shape[0] // old[0]
        first, second = weight.shape[0], weight.shape[1] * layer.groups
        layer.out_channels, layer.in_channels = (second, first) if rows else (first, second)
    elif isinstance(layer, nn.Linear) and isinstance(weight, Tensor):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, nn.modules.batchnorm._NormBase):
        known = layer.weight if layer.weight is not None else layer.running_mean
        if known is not None:
            layer.num_features = len(known)
    elif isinstance(layer, nn.GroupNorm) and isinstance(weight, Tensor):
        layer.num_groups = layer.num_groups * len(weight) // layer.num_channels
        layer.num_channels = len(weight)
    elif isinstance(layer, nn.LayerNorm) and isinstance(weight, Tensor):
        layer.normalized_shape = tuple(weight.shape)
        kept_norm.plain(layer)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(layer.weight)
    elif isinstance(heads := getattr(layer, "num_heads", None), int) and f"{prefix}proj.weight" in shapes:
        before, after = shapes[f"{prefix}proj.weight"][1], layer.get_parameter("proj.weight").shape[1]
        values = {"num_heads": heads * after // before, "attn_dim": after}
        vars(layer).update({key: value for key, value in values.items() if isinstance(vars(layer).get(key), int)})


@dataclass(frozen=True)
class Attention:
    """The parts of timm's attention with one layer for queries, keys and values."""

    heads: int
    qkv: nn.Linear
    proj: nn.Linear


def attention_of(layer: nn.Module) -> Attention | None:
    """The parts of an attention; None for other layers."""
    heads, qkv, proj = (getattr(layer, key, None) for key in ("num_heads", "qkv", "proj"))
    if not (isinstance(heads, int) and isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear)):
        return None
    whole = qkv.out_features == 3 * proj.in_features and proj.in_features % heads == 0
    return Attention(heads, qkv, proj) if whole else None
