"""2:4 sparsity for CUDA's sparse tensor cores: linear layers that keep at most two of every four weights in a row.

The directory holds half-precision weights in dense layout, which timm loads too. They are packed when they are loaded,
as the packed layout depends on the device. The file's metadata names the layers to pack.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from sparsekit.errors import RunError, UserError
from sparsekit.exporting.formats import Format, Loaded
from sparsekit.exporting.model import ExportModel
from sparsekit.files import load_tensors, save_tensors, write_json
from sparsekit.models.create import save_model
from sparsekit.models.state import cpu_state_dict

KEY = "semi_structured"
_ROWS, _COLUMNS = 32, 64  # torch needs half-precision matrices with multiples of these


def layers(model: nn.Module) -> list[str]:
    """Names of the linear layers that follow 2:4 along their inputs and have a shape that can be packed."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.weight.shape[0] % _ROWS == 0
        and module.weight.shape[1] % _COLUMNS == 0
        and bool(module.weight.any())  # a layer of zeros was not pruned to a pattern
        and bool(((module.weight != 0).reshape(-1, 4).sum(1) <= 2).all())
    ]


def check(export_model: ExportModel) -> None:
    """Raise UserError without a CUDA device or without a layer that can be packed."""
    if not torch.cuda.is_available():
        raise UserError("--format 2:4 needs a CUDA device, and this machine has none; export where the model is to run")
    if not layers(export_model.model):
        raise UserError(
            f"--format 2:4: no linear layer of {export_model.source.path} keeps 2 of every 4 weights, with rows and "
            f"columns in multiples of {_ROWS} and {_COLUMNS}; prune with --masks.pattern 2:4, or choose another format"
        )


def write(export_model: ExportModel, out: Path) -> None:
    """Write config.json, and half-precision weights with the names of the layers to pack."""
    model = copy.deepcopy(export_model.model)
    save_model(model, export_model.config, export_model.inputs, out, export_model.class_names)
    if export_model.card:
        write_json(out / "config.json", export_model.card)
    half = {name: t.half() if t.is_floating_point() else t for name, t in cpu_state_dict(export_model.model).items()}
    save_tensors(out / "model.safetensors", half, {KEY: json.dumps(layers(export_model.model))})


def load(out: Path, export_model: ExportModel) -> Loaded:
    """Load the model to the CUDA device and pack its layers."""
    tensors = load_tensors(out / "model.safetensors")
    model = copy.deepcopy(export_model.model).half()
    model.load_state_dict(tensors)
    model = model.cuda().eval()
    with safe_open(str(out / "model.safetensors"), framework="pt") as file:
        names = json.loads(file.metadata()[KEY])
    predict = packed(model, names)
    return Loaded(predict, tensors, f"{len(names)} linear layers packed, in half precision", _place)


def packed(model: nn.Module, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """Pack the named linear layers of a model on a CUDA device, in place.

    Returns:
        A function from images to logits; it raises RunError if a packed layer cannot run.

    Raises:
        RunError: torch cannot pack a layer.
    """
    last = "the first packed layer"

    def enter(name: str, layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        nonlocal last
        last = _kind(name, layer)
        return (given[0].contiguous(),)  # the kernels need contiguous inputs

    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        try:
            layer.weight = nn.Parameter(to_sparse_semi_structured(layer.weight.detach()), requires_grad=False)
        except RuntimeError as error:
            raise RunError(f"{_kind(name, layer)} cannot be packed: {str(error).partition(chr(10))[0]}") from error
        layer.register_forward_pre_hook(partial(enter, name))
    inner = Loaded.from_module(model).predict

    def predict(images: Tensor) -> Tensor:
        try:
            return inner(images)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise RunError(f"the packed model cannot run, at or after {last}: {reason}") from error

    return predict


def reference(export_model: ExportModel) -> Loaded:
    """The half-precision model on the CUDA device, without packed layers."""
    model = copy.deepcopy(export_model.model).half()
    predict = Loaded.from_module(copy.deepcopy(model).cuda().eval()).predict
    return Loaded(predict, dict(model.state_dict()), place=_place)


def _place(images: Tensor) -> Tensor:
    return images.cuda().half()


def _kind(name: str, layer: nn.Module) -> str:
    return f"{name} ({type(layer).__name__})"


FORMAT = Format(write, load, reference, tolerance=2e-2, check=check)
