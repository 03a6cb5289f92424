"""What a saved model's config.json says of its images and classes, and a data set as that model sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from sparsekit.config.options import DataConfig
from sparsekit.display.text import listed
from sparsekit.errors import UserError
from sparsekit.models.saved import SavedModel

if TYPE_CHECKING:
    from sparsekit.data import LoadedData
    from sparsekit.data.inputs import InputConfig

_OPTIONS = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
"""Keys of config.json that are arguments of timm's loader, too."""
_AS_TIMM_READS = {"crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic"}
"""What timm takes where a config.json that names mean and std leaves these out."""
_WAYS = {"size": "--data.image_size", "mean": "--data.mean", "std": "--data.std"}
_SHOWN = 3


def seen_by(
    source: SavedModel, data: LoadedData, options: DataConfig, resize: bool = True, other_classes: bool = False
) -> tuple[LoadedData, list[str]]:
    """A data set as a saved model sees it: its images made as config.json says, its classes in the model's order.

    What the user set in `options` holds over config.json; a model without mean and std sees the data set's own.

    Args:
        source: The saved model.
        data: The data set, or a view of it.
        options: The options of `--data`, as far as the user gave them.
        resize: Whether data sets of small images take the model's size, too; image folders always do.
        other_classes: Whether the model may name other classes, as one may that is only started from.

    Returns:
        The view, and lines for the user about what is not as one would think.

    Raises:
        UserError: config.json holds values that mean nothing, or names other classes.
    """
    own = data.own
    inputs, notes = made_as(source, own) if not data.fixed else (own, [])
    described = inputs
    given = [name for name in _OPTIONS if name in options.kwargs]
    given += ["size"] if options.image_size is not None else []
    given += [name for name in ("mean", "std") if getattr(options, name) is not None]
    for name in (overridden := [name for name in given if name in own.differing(inputs)]):
        inputs = replace(inputs, **{name: getattr(own, name)})
    if overridden:
        ways = {_WAYS.get(name, "--data.kwargs") for name in overridden if name not in options.kwargs}
        ways |= {"--data.kwargs" for name in overridden if name in options.kwargs}
        told = f"({own.text(overridden)}) over its config.json ({described.text(overridden)})"
        notes.append(f"{source.path}: {' and '.join(sorted(ways))} hold {told}")
    if not data.cropped and not data.fixed:
        if not resize and inputs.size != own.size:
            notes.append(
                f"{source.path} was made for {inputs.pixels} pixels, these images have {own.pixels}; see "
                "--data.image_size"
            )
            inputs = replace(inputs, size=own.size)
        if inputs.crop_pct != 1.0:
            cut = f"its crop_pct {inputs.crop_pct:g} is for image folders; nothing is cut off {options.name}"
            notes.append(f"{source.path}: {cut}")
    order, mapped = class_order(source, data.class_names, f"--data.name {options.name}", other_classes)
    try:
        return data.seen_by(inputs, order), [*notes, *mapped]
    except UserError as error:
        raise UserError(f"{source.option} {source.path}: {error}") from error


