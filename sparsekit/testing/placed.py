"""Tensors that say they lie on a GPU while their values lie on the CPU: what would fail on a GPU fails here, too.

Every operation of torch passes through `__torch_dispatch__`, which knows where each tensor would lie, refuses what
torch refuses on a GPU, and computes the rest on the CPU. So a hook that reads numbers from its tensors runs on, as it
does not with tensors on the `meta` device or with torch's own fake tensors, which have no values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sparsekit._types import Tensors

_GPU = torch.device("meta")  # a name only: autograd asks CUDA for streams, which needs a driver
_ANYWHERE = ("index", "index_put", "index_put_", "copy_", "_to_copy", "_local_scalar_dense")
"""Operations that take tensors of both kinds."""
_NEVER = ("stack", "cat")
"""Operations that refuse a CPU tensor of no dimension, too."""


class WrongDevice(Exception):
    """An operation met a CPU tensor among tensors of the GPU."""


class Placed(Tensor):
    """A tensor that says it lies on a GPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Placed:
        """A tensor like `held`, which has the values."""
        made: Placed = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=_GPU
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute on the CPU; raises WrongDevice where a GPU would not."""
        return _computed(func, args, kwargs or {})


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Within it, new tensors for `device=weight.device` say that they lie on the GPU, too."""
    with _Operations(), _Literals():  # type: ignore[no-untyped-call]
        yield


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Tensors from numbers, which torch makes in no operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.new_tensor and isinstance(args[0], Placed):
            args, kwargs = args[1:], {"dtype": args[0].dtype, "device": _GPU, **kwargs}
            func = torch.tensor
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and _is_gpu(kwargs.get("device")):
            return Placed(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


def placed(tensors: Tensors) -> Tensors:
    """Copies that say they lie on a GPU, and need gradients where the tensors do."""
    return {name: Placed(t.detach().clone()).requires_grad_(t.requires_grad) for name, t in tensors.items()}


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == _GPU.type


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    name = func.overloadpacket.__name__
    given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_gpu = any(isinstance(tensor, Placed) for tensor in given)
    on_cpu = [t for t in given if not isinstance(t, Placed) and (t.dim() or name in _NEVER)]
    if on_gpu and on_cpu and name not in _ANYWHERE:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in on_cpu)
        raise WrongDevice(f"torch.{name.rstrip('_').removeprefix('_')} gets a CPU tensor of shape {shapes}")
    if (device := kwargs.get("device")) is not None:
        on_gpu = _is_gpu(device)
        kwargs = {**kwargs, "device": torch.device("cpu"), **({"pin_memory": False} if "pin_memory" in kwargs else {})}
    if name == "copy_":
        on_gpu = isinstance(args[0], Placed)
    owner = {id(tensor.held): tensor for tensor in given if isinstance(tensor, Placed)}
    args, kwargs = pytree.tree_map_only(Placed, lambda tensor: tensor.held, (args, kwargs))
    found = func(*args, **kwargs)
    if not on_gpu:
        return found
    # an operation in place returns the tensor that it was given
    return pytree.tree_map_only(
        Tensor, lambda tensor: owner[id(tensor)] if id(tensor) in owner else Placed(tensor), found
    )
