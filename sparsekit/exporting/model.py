"""The model to export, rebuilt from a saved model, with images to compare the export on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.api import Task
from sparsekit.config.options import ArchitectureConfig, DataConfig, ModelConfig
from sparsekit.data import load
from sparsekit.data.inputs import InputConfig
from sparsekit.errors import UserError, first_line
from sparsekit.models.card import class_names, made_as, seen_by
from sparsekit.models.create import load_model
from sparsekit.models.fill import fit_names
from sparsekit.models.saved import SavedModel, architecture, sizes
from sparsekit.tasks.classification import Classification

IMAGES = 1_000
_RANDOM = 64


@dataclass(frozen=True)
class ExportModel:
    """A model to export.

    Attributes:
        source: The saved model that it was read from.
        config: The architecture.
        model: The model, on the CPU in evaluation mode.
        inputs: How its images are made, as a config.json is to say; `images` follow the options of `--data` first.
        class_names: The classes' names, by label; empty if nothing names them.
        images: Up to 1,000 normalised test images, or 64 random ones, float32 [N, C, S, S].
        real: Whether the images come from a data set.
        task: What the model was trained for.
        notes: Lines for the user.
    """

    source: SavedModel
    config: ModelConfig
    model: nn.Module
    inputs: InputConfig
    class_names: Sequence[str]
    images: Tensor
    real: bool
    task: Task = field(default_factory=Classification)
    notes: Sequence[str] = ()

    @property
    def card(self) -> dict[str, Any]:
        """The saved model's config.json; empty if it has none, or `--model` overrides what it says."""
        same = (self.source.name, self.source.kwargs) == (self.config.name, self.config.kwargs)
        return self.source.card if same else {}


def load_export_model(
    source: SavedModel, given: ArchitectureConfig, data: DataConfig | None, task: Task | None = None
) -> ExportModel:
    """Rebuild a saved model for export.

    Args:
        source: The saved model.
        given: The options of `--model`.
        data: The data set whose test images are used; None uses random images.
        task: What the model was trained for; a classification by default.

    Raises:
        UserError: the architecture is unknown, or does not fit the weights, the images or their classes.
    """
    config, task = architecture(source, given), task or Classification()
    dataset = load(data, torch.device("cpu"), channels_last=False, task=task) if data else None
    channels, classes = sizes(source, given, (dataset.channels, dataset.num_classes) if dataset else None)
    names = class_names(source) or ()
    if data is None or dataset is None:
        model = load_model(source, config, classes, channels)
        inputs, notes = made_as(source, _as_timm_says(model, channels), f"timm's for {config.name}")
        shape = (_RANDOM, channels, *inputs.size)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    else:
        seen, notes = seen_by(source, dataset, data)
        model = load_model(source, config, classes, channels)
        inputs, names = made_as(source, dataset.own)[0], names or seen.class_names
        images = torch.cat([batch for batch, _ in seen.evaluation_batches("test", limit=IMAGES)])
    try:
        with torch.no_grad():
            model(images[:1])
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = first_line(error)
        raise UserError(f"{source.path} cannot take images of {tuple(images.shape[1:])}: {reason}") from error
    notes = [*fit_names(source, model).notes, *notes]
    return ExportModel(source, config, model, inputs, names, images.contiguous(), dataset is not None, task, notes)


def _as_timm_says(model: nn.Module, channels: int) -> InputConfig:
    """Timm's defaults for the images of the architecture."""
    known = {"pretrained_cfg": json.loads(json.dumps(dict(model.pretrained_cfg)))}  # type: ignore[arg-type]
    any_size = InputConfig(channels, (224, 224), (0.0,) * channels, (1.0,) * channels)
    return made_as(SavedModel("--model.name", Path(), Path(), card=known), any_size)[0]
