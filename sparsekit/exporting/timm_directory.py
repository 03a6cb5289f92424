"""A directory that `timm.create_model("local-dir:…", pretrained=True)` loads."""

from __future__ import annotations

import copy
from pathlib import Path

import timm

from sparsekit.errors import UserError
from sparsekit.exporting.formats import Format, Loaded
from sparsekit.exporting.model import ExportModel
from sparsekit.files import make_readable, save_tensors, write_json
from sparsekit.models.create import save_model
from sparsekit.models.state import cpu_state_dict
from sparsekit.plugins.objects import is_object


def check(export_model: ExportModel) -> None:
    """Raise UserError for a model that is none of timm's, or that timm's arguments do not describe."""
    if "slim" in export_model.config.kwargs:
        raise UserError(
            "--format timm: timm's arguments do not describe its channels; --format slim takes out those that are "
            "masked, and onnx and torch need no class"
        )
    if is_object(name := export_model.config.name):
        raise UserError(
            f"--format timm: timm does not know {name}; the run's own model/ holds its weights, and onnx and torch "
            "need no class"
        )


def write(export_model: ExportModel, out: Path) -> None:
    """Write the weights, and the saved model's config.json or a new one."""
    if export_model.card:
        out.mkdir()
        write_json(out / "config.json", export_model.card)
        save_tensors(out / "model.safetensors", cpu_state_dict(export_model.model))
    else:
        model = copy.deepcopy(export_model.model)
        save_model(model, export_model.config, export_model.inputs, out, export_model.class_names)
        make_readable(out / "model.safetensors")


def load(out: Path, export_model: ExportModel) -> Loaded:
    """Load the directory with plain timm."""
    return Loaded.from_module(timm.create_model(f"local-dir:{out.absolute()}", pretrained=True).eval())


FORMAT = Format(write, load, check=check)
