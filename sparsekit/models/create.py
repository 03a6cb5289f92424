"""Create timm models, load saved weights into them, and save them as directories that timm loads."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsekit._types import Tensors
from sparsekit.config.options import ModelConfig
from sparsekit.data.inputs import InputConfig
from sparsekit.display.text import listed
from sparsekit.errors import RunError, UserError, first_line, nearest
from sparsekit.files import local_directory, save_tensors, sync, write_json
from sparsekit.models import kept_norm, slim
from sparsekit.models.fill import classifiers, fill, foreign, inside
from sparsekit.models.registered import is_registered
from sparsekit.models.saved import SavedModel, open_saved_model, read_card
from sparsekit.models.state import cpu_state_dict
from sparsekit.plugins.objects import find_object, import_modules, is_object

# 242,400 prunable weights, so that sparsities of whole per cents are exact
DEFAULT_NAME = "resnet18"
DEFAULT_KWARGS: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [16, 32, 60, 104]}
_WEIGHTS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")  # arguments that can name files of weights
_KEPT = ("architecture", "num_classes", "first_conv", "classifier", "pool_size", "fixed_input_size")


def resolve_model(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """The timm name and keyword arguments of the model that the options describe."""
    if config.name is None and config.init is not None and (source := initial_model(config)) and source.name:
        return source.name, {**source.kwargs, **config.kwargs}
    if config.name is None:
        return DEFAULT_NAME, {**DEFAULT_KWARGS, **config.kwargs}
    directory = local_directory(config.name)
    if directory is None:
        return config.name, dict(config.kwargs)
    own: dict[str, Any] = {}  # timm before 1.0.31 reads these from the directory, but does not save them again
    with suppress(UserError):  # creating the model reports the error
        _, own, _ = read_card("--model.name", directory, directory)
    return f"local-dir:{directory}", {**own, **config.kwargs}


def initial_model(config: ModelConfig) -> SavedModel | None:
    """The trained model given by `--model.init`; None without the option; raises UserError if there is no model."""
    return open_saved_model("--model.init", config.init) if config.init is not None else None


def pretrained(config: ModelConfig) -> SavedModel | None:
    """The description of the weights that `--model.pretrained` loads; None where they have none."""
    name, _ = resolve_model(config)
    if (directory := local_directory(name)) is not None:
        with suppress(UserError):  # creating the model reports the error
            return open_saved_model("--model.name", directory)
        return None
    import timm  # only now: it costs 3 s

    is_registered(name)
    described = timm.get_pretrained_cfg(name, allow_unregistered=True)
    card = {"pretrained_cfg": json.loads(json.dumps(asdict(described)))} if described else {}
    return SavedModel("--model.name", Path(name), Path(name), name, card=card)


def build_model(
    config: ModelConfig, num_classes: int, channels: int, seed: int, source: SavedModel | None = None
) -> nn.Module:
    """Create the timm model, with the weights of `--model.init` if given.

    Args:
        config: The options of `--model`.
        num_classes: Number of classes.
        channels: Number of image channels.
        seed: The only seed of random initial weights.
        source: The model of `--model.init`, if it is open already.

    Raises:
        UserError: timm does not know the name, refuses an argument, or finds no pretrained weights; or the weights of
            `--model.init` do not fit the model.
    """
    source = source or initial_model(config)
    import_modules(source.imports if source else ())
    model = _create(config, num_classes, channels, seed)
    if config.new_head and not classifiers(model):
        raise UserError(f"--model.new_head: timm names no classifier of {config.name}; choose another --model.name")
    if source is not None:
        kept_norm.hold(model, [path for path in kept_norm.held(source.names()) if path in dict(model.named_modules())])
        fill(model, source, classifiers(model) if config.new_head else ())
    return model


def initial_masks(
    source: SavedModel | None, config: ModelConfig, model: nn.Module, prunable: Sequence[str]
) -> tuple[Tensors, list[str]]:
    """Masks of the weights that `--model.init` gave, True keeps, and lines for the user; empty without the option.

    A new classifier's masks keep all.

    Args:
        source: The model of `--model.init`, under the model's names; None without one.
        config: The options of `--model`.
        model: The model that they create.
        prunable: Names of its prunable weights.

    Raises:
        UserError: a stored mask does not suit its weight.
    """
    if source is None:
        return {}, []
    head = classifiers(model) if config.new_head else ()
    fresh = [name for name in prunable if inside(name, head)]
    left = foreign(source, model) if head else []
    without = f"; not taken: {listed(left, 1)}" if left else ""
    anew = [f"{source.where}: its classifier ({', '.join(head)}) starts anew{without}"] if head else []
    notes = [*source.notes, *anew]
    kept = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in fresh}
    return source.masks([name for name in prunable if name not in kept]) | kept, notes


def load_model(source: SavedModel, config: ModelConfig, num_classes: int, channels: int) -> nn.Module:
    """Load a saved model into the architecture of `config`, on the CPU in evaluation mode.

    Raises:
        UserError: timm cannot create the architecture, or the weights do not fit it.
    """
    import_modules(source.imports)
    model = _create(config, num_classes, channels, 0)
    fill(model, source)
    return model.eval()


def _create(config: ModelConfig, num_classes: int, channels: int, seed: int) -> nn.Module:
    name, kwargs = resolve_model(config)
    made = kwargs.pop("slim", None)
    if is_object(name):
        model = _own(config, name, kwargs, seed)
    else:
        model = _of_timm(config, name, kwargs, num_classes, channels, seed)
    if made:
        try:
            slim.apply(model, made)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"--model.name {name}: its config.json's slim does not fit it: {error}") from error
    return model


def _of_timm(
    config: ModelConfig, name: str, kwargs: dict[str, Any], num_classes: int, channels: int, seed: int
) -> nn.Module:
    """A model of timm's."""
    import timm  # only now: it costs 3 s

    from sparsekit.models import cifar  # noqa: F401  (registers its models with timm)

    local = local_directory(name)
    if not local and not is_registered(name):
        raise UserError(f"--model.name {name!r} is not a timm model.{nearest(name, timm.list_models())}")
    if local and not (local / "config.json").is_file():
        raise UserError(f"--model.name {name!r}: no config.json there; give a directory that timm or sparsekit saved")
    if local and config.pretrained and not (local / "model.safetensors").is_file():
        # timm would fall back to a pickle, and loading one can run code
        raise UserError(
            f"--model.name {name!r}: no model.safetensors there; save the model with safe_serialization=True"
        )
    if named := [key for key in _WEIGHTS if key in kwargs]:
        raise UserError(f"--model.kwargs: {named[0]} is not allowed; give weights with --model.name local-dir:DIR")
    torch.manual_seed(seed)
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=config.pretrained, num_classes=num_classes, in_chans=channels, **_tuples(kwargs)
        )
    except Exception as error:  # a model's constructor may raise anything
        text = first_line(error)
        if config.pretrained:
            raise UserError(f"--model.pretrained: no weights for {name!r}: {text}") from error
        raise UserError(f"--model.name {name} with --model.kwargs {kwargs}: {text}") from error
    if not hasattr(model, "num_classes"):  # timm's own models say it, and so does their config.json
        model.num_classes = num_classes  # type: ignore[assignment]
    return model


