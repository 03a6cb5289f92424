"""A `torch.export` program with a dynamic batch size."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from sparsekit.errors import RunError, first_line
from sparsekit.exporting.formats import Format, Loaded
from sparsekit.exporting.model import ExportModel


def traced(export_model: ExportModel) -> Any:
    """Trace the model to a program; raises RunError if torch cannot trace it."""
    example = torch.cat([export_model.images[:2]] * 2)[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own code
        try:
            batch = torch.export.Dim("batch", min=1)
            return torch.export.export(export_model.model, (example,), dynamic_shapes=({0: batch},))
        except Exception as error:  # tracing may raise anything
            raise RunError(f"torch.export cannot trace {export_model.config.name}: {first_line(error)}") from error


def write(export_model: ExportModel, out: Path) -> None:
    """Trace the model and save the program."""
    program = traced(export_model)
    with out.open("wb") as file:  # given a path, torch demands that it ends in .pt2
        torch.export.save(program, file)


def load(out: Path, export_model: ExportModel) -> Loaded:
    """Load the program as a module."""
    with out.open("rb") as file:
        program = torch.export.load(file)
    return Loaded(Loaded.from_module(program.module()).predict, dict(program.state_dict))


FORMAT = Format(write, load)
