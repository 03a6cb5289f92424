"""2:4 for CUDA's sparse units: linear layers of which every four weights in a row keep at most two.

The directory holds half-precision weights in their dense layout, which timm loads too; they are packed on the device
that runs them, as the packed layout depends on the device. Which layers are to be packed is in the file's metadata.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from sparsekit.errors import RunError, UserError
from sparsekit.export.formats import Format, Loaded, of_module
from sparsekit.export.model import ExportModel
from sparsekit.files import load_tensors, save_tensors
from sparsekit.models.create import save_model
from sparsekit.models.state import cpu_state_dict

KEY = "semi_structured"
_ROWS, _COLUMNS = 32, 64  # what torch asks of half-precision matrices


def layers(model: nn.Module) -> list[str]:
    """Names of the linear layers that follow 2:4 along their inputs and have a shape that the units take."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.weight.shape[0] % _ROWS == 0
        and module.weight.shape[1] % _COLUMNS == 0
        and bool(((module.weight != 0).reshape(-1, 4).sum(1) <= 2).all())
    ]


def check(subject: ExportModel) -> None:
    """Raise UserError without a CUDA device, or without a layer to pack."""
    if not torch.cuda.is_available():
        raise UserError("--format 2:4 needs a CUDA device, and this machine has none; export where the model is to run")
    if not layers(subject.model):
        raise UserError(
            f"--format 2:4: no linear layer of {subject.source.path} keeps 2 of every 4 weights, with rows and columns "
            f"in multiples of {_ROWS} and {_COLUMNS}; prune with --masks.pattern 2:4, or choose another format"
        )


def write(subject: ExportModel, out: Path) -> None:
    """config.json, and half-precision weights with the names of the layers to pack."""
    save_model(copy.deepcopy(subject.model), subject.config, subject.inputs, out)
    if subject.described:
        shutil.copyfile(subject.described, out / "config.json")
    half = {name: t.half() if t.is_floating_point() else t for name, t in cpu_state_dict(subject.model).items()}
    save_tensors(out / "model.safetensors", half, {KEY: json.dumps(layers(subject.model))})


def load(out: Path, subject: ExportModel) -> Loaded:
    """The model on the CUDA device, packed."""
    tensors = load_tensors(out / "model.safetensors")
    model = copy.deepcopy(subject.model).half()
    model.load_state_dict(tensors)
    model = model.cuda().eval()
    with safe_open(str(out / "model.safetensors"), framework="pt") as file:
        names = json.loads(file.metadata()[KEY])
    predict = packed(model, names)
    return Loaded(predict, tensors, f"{len(names)} linear layers packed, in half precision", _place)


def packed(model: nn.Module, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """Pack the named linear layers, and give what predicts with them.

    Raises:
        RunError: torch cannot pack a layer; so does what is returned, where a packed one cannot run.
    """
    last = "the first packed layer"

    def enter(name: str, layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        nonlocal last
        last = _kind(name, layer)
        return (given[0].contiguous(),)  # the units take nothing else

    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        try:
            layer.weight = nn.Parameter(to_sparse_semi_structured(layer.weight.detach()), requires_grad=False)
        except RuntimeError as error:
            raise RunError(f"{_kind(name, layer)} cannot be packed: {str(error).partition(chr(10))[0]}") from error
        layer.register_forward_pre_hook(partial(enter, name))
    inner = of_module(model).predict

    def predict(images: Tensor) -> Tensor:
        try:
            return inner(images)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise RunError(f"the packed model cannot run, at or after {last}: {reason}") from error

    return predict


def reference(subject: ExportModel) -> Loaded:
    """The same half-precision model, not packed."""
    model = copy.deepcopy(subject.model).half()
    predict = of_module(copy.deepcopy(model).cuda().eval()).predict
    return Loaded(predict, dict(model.state_dict()), place=_place)


def _place(images: Tensor) -> Tensor:
    return images.cuda().half()


def _kind(name: str, layer: nn.Module) -> str:
    return f"{name} ({type(layer).__name__})"


FORMAT = Format(write, load, reference, tolerance=2e-2, check=check)
