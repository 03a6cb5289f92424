"""Tensors at rest: made or read one at a time when they are asked for, and written so to a file, without its zeros.

A file is a safetensors file. Of a tensor of floats with many zeros it has the other values, a bit for each value that
says whether it is one of those, and where there are negative zeros a bit for the sign; of a bool tensor its bits. Its
metadata says what those tensors were. So what is read has the bits that were written.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from sparsekit._types import Tensors

_TYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "C64": torch.complex64, "BOOL": torch.bool},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
"""The types of tensors in a safetensors file."""
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_VALUES, _BITS, _SIGNS = ":values", ":bits", ":signs"
_SMALL = 256
"""Tensors of fewer values are written as they are."""
_MOST = 0.7
"""The share of values that are not 0 from which on a tensor is written as it is."""

Array = np.ndarray[Any, Any]


class Lazy(Mapping[str, Tensor]):
    """Tensors that are made anew each time they are read, so that there need not be all at once."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = makers

    @classmethod
    def of(cls, names: Iterable[str], read: Callable[[str], Tensor]) -> Lazy:
        """What a function of the name returns."""
        return cls({name: partial(read, name) for name in names})

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, on the CPU, each in memory of its own.

    Args:
        path: The file; it is opened when something of it is asked for.
        prefix: Only names that start with it count, and it is left out of them.
    """

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path, self.prefix = path, prefix

    def __getitem__(self, name: str) -> Tensor:
        shape, _ = self._of(name)
        return self._read(name, 0, math.prod(shape)).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        start = len(self.prefix)
        return (name[start:] for name in self._header[1] if name.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def rows(self, name: str, rows: slice) -> Tensor:
        """Some rows of a tensor, which must not be a scalar."""
        (first, *row), _ = self._of(name)
        start, stop, _ = rows.indices(first)
        each = math.prod(row)
        return self._read(name, start * each, stop * each).reshape(stop - start, *row)

    def _read(self, name: str, start: int, stop: int) -> Tensor:
        """The values from one to another, of all values in a row."""
        _, dtype = self._of(name)
        full = self.prefix + name
        if full in self._header[0]:
            return _tensor(self._part(full, start, stop), dtype)
        bits = self._part(full + _BITS)
        kept = _bits(bits, start, stop)
        if dtype is torch.bool:
            return torch.from_numpy(kept)
        integer = torch.empty(0, dtype=_INTEGERS[dtype.itemsize]).numpy().dtype
        before = int(np.count_nonzero(_bits(bits, 0, start)))
        values = self._part(full + _VALUES, before, before + int(np.count_nonzero(kept))).view(integer)
        if full + _SIGNS in self._header[0]:
            dense = _bits(self._part(full + _SIGNS), start, stop).astype(integer)
            dense <<= 8 * integer.itemsize - 1  # -0.0 is the highest bit alone
        else:
            dense = np.zeros(stop - start, integer)
        dense[kept] = values
        return _tensor(dense, dtype)

    def _part(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Values of a tensor as the file has it, as bytes: what was read of a mapped file would stay in memory."""
        entry, size = self._header[0][name], _TYPES[self._header[0][name]["dtype"]].itemsize
        begin, end = entry["data_offsets"]
        stop = (end - begin) // size if stop is None else stop
        if not 0 <= start <= stop <= (end - begin) // size:
            raise ValueError(f"{name} has fewer values than it should")
        found = np.fromfile(self.path, np.uint8, (stop - start) * size, offset=self._header[2] + begin + start * size)
        if len(found) < (stop - start) * size:
            raise OSError(errno.EIO, "the file is cut short", str(self.path))
        return found

    def _of(self, name: str) -> tuple[list[int], torch.dtype]:
        """A tensor's shape and type."""
        shape, dtype = self._header[1][self.prefix + name]
        return shape, dtype

    @cached_property
    def _header(self) -> tuple[dict[str, Any], dict[str, tuple[list[int], torch.dtype]], int]:
        """The file's own table of its tensors, read once: https://github.com/huggingface/safetensors#format.

        Returns:
            The table, each tensor's shape and type, and where the values start.
        """
        with self.path.open("rb") as file:
            size, start = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little") + 8
            if start > size:
                raise ValueError(f"{self.path} is no safetensors file")
            table = json.loads(file.read(start - 8))
        packed = json.loads(table.pop("__metadata__", {}).get("packed", "{}"))
        for name, entry in table.items():
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end or end - begin != _bytes(entry["shape"], entry["dtype"]):
                raise ValueError(f"{self.path}: {name} has another size than its shape")
            if end > size - start:
                raise OSError(errno.EIO, "the file is cut short", str(self.path))
        parts = {name + end for name in packed for end in (_VALUES, _BITS, _SIGNS)}
        plain = {name: (entry["dtype"], entry["shape"]) for name, entry in table.items() if name not in parts}
        tensors = {name: (list(shape), _TYPES[dtype]) for name, (dtype, shape) in {**plain, **packed}.items()}
        for name, (shape, _) in tensors.items():
            if name in packed and table[name + _BITS]["shape"] != [-(-math.prod(shape) // 8)]:
                raise ValueError(f"{self.path}: {name} has other bits than values")
        return table, dict(sorted(tensors.items())), start


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors one after another, whole or not at all; `files.sync` waits until they are on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    room = 104 + sum(5 * len(json.dumps(name)) + 400 for name in tensors) // 8 * 8
    with part.open("wb") as file:
        while not _written(file, tensors, room):
            room *= 2
    os.replace(part, path)


def _written(file: BinaryIO, tensors: Mapping[str, Tensor], room: int) -> bool:
    """Write all tensors behind a header of so many bytes; false where it needs more."""
    table, packed, at = dict[str, Any](), dict[str, Any](), 0
    file.seek(8 + room)
    for name in tensors:
        tensor = tensors[name].detach().cpu().contiguous()
        parts = _packed(tensor)
        if parts is None:
            parts = {"": torch.view_as_real(tensor) if tensor.is_complex() else tensor}
        else:
            packed[name] = _NAMES[tensor.dtype], list(tensor.shape)
        for end, part in parts.items():
            size = file.write(part.reshape(-1).view(torch.uint8).numpy().data) if part.numel() else 0
            kind, shape = (tensor.dtype, tensor.shape) if not end else (part.dtype, part.shape)
            table[name + end] = {"dtype": _NAMES[kind], "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
    header = json.dumps({"__metadata__": {"packed": json.dumps(packed)}, **table}).encode()
    if len(header) > room:
        return False
    file.seek(0)
    file.write(room.to_bytes(8, "little") + header.ljust(room))
    return True


def _packed(tensor: Tensor) -> Tensors | None:
    """A tensor without its zeros, in parts; None where that would not be smaller."""
    flat = tensor.reshape(-1)
    if len(flat) < _SMALL:
        return None
    if tensor.dtype is torch.bool:
        return {_BITS: _packed_bits(flat.numpy())}
    if not tensor.is_floating_point() or tensor.itemsize not in _INTEGERS:
        return None
    if int(torch.count_nonzero(flat)) > _MOST * len(flat):
        return None
    bits = flat.view(_INTEGERS[tensor.itemsize]).numpy()
    kept = (bits << 1) != 0  # neither 0 nor -0
    parts = {_VALUES: _tensor(bits[kept], tensor.dtype), _BITS: _packed_bits(kept)}
    negative = (bits < 0) & ~kept
    return {**parts, _SIGNS: _packed_bits(negative)} if negative.any() else parts


def _packed_bits(values: Array) -> Tensor:
    return torch.from_numpy(np.packbits(values, bitorder="little"))


def _bits(packed: Array, start: int, stop: int) -> Array:
    """Some of the bits, as bools."""
    first = start // 8
    found = np.unpackbits(packed[first : -(-stop // 8)], bitorder="little")
    return found[start - 8 * first : stop - 8 * first].view(np.bool_)


def _tensor(values: Array, dtype: torch.dtype) -> Tensor:
    """An array's bytes as values of a type."""
    return torch.from_numpy(values).view(dtype) if len(values) else torch.empty(0, dtype=dtype)


def _bytes(shape: list[int], dtype: str) -> int:
    return math.prod(shape) * _TYPES[dtype].itemsize
