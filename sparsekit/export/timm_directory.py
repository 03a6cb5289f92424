"""A directory that `timm.create_model("local-dir:…", pretrained=True)` loads."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import timm

from sparsekit.export.formats import Format, Loaded, of_module
from sparsekit.export.model import ExportModel
from sparsekit.files import make_readable, save_tensors
from sparsekit.models.create import save_model
from sparsekit.models.state import cpu_state_dict


def write(subject: ExportModel, out: Path) -> None:
    """Copy what the source says of itself, or describe it anew."""
    if subject.described:
        out.mkdir()
        shutil.copyfile(subject.described, out / "config.json")
        save_tensors(out / "model.safetensors", cpu_state_dict(subject.model))
    else:
        save_model(copy.deepcopy(subject.model), subject.config, subject.inputs, out)
        make_readable(out / "model.safetensors")


def load(out: Path, subject: ExportModel) -> Loaded:
    """As anyone would."""
    return of_module(timm.create_model(f"local-dir:{out.absolute()}", pretrained=True).eval())


FORMAT = Format(write, load)
