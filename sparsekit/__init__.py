"""sparsekit prunes timm models while they train, and averages replicas into one at every pruning step.

These names are for plugins and for use from Python; importing them does not import torch.
"""

from importlib import import_module
from typing import Any

from sparsekit._types import Tensor, Tensors
from sparsekit._version import __version__
from sparsekit.api import (
    Budget,
    Candidate,
    CoefficientMerge,
    MergeStep,
    MergeStrategy,
    PruningMethod,
    PruningStep,
    Schedule,
    Score,
    Segment,
    Soup,
    Stage,
    TrainingStep,
)

__all__ = [
    "Budget",
    "Candidate",
    "CoefficientMerge",
    "MergeStep",
    "MergeStrategy",
    "Pruner",
    "PruningMethod",
    "PruningStep",
    "Schedule",
    "Score",
    "Segment",
    "Soup",
    "Stage",
    "Tensor",
    "Tensors",
    "TrainingStep",
    "__version__",
]

_LAZY = {"Pruner": "sparsekit.run.pruner"}
"""Names that need torch, and the modules that have them; imported when they are first used."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
