"""What is exported: a saved model, rebuilt, and images to compare on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from sparsekit.config.options import ArchitectureConfig, DataConfig, ModelConfig
from sparsekit.data import load
from sparsekit.errors import UserError, first_line
from sparsekit.models.create import InputConfig, load_model
from sparsekit.models.saved import SavedModel, architecture, sizes, without_sizes

IMAGES = 1_000
_RANDOM = 64


@dataclass(frozen=True)
class ExportModel:
    """A model on the CPU in evaluation mode, and what its export needs.

    Attributes:
        source: Where it was read from.
        config: The architecture.
        model: The model.
        inputs: What it says of its images.
        images: Up to 1,000 normalised test images, float32 [N, C, S, S].
        real: Whether they are images of a data set, not random numbers.
    """

    source: SavedModel
    config: ModelConfig
    model: nn.Module
    inputs: InputConfig
    images: Tensor
    real: bool

    @property
    def described(self) -> Path | None:
        """The source's own config.json, where `--model` changed nothing of what it says."""
        file = self.source.file.parent / "config.json"
        same = (self.source.name, self.source.kwargs) == (self.config.name, self.config.kwargs)
        return file if self.source.card and same and file.is_file() else None


def subject_of(source: SavedModel, given: ArchitectureConfig, data: DataConfig | None) -> ExportModel:
    """Rebuild a saved model; raises UserError where it cannot be."""
    config = architecture(source, given)
    images_of = load(data, torch.device("cpu"), channels_last=False) if data else None
    channels, classes = sizes(source, config, (images_of.channels, images_of.num_classes) if images_of else None)
    config = replace(config, kwargs=without_sizes(config.kwargs))
    model = load_model(source, config, classes, channels)
    if images_of is None:
        inputs = _inputs(source, model, channels)
        shape = (_RANDOM, inputs.channels, inputs.image_size, inputs.image_size)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    else:
        inputs = InputConfig(images_of.channels, images_of.image_size, images_of.mean, images_of.std)
        images = torch.cat([batch for batch, _ in images_of.evaluation_batches("test", limit=IMAGES)])
    try:
        with torch.no_grad():
            model(images[:1])
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = first_line(error)
        raise UserError(f"{source.path} cannot take images of {tuple(images.shape[1:])}: {reason}") from error
    return ExportModel(source, config, model, inputs, images.contiguous(), images_of is not None)


def _inputs(source: SavedModel, model: nn.Module, channels: int) -> InputConfig:
    """What a timm model says of its images."""
    said: dict[str, Any] = source.card.get("pretrained_cfg") or dict(model.pretrained_cfg)  # type: ignore[arg-type]
    resolved = timm.data.resolve_data_config(pretrained_cfg=said, model=model)  # type: ignore[attr-defined,no-untyped-call]
    mean, std = (tuple(float(v) for v in resolved[key])[:channels] for key in ("mean", "std"))
    return InputConfig(channels, int(resolved["input_size"][-1]), mean, std)
