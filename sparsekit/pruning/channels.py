"""Whole channels: the units that `--masks.pattern channels` prunes, and the masks that remove them.

A unit is a channel of coupled layers, or an attention head: rows of the weights that make it, columns of those that
use it, and its elements of norms and biases. The masks of a run say which units are left, so that nothing else has to
be kept: `Channels.kept` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import ceil, gcd, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsekit._types import Tensors
from sparsekit.display.text import listed
from sparsekit.errors import RunError, UserError
from sparsekit.models import kept_norm
from sparsekit.pruning import allocation, masks, top_k

Array = np.ndarray[Any, Any]
Place = tuple[str, int]
"""An axis of a tensor, by name and dimension."""
_FINITE = 1e300
"""What infinite scores count as, so that their mean is no NaN."""
_ROUNDING = 1e-9
"""How far the removed fraction may be above the target by rounding of sums."""


@dataclass(frozen=True)
class Entry:
    """What a group's units have in one axis of a tensor.

    Attributes:
        name: A parameter or buffer.
        axis: One of its dimensions.
        indices: For each unit its indices there, int64 [units, n].
    """

    name: str
    axis: int
    indices: Array


@dataclass(frozen=True)
class Group:
    """Units of one kind: the channels of layers that are coupled, or the heads of an attention.

    Attributes:
        name: The path of its first layer.
        layers: The paths of the Conv and Linear layers whose outputs these channels are.
        width: How many output channels of the first layer a unit has.
        entries: What the units have where.
        norms: Paths of LayerNorms that normalise over these channels.
    """

    name: str
    layers: tuple[str, ...]
    width: int
    entries: tuple[Entry, ...]
    norms: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.entries[0].indices)


@dataclass(frozen=True)
class Cost:
    """A cost that shrinks with the channels of some axes.

    Attributes:
        value: What it is with all channels.
        places: The axes; of each, the fraction that is kept is left of it.
    """

    value: float
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Counted:
    """Weights, parameters or operations: their `costs`, as far as they depend on channels, and their `total`."""

    costs: tuple[Cost, ...]
    total: float


@dataclass(frozen=True)
class Channels:
    """The channels of a model that can be removed.

    Attributes:
        groups: The groups of coupled channels.
        shapes: Shapes of all parameters and buffers that have such channels.
        prunable: Names of the prunable weights among them.
        beside: Names of the other parameters among them: norms, biases and the like.
        fixed: For each layer whose outputs cannot be cut, the reason.
        counted: What can be counted, by name.
        target: The name of what `--sparsity` counts.
        multiple: Of each group so many channels are kept, or a multiple of that.
    """

    groups: tuple[Group, ...]
    shapes: Mapping[str, tuple[int, ...]]
    prunable: tuple[str, ...]
    beside: tuple[str, ...]
    fixed: Mapping[str, str] = field(default_factory=dict)
    counted: Mapping[str, Counted] = field(default_factory=dict)
    target: str = "weights"
    multiple: int = 1

    @classmethod
    def of(
        cls, model: nn.Module, groups: Sequence[Group], prunable: Collection[str], fixed: Mapping[str, str]
    ) -> Channels:
        """The channels of these groups in a model, with its prunable weights as what `--sparsity` counts."""
        touched = {entry.name for group in groups for entry in group.entries}
        shapes = {name: tuple(t.shape) for name, t in model.state_dict().items() if name in touched}
        others = [name for name, _ in model.named_parameters() if name in touched and name not in prunable]
        found = cls(tuple(groups), shapes, tuple(name for name in shapes if name in prunable), tuple(others), fixed)
        sizes = {name: float(model.get_parameter(name).numel()) for name in prunable}
        return found.counting("weights", sizes, sum(sizes.values()))

    def counting(self, target: str, values: Mapping[str, float], total: float, more: Sequence[Cost] = ()) -> Channels:
        """The same channels with something else that can be counted.

        Args:
            target: The name of what is counted.
            values: What the parameters of these names cost with all channels; others cost nothing.
            total: The sum over all of the model.
            more: Costs that belong to no one parameter.
        """
        places: dict[str, list[Place]] = {}
        for name, axis in self._axes({group.name: [] for group in self.groups}):
            places.setdefault(name, []).append((name, axis))
        costs = [Cost(values[name], tuple(axes)) for name, axes in places.items() if values.get(name)]
        return replace(self, counted={**self.counted, target: Counted((*costs, *more), total)})

    def __str__(self) -> str:
        """One line: what can be removed, and what cannot and why."""
        units = sum(group.size for group in self.groups)
        line = f"channels: {len(self.groups)} groups of coupled layers with {units:,} channels or heads"
        reasons: dict[str, list[str]] = {}
        for layer, why in self.fixed.items():
            reasons.setdefault(why, []).append(layer)
        parts = [f"{listed(layers, 2)} cannot be cut: {why}" for why, layers in reasons.items()]
        return "; ".join([line, *parts])

    # --- masks ------------------------------------------------------------------------------------

    def axes(self, kept: Sequence[Array]) -> dict[Place, Tensor]:
        """For each axis that has such channels, bools: True keeps. `kept` says so for each unit of each group."""
        removed = {group.name: np.flatnonzero(~flags).tolist() for group, flags in zip(self.groups, kept, strict=True)}
        made = {place: torch.from_numpy(flags) for place, flags in self._axes(removed).items()}
        norms = sorted({path for group in self.groups for path in group.norms})
        return made | {(f"{path}.{kept_norm.NAME}", 0): made[f"{path}.weight", 0] for path in norms}

    def _axes(self, removed: Mapping[str, Sequence[int]]) -> dict[Place, Array]:
        found: dict[Place, Array] = {}
        for group in self.groups:
            for entry in group.entries:
                place = entry.name, entry.axis
                flags = found.setdefault(place, np.ones(self.shapes[entry.name][entry.axis], dtype=bool))
                flags[entry.indices[removed[group.name]].reshape(-1)] = False
        return found

    def masks(self, kept: Sequence[Array], like: Mapping[str, Tensor]) -> Tensors:
        """Bool masks of tensors of these names, True keeps."""
        axes = self.axes(kept)
        return {name: _outer(name, tuple(tensor.shape), axes) for name, tensor in like.items()}

    def masks_beside(self, kept: Sequence[Array]) -> Tensors:
        """Bool masks of the norms, biases and other parameters that have such channels."""
        axes = self.axes(kept)
        return {name: _outer(name, self.shapes[name], axes) for name in self.beside}

    def buffers(self, kept: Sequence[Array]) -> Tensors:
        """The buffers that tell LayerNorms which channels are kept."""
        return {name: flags for (name, _), flags in self.axes(kept).items() if name.endswith(f".{kept_norm.NAME}")}

    def kept(self, given: Mapping[str, Tensor]) -> list[Array]:
        """The units of each group of which the masks of the prunable weights keep anything."""
        some: dict[Place, Array] = {}
        found = []
        for group in self.groups:
            flags = np.zeros(group.size, dtype=bool)
            for entry in group.entries:
                if entry.name not in self.prunable:
                    continue
                place = entry.name, entry.axis
                if place not in some:
                    others = [axis for axis in range(given[entry.name].dim()) if axis != entry.axis]
                    some[place] = np.asarray(given[entry.name].numpy().any(axis=tuple(others)))
                flags |= some[place][entry.indices].any(axis=1)
            found.append(flags)
        return found

    # --- what is removed --------------------------------------------------------------------------

    def removed(self, counts: Sequence[int], target: str = "") -> float:
        """The fraction of what `--sparsity` counts, or of `target`, that so many units of each group have, 0 to 1."""
        left: dict[Place, float] = {}
        for group, count in zip(self.groups, counts, strict=True):
            for entry in group.entries:
                place = entry.name, entry.axis
                lost = count * entry.indices.shape[1] / self.shapes[entry.name][entry.axis]
                left[place] = left.get(place, 1.0) - lost
        counted = self.counted[target or self.target]
        lost = (cost.value * (1.0 - prod(left[place] for place in cost.places)) for cost in counted.costs)
        return float(sum(lost)) / counted.total

    def sparsity(self, given: Mapping[str, Tensor]) -> float:
        """The fraction of what `--sparsity` counts that masks of the prunable weights remove."""
        return self.removed([int((~flags).sum()) for flags in self.kept(given)])

    def told(self, given: Mapping[str, Tensor]) -> dict[str, Any]:
        """What a row says of masks: how many channels of each group are kept, of how many, and what is removed."""
        kept = self.kept(given)
        left = {group.name: int(flags.sum()) * group.width for group, flags in zip(self.groups, kept, strict=True)}
        counts = [int((~flags).sum()) for flags in kept]
        removed = {f"removed.{target}": self.removed(counts, target) for target in self.counted}
        return {"channels": left, "channels.of": {g.name: g.size * g.width for g in self.groups}, **removed}

    def summary(self, given: Mapping[str, Tensor]) -> dict[str, Any]:
        """What summary.json says of masks: `channels` kept, `channels.dense` in all, and what is removed."""
        told = self.told(given)
        left, whole = told.pop("channels"), told.pop("channels.of")
        return {"channels": sum(left.values()), "channels.dense": sum(whole.values()), **told}

    def least(self, floor: float) -> list[int]:
        """The fewest units that each group keeps: 1, or more as `--masks.floor` and `channels:N` say.

        Args:
            floor: So many channels of each group, or a fraction of each below 1.
        """
        found = []
        for group in self.groups:
            wanted = ceil(floor * group.size - 1e-9) if floor < 1.0 else ceil(floor / group.width)
            step = self._step(group)
            found.append(min(group.size, step * ceil(max(wanted, 1) / step)))
        return found

    def check(self, floor: float, sparsity: float, initial: Mapping[str, Tensor] | None = None) -> None:
        """Raise UserError where the target cannot be reached, or the masks of `--model.init` are beyond the floor."""
        kept = self.kept(initial) if initial else [np.ones(group.size, dtype=bool) for group in self.groups]
        for group, flags, least in zip(self.groups, kept, self.least(floor), strict=True):
            if (left := int(flags.sum())) < least:
                raise UserError(
                    f"--masks.floor {floor:g} asks for {least * group.width:,} channels of {group.name}, but "
                    f"--model.init keeps {left * group.width:,}; lower the floor, or start from another model"
                )
        highest = self.removed([g.size - least for g, least in zip(self.groups, self.least(floor), strict=True)])
        if sparsity > highest + _ROUNDING:
            what = "" if self.target == "weights" else f" of {self.target}"
            rest = f"; {len(self.fixed)} layers cannot be cut" if self.fixed else ""
            raise UserError(
                f"--sparsity {sparsity:g}{what}: removing all channels that may go leaves {1.0 - highest:.4f} (the "
                f"floor of every group stays{rest}); give {int(1e4 * highest) / 1e4:g} or less"
            )

    def check_masks(self, given: Tensors, sparsity: float, floor: float) -> str:
        """What is wrong with a method's masks, as a sentence; empty if nothing is."""
        kept = self.kept(given)
        for name, mask in self.masks(kept, given).items():
            if not torch.equal(mask, given[name]):
                return f"{name} is masked in parts of channels; choose masks with step.select"
        counts = [int((~flags).sum()) for flags in kept]
        for group, count, least in zip(self.groups, counts, self.least(floor), strict=True):
            if group.size - count < least:
                return f"{group.name} keeps {group.size - count} of its channels, fewer than {least}"
            if (group.size - count) % self._step(group) and count:
                return f"{group.name} keeps {group.size - count} channels, no multiple of {self.multiple}"
        found = self.removed(counts)
        if found > sparsity + _ROUNDING:
            return f"removed are {found:.6f} of the {self.target}, more than the {sparsity:g} wanted"
        more = self._more(counts, floor)
        if more != counts and self.removed(more) <= sparsity - _ROUNDING:
            return f"removed are {found:.6f} of the {self.target}, too few for the {sparsity:g} wanted"
        return ""

    def _more(self, counts: Sequence[int], floor: float) -> list[int]:
        """The numbers of removed units where every group that can loses as few more as it can."""
        found = []
        for group, count, least in zip(self.groups, counts, self.least(floor), strict=True):
            more = count + ((group.size - count) % self._step(group) or self._step(group))
            found.append(more if group.size - more >= least else count)
        return found

    def _step(self, group: Group) -> int:
        """The units of which a multiple is kept; all of a group that has no multiple of them."""
        step = self.multiple // gcd(self.multiple, group.width)
        return step if step <= group.size else group.size

    # --- choosing ---------------------------------------------------------------------------------

    def select(
        self, scores: Tensors, among: Tensors, sparsity: float, rule: str, floor: float = 0.0, own_floor: float = 0.0
    ) -> Tensors:
        """Masks of the prunable weights that remove the channels with the lowest scores.

        They remove as many units as they can, lowest first, without removing more than the target. Units of which
        `among` keeps nothing go first.

        Args:
            scores: The weights' scores by name, of any sign, infinities allowed; for `lamp` finite and 0 or more.
            among: Bool tensors; only units of which something is True can be kept.
            sparsity: The fraction to remove, of what `--sparsity` counts.
            rule: `global` compares units across groups, `lamp` after normalising them within each group; others share
                them out between groups as between layers, of which each has as many rows as its group has units.
            floor: Fewest channels of a group to keep, as for `least`.
            own_floor: Another floor, of the method's own; what keeps more of a group holds.

        Raises:
            RunError: a score is NaN or invalid for `lamp`, or units that are gone already are more than the target.
        """
        alive = self.kept(among)
        units = self.unit_scores(scores, among)
        if rule == "lamp":
            units = [masks.lamp(_lampable(g, s, a), a) for g, s, a in zip(self.groups, units, alive, strict=True)]
        orders = [_ascending(s, a) for s, a in zip(units, alive, strict=True)]
        dead = [int((~flags).sum()) for flags in alive]
        most = [
            max(gone, group.size - max(pair))
            for group, gone, *pair in zip(self.groups, dead, self.least(floor), self.least(own_floor), strict=True)
        ]
        if self.removed(dead) > sparsity + _ROUNDING:
            raise RunError(
                f"{1.0 - sparsity:.6f} of the {self.target} are to be kept, but {1.0 - self.removed(dead):.6f} are left"
            )
        if rule in ("global", "lamp"):
            counts = self._lowest(units, orders, dead, most, sparsity)
        else:
            counts = self._shared_out(rule, dead, most, sparsity)
        kept = []
        for group, order, count in zip(self.groups, orders, counts, strict=True):
            flags = np.ones(group.size, dtype=bool)
            flags[order[:count]] = False
            kept.append(flags)
        return self.masks(kept, among)

    def unit_scores(self, scores: Tensors, among: Tensors) -> list[Array]:
        """The score of each unit of each group, float64.

        Of each weight tensor that it has a part of: the mean score of that part, as a multiple of the tensor's mean
        absolute score; and the mean of these. So units of layers of other sizes can be compared. Only weights that can
        be kept count.

        Raises:
            RunError: the score of a weight that can be kept is NaN.
        """
        sums: dict[Place, tuple[Array, Array, float]] = {}
        found = []
        for group in self.groups:
            total, terms = np.zeros(group.size), np.zeros(group.size)
            for entry in group.entries:
                if entry.name not in self.prunable:
                    continue
                place = entry.name, entry.axis
                if place not in sums:
                    sums[place] = _sums(entry.name, scores[entry.name], among[entry.name], entry.axis)
                by_index, counted, usual = sums[place]
                count = counted[entry.indices].sum(axis=1)
                there = (count > 0) & (usual > 0.0)
                mean = by_index[entry.indices].sum(axis=1) / np.maximum(count, 1)
                total += np.where(there, mean / (usual or 1.0), 0.0)
                terms += there
            found.append(total / np.maximum(terms, 1))
        return found

    def _bundles(self, number: int, dead: int, most: int) -> list[int]:
        """For one group the numbers of removed units that are allowed, rising: those of multiples that are kept."""
        size, step = self.groups[number].size, self._step(self.groups[number])
        return [count for count in range(dead, most + 1) if count == dead or (size - count) % step == 0]

    def _lowest(
        self, units: Sequence[Array], orders: Sequence[Array], dead: Sequence[int], most: Sequence[int], sparsity: float
    ) -> list[int]:
        """How many units each group loses where the lowest scores of all go, one bundle after another."""
        steps: list[tuple[float, int, int]] = []
        for number, (scores, order) in enumerate(zip(units, orders, strict=True)):
            allowed = self._bundles(number, dead[number], most[number])
            for before, after in pairwise(allowed):
                mean = float(scores[order[before:after]].mean())
                steps.append((mean, -number, after))  # of equal scores the last group's go first
        steps.sort()

        def counts(length: int) -> list[int]:
            found = [*dead]
            for _, number, after in steps[:length]:
                found[-number] = after
            return found

        return counts(_most(lambda length: self.removed(counts(length)) <= sparsity + _ROUNDING, len(steps)))

    def _shared_out(self, rule: str, dead: Sequence[int], most: Sequence[int], sparsity: float) -> list[int]:
        """How many units each group loses where an allocation shares them out."""
        sizes = [self._weights_of(group) for group in self.groups]
        shapes = {g.name: (g.size, size) for g, size in zip(self.groups, sizes, strict=True)}
        available = {g.name: (g.size - gone) * size for g, gone, size in zip(self.groups, dead, sizes, strict=True)}
        least = {g.name: (g.size - high) * size for g, high, size in zip(self.groups, most, sizes, strict=True)}
        total, lowest = allocation.count(shapes), sum(least.values())

        def counts(taken: int) -> list[int]:
            share = min(taken, total - lowest) / total
            given = allocation.counts(rule, shapes, share, available, least)
            found = []
            for number, (group, size) in enumerate(zip(self.groups, sizes, strict=True)):
                gone = group.size - given[group.name] // size
                allowed = self._bundles(number, dead[number], most[number])
                found.append(max(count for count in allowed if count <= max(gone, dead[number])))
            return found

        found = counts(_most(lambda taken: self.removed(counts(taken)) <= sparsity + _ROUNDING, total - lowest))
        # rounding left some of the target: one step more for the groups that keep the largest part, where it fits
        for number in sorted(range(len(found)), key=lambda n: found[n] / self.groups[n].size):
            more = [count for count in self._bundles(number, dead[number], most[number]) if count > found[number]]
            if more and self.removed([*found[:number], more[0], *found[number + 1 :]]) <= sparsity + _ROUNDING:
                found[number] = more[0]
        return found

    def _weights_of(self, group: Group) -> int:
        """The number of prunable weights of one unit, where no other unit is removed."""
        return sum(
            entry.indices.shape[1] * prod(self.shapes[entry.name]) // self.shapes[entry.name][entry.axis]
            for entry in group.entries
            if entry.name in self.prunable
        )


