"""Compressed safetensors, see docs/sparse-format.md."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from sparsekit.export.formats import Format, Loaded, of_module
from sparsekit.export.model import ExportModel
from sparsekit.models import sparse_file
from sparsekit.models.state import cpu_state_dict


def write(subject: ExportModel, out: Path) -> None:
    """All tensors, and the architecture in the metadata."""
    known = subject.source.card
    arguments = {**(known.get("model_args") or {}), **subject.config.kwargs}
    config = {**known, "architecture": subject.config.name, "model_args": arguments}
    # -0.0, which pruning by multiplication leaves behind, is no value worth its place
    tensors = {name: tensor.masked_fill(tensor == 0, 0) for name, tensor in cpu_state_dict(subject.model).items()}
    sparse_file.save(out, tensors, {"config": json.dumps(config)})


def load(out: Path, subject: ExportModel) -> Loaded:
    """The weights in a model of the same architecture."""
    tensors = sparse_file.load(out)
    model = copy.deepcopy(subject.model)
    model.load_state_dict(tensors)
    return Loaded(of_module(model.eval()).predict, tensors)


FORMAT = Format(write, load)
