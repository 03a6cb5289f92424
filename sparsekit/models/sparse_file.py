"""Sparse tensors in a safetensors file: the nonzero values with a bitmask or gaps (docs/sparse-format.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparsekit._types import Tensors
from sparsekit.errors import RunError
from sparsekit.files import save_tensors

FORMAT = "sparsekit-sparse-1"
_LARGEST = 255
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors without loss, each in the smallest of three encodings: dense, bitmask or gaps.

    Args:
        path: The file.
        tensors: The tensors by name.
        metadata: Further entries of the file's metadata.
    """
    stored: Tensors = {}
    layout: dict[str, list[Any]] = {}
    for name, tensor in tensors.items():
        kind, parts = _encode(tensor.detach().cpu().contiguous())
        layout[name] = [kind, list(tensor.shape)]
        for part, value in parts.items():
            stored[f"{name}:{part}" if part else name] = value
    save_tensors(path, stored, {**(metadata or {}), "format": FORMAT, "tensors": json.dumps(layout)})


def load(path: Path | str) -> Tensors:
    """Read a file that `save` wrote to dense tensors on the CPU.

    Raises:
        RunError: the file has another format, or its parts do not fit together.
    """
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
        if not is_sparse(metadata):
            raise RunError(f"{path} does not have the format {FORMAT}")
        try:
            layout = json.loads(metadata["tensors"])
            return {name: _decode(file, name, kind, shape) for name, (kind, shape) in layout.items()}
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise RunError(f"{path}: its parts do not fit one another ({error})") from error


def config_of(path: Path) -> dict[str, Any]:
    """The config.json in the metadata of a file of this format; empty in other files."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
        found = json.loads(metadata.get("config", "{}")) if is_sparse(metadata) else {}
    except (OSError, ValueError, RecursionError, SafetensorError):  # what is wrong is said when the weights are read
        return {}
    return found if isinstance(found, dict) else {}


def is_sparse(metadata: Mapping[str, str] | None) -> bool:
    """Whether a safetensors file has this format, by its metadata."""
    return (metadata or {}).get("format") == FORMAT


def _encode(tensor: Tensor) -> tuple[str, Tensors]:
    # bits are compared as integers, so that -0.0 and NaN are kept
    flat = tensor.reshape(-1)
    bits = flat.view(_INTEGERS[flat.element_size()]).numpy() if flat.dtype is not torch.bool else flat.numpy()
    kept = np.flatnonzero(bits)
    values = flat[torch.from_numpy(kept)]
    mask, gaps = (flat.numel() + 7) // 8, _gaps(kept)
    sizes = {"dense": flat.numel() * flat.element_size()}
    sizes["bitmask"] = mask + values.numel() * values.element_size()
    sizes["gaps"] = gaps.size + values.numel() * values.element_size()
    kind = min(sizes, key=sizes.__getitem__)
    if kind == "dense" or tensor.dim() < 2:
        return "dense", {"": tensor}
    where = np.packbits(bits != 0, bitorder="little") if kind == "bitmask" else gaps
    return kind, {"values": values, kind: torch.from_numpy(where)}


def _gaps(kept: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Ascending indices as bytes: the number of zeros before each index, with a byte of 255 for every 255 zeros."""
    zeros = np.diff(kept, prepend=-1) - 1
    skips, rest = np.divmod(zeros, _LARGEST)
    ends = np.cumsum(skips + 1)
    gaps = np.full(ends[-1] if len(ends) else 0, _LARGEST, dtype=np.uint8)
    gaps[ends - 1] = rest
    return gaps


def _decode(file: Any, name: str, kind: str, shape: list[int]) -> Tensor:
    if kind == "dense":
        tensor: Tensor = file.get_tensor(name)
        return tensor.reshape(shape)
    values, where = file.get_tensor(f"{name}:values"), file.get_tensor(f"{name}:{kind}").numpy()
    size = int(np.prod(shape))
    if kind == "bitmask":
        index = np.flatnonzero(np.unpackbits(where, count=size, bitorder="little"))
    elif kind == "gaps":
        index = (np.cumsum(where.astype(np.int64) + (where < _LARGEST)) - 1)[where < _LARGEST]
    else:
        raise ValueError(f"unknown encoding {kind!r} of {name}")
    dense = torch.zeros(size, dtype=values.dtype)
    dense[torch.from_numpy(index)] = values
    return dense.reshape(shape)