def made_as(source: SavedModel, own: InputConfig, whose: str = "the data's") -> tuple[InputConfig, list[str]]:
    """How a saved model's images are made.

    Args:
        source: The saved model.
        own: What holds where its config.json says nothing.
        whose: Where that comes from, for messages.

    Returns:
        The images' description, and lines for the user.

    Raises:
        UserError: config.json holds values that mean nothing.
    """
    card, notes = source.pretrained_cfg, list[str]()
    found: dict[str, Any] = {} if (size := image_size(source)) is None else {"size": size}
    if card.get("mean") and card.get("std"):
        found |= _AS_TIMM_READS
        for key in ("mean", "std"):
            values = _numbers(source, key, card[key])
            if len(values) not in (1, own.channels):  # as timm does
                notes.append(f"{source.path}: the mean of its {len(values)} values of {key} holds for every channel")
                values = (sum(values) / len(values),)
            found[key] = values * (own.channels // len(values))
        if min(found["std"]) <= 0.0:
            raise _bad(source, "std", card["std"], "numbers above 0")
    else:
        notes.append(f"{source.path} names no mean and std: {whose} hold")
    if (crop := card.get("crop_pct")) is not None:
        found["crop_pct"] = _numbers(source, "crop_pct", crop)[0]
        if found["crop_pct"] <= 0.0:
            raise _bad(source, "crop_pct", crop, "a number above 0")
    for key in ("crop_mode", "interpolation"):
        if card.get(key) is not None:
            found[key] = str(card[key])
    return replace(own, **found), notes


def recommended(source: SavedModel) -> str:
    """A line on the size and crop that timm's card recommends for tests beside those of training; empty without any."""
    size, crop = (source.pretrained_cfg.get(f"test_{key}") for key in ("input_size", "crop_pct"))
    told = [f"--data.image_size {size[-1]}"] if isinstance(size, list) and size else []
    told += [f"--data.kwargs '{{crop_pct: {crop}}}'"] if crop else []
    return f"{source.path}: its config.json recommends another test: {' '.join(told)}" if told else ""


def image_size(source: SavedModel) -> tuple[int, int] | None:
    """Height and width of a saved model's images in pixels; None if its config.json names none.

    Raises:
        UserError: the size is no size.
    """
    card = source.pretrained_cfg
    named = source.kwargs.get("img_size")  # older timm saved the size of the weights that were started from beside it
    if named is not None and card.get("fixed_input_size", True):
        size = [named, named] if isinstance(named, int) else named
    elif (given := card.get("input_size")) is None:
        return None
    else:
        size = given[1:] if isinstance(given, list) and len(given) == 3 else given
    if not (isinstance(size, (list, tuple)) and len(size) == 2 and all(type(v) is int and v > 0 for v in size)):
        raise _bad(source, "input_size", card.get("input_size", named), "[channels, height, width]")
    return size[0], size[1]


def class_names(source: SavedModel) -> tuple[str, ...] | None:
    """The names of a saved model's classes, by label; None if its config.json does not name each one."""
    given = next((value for key in ("label_names", "labels") if (value := source.named(key))), None)
    if isinstance(given, dict):  # JSON has no numbers as keys; some numbers may be missing
        try:
            by_label = {int(key): name for key, name in given.items()}
        except ValueError:
            return None
        given = [by_label.get(label) for label in range(len(by_label))]
    if not isinstance(given, (list, tuple)) or not all(isinstance(name, str) for name in given):
        return None
    return tuple(given) if source.num_classes in (None, len(given)) else None


def class_order(
    source: SavedModel, wanted: Sequence[str], what: str, other_classes: bool = False
) -> tuple[tuple[int, ...] | None, list[str]]:
    """A saved model's label of each wanted class, by its name.

    Args:
        source: The saved model.
        wanted: The classes' names, by label.
        what: Whose classes these are, for messages.
        other_classes: Whether other classes are no error.

    Returns:
        The labels, None where they are the same or nothing has names, and lines for the user.

    Raises:
        UserError: the model names other classes.
    """
    names = class_names(source)
    if names is None and source.named("label_names"):
        return None, [f"{source.path}: its config.json does not name each class; classes are compared by number"]
    if names is None or not wanted or names == tuple(wanted):
        return None, []
    descriptions = source.named("label_descriptions")
    if isinstance(descriptions, dict):
        described = tuple(str(descriptions.get(name)) for name in names)
        names = described if set(described) == set(wanted) else names
    lacks, has = [name for name in wanted if name not in names], [name for name in names if name not in wanted]
    if (lacks or has or len(set(names)) != len(names)) and other_classes:
        return None, [f"{source.path} names other classes than {what}: it is a start, and no more"]
    if lacks or has:
        alone = [f"the model alone has {listed(list(map(repr, has)), _SHOWN)}"] if has else []
        alone += [f"the data alone have {listed(list(map(repr, lacks)), _SHOWN)}"] if lacks else []
        start = source.option == "--model.init"
        other = (
            "take all but the classifier with --model.new_head true" if start else "take label_names out of config.json"
        )
        raise UserError(
            f"{source.option} {source.path} and {what} name other classes: {', '.join(alone)}; give the same classes "
            f"by the same names, or {other}"
        )
    if len(set(names)) != len(names):
        raise UserError(
            f"{source.option} {source.path}: label_names in its config.json has a name twice, so that its classes "
            f"cannot be put in the order of {what}; make the names differ"
        )
    order = tuple(names.index(name) for name in wanted)
    if order == tuple(range(len(order))):
        return None, []
    return order, [f"{source.path} has the classes of {what} in another order; they are matched by name"]


def normalisation(source: SavedModel) -> tuple[float, ...] | None:
    """Mean and std of each channel, white being 1, one after the other; None if config.json names none."""
    card = source.pretrained_cfg
    if not card.get("mean") or not card.get("std"):
        return None
    channels = source.channels or 3
    both = [_numbers(source, key, card[key]) for key in ("mean", "std")]
    each = [values if len(values) == channels else (sum(values) / len(values),) * channels for values in both]
    return (*each[0], *each[1])


def _numbers(source: SavedModel, key: str, value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, (list, tuple)) else [value]
    if not all(type(item) in (int, float) and isfinite(item) for item in values) or not values:
        raise _bad(source, key, value, "numbers")
    return tuple(float(item) for item in values)


def _bad(source: SavedModel, key: str, value: Any, wanted: str) -> UserError:
    return UserError(f"{source.option} {source.path}: config.json has {key} {value!r}; correct it to {wanted}")
