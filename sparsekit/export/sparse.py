"""Compressed safetensors, see docs/sparse-format.md."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from sparsekit.export.formats import Format, Loaded, of_module
from sparsekit.export.model import Subject
from sparsekit.models import sparse_file as sparsefile
from sparsekit.models import state as states


def write(subject: Subject, out: Path) -> None:
    """All tensors, and the architecture in the metadata."""
    known = subject.source.config
    arguments = {**(known.get("model_args") or {}), **subject.config.kwargs}
    config = {**known, "architecture": subject.config.name, "model_args": arguments}
    # -0.0, which pruning by multiplication leaves behind, is no value worth its place
    tensors = {name: tensor.masked_fill(tensor == 0, 0) for name, tensor in states.capture(subject.model).items()}
    sparsefile.save(out, tensors, {"config": json.dumps(config)})


def load(out: Path, subject: Subject) -> Loaded:
    """The weights in a model of the same architecture."""
    tensors = sparsefile.load(out)
    model = copy.deepcopy(subject.model)
    model.load_state_dict(tensors)
    return Loaded(of_module(model.eval()).predict, tensors)


FORMAT = Format(write, load)
