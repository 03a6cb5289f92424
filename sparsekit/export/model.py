"""What is exported: a saved model, rebuilt, and images to compare on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from sparsekit.config.options import ArchitectureConfig, DataConfig, ModelConfig
from sparsekit.data import Data, load
from sparsekit.errors import UserError
from sparsekit.models import create as models
from sparsekit.models.create import InputConfig
from sparsekit.models.saved import OF_DATA, Source, without_sizes

IMAGES = 1_000
_RANDOM = 64


@dataclass(frozen=True)
class Subject:
    """A model on the CPU in evaluation mode, and what its export needs.

    Attributes:
        source: Where it was read from.
        config: The architecture.
        model: The model.
        inputs: What it says of its images.
        images: Up to 1,000 normalised test images, float32 [N, C, S, S].
        real: Whether they are images of a data set, not random numbers.
    """

    source: Source
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
        return file if self.source.config and same and file.is_file() else None


def architecture(source: Source, given: ArchitectureConfig) -> ModelConfig:
    """Timm's name and arguments of a saved model: `--model` wins over what it says itself.

    Raises:
        UserError: neither says.
    """
    if given.name is not None:
        return ModelConfig(given.name, kwargs=given.kwargs)
    if source.name is None:
        raise UserError(f"{source.path} does not say which architecture it is; give --model.name and --model.kwargs")
    return ModelConfig(source.name, kwargs={**source.kwargs, **given.kwargs})


def subject_of(source: Source, given: ArchitectureConfig, data: DataConfig | None) -> Subject:
    """Rebuild a saved model; raises UserError where it cannot be."""
    config = architecture(source, given)
    images_of = load(data, torch.device("cpu"), channels_last=False) if data else None
    channels, classes = sizes(source, config, images_of)
    plain = without_sizes(config.kwargs)
    config = ModelConfig(config.name, kwargs=plain)
    model = models.load(Source(source.option, source.path, source.file, config.name, plain), classes, channels)
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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{source.path} cannot take images of {tuple(images.shape[1:])}: {reason}") from error
    return Subject(source, config, model, inputs, images.contiguous(), images_of is not None)


def sizes(source: Source, config: ModelConfig, data: Data | None) -> tuple[int, int]:
    """Channels and classes of a model: of the data, else by its arguments, its config.json, or timm's defaults.

    Raises:
        UserError: the data has others than the model.
    """
    found: list[int] = []
    of_data = (data.channels, data.num_classes) if data else (None, None)
    known = (source.channels, source.num_classes)
    about = timm.get_pretrained_cfg((config.name or "").partition(".")[0], allow_unregistered=True)
    timms = (3, about.num_classes if about else 1000)
    for option, default, mine, said in zip(OF_DATA, timms, of_data, known, strict=True):
        value = config.kwargs.get(option, said)
        if mine is not None and value is not None and value != mine:
            raise UserError(
                f"{source.path} has {option} {value}, the data {mine}; give --data.name and the like as it was made"
            )
        found.append(int(value if value is not None else mine if mine is not None else default))
    return found[0], found[1]


def _inputs(source: Source, model: nn.Module, channels: int) -> InputConfig:
    """What a timm model says of its images."""
    said: dict[str, Any] = source.config.get("pretrained_cfg") or dict(model.pretrained_cfg)  # type: ignore[arg-type]
    resolved = timm.data.resolve_data_config(pretrained_cfg=said, model=model)  # type: ignore[attr-defined,no-untyped-call]
    mean, std = (tuple(float(v) for v in resolved[key])[:channels] for key in ("mean", "std"))
    return InputConfig(channels, int(resolved["input_size"][-1]), mean, std)
