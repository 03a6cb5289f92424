"""How much of a model can be pruned, why the rest cannot, and what becomes of zeros that are there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sparsekit._types import Tensors
from sparsekit.display.text import listed, percent
from sparsekit.pruning import masks

_COMPUTED = "their weight is computed from other parameters, as by weight_norm"
_CENTRED = "they centre their weights in every forward pass, which would make masked ones nonzero"
_OTHER = "only the weights of Conv and Linear layers are"


@dataclass(frozen=True)
class Coverage:
    """The part of a model that is pruned.

    Attributes:
        prunable: Number of prunable weights.
        parameters: Number of all parameters.
        excluded: Sizes of the weights that `--masks.exclude` leaves out, by name.
        other: For each reason and class of layers, the matrices and kernels that cannot be pruned: sizes by layer.
    """

    prunable: int
    parameters: int
    excluded: Mapping[str, int]
    other: Mapping[str, Mapping[str, Mapping[str, int]]]

    @property
    def share(self) -> float:
        """The prunable part of all parameters, 0 to 1."""
        return self.prunable / self.parameters

    @property
    def small(self) -> bool:
        """Whether most weights of matrices and kernels cannot be pruned; excluded ones do not count."""
        left = sum(sum(layers.values()) for kinds in self.other.values() for layers in kinds.values())
        return left > self.prunable + sum(self.excluded.values())

    def __str__(self) -> str:
        """One line: the prunable share, and what is left out and why."""
        parts = [f"prunable: {self.prunable:,} of {self.parameters:,} parameters ({percent(self.share, 2)})"]
        if self.excluded:
            parts.append(f"--masks.exclude leaves out {sum(self.excluded.values()):,} in {listed(list(self.excluded))}")
        for reason, kinds in self.other.items():
            some = [f"{len(layers)} {kind} ({sum(layers.values()):,})" for kind, layers in kinds.items()]
            parts.append(f"{listed(some)} cannot be pruned: {reason}")
        return "; ".join(parts)


def matrices(model: nn.Module) -> Tensors:
    """Parameters with two dimensions or more that are longer than 1: weights that one may expect to be pruned."""
    return {name: p for name, p in model.named_parameters() if sum(side > 1 for side in p.shape) > 1}


def coverage(model: nn.Module, prunable: Sequence[str]) -> Coverage:
    """Which part of a model is pruned, given the names of its prunable weights."""
    parameters, able = dict(model.named_parameters()), masks.prunable_names(model)
    other: dict[str, dict[str, dict[str, int]]] = {}
    for name in [name for name in matrices(model) if name not in able]:
        layer, kind, reason = _why(model, name)
        layers = other.setdefault(reason, {}).setdefault(kind, {})
        layers[layer] = layers.get(layer, 0) + parameters[name].numel()
    return Coverage(
        sum(parameters[name].numel() for name in prunable),
        sum(parameter.numel() for parameter in parameters.values()),
        {name: parameters[name].numel() for name in able if name not in prunable},
        other,
    )


def _why(model: nn.Module, name: str) -> tuple[str, str, str]:
    """The path and class of the layer that holds a parameter that cannot be pruned, and the reason."""
    path = name.rpartition(".")[0].partition("parametrizations")[0].rstrip(".")
    layer = model.get_submodule(path)
    kind = type(layer).__name__.removeprefix("Parametrized")
    if masks.is_centred(layer):
        return path, kind, _CENTRED
    return path, kind, _COMPUTED if isinstance(layer, masks.KINDS) else _OTHER


def of_zeros(source: str, weights: Tensors, initial: Tensors, left_out: Tensors) -> tuple[list[str], list[str]]:
    """Lines for the user about the zeros of the model that a run starts from: what they are taken for.

    Args:
        source: The option and path of that model.
        weights: Its prunable weights.
        initial: Their masks, True keeps.
        left_out: Masks of the matrices and kernels that are not pruned.

    Returns:
        Notes, and warnings.
    """
    masked = {name: mask for name, mask in initial.items() if not bool(mask.all())}
    fresh = [name for name in masks.empty(weights) if name not in masked]
    notes, warnings = [], []
    if masked:
        total = sum(mask.numel() for mask in initial.values())
        notes.append(
            f"{source}: {_zeros(masked):,} of {total:,} prunable weights are 0 and stay so, in {listed(list(masked))}"
        )
    if fresh:
        line = f"{source}: {listed(fresh)} holds only zeros, which are trained: a new layer may start so"
        if masked:
            warnings.append(f"{line}; if pruning emptied it, give the run with its masks.safetensors")
        else:
            notes.append(line)
    if back := [f"{name} ({_zeros({name: mask}):,})" for name, mask in left_out.items() if not bool(mask.all())]:
        warnings.append(f"{source}: zeros of {listed(back)} are trained again, since these weights are not pruned")
    return notes, warnings


def _zeros(some: Mapping[str, Tensor]) -> int:
    return sum(mask.numel() for mask in some.values()) - masks.kept(some)
