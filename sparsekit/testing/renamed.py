"""The same network under other names of its tensors, of which the hashes differ, but not the order."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

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
