"""Options of the commands that work on finished models, `merge` and `export`. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sparsekit.api import MergeStrategy
from sparsekit.config.options import ArchitectureConfig, DataConfig


@dataclass(frozen=True)
class MergeConfig:
    """Average finished models.

    Args:
        merge: Merge strategy, by name.
        out: Directory for the merged model, new or empty; also `-o`.
        masks: What to do where the models' zeros differ: refuse, or keep what any of them keeps.
        prune_again: Prune the merged model by magnitude to this sparsity, from 0 to below 1; also `--prune-again`.
        allocation: How `--prune-again` shares sparsity out between layers.
        parent: The model that all were trained from, for merges that compare with it; a directory or file, too.
        batchnorm: BatchNorm statistics of a merged model: measured again where there is data, or averaged.
        model: The architecture, where the models do not say it themselves.
        data: Images for merges that look at some, and for BatchNorm; by default those of the first sparsekit run given.
        device: Where models run: `auto`, `cpu`, `cuda` or `cuda:N`.
        seed: Seed of merges that draw.
    """

    merge: MergeStrategy
    out: str | None = None
    masks: Literal["same", "union"] = "same"
    prune_again: float | None = None
    allocation: Literal["global", "uniform", "erk", "lamp"] = "global"
    parent: str | None = None
    batchnorm: Literal["recalibrate", "average"] = "recalibrate"
    model: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    data: DataConfig = field(default_factory=DataConfig)
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class ExportConfig:
    """Write a finished model in another format, load it again, and compare.

    Args:
        format: `timm` (a directory), `onnx`, `torch` (a torch.export program), `sparse` (compressed safetensors) or
            `2:4` (a directory for the semi-structured units of CUDA devices).
        out: What to write, new; also `-o`.
        measure: Time the exported model against the same one without zeros.
        model: The architecture, where the model does not say it itself.
        data: Images to compare on; by default those of the run. Without any, random ones.
    """

    format: Literal["timm", "onnx", "torch", "sparse", "2:4"] | None = None
    out: str | None = None
    measure: bool = False
    model: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    data: DataConfig = field(default_factory=DataConfig)
