"""sparsekit prunes timm models while they train, and averages replicas into one at every pruning step.

These names are for plugins and for use from Python; importing them does not import torch.
"""

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
