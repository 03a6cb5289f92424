"""Create timm models, load saved weights into them, and save them as directories that timm loads."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import nn

from sparsekit._types import Tensors
from sparsekit.config.options import ModelConfig
from sparsekit.errors import RunError, UserError, first_line, nearest
from sparsekit.files import local_directory, sync
from sparsekit.models import cifar  # noqa: F401  (registers its models with timm)
from sparsekit.models.reparametrized import Readers, is_number
from sparsekit.models.saved import SavedModel, open_saved_model, read_card
from sparsekit.models.state_dict import StateDict

# 242,400 prunable weights, so that sparsities of whole per cents are exact
DEFAULT_NAME = "resnet18"
DEFAULT_KWARGS: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [16, 32, 60, 104]}
_WEIGHTS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")  # arguments that can name files of weights
_KEPT = ("architecture", "num_classes", "first_conv", "classifier", "pool_size", "fixed_input_size")


@dataclass(frozen=True)
class InputConfig:
    """A model's input: number of channels, side in pixels, and mean and std per channel, white being 1."""

    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


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


def build_model(config: ModelConfig, num_classes: int, channels: int, seed: int) -> nn.Module:
    """Create the timm model, with the weights of `--model.init` if given.

    Args:
        config: The options of `--model`.
        num_classes: Number of classes.
        channels: Number of image channels.
        seed: The only seed of random initial weights.

    Raises:
        UserError: timm does not know the name, refuses an argument, or finds no pretrained weights; or the weights of
            `--model.init` do not fit the model.
    """
    source = initial_model(config)
    model = _create(config, num_classes, channels, seed)
    if source is not None:
        fill(model, source, classifiers(model) if config.new_head else ())
    return model


def initial_masks(config: ModelConfig, model: nn.Module, prunable: Sequence[str]) -> tuple[Tensors, list[str]]:
    """Masks of the weights that `--model.init` gave, True keeps, and lines for the user; empty without the option.

    A new classifier's masks keep all.

    Args:
        config: The options of `--model`.
        model: The model that they create.
        prunable: Names of its prunable weights.

    Raises:
        UserError: a stored mask does not suit its weight.
    """
    if (source := initial_model(config)) is None:
        return {}, []
    fitted, head = fit_names(source, model), classifiers(model) if config.new_head else ()
    fresh = [name for name in prunable if _inside(name, head)]
    notes = [*fitted.notes, *([f"{source.where}: its classifier ({', '.join(head)}) starts anew"] if head else [])]
    kept = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in fresh}
    return fitted.masks([name for name in prunable if name not in kept]) | kept, notes


