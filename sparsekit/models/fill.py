"""A saved model's weights into a model: under its names, with another classifier if asked; or why they do not fit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from sparsekit._types import Tensors
from sparsekit.display.text import listed
from sparsekit.errors import UserError
from sparsekit.models.reparametrized import Readers, all_finite, is_number
from sparsekit.models.saved import SavedModel
from sparsekit.models.state_dict import StateDict


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
    names = [name for name in expected if not inside(name, head)]
    same = {name for name in fitted.names() if not inside(name, head)} == set(names)
    if same and all(fitted.read(name).shape == expected[name].shape for name in names):
        return fitted
    tensors = {name: fitted.read(name) for name in fitted.names()}
    try:
        translated: Tensors = translate(dict(tensors), model)
    except Exception:  # it is made for other files, and may raise anything
        return fitted
    if not all(name in translated and translated[name].shape == expected[name].shape for name in names):
        return fitted
    changed = [name for name in translated if translated[name] is not tensors.get(name)]
    if not (changed := [*changed, *(name for name in tensors if name not in translated)]):
        return fitted
    note = f"weights: changed by timm's own filter for older files: {listed(changed, 1)}"
    readers: Readers = {name: partial(translated.__getitem__, name) for name in translated}
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
        if not inside(name, new_heads):
            found = source.read(name)
            if not all_finite(found):
                raise UserError(f"{source.where}: {name} is not finite")
            tensor.copy_(found)


def check_fit(model: nn.Module, source: SavedModel, new_heads: Sequence[str] = ()) -> None:
    """Raise UserError unless a saved model has the tensors of a model, of the same shapes and kinds of numbers.

    Args:
        model: The model; its values do not matter.
        source: The saved model, under the model's names.
        new_heads: Names of classifiers that may be missing or others.
    """
    expected = {name: tensor for name, tensor in model.state_dict().items() if not inside(name, new_heads)}
    left = set(foreign(source, model)) if new_heads else set()
    names = [name for name in source.names() if not inside(name, new_heads) and name not in left]
    _check_names(source, list(expected), names, model)
    shapes = {}
    for name, tensor in expected.items():
        found = source.read(name)
        shapes[name] = found.shape
        if is_number(tensor) and (found.is_complex(), is_number(found)) != (tensor.is_complex(), True):
            raise UserError(f"{source.where}: {name} is {found.dtype}, the model's {tensor.dtype}; convert it")
    if any(shape != expected[name].shape for name, shape in shapes.items()):
        raise _other_shape(source, shapes, expected, model)


def inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a tensor belongs to one of the modules."""
    return any(name.startswith(f"{module}.") for module in modules)


def foreign(source: SavedModel, model: nn.Module) -> list[str]:
    """A file's tensors in modules that a model has none of by name, such as a head that is called otherwise."""
    own = {name.partition(".")[0] for name in model.state_dict()}
    return [name for name in source.names() if name.partition(".")[0] not in own]


def _check_names(source: SavedModel, expected: Sequence[str], found: Sequence[str], model: nn.Module) -> None:
    """Raise UserError unless a saved model has the expected tensors; the message says how far it is from that."""
    has, needs = set(found), set(expected)
    missing, unknown = [n for n in expected if n not in has], [n for n in found if n not in needs]
    if not missing and not unknown:
        return
    apart = [f"lacks {listed(missing, 1)}"] if missing else []
    apart += [f"has {listed(unknown, 1)}, which the model lacks"] if unknown else []
    fits, many, head = len(expected) - len(missing), max(len(expected), len(found)), classifiers(model)
    others = {*foreign(source, model), *(name for name in unknown if inside(name, head))}
    if all(inside(name, head) for name in missing) and others.issuperset(unknown):
        verdict = f"its classifier is another{_remedy(source, 'num_classes')}"
        if not unknown and source.option != "--model.init":
            verdict = "it has no classifier; give a file with one"
    else:
        kind = "another architecture" if 2 * fits < many else "a variant of this one, or saved by other code"
        verdict = f"{fits} of {many} tensors fit: it is {kind} (see --model.name and --model.kwargs)"
    raise UserError(f"{source.where} {' and '.join(apart)}; {verdict}")


def _other_shape(source: SavedModel, here: dict[str, torch.Size], expected: Tensors, model: nn.Module) -> UserError:
    """The error for tensors of other shapes: other channels, other classes or another architecture."""
    differing = [other for other, shape in here.items() if shape != expected[other].shape]
    head = classifiers(model)
    body = [other for other in differing if not inside(other, head)]
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


def _translation(model: nn.Module) -> Callable[[Tensors, nn.Module], Tensors] | None:
    """Timm's function that changes older files of a model's architecture, from its module; None if it has none."""
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not name:
        return None
    import timm  # only now: it costs 3 s

    if not timm.is_model(name):
        return None
    module = sys.modules[timm.model_entrypoint(name).__module__]
    return getattr(module, "checkpoint_filter_fn", None)