def _most(holds: Callable[[int], bool], high: int) -> int:
    """The highest of 0 to `high` for which something holds that does not hold again once it no longer does."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _ascending(scores: Array, alive: Array) -> Array:
    """Units from the first to go to the last: those that are gone, then by score; of equal ones the last goes first."""
    return np.lexsort((-np.arange(len(scores)), scores, alive))


def _sums(name: str, scores: Tensor, among: Tensor, axis: int) -> tuple[Array, Array, float]:
    """For each index of an axis, the sum and the number of the scores that count; and the mean absolute of them all."""
    values, counts = scores.detach().cpu().double().numpy(), among.cpu().numpy()
    if np.isnan(values[counts]).any():
        raise top_k.not_a_number(name)
    values = np.where(counts, np.clip(values, -_FINITE, _FINITE), 0.0)
    others = tuple(each for each in range(values.ndim) if each != axis)
    number = counts.sum(axis=others)
    finite = np.abs(values) < _FINITE
    usual = float(np.abs(values[finite]).sum()) / max(int((counts & finite).sum()), 1)
    return values.sum(axis=others), number, usual or float(np.any(~finite))


def _lampable(group: Group, scores: Array, alive: Array) -> Array:
    live = scores[alive]
    if live.size and not (live.min() >= 0.0 and live.max() < _FINITE / 1e9):
        raise RunError(
            f"--masks.allocation lamp takes finite scores of 0 or more, but the channels of {group.name} have "
            f"{live.min():.4g} to {live.max():.4g}; choose global, uniform or erk"
        )
    return scores


def _outer(name: str, shape: Sequence[int], axes: Mapping[Place, Tensor]) -> Tensor:
    """A tensor's mask from what is kept of its axes."""
    mask = torch.ones(tuple(shape), dtype=torch.bool)
    for axis in range(len(shape)):
        if (name, axis) in axes:
            view = [1] * len(shape)
            view[axis] = -1
            mask &= axes[name, axis].view(view)
    return mask
