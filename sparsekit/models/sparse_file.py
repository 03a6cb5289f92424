"""Sparse tensors in a safetensors file: a bitmask or gaps, and the values that are not 0. See docs/sparse-format.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from sparsekit._types import Tensors
from sparsekit.errors import RunError
from sparsekit.files import save_tensors

FORMAT = "sparsekit-sparse-1"
_LARGEST = 255
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, each in the shortest of three ways: dense, bitmask or gaps. Loading gives the same bits back.

    Args:
        path: The file.
        tensors: What it is to hold.
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
    """Read such a file to dense tensors on the CPU.

    Raises:
        RunError: the file is of another format, or its parts do not fit one another.
    """
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
        if not is_sparse(metadata):
            raise RunError(f"{path} is no file of format {FORMAT}")
        try:
            layout = json.loads(metadata["tensors"])
            return {name: _decode(file, name, kind, shape) for name, (kind, shape) in layout.items()}
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise RunError(f"{path}: its parts do not fit one another ({error})") from error


def is_sparse(metadata: Mapping[str, str] | None) -> bool:
    """Whether a safetensors file's metadata says that it is of this format."""
    return (metadata or {}).get("format") == FORMAT


def _encode(tensor: Tensor) -> tuple[str, Tensors]:
    # compared as integers, so that -0.0 and NaN come back as they were
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
    """Bytes that tell ascending indices apart: each the zeros before the next one, 255 for 255 zeros and no value."""
    zeros = np.diff(kept, prepend=-1) - 1
    skips, rest = np.divmod(zeros, _LARGEST)
    ends = np.cumsum(skips + 1)
    told = np.full(ends[-1] if len(ends) else 0, _LARGEST, dtype=np.uint8)
    told[ends - 1] = rest
    return told


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
