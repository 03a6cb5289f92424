"""The same network under other names of its tensors, of which the hashes differ, but not the order."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import reduce
from typing import Any

from torch import Tensor, nn

from sparsekit._types import Tensors
from sparsekit.models.state import State
from sparsekit.training.setup import Setup

NAMES = tuple(f"net{number}" for number in range(20))
"""Many, as a sum of four floats in another order is another in the last bits only once in a few times."""


class _Inside(nn.Module):
    """A network inside another module."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, network)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = getattr(self, self.name)(images)
        return outputs


def renamed_setup(setup: Setup, name: str) -> Setup:
    """A setup whose network is called `name` inside another."""
    prunable = tuple(f"{name}.{each}" for each in setup.prunable)
    return replace(setup, model=_Inside(deepcopy(setup.model), name), prunable=prunable)


def renamed_state(state: State, name: str) -> State:
    """A state of that network; the method's own tensors keep their names."""

    def longer(tensors: Mapping[str, Tensor]) -> Tensors:
        return {f"{name}.{each}": tensor for each, tensor in tensors.items()}

    return replace(state, tensors=longer(state.tensors), masks=longer(state.masks), optimizer=longer(state.optimizer))


def shorter(tensors: Tensors, name: str) -> Tensors:
    """Tensors under their names in the network itself."""
    return {each.replace(f"{name}.", ""): tensor for each, tensor in tensors.items()}


def differs_between_processes(kind: str, cls: type[Any], options: dict[str, Any]) -> bool:
    """Whether a class chooses otherwise in processes that hash text otherwise; True where it cannot be imported there.

    What differs under other names may follow from the names themselves, as a seed that is made of one does.
    """
    module: Any = importlib.import_module(cls.__module__)
    if reduce(lambda owner, name: getattr(owner, name, None), cls.__qualname__.split("."), module) is not cls:
        return True
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from importlib import import_module; from functools import reduce; "
        f"from sparsekit.testing.{kind}_case import {kind.title()}Case as Case; "
        f"cls = reduce(getattr, {cls.__qualname__!r}.split('.'), import_module({cls.__module__!r})); "
        f"print(Case(cls, {options!r}).digest())"
    )
    outputs = set()
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        outputs.add(done.stdout.strip() or done.stderr)
        if len(outputs) > 1:
            return True
    return False
