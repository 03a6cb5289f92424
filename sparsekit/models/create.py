"""timm models in, a directory that plain timm loads out."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import nn

from sparsekit.config.options import ModelConfig
from sparsekit.errors import RunError, UserError, first_line, nearest
from sparsekit.files import local_directory, sync
from sparsekit.models import cifar  # noqa: F401  (registers its models with timm)
from sparsekit.models.saved import SavedModel, open_saved_model, read_card

# 242,400 prunable weights: sparsities of whole per cents are met to the weight
DEFAULT_NAME = "resnet18"
DEFAULT_KWARGS: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [16, 32, 60, 104]}
_WEIGHTS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")  # other ways to files of weights
_KEPT = ("architecture", "num_classes", "first_conv", "classifier", "pool_size", "fixed_input_size")


@dataclass(frozen=True)
class InputConfig:
    """What a saved model says of its input: channels, side in pixels, normalisation a channel in 0..1 scale."""

    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def resolve_model(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """The timm name and keyword arguments that a config stands for."""
    if config.name is None and config.init is not None and (source := initial_model(config)) and source.name:
        return source.name, {**source.kwargs, **config.kwargs}
    if config.name is None:
        return DEFAULT_NAME, {**DEFAULT_KWARGS, **config.kwargs}
    directory = local_directory(config.name)
    if directory is None:
        return config.name, dict(config.kwargs)
    own: dict[str, Any] = {}  # timm before 1.0.31 reads them there, and does not hand them on when it saves
    with suppress(UserError):  # whoever makes the model of it says what is wrong
        _, own, _ = read_card("--model.name", directory, directory)
    return f"local-dir:{directory}", {**own, **config.kwargs}


def initial_model(config: ModelConfig) -> SavedModel | None:
    """The trained model that `--model.init` names; raises UserError where there is none."""
    return open_saved_model("--model.init", config.init) if config.init is not None else None


def build_model(config: ModelConfig, num_classes: int, channels: int, seed: int) -> nn.Module:
    """The timm model for `num_classes` and images of `channels`; random weights follow from `seed` alone.

    Raises:
        UserError: timm does not know the name, refuses an argument, or finds no pretrained weights; or the weights of
            `--model.init` are not for this model.
    """
    source = initial_model(config)
    model = _create(config, num_classes, channels, seed)
    if source is not None:
        fill(model, source)
    return model


def open_teacher(path: str, num_classes: int, channels: int) -> nn.Module:
    """The teacher that `--distill` names, in evaluation mode and without gradients.

    Raises:
        UserError: there is no model, or it is for other images or classes.
    """
    source = open_saved_model("--distill", path)
    if source.name is None:
        raise UserError(f"--distill {path}: nothing says which architecture it is; give a directory with a config.json")
    for what, has, needed in (("classes", source.num_classes, num_classes), ("channels", source.channels, channels)):
        if has is not None and has != needed:
            raise UserError(
                f"--distill {path}: the teacher has {has} {what}, the data {needed}; give one for this data"
            )
    config = ModelConfig(source.name, kwargs=source.kwargs)
    return load_model(source, config, num_classes, channels).requires_grad_(False)


def load_model(source: SavedModel, config: ModelConfig, num_classes: int, channels: int) -> nn.Module:
    """A saved model in the architecture that `config` names, on the CPU in evaluation mode; raises UserError."""
    model = _create(config, num_classes, channels, 0)
    fill(model, source)
    return model.eval()


def fill(model: nn.Module, source: SavedModel) -> None:
    """Put a saved model's weights into a model of the same architecture.

    Raises:
        UserError: a tensor is missing, too many, of another shape, or not finite.
    """
    wanted = model.state_dict()
    where = f"{source.option} {source.path}"
    for name in wanted:
        if name not in source.names():
            raise UserError(f"{where} lacks {name}; it is another architecture (see --model.name and --model.kwargs)")
    for name in source.names():
        if name not in wanted:
            raise UserError(
                f"{where} has {name}, which the model has not; it is another architecture (see --model.name and "
                "--model.kwargs)"
            )
    for name, tensor in wanted.items():
        found = source.read(name)
        if found.shape != tensor.shape:
            sizes = [shape[1] for shape in (found.shape, tensor.shape) if len(shape) == 4]
            kinds = {1: "grey", 3: "colour"}
            hint = ""
            if len(sizes) == 2 and set(sizes) == set(kinds):
                hint = (
                    f"; {kinds[sizes[0]]} against {kinds[sizes[1]]} images: give a model of this data's, or other data"
                )
            raise UserError(f"{where}: {name} has shape {tuple(found.shape)}, the model's {tuple(tensor.shape)}{hint}")
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise UserError(f"{where}: {name} is not finite")
        tensor.copy_(found)


def _create(config: ModelConfig, num_classes: int, channels: int, seed: int) -> nn.Module:
    name, kwargs = resolve_model(config)
    local = local_directory(name)
    if not local and not timm.is_model(name):
        raise UserError(f"--model.name {name!r} is no timm model.{nearest(name, timm.list_models())}")
    if local and not (local / "config.json").is_file():
        raise UserError(f"--model.name {name!r}: no config.json there; give a directory that timm or sparsekit saved")
    if local and config.pretrained and not (local / "model.safetensors").is_file():
        # timm would go on to a pickle there, and reading one can run code
        raise UserError(
            f"--model.name {name!r}: no model.safetensors there; save the model with safe_serialization=True"
        )
    if named := [key for key in _WEIGHTS if key in kwargs]:
        raise UserError(f"--model.kwargs: {named[0]} is not taken; give weights with --model.name local-dir:DIR")
    torch.manual_seed(seed)
    try:
        return timm.create_model(
            name, pretrained=config.pretrained, num_classes=num_classes, in_chans=channels, **_tuples(kwargs)
        )
    except Exception as error:  # timm passes on whatever the model's constructor raises
        text = first_line(error)
        if config.pretrained:
            raise UserError(f"--model.pretrained: no weights for {name!r}: {text}") from error
        raise UserError(f"--model.name {name} with --model.kwargs {kwargs}: {text}") from error


def save_model(model: nn.Module, config: ModelConfig, inputs: InputConfig, directory: Path) -> None:
    """Write config.json and model.safetensors for `timm.create_model("local-dir:…", pretrained=True)`.

    Raises:
        OSError: the disk refused.
        RunError: timm wrote no safetensors file.
    """
    _, kwargs = resolve_model(config)
    size = (inputs.channels, inputs.image_size, inputs.image_size)
    given: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    # what else timm's own weights came with, their licence and test size, is not true of these
    config_of_weights = {key: given[key] for key in _KEPT if key in given} | {
        "input_size": size,
        "mean": inputs.mean,
        "std": inputs.std,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    arguments = {**kwargs, "in_chans": inputs.channels}
    model.pretrained_cfg = config_of_weights  # type: ignore[assignment]
    model.cpu().to(memory_format=torch.contiguous_format)  # safetensors writes no channels-last tensors
    save_for_hf(model, str(directory), model_args=arguments, safe_serialization=True)
    written = directory / "model.safetensors"
    if not written.is_file():
        raise RunError(f"timm wrote no {written}")
    for path in (written, directory / "config.json", directory, directory.parent):
        sync(path)  # a finished run has nothing else to go on from after a power cut


def _tuples(value: Any) -> Any:
    """Lists as tuples, which timm's constructors take everywhere; YAML and JSON know lists only."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
