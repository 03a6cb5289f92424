"""Compressed safetensors (docs/sparse-format.md)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from sparsekit.exporting import timm_directory
from sparsekit.exporting.formats import Format, Loaded
from sparsekit.exporting.model import ExportModel
from sparsekit.models import sparse_file
from sparsekit.models.state import cpu_state_dict


def write(export_model: ExportModel, out: Path) -> None:
    """Write all tensors, with config.json in the file's metadata."""
    card = export_model.card
    if not card:
        with TemporaryDirectory(dir=out.parent) as folder:
            timm_directory.write(export_model, Path(folder) / "model")
            card = json.loads((Path(folder) / "model" / "config.json").read_text("utf-8"))
    arguments = {**(card.get("model_args") or {}), **export_model.config.kwargs}
    config = {**card, "architecture": export_model.config.name, "model_args": arguments}
    # pruning by multiplication leaves -0.0, which would be stored as a value
    tensors = {name: tensor.masked_fill(tensor == 0, 0) for name, tensor in cpu_state_dict(export_model.model).items()}
    sparse_file.save(out, tensors, {"config": json.dumps(config)})


def load(out: Path, export_model: ExportModel) -> Loaded:
    """Load the tensors into a copy of the model."""
    tensors = sparse_file.load(out)
    model = copy.deepcopy(export_model.model)
    model.load_state_dict(tensors)
    return Loaded(Loaded.from_module(model.eval()).predict, tensors)


FORMAT = Format(write, load)
