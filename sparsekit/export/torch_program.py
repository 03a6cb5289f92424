"""A `torch.export` program with a dynamic batch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from sparsekit.errors import RunError, first_line
from sparsekit.export.formats import Format, Loaded, of_module
from sparsekit.export.model import ExportModel


def traced(subject: ExportModel) -> Any:
    """The program; raises RunError where the model cannot be traced."""
    example = subject.images[:2].repeat(2, 1, 1, 1)[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about torch
        try:
            batch = torch.export.Dim("batch", min=1)
            return torch.export.export(subject.model, (example,), dynamic_shapes=({0: batch},))
        except Exception as error:  # it raises whatever tracing meets
            raise RunError(f"torch.export cannot trace {subject.config.name}: {first_line(error)}") from error


def write(subject: ExportModel, out: Path) -> None:
    """Save the program."""
    program = traced(subject)
    with out.open("wb") as file:  # by name, torch wants it to end in .pt2
        torch.export.save(program, file)


def load(out: Path, subject: ExportModel) -> Loaded:
    """Load the program as a module."""
    with out.open("rb") as file:
        program = torch.export.load(file)
    return Loaded(of_module(program.module()).predict, dict(program.state_dict))


FORMAT = Format(write, load)
