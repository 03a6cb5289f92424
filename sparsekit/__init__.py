"""sparsekit prunes models while they train, and averages replicas into one at every pruning step.

These names are for use from Python and for plugins; importing them does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparsekit._types import Tensor, Tensors
from sparsekit._version import __version__
from sparsekit.api import (
    Budget,
    Candidate,
    CoefficientMerge,
    MergeStep,
    MergeStrategy,
    Meter,
    Probe,
    PruningMethod,
    PruningStep,
    Schedule,
    Score,
    Segment,
    Soup,
    Stage,
    Task,
    TrainingStep,
)
from sparsekit.errors import RunError, UserError

if TYPE_CHECKING:
    from sparsekit import merges, methods, schedules, tasks, testing
    from sparsekit.data.examples import Data
    from sparsekit.exporting.formats import Format, Loaded
    from sparsekit.exporting.model import ExportModel
    from sparsekit.python.calls import evaluate, export, fit, merge, plan
    from sparsekit.python.pruner import Pruner
    from sparsekit.python.run import Run, load

__all__ = [
    "Budget",
    "Candidate",
    "CoefficientMerge",
    "Data",
    "ExportModel",
    "Format",
    "Loaded",
    "MergeStep",
    "MergeStrategy",
    "Meter",
    "Probe",
    "Pruner",
    "PruningMethod",
    "PruningStep",
    "Run",
    "RunError",
    "Schedule",
    "Score",
    "Segment",
    "Soup",
    "Stage",
    "Task",
    "Tensor",
    "Tensors",
    "TrainingStep",
    "UserError",
    "__version__",
    "evaluate",
    "export",
    "fit",
    "load",
    "merge",
    "merges",
    "methods",
    "plan",
    "schedules",
    "tasks",
    "testing",
]

_LAZY = {
    "Data": "data.examples",
    "ExportModel": "exporting.model",
    "Format": "exporting.formats",
    "Loaded": "exporting.formats",
    "Pruner": "python.pruner",
    "Run": "python.run",
    **dict.fromkeys(("evaluate", "export", "fit", "merge", "plan"), "python.calls"),
    "load": "python.run",
}
"""Names that are imported when they are first used, as their modules take time to import."""
_MODULES = ("merges", "methods", "schedules", "tasks", "testing")
"""Modules for use as `sparsekit.methods.GMP`, likewise."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_MODULES})
