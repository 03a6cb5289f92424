"""In what replicas may differ: the names that `--replicas.vary` takes."""

from __future__ import annotations

import inspect
import re
from types import CodeType

from sparsekit.api import PruningMethod, Task
from sparsekit.config.options import FitConfig, describe
from sparsekit.errors import UserError, nearest

AXES = ("seed", "weight_decay", "lr", "epochs", "subsample", "label_smoothing", "augment")
OF_METHOD = "method."
"""What the name of an option of the method begins with."""
_HOOKS = ("learning_rate", "effective", "penalty", "gradients", "update")
"""What a method does in a segment's training."""


def check_axis(config: FitConfig) -> None:
    """Raise UserError, with the fix, where `--replicas.vary` names nothing that can be varied here."""
    axis, told = config.replicas.vary, f"--replicas.vary {config.replicas.vary}"
    if axis.startswith(OF_METHOD):
        return _check_method(config, told)
    if axis not in AXES:
        known = ", ".join(AXES)
        raise UserError(f"--replicas.vary is {axis!r}; choose from {known}, method.OPTION.{nearest(axis, AXES)}")
    if axis == "label_smoothing" and type(config.task).smoothed_loss is Task.smoothed_loss:
        raise UserError(f"{told}: --task {describe(config)['task']['name']} has no such loss; vary another")
    if axis == "augment" and not config.data.augment:
        raise UserError(f"{told}: --data.augment is false, so there is none; leave out one of them")


def _check_method(config: FitConfig, told: str) -> None:
    name, cls = config.replicas.vary.removeprefix(OF_METHOD), type(config.method)
    own, numbers = describe(config)["method"], list(number_options(cls))
    whose = f"method {own['name']!r}"
    if name not in numbers:
        has = f"numbers are {', '.join(OF_METHOD + each for each in numbers)}" if numbers else "none of its is a number"
        wrong = "is no number" if name in own and name != "name" else f"is no option of {whose}"
        hint = nearest(name, numbers).replace("'", f"'{OF_METHOD}", 1)
        raise UserError(f"{told}: {name!r} {wrong}; {has}.{hint}")
    if all(getattr(cls, hook, None) is getattr(PruningMethod, hook, None) for hook in _HOOKS):
        raise UserError(
            f"{told}: {whose} does nothing of its own in training, which alone may differ between replicas; compare "
            "its values in runs of their own (sparsekit sweep)"
        )
    if config.replicas.values is None:
        raise UserError(f"{told} has no default values; give --replicas.values, one number a replica")


def number_options(cls: type[PruningMethod]) -> dict[str, bool]:
    """The options of a method that are numbers, and whether they must be whole."""
    found = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        kind = parameter.annotation
        text = kind if isinstance(kind, str) else inspect.formatannotation(kind)
        text = re.sub(r"(?:typing\.)?Optional\[(.*)\]", r"\1", text)
        kinds = {part.strip() for part in text.split("|")} - {"None"}
        if kinds and kinds <= {"int", "float"}:
            found[name] = "float" not in kinds
    return found


def seen_in_training(cls: type[PruningMethod], name: str) -> bool:
    """Whether code that may run in training reads an option, as far as the class's own functions show."""
    apart = ("__init__", "plan", "scores", "masks", "extra")
    for base in cls.__mro__[: cls.__mro__.index(PruningMethod)]:
        for member, value in vars(base).items():
            value = value.fget if isinstance(value, property) else value
            code = getattr(getattr(value, "__func__", value), "__code__", None)
            if member not in apart and code is not None and name in _names(code):
                return True
    return False


def _names(code: CodeType) -> set[str]:
    """The names that a function and those inside it use."""
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return {*code.co_names, *(name for each in inner for name in _names(each))}