def _own(config: ModelConfig, name: str, kwargs: dict[str, Any], seed: int) -> nn.Module:
    """A copy of a module of the user's own, or what their class or function makes of the arguments."""
    if config.pretrained:
        raise UserError(f"--model.pretrained: {name} is no timm model; load its weights yourself, or give --model.init")
    found = find_object("--model.name", name)
    if isinstance(found, nn.Module) and kwargs:
        raise UserError(f"--model.kwargs {kwargs}: {name} is made already; give its class or function")
    torch.manual_seed(seed)
    try:
        model = copy.deepcopy(found if isinstance(found, nn.Module) else found(**_tuples(kwargs)))
    except Exception as error:  # a user's code may raise anything
        raise UserError(f"--model.name {name} with --model.kwargs {kwargs}: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"--model.name {name} makes {type(model).__name__}; it must make a torch.nn.Module")
    if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in model.parameters()):
        raise UserError(f"--model.name {name} has lazy layers without sizes; run one forward pass of it first")
    return model


def save_model(
    model: nn.Module, config: ModelConfig, inputs: InputConfig, directory: Path, class_names: Sequence[str] = ()
) -> None:
    """Write config.json and model.safetensors for `timm.create_model("local-dir:…", pretrained=True)`.

    A model that lacks what timm's own models have is saved in the same form, for sparsekit.

    Args:
        model: The model; it is moved to the CPU.
        config: The options that created it.
        inputs: How its images are made, for config.json.
        directory: The directory to write.
        class_names: The classes' names, by label, for config.json; none if it is empty.

    Raises:
        OSError: a file could not be written.
        RunError: timm wrote no safetensors file.
    """
    name, kwargs = resolve_model(config)
    without_channels = slim_of(model, kwargs.pop("slim", {}))
    described = hasattr(model, "pretrained_cfg") and hasattr(model, "num_features") and not is_object(name)
    given: dict[str, Any] = dict(model.pretrained_cfg) if described else {}  # type: ignore[arg-type]
    # the rest describes timm's own weights, such as their licence and test size, and is not true of these
    config_of_weights = {key: given[key] for key in _KEPT if key in given}
    if len(inputs.size) == 2:  # images, not examples of other shapes
        config_of_weights |= {
            "input_size": (inputs.channels, *inputs.size),
            "mean": inputs.mean,
            "std": inputs.std,
            "crop_pct": inputs.crop_pct,
            "crop_mode": inputs.crop_mode,
            "interpolation": inputs.interpolation,
        }
    names = {"label_names": list(class_names)} if class_names else {}
    arguments = {**kwargs, "in_chans": inputs.channels}
    model.cpu()
    if described:
        model.pretrained_cfg = config_of_weights  # type: ignore[assignment]
        model.to(memory_format=torch.contiguous_format)  # safetensors writes no channels-last tensors
        from timm.models import save_for_hf  # only now: it costs 3 s

        save_for_hf(model, str(directory), model_config=names, model_args=arguments, safe_serialization=True)
    else:
        made = {"num_classes": model.num_classes} if isinstance(getattr(model, "num_classes", None), int) else {}
        card = {"architecture": name, **made, **names, "model_args": kwargs, "pretrained_cfg": config_of_weights}
        card |= without_channels
        directory.mkdir(parents=True, exist_ok=True)
        save_tensors(directory / "model.safetensors", cpu_state_dict(model))
        write_json(directory / "config.json", card)
    if described and without_channels:
        card = json.loads((directory / "config.json").read_text("utf-8"))
        write_json(directory / "config.json", card | without_channels)
    written = directory / "model.safetensors"
    if not written.is_file():
        raise RunError(f"timm wrote no {written}")
    for path in (written, directory / "config.json", directory, directory.parent):
        sync(path)  # a finished run removes its checkpoints: after a power cut this is all that is left


def slim_of(model: nn.Module, made: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of config.json about a model's channels: how it was `made`, and which norms leave out removed ones."""
    norms = kept_norm.held(model.state_dict())
    what = {key: value for key, value in made.items() if key != "norms"} | ({"norms": norms} if norms else {})
    return {"slim": what} if what else {}


def _tuples(value: Any) -> Any:
    """Turn lists into tuples: timm's constructors may need tuples, but YAML and JSON have lists only."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
