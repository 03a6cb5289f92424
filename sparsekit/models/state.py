"""The state of a model between two trainings, on the CPU, and its names in a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from sparsekit._types import Tensors
from sparsekit.api import PruningMethod, TrainingStep
from sparsekit.models.stored import Lazy

EXTRA, OPTIMIZER, BESIDE = "extra.", "optimizer.", "beside."


@dataclass(frozen=True)
class State:
    """A model between two trainings, with its masks and optimizer state; all tensors are on the CPU.

    Attributes:
        tensors: Parameters and buffers by their state-dict names.
        masks: Bool masks of the prunable weights, True keeps.
        beside: Bool masks of norms and biases, where whole channels are pruned; empty otherwise.
        extra: The method's own tensors.
        optimizer: The optimizer's state, as `optimizers.export` returns it; empty for a new optimizer. It may be made
            when it is read, or lie in a file: of AdamW it is twice the model.
        progress: Fraction of the whole budget that was trained, 0 to 1.
        target: The run's final sparsity, 0 to 1.
    """

    tensors: Tensors
    masks: Tensors
    extra: Tensors = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    progress: float = 0.0
    target: float = 0.0
    beside: Tensors = field(default_factory=dict)

    @property
    def all_masks(self) -> Tensors:
        """The masks of all parameters that have one."""
        return {**self.masks, **self.beside}

    @property
    def weights(self) -> Tensors:
        """The prunable weights, as the optimizer holds them."""
        return {name: self.tensors[name] for name in self.masks}

    def with_weights(self, weights: Tensors) -> State:
        """A copy with the given weights."""
        return replace(self, tensors={**self.tensors, **weights})

    def named(self) -> Tensors:
        """Model and extra tensors under the names that merges see."""
        return {**self.tensors, **{EXTRA + name: tensor for name, tensor in self.extra.items()}}

    def renamed(self, named: Tensors) -> State:
        """A copy with the given model and extra tensors, under the names that `named` returns."""
        tensors = {name: t for name, t in named.items() if not name.startswith(EXTRA)}
        return replace(
            self, tensors=tensors, extra={n.removeprefix(EXTRA): t for n, t in named.items() if n not in tensors}
        )


def has_dense_weights(method: PruningMethod) -> bool:
    """Whether the method keeps dense weights behind the masks: whether it overrides `effective`."""
    return type(method).effective is not PruningMethod.effective


def masked(tensor: Tensor, mask: Tensor) -> Tensor:
    """A tensor on the CPU times its bool mask."""
    if tensor.dtype is torch.bfloat16:  # which numpy lacks
        return tensor * mask
    # numpy uses huge pages and torch does not, which halves the time for a large model
    with np.errstate(invalid="ignore"):  # a masked infinite value becomes NaN, as it does in torch
        return torch.from_numpy(np.multiply(tensor.numpy(), mask.numpy()))


@torch.no_grad()
def effective(method: PruningMethod, state: State) -> State:
    """The state with the weights that the forward pass uses; masked weights are 0."""
    beside = {name: masked(state.tensors[name], mask) for name, mask in state.beside.items()}
    if not has_dense_weights(method):
        weights = {name: masked(weight, state.masks[name]) for name, weight in state.weights.items()}
        return state.with_weights(weights | beside)
    masks = {name: mask.to(state.tensors[name].dtype) for name, mask in state.masks.items()}
    step = TrainingStep(state.weights, masks, state.extra, state.progress, state.target)
    return state.with_weights({**method.effective(step), **beside})


def in_use(method: PruningMethod, state: State) -> State:
    """The effective weights of a state whose own are masked already, unless dense ones stand behind the masks."""
    return effective(method, state) if has_dense_weights(method) else state


def to_file(state: State) -> Mapping[str, Tensor]:
    """All tensors of the state, under prefixed names for one file."""
    parts = {"model.": state.tensors, "mask.": state.masks, EXTRA: state.extra, OPTIMIZER: state.optimizer}
    parts |= {BESIDE: state.beside} if state.beside else {}
    return Lazy({prefix + n: partial(part.__getitem__, n) for prefix, part in parts.items() for n in part})


def from_file(tensors: Mapping[str, Tensor], progress: float, target: float) -> State:
    """The state from tensors that `to_file` named; tensors with other names are ignored.

    The optimizer's stay where they are, to be read when they are needed.
    """

    def part(prefix: str) -> Mapping[str, Tensor]:
        return Lazy({n.removeprefix(prefix): partial(tensors.__getitem__, n) for n in tensors if n.startswith(prefix)})

    beside = dict(part(BESIDE))
    return State(
        dict(part("model.")), dict(part("mask.")), dict(part(EXTRA)), part(OPTIMIZER), progress, target, beside
    )


def cpu_state_dict(model: nn.Module) -> Tensors:
    """A copy of the model's parameters and buffers on the CPU."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in model.state_dict().items()}


def pruned_optimizer_state(flat: Mapping[str, Tensor], masks: Tensors) -> Mapping[str, Tensor]:
    """An optimizer's state with 0 where a weight is masked, so that momentum does not revive it.

    It is made when it is read.
    """

    def pruned(name: str) -> Tensor:
        tensor, mask = flat[name], masks.get(name.rpartition("/")[0])
        return masked(tensor, mask) if mask is not None and mask.shape == tensor.shape else tensor

    return Lazy.of(flat, pruned)
