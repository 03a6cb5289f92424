"""The model to export, rebuilt from a saved model, with images to compare the export on."""

from __future__ import annotations

from collections.abc import Sequence
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
from sparsekit.models.fill import fit_names
from sparsekit.models.saved import SavedModel, architecture, sizes, without_sizes

IMAGES = 1_000
_RANDOM = 64


@dataclass(frozen=True)
class ExportModel:
    """A model to export.

    Attributes:
        source: The saved model that it was read from.
        config: The architecture.
        model: The model, on the CPU in evaluation mode.
        inputs: Size and normalisation of its images.
        images: Up to 1,000 normalised test images, or 64 random ones, float32 [N, C, S, S].
        real: Whether the images come from a data set.
        notes: Lines for the user about the model's file.
    """

    source: SavedModel
    config: ModelConfig
    model: nn.Module
    inputs: InputConfig
    images: Tensor
    real: bool
    notes: Sequence[str] = ()

    @property
    def described(self) -> Path | None:
        """The saved model's config.json; None if it has none, or `--model` overrides what it says."""
        file = self.source.file.parent / "config.json"
        same = (self.source.name, self.source.kwargs) == (self.config.name, self.config.kwargs)
        return file if self.source.card and same and file.is_file() else None


def load_export_model(source: SavedModel, given: ArchitectureConfig, data: DataConfig | None) -> ExportModel:
    """Rebuild a saved model for export.

    Args:
        source: The saved model.
        given: The options of `--model`.
        data: The data set whose test images are used; None uses random images.

    Raises:
        UserError: the architecture is unknown, or does not fit the weights or the images.
    """
    config = architecture(source, given)
    dataset = load(data, torch.device("cpu"), channels_last=False) if data else None
    channels, classes = sizes(source, config, (dataset.channels, dataset.num_classes) if dataset else None)
    config = replace(config, kwargs=without_sizes(config.kwargs))
    model = load_model(source, config, classes, channels)
    if dataset is None:
        inputs = _inputs(source, model, channels)
        shape = (_RANDOM, inputs.channels, inputs.image_size, inputs.image_size)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    else:
        inputs = InputConfig(dataset.channels, dataset.image_size, dataset.mean, dataset.std)
        images = torch.cat([batch for batch, _ in dataset.evaluation_batches("test", limit=IMAGES)])
    try:
        with torch.no_grad():
            model(images[:1])
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = first_line(error)
        raise UserError(f"{source.path} cannot take images of {tuple(images.shape[1:])}: {reason}") from error
    return ExportModel(
        source, config, model, inputs, images.contiguous(), dataset is not None, fit_names(source, model).notes
    )


def _inputs(source: SavedModel, model: nn.Module, channels: int) -> InputConfig:
    """Size and normalisation of a model's images, from config.json or timm's defaults for the architecture."""
    known: dict[str, Any] = source.card.get("pretrained_cfg") or dict(model.pretrained_cfg)  # type: ignore[arg-type]
    resolved = timm.data.resolve_data_config(pretrained_cfg=known, model=model)  # type: ignore[attr-defined,no-untyped-call]
    mean, std = (tuple(float(v) for v in resolved[key])[:channels] for key in ("mean", "std"))
    return InputConfig(channels, int(resolved["input_size"][-1]), mean, std)
