"""Tensors that mean something only together: multiplied out to plain weights, or refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from sparsekit.errors import UserError

Reader = Callable[[], Tensor]
Readers = dict[str, Reader]

_PARAMETRIZED = re.compile(r"((?:.*\.)?)parametrizations\.(\w+)\.(.+)")
_LORA = re.compile(r"lora_\w+|lora|hada_w\w+|lokr_\w+|oft_\w+|ia3_\w+|vera_lambda_\w+")
_QUANTISED = re.compile(
    r"qweight|qzeros|g_idx|scales|zero_points?|SCB|absmax|nested_absmax|quant_map|nested_quant_map|quant_state|"
    r"_?packed_params|activation_post_process\w*|\w*fake_quant\w*|bitsandbytes__\w+|compressed|bitmask|row_offsets|"
    r"_?(weight|input|output)_?(scales?|scale_inv|zero_points?|zeros|packed|shape|format|qdata|global_scale|"
    r"fake_quant\w*|quantizer\w*)"
)
_TYPES = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}


def multiply_out(readers: Mapping[str, Reader], where: str) -> tuple[Readers, Readers]:
    """Plain weights in place of those that several tensors stand for.

    Multiplied out are `torch.nn.utils.prune` (`X_orig`, `X_mask`) and weight normalisation, old and new (arXiv
    1602.07868, eq. 2), in any nesting.

    Args:
        readers: For each name a function that reads the tensor.
        where: The option and the file, for messages.

    Returns:
        The functions for the plain tensors, and those for the masks that stood beside weights: bool, True keeps.

    Raises:
        UserError: tensors are part of another reparametrisation, of a quantised model or of an adapter.
    """
    found, masks = dict(readers), Readers()
    while pair := next(_pairs(found), None):
        name, first, second, compute = pair
        one, other = found.pop(first), found.pop(second)
        if compute is _masked:
            masks[name] = partial(_nonzero, other)
        elif not _normalises(one(), other()):
            raise UserError(f"{where}: {first} and {second} stand for {name} in an unknown way; save {name} itself")
        found[name] = partial(compute, one, other)
    _refuse_rest(found, where)
    return found, {name: mask for name, mask in masks.items() if name in found}


def dense_tensor(name: str, tensor: Tensor, where: str) -> Tensor:
    """A tensor of a file as a dense one; raises UserError if it is no plain numbers."""
    kind = str(tensor.dtype).removeprefix("torch.")
    whole = not is_number(tensor) and tensor.dtype is not torch.bool
    if tensor.is_quantized or (whole and name.rpartition(".")[2] == "weight"):
        raise _quantised(where, f"{name} is {kind}")
    if tensor.is_nested or tensor.device.type == "meta":
        raise UserError(f"{where}: {name} is a tensor {'of tensors' if tensor.is_nested else 'without values'}")
    if tensor.dtype not in _TYPES:
        plain = "complex64" if tensor.is_complex() else "bfloat16 or float32, with its scale if it has one"
        raise UserError(f"{where}: {name} is {kind}; convert it to {plain}")
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return tensor.resolve_conj().resolve_neg().contiguous()


def is_number(tensor: Tensor) -> bool:
    """Whether a tensor holds real or complex numbers, which are averaged; others count or index something."""
    return tensor.is_floating_point() or tensor.is_complex()


def all_finite(tensor: Tensor) -> bool:
    """Whether none of a tensor's real or complex numbers is infinite or NaN; a finite sum says so in one pass."""
    return not is_number(tensor) or bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _pairs(found: Readers) -> Iterator[tuple[str, str, str, Callable[[Reader, Reader], Tensor]]]:
    """Pairs of tensors that stand for a third: its name, theirs, and what computes it."""
    for name in found:
        if name.endswith("_mask") and (original := f"{(base := name.removesuffix('_mask'))}_orig") in found:
            yield base, original, name, _masked
        elif name.endswith("_g") and (direction := f"{(base := name.removesuffix('_g'))}_v") in found:
            yield base, name, direction, _normalised
    for (path, base), parts in _parametrized(found).items():
        start = f"{path}parametrizations.{base}."
        if parts == {"original0", "original1"}:
            yield path + base, f"{start}original0", f"{start}original1", _normalised


def _parametrized(found: Mapping[str, Reader]) -> dict[tuple[str, str], set[str]]:
    """The tensors of `torch.nn.utils.parametrize`, by their module and the tensor that they stand for."""
    parts: dict[tuple[str, str], set[str]] = {}
    for match in filter(None, map(_PARAMETRIZED.fullmatch, found)):
        parts.setdefault((match[1], match[2]), set()).add(match[3])
    return parts


def _masked(original: Reader, mask: Reader) -> Tensor:
    tensor = original()
    return tensor * mask().to(tensor.dtype)


def _nonzero(mask: Reader) -> Tensor:
    return mask() != 0


def _normalised(magnitude: Reader, direction: Reader) -> Tensor:
    """Weight normalisation: w = g · v / ‖v‖, the norm over all dimensions but that of g."""
    g, v = magnitude(), direction()
    dim = next((dim for dim, size in enumerate(g.shape) if size > 1), 0 if g.dim() else -1)
    weight: Tensor = torch._weight_norm(v, g, dim)
    return weight


def _normalises(g: Tensor, v: Tensor) -> bool:
    """Whether the shapes are those of a weight normalisation."""
    sizes = [(a, b) for a, b in zip(g.shape, v.shape, strict=False) if a != 1]
    return g.dim() in (0, v.dim()) and len(sizes) <= 1 and all(a == b for a, b in sizes)


def _refuse_rest(found: Readers, where: str) -> None:
    """Raise UserError if tensors are left that are no plain weights."""
    for (path, base), parts in _parametrized(found).items():
        raise UserError(
            f"{where}: {path}{base} is computed from {path}parametrizations.{base} ({', '.join(sorted(parts))}), by "
            f"what the file does not say; call torch.nn.utils.parametrize.remove_parametrizations(module, '{base}'), "
            "then save"
        )
    for name in found:
        words = name.split(".")
        if any(map(_LORA.fullmatch, words)):
            raise UserError(
                f"{where}: {name} belongs to a LoRA adapter, not to a whole model; merge it into the weights first "
                "(peft: merge_and_unload), then save these"
            )
        if any(map(_QUANTISED.fullmatch, words)):
            raise _quantised(where, f"{name} belongs to quantised weights")
        base = name.removesuffix("_orig")
        if base != name and base not in found:
            raise UserError(
                f"{where}: {name} stands for {base} in an unknown way, spectral normalisation perhaps; take it off "
                f"(torch.nn.utils.remove_spectral_norm) and save {base} itself"
            )
        base = f"{name[:-4]}weight" if words[-1] == "mask" else name.removesuffix("_mask")
        if base != name and base in found and found[base]().shape == found[name]().shape:
            raise UserError(f"{where}: {name} is a mask beside {base}; multiply them, and save {base} alone")


def _quantised(where: str, what: str) -> UserError:
    return UserError(f"{where}: {what}; give the model from before it was quantised, or dequantise it and save that")