def open_teacher(path: str, num_classes: int, channels: int) -> tuple[nn.Module, list[str]]:
    """Load the teacher given by `--distill`, in evaluation mode and without gradients; with lines for the user.

    Raises:
        UserError: there is no model, or its channels or classes differ from the data's.
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
    model = load_model(source, config, num_classes, channels).requires_grad_(False)
    return model, fit_names(source, model).notes


def load_model(source: SavedModel, config: ModelConfig, num_classes: int, channels: int) -> nn.Module:
    """Load a saved model into the architecture of `config`, on the CPU in evaluation mode.

    Raises:
        UserError: timm cannot create the architecture, or the weights do not fit it.
    """
    model = _create(config, num_classes, channels, 0)
    fill(model, source)
    return model.eval()


def fit_names(source: SavedModel, model: nn.Module) -> SavedModel:
    """A saved model with its tensors under a model's names: without prefixes, and from timm's older layouts.

    Args:
        source: The saved model.
        model: A model of its architecture, perhaps with another classifier.

    Raises:
        UserError: the file cannot be read, or holds several models.
    """
    expected, head, translate = model.state_dict(), classifiers(model), _translation(model)
    fitted = source.fitted(expected)
    if translate is None:
        return fitted
    names = [name for name in expected if not _inside(name, head)]
    same = {name for name in fitted.names() if not _inside(name, head)} == set(names)
    if same and all(fitted.read(name).shape == expected[name].shape for name in names):
        return fitted
    tensors = {name: fitted.read(name) for name in fitted.names()}
    try:
        translated: Tensors = translate(dict(tensors), model)
    except Exception:  # it is made for other files, and may raise anything
        return fitted
    if not all(name in translated and translated[name].shape == expected[name].shape for name in names):
        return fitted
    changed = [name for name in names if translated[name] is not tensors.get(name)]
    note = f"weights: changed by timm's own filter for older files: {_some(changed)}"
    readers: Readers = {name: partial(translated.__getitem__, name) for name in translated if name in expected}
    masks = {name: mask for name, mask in fitted.content.masks.items() if translated.get(name) is tensors[name]}
    return replace(source, given=StateDict(readers, masks, (*fitted.content.notes, note)))


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of a timm model's classifiers, of which distilled ones have two; empty if it has none."""
    given = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    modules = dict(model.named_modules())
    names = tuple(name for name in ((given,) if isinstance(given, str) else given) if name in modules)
    if not names:
        head = model.get_classifier() if hasattr(model, "get_classifier") else ()  # type: ignore[operator]
        heads = head if isinstance(head, (tuple, list, nn.ModuleList)) else (head,)
        names = tuple(name for name, module in modules.items() if any(module is one for one in heads))
    return names


def fill(model: nn.Module, source: SavedModel, new_heads: Sequence[str] = ()) -> None:
    """Copy a saved model's weights into a model of the same architecture.

    Args:
        model: The model.
        source: The saved model.
        new_heads: Names of classifiers that keep their own weights.

    Raises:
        UserError: a tensor is missing, unknown, of another shape or kind, or not finite.
    """
    source = fit_names(source, model)
    check_fit(model, source, new_heads)
    for name, tensor in model.state_dict().items():
        if not _inside(name, new_heads):
            found = source.read(name)
            if is_number(found) and not bool(torch.isfinite(found).all()):
                raise UserError(f"{source.where}: {name} is not finite")
            tensor.copy_(found)


def check_fit(model: nn.Module, source: SavedModel, new_heads: Sequence[str] = ()) -> None:
    """Raise UserError unless a saved model has the tensors of a model, of the same shapes and kinds of numbers.

    Args:
        model: The model; its values do not matter.
        source: The saved model, under the model's names.
        new_heads: Names of classifiers that may be missing or others.
    """
    expected = {name: tensor for name, tensor in model.state_dict().items() if not _inside(name, new_heads)}
    _check_names(source, list(expected), [name for name in source.names() if not _inside(name, new_heads)], model)
    shapes = {}
    for name, tensor in expected.items():
        found = source.read(name)
        shapes[name] = found.shape
        if is_number(tensor) and (found.is_complex(), is_number(found)) != (tensor.is_complex(), True):
            raise UserError(f"{source.where}: {name} is {found.dtype}, the model's {tensor.dtype}; convert it")
    if any(shape != expected[name].shape for name, shape in shapes.items()):
        raise _other_shape(source, shapes, expected, model)


def _check_names(source: SavedModel, expected: Sequence[str], found: Sequence[str], model: nn.Module) -> None:
    """Raise UserError unless a saved model has the expected tensors; the message says how far it is from that."""
    missing, unknown = (
        [n for n in one if n not in set(other)] for one, other in ((expected, found), (found, expected))
    )
    if not missing and not unknown:
        return
    apart = [f"lacks {_some(missing)}"] if missing else []
    apart += [f"has {_some(unknown)}, which the model lacks"] if unknown else []
    fits, many, head = len(expected) - len(missing), max(len(expected), len(found)), classifiers(model)
    if all(_inside(name, head) for name in (*missing, *unknown)):
        verdict = f"its classifier is another{_remedy(source, 'num_classes')}"
    else:
        kind = "another architecture" if 2 * fits < many else "a variant of this one, or saved by other code"
        verdict = f"{fits} of {many} tensors fit: it is {kind} (see --model.name and --model.kwargs)"
    raise UserError(f"{source.where} {' and '.join(apart)}; {verdict}")


def _other_shape(source: SavedModel, here: dict[str, torch.Size], expected: Tensors, model: nn.Module) -> UserError:
    """The error for tensors of other shapes: other channels, other classes or another architecture."""
    differing = [other for other, shape in here.items() if shape != expected[other].shape]
    head = classifiers(model)
    body = [other for other in differing if not _inside(other, head)]
    first = (body or differing)[0]
    has, needs = tuple(here[first]), tuple(expected[first].shape)
    said = f"{source.where}: {first} has shape {has}, the model's {needs}"
    if not body and has and needs:
        return UserError(f"{said}: {has[0]} classes against {needs[0]}{_remedy(source, 'num_classes')}")
    if len(body) == 1 and len(has) == len(needs) > 1 and (has[0], has[2:]) == (needs[0], needs[2:]):
        kinds = {1: " (grey)", 3: " (colour)"}
        channels = " against ".join(f"{size[1]}{kinds.get(size[1], '')}" for size in (has, needs))
        return UserError(f"{said}: {channels} channels of images{_remedy(source, 'in_chans')}")
    more = f"; {len(differing) - 1} more differ" if len(differing) > 1 else ""
    return UserError(f"{said}{more}; it is another architecture or size (see --model.name and --model.kwargs)")


def _remedy(source: SavedModel, size: str) -> str:
    """What to do about another number of classes or channels."""
    if source.option == "MODEL":
        return f"; give the data, or the {size} in --model.kwargs, that it was trained for"
    if source.option == "--model.init" and size == "num_classes":
        return "; give --model.new_head true to take all but the classifier"
    return "; give a model made for this data, or other data"


def _some(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a tensor belongs to one of the modules."""
    return any(name.startswith(f"{module}.") for module in modules)


def _translation(model: nn.Module) -> Callable[[Tensors, nn.Module], Tensors] | None:
    """Timm's function that changes older files of a model's architecture, from its module; None if it has none."""
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not name or not timm.is_model(name):
        return None
    module = sys.modules[timm.model_entrypoint(name).__module__]
    return getattr(module, "checkpoint_filter_fn", None)


def _create(config: ModelConfig, num_classes: int, channels: int, seed: int) -> nn.Module:
    name, kwargs = resolve_model(config)
    local = local_directory(name)
    if not local and not timm.is_model(name):
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
        return timm.create_model(
            name, pretrained=config.pretrained, num_classes=num_classes, in_chans=channels, **_tuples(kwargs)
        )
    except Exception as error:  # a model's constructor may raise anything
        text = first_line(error)
        if config.pretrained:
            raise UserError(f"--model.pretrained: no weights for {name!r}: {text}") from error
        raise UserError(f"--model.name {name} with --model.kwargs {kwargs}: {text}") from error


def save_model(model: nn.Module, config: ModelConfig, inputs: InputConfig, directory: Path) -> None:
    """Write config.json and model.safetensors for `timm.create_model("local-dir:…", pretrained=True)`.

    Args:
        model: The model; it is moved to the CPU.
        config: The options that created it.
        inputs: Its input, for config.json.
        directory: The directory to write.

    Raises:
        OSError: a file could not be written.
        RunError: timm wrote no safetensors file.
    """
    _, kwargs = resolve_model(config)
    size = (inputs.channels, inputs.image_size, inputs.image_size)
    given: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    # the rest describes timm's own weights, such as their licence and test size, and is not true of these
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
        sync(path)  # a finished run removes its checkpoints: after a power cut this is all that is left


def _tuples(value: Any) -> Any:
    """Turn lists into tuples: timm's constructors may need tuples, but YAML and JSON have lists only."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
