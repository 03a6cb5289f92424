"""Which channels of a model belong together: torch_pruning traces the model, and a forward pass checks the result."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sparsekit._types import Tensors
from sparsekit.config.channel_pattern import ChannelPattern
from sparsekit.errors import UserError, first_line
from sparsekit.models import kept_norm, slim
from sparsekit.pruning.channels import Array, Channels, Cost, Entry, Group


class Flops(Protocol):
    """Operations of one example: in all, of layers by the name of their weight, and of modules by their path."""

    @property
    def dense(self) -> int: ...

    @property
    def layers(self) -> Mapping[str, int]: ...

    @property
    def modules(self) -> Mapping[str, int]: ...


Atom = tuple[str, int]
"""An output channel of the layer of a path, before channels that belong together are joined."""
Pairs = dict[tuple[int, int], None]
"""Indices somewhere, each with the output channel that it belongs to; in order, and without repetition."""
_MOST = 256
"""A trace is given up where a tensor has more indices for each channel than this."""
_TOLERANCE = 1e-6
"""Largest difference of outputs, as a fraction of the largest, between the masked model and the one without the
channels, in float64: rounding is about 1e-14."""


@dataclass(frozen=True)
class _Trace:
    """What depends on the output channels of one layer.

    Attributes:
        root: The layer's path.
        size: Its number of output channels.
        entries: Indices by parameter or buffer and axis.
        blocks: By layer and side (`in`, `out`), the same for layers whose channels go in blocks.
        fault: Why none of its channels can be removed; empty if they can.
    """

    root: str
    size: int
    entries: Mapping[tuple[str, int], Pairs]
    blocks: Mapping[tuple[str, str], Pairs]
    fault: str = ""


def find(model: nn.Module, prunable: Collection[str], example: Tensor, norms: bool = True) -> Channels:
    """Find the channels that can be removed from a model.

    Args:
        model: The model, on the CPU; it is left as it is.
        prunable: Names of the prunable weights. No channel is removed that has weights of other Conv or Linear layers.
        example: Inputs for one forward pass.
        norms: Whether to remove channels that a LayerNorm normalises over, which must be told so (`kept_norm`).

    Raises:
        UserError: torch_pruning is not installed, cannot trace the model, or nothing can be removed.
    """
    groups, fixed = _groups(model, prunable, example, norms)
    groups, wrong = _checked(model, groups, example)
    fixed |= wrong
    if not groups:
        name, why = next(iter(fixed.items()), ("", "no layer was found"))
        raise UserError(f"--masks.pattern channels: no channel of this model can be removed ({name}: {why})")
    return Channels.of(model, groups, prunable, fixed)


def prepared(
    model: nn.Module,
    prunable: Collection[str],
    example: Tensor,
    pattern: ChannelPattern,
    target: str,
    count_flops: Callable[[nn.Module, Tensor, Tensors], Flops],
    norms: bool = True,
) -> Channels:
    """The channels that can be removed, with what `--sparsity` counts; LayerNorms of the model follow them then.

    Args:
        model: The model, on any device.
        prunable: Names of the prunable weights.
        example: Inputs for one forward pass, of one example, on the CPU.
        pattern: The pattern.
        target: `weights`, `parameters` or `flops`, as `--masks.target`.
        count_flops: Counts the operations of a model, given one example and masks, in all and by parameter.
        norms: As for `find`.

    Raises:
        UserError: as `find`.
    """
    working = copy.deepcopy(model).cpu()
    channels = replace(find(working, prunable, example, norms), multiple=pattern.multiple)
    every = {name: float(p.numel()) for name, p in model.named_parameters()}
    channels = channels.counting("parameters", every, sum(every.values()))
    weights = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in prunable}
    found = count_flops(working, example, weights)
    values = {name: float(value) for name, value in found.layers.items()}
    channels = channels.counting("flops", values, float(found.dense), _products(model, found, channels))
    channels = replace(channels, target=target)
    kept_norm.hold(model, dict.fromkeys(path for group in channels.groups for path in group.norms))
    return channels


def _products(model: nn.Module, flops: Flops, channels: Channels) -> list[Cost]:
    """The operations of attention that are in no layer: products of queries, keys and values, which go with heads."""
    found = []
    for path, layer in model.named_modules():
        if slim.attention_of(layer) is not None and f"{path}.proj.weight" in channels.shapes:
            layers = sum(flops.modules.get(f"{path}.{name}", 0) for name, _ in layer.named_children())
            found.append(Cost(float(flops.modules.get(path, 0) - layers), ((f"{path}.proj.weight", 1),)))
    return found


def _groups(
    model: nn.Module, prunable: Collection[str], example: Tensor, norms: bool
) -> tuple[list[Group], dict[str, str]]:
    """The groups of coupled channels, not checked yet, and for layers that cannot be cut the reason."""
    working = copy.deepcopy(model).eval()
    for parameter in working.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    traces = [*_traced(working, example.detach()), *_heads(working)]
    return _joined(working, traces, prunable, norms)


def _traced(model: nn.Module, example: Tensor) -> list[_Trace]:
    try:
        import torch_pruning as tp
    except ImportError as error:
        raise UserError(
            "--masks.pattern channels needs torch_pruning; install it: pip install 'sparsekit-soups[structured]'"
        ) from error
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # about parameters outside of layers, which are checked here
            graph = tp.DependencyGraph().build_dependency(model, example, verbose=False)
    except Exception as error:  # it may raise anything
        raise UserError(
            f"--masks.pattern channels: torch_pruning cannot trace {type(model).__name__}: {first_line(error)}"
        ) from error
    paths = {layer: path for path, layer in model.named_modules()}
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    attention = {found.qkv for layer in model.modules() if (found := slim.attention_of(layer))}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    seen: set[str] = set()
    traces = []
    for path, layer in model.named_modules():
        if not isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) or path in seen or layer in attention:
            continue
        if layer not in graph.module2node:
            traces.append(_Trace(path, 0, {}, {}, "the trace does not reach it"))
            continue
        try:
            trace = _of_root(graph, path, layer, paths, parameters)
            for (name, axis), pairs in trace.entries.items():
                if max(index for index, _ in pairs) >= shapes[name][axis]:
                    raise ValueError(f"torch_pruning takes {name} for larger than it is")
        except Exception as error:  # torch_pruning's guesses may not fit
            trace = _Trace(path, 0, {}, {}, first_line(error))
        for name, axis in trace.entries:
            if axis == 0 and name.endswith(".weight"):
                seen.add(name.removesuffix(".weight"))
        traces.append(trace)
    return traces


def _of_root(
    graph: Any, path: str, layer: nn.Module, paths: Mapping[nn.Module, str], parameters: Mapping[int, str]
) -> _Trace:
    """What depends on the output channels of one layer; raises ValueError where that cannot be known."""
    pruner = graph.get_pruner_of_module(layer)
    size = pruner.get_out_channels(layer)
    entries: dict[tuple[str, int], Pairs] = defaultdict(dict)
    blocks: dict[tuple[str, str], Pairs] = defaultdict(dict)
    for (node, handler), pairs in _reached(graph, layer, pruner.prune_out_channels, size).items():
        target, side = node.module, "out" if graph.is_out_channel_pruning_fn(handler) else "in"
        places: list[tuple[str, int]] = []
        blocked = False
        if not node.outputs and (side == "out" or target not in paths):
            raise ValueError("its channels are the model's outputs")
        if isinstance(target, nn.Parameter):
            places = [(parameters[id(target)], node.pruning_dim)]
        elif target in paths:
            places, blocked = _places(paths[target], target, side)
            owner = graph.model.get_submodule(paths[target].rpartition(".")[0])
            attention = slim.attention_of(owner)
            if side == "in" and attention and target is attention.proj:
                raise ValueError(f"its channels go through the attention of {paths[owner]}")
        if blocked:
            blocks[paths[target], side] |= pairs
        for place in places:
            entries[place] |= pairs
    return _Trace(path, size, entries, blocks)


def _reached(graph: Any, layer: nn.Module, start: Any, size: int) -> dict[tuple[Any, Any], Pairs]:
    """The nodes and sides of torch_pruning's graph that depend on a layer's output channels, with their indices there.

    What its `get_pruning_group` finds, but each index is followed once: where its guesses at a reshape contradict each
    other, that one does not end.
    """
    from torch_pruning._helpers import _HybridIndex

    root = graph.module2node[layer]
    found: dict[tuple[Any, Any], Pairs] = {(root, start): {(i, i): None for i in range(size)}}
    stack = [(root, start, [_HybridIndex(idx=i, root_idx=i) for i in range(size)])]
    while stack:
        node, handler, indices = stack.pop()
        for dependency in node.dependencies:
            if not dependency.is_triggered_by(handler):
                continue
            reached = indices
            for mapping in dependency.index_mapping:
                reached = reached if mapping is None else mapping(reached)
            known = found.setdefault((dependency.target, dependency.handler), {})
            fresh = [each for each in reached if (each.idx, each.root_idx) not in known]
            known |= {(each.idx, each.root_idx): None for each in fresh}
            if len(known) > _MOST * size:
                raise ValueError("torch_pruning cannot follow its channels")
            if fresh:
                stack.append((dependency.target, dependency.handler, fresh))
    return found


def _places(path: str, layer: nn.Module, side: str) -> tuple[list[tuple[str, int]], bool]:
    """The axes of a layer's tensors that its channels of one side index, and whether these channels go in blocks."""
    has = [key for key, value in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
           if value is not None]  # fmt: skip
    prefix = f"{path}." if path else ""
    if isinstance(layer, nn.modules.conv._ConvNd):
        rows, columns = (1, 0) if layer.transposed else (0, 1)
        blocked = layer.groups > 1
        if side == "in":
            return ([] if blocked else [(f"{prefix}weight", columns)]), blocked
        return [(f"{prefix}weight", rows), *((f"{prefix}bias", 0) for key in has if key == "bias")], blocked
    if isinstance(layer, nn.Linear):
        if side == "in":
            return [(f"{prefix}weight", 1)], False
        return [(f"{prefix}weight", 0), *((f"{prefix}bias", 0) for key in has if key == "bias")], False
    state = [(prefix + key, 0) for key in has if key not in ("num_batches_tracked", kept_norm.NAME)]
    return state, isinstance(layer, nn.GroupNorm)


def _heads(model: nn.Module) -> Iterator[_Trace]:
    """The attention heads, each with its queries, keys and values: without it the others stay as they are."""
    for path, layer in model.named_modules():
        if (found := slim.attention_of(layer)) is None:
            continue
        heads, width = found.heads, found.proj.in_features
        head: Pairs = {(i, i * heads // width): None for i in range(width)}
        entries: dict[tuple[str, int], Pairs] = {
            (f"{path}.proj.weight", 1): head,
            (f"{path}.qkv.weight", 0): {(part * width + i, h): None for part in range(3) for i, h in head},
        }
        if found.qkv.bias is not None:
            entries[f"{path}.qkv.bias", 0] = entries[f"{path}.qkv.weight", 0]
        for name, parameter in layer.named_parameters(recurse=False):
            if name == "relative_position_bias_table" and parameter.shape[1] == heads:
                entries[f"{path}.{name}", 1] = {(h, h): None for h in range(heads)}
        yield _Trace(f"{path}.qkv", heads, entries, {})


def _joined(
    model: nn.Module, traces: Sequence[_Trace], prunable: Collection[str], norms: bool
) -> tuple[list[Group], dict[str, str]]:
    """Join the channels of traces that meet in one tensor or in one block; and the layers that cannot be cut."""
    first = {trace.root: number for number, trace in enumerate(traces)}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    layers = dict(model.named_modules())
    united = _Union()
    owner: dict[tuple[str, int, int], Atom] = {}
    members: dict[tuple[str, str, int], Atom] = {}
    for trace in traces:
        for channel in range(trace.size):
            united.find((trace.root, channel))
        for (name, axis), pairs in trace.entries.items():
            for index, channel in pairs:
                united.join(owner.setdefault((name, axis, index), (trace.root, channel)), (trace.root, channel))
        for (path, side), pairs in trace.blocks.items():
            layer = layers[path]
            count = layer.groups if hasattr(layer, "groups") else layer.num_groups
            for index, channel in pairs:
                size = _width(layer, side) // int(count)
                united.join(members.setdefault((path, "", index // size), (trace.root, channel)), (trace.root, channel))
    return _collected(model, traces, united, owner, shapes, prunable, norms, first)


def _width(layer: nn.Module, side: str) -> int:
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels
    return layer.in_channels if side == "in" else layer.out_channels  # type: ignore[return-value]


def _collected(
    model: nn.Module, traces: Sequence[_Trace], united: _Union, owner: Mapping[tuple[str, int, int], Atom],
    shapes: Mapping[str, tuple[int, ...]], prunable: Collection[str], norms: bool, first: Mapping[str, int],
) -> tuple[list[Group], dict[str, str]]:  # fmt: skip
    """Units from joined channels, and groups from the units of the same layers."""
    units: dict[Atom, dict[tuple[str, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for (name, axis, index), atom in owner.items():
        units[united.find(atom)][name, axis].append(index)
    roots = _Union()
    for trace in traces:
        roots.find((trace.root, 0))
        for channel in range(trace.size):
            roots.join((united.find((trace.root, channel))[0], 0), (trace.root, 0))
    gathered: dict[Atom, list[dict[tuple[str, int], list[int]]]] = defaultdict(list)
    order = sorted(units, key=lambda atom: (first[atom[0]], atom[1]))
    for atom in order:
        gathered[roots.find((atom[0], 0))].append(units[atom])
    groups: list[Group] = []
    fixed: dict[str, str] = {}
    matrices = {
        f"{path}.weight" for path, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))
    }  # fmt: skip
    by_root = {trace.root: roots.find((trace.root, 0)) for trace in traces}
    for root in sorted(set(by_root.values()), key=lambda atom: first[atom[0]]):
        own = [name for name, found in by_root.items() if found == root]
        made = _group(own, gathered[root], shapes)
        why = "; ".join(trace.fault for trace in traces if trace.root in own and trace.fault)
        why = why or (made if isinstance(made, str) else _obstacle(model, made, matrices, prunable, norms))
        if why or isinstance(made, str):
            fixed |= dict.fromkeys((*own, *_outputs(gathered[root], shapes)), why)
        else:
            paths = (entry.name.removesuffix(".weight") for entry in made.entries if entry.name.endswith(".weight"))
            norm = [path for path in paths if isinstance(model.get_submodule(path), nn.LayerNorm)]
            groups.append(replace(made, norms=tuple(norm)))
    return groups, fixed


def _group(
    roots: Sequence[str], units: Sequence[Mapping[tuple[str, int], list[int]]], shapes: Mapping[str, tuple[int, ...]]
) -> Group | str:
    """A group of units that have the same number of indices everywhere; or what is wrong with them."""
    if len(units) < 2:
        return "all its channels belong together"
    places = list(units[0])
    entries = []
    for name, axis in places:
        counts = {len(unit.get((name, axis), ())) for unit in units}
        if len(counts) > 1:
            return f"its channels have unequal parts of {name}"
        indices = np.array([sorted(unit[name, axis]) for unit in units], dtype=np.int64)
        entries.append(Entry(name, axis, indices))
    if any(len(unit) != len(places) for unit in units):
        return "its channels have unequal parts"
    entries.sort(key=lambda entry: (list(shapes).index(entry.name), entry.axis))
    width = next((entry.indices.shape[1] for entry in entries if entry.name == f"{roots[0]}.weight"), 1)
    return Group(roots[0], tuple(_outputs(units, shapes)), width, tuple(entries))


def _outputs(units: Sequence[Mapping[tuple[str, int], list[int]]], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The paths of the Conv and Linear layers whose outputs units are."""
    places = dict.fromkeys(place for unit in units for place in unit)
    rows = (name for name, axis in places if axis == 0 and name.endswith(".weight") and len(shapes[name]) > 1)
    return [name.removesuffix(".weight") for name in rows]


def _obstacle(model: nn.Module, group: Group, matrices: Collection[str], prunable: Collection[str], norms: bool) -> str:
    """Why a group cannot be cut; empty if it can."""
    weights = [entry.name for entry in group.entries if entry.name in matrices]
    if left := [name for name in weights if name not in prunable]:
        return f"{left[0]} is not pruned"
    for entry in group.entries:
        layer = model.get_submodule(entry.name.rpartition(".")[0])
        if isinstance(layer, nn.LayerNorm) and not norms:
            return f"{entry.name.rpartition('.')[0]} normalises over its channels"
        if isinstance(layer, nn.LayerNorm) and not kept_norm.able(layer):
            return f"{entry.name.rpartition('.')[0]} ({type(layer).__name__}) normalises over its channels"
    return ""


def _checked(model: nn.Module, groups: list[Group], example: Tensor) -> tuple[list[Group], dict[str, str]]:
    """The groups for which the model with masked channels and the model without them give the same outputs."""
    probe = _random(model).double().eval()
    inputs = example.double() if example.is_floating_point() else example
    sound, wrong = _sound(probe, groups, inputs)
    while wrong and sound and (fault := _fault(probe, sound, inputs)):  # alone they fit, together they do not
        wrong |= dict.fromkeys(sound.pop().layers, fault)
    return sound, wrong


def _sound(model: nn.Module, groups: list[Group], inputs: Tensor) -> tuple[list[Group], dict[str, str]]:
    """The groups that can be cut, found by halving those that cannot all be."""
    fault = _fault(model, groups, inputs) if groups else ""
    if not fault:
        return groups, {}
    if len(groups) == 1:
        return [], dict.fromkeys(groups[0].layers, fault)
    (first, wrong), (second, more) = (
        _sound(model, half, inputs) for half in (groups[: len(groups) // 2], groups[len(groups) // 2 :])
    )
    return first + second, wrong | more


@torch.no_grad()
def _random(model: nn.Module) -> nn.Module:
    """A copy in which nothing is 0 or 1 by its initialisation, which would hide what depends on it."""
    made, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    tensors = [*made.named_parameters(), *made.named_buffers()]
    for name, tensor in tensors:
        if name.endswith(f".{kept_norm.NAME}"):
            tensor.fill_(True)
        if not tensor.is_floating_point():
            continue
        if tensor.dim() > 1:
            if not bool(tensor.any()):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
            continue
        drawn = torch.rand(tensor.shape, generator=generator)
        centred = name.endswith(("bias", "running_mean"))
        tensor.copy_(drawn - 0.5 if centred else drawn + 0.5)
    return made


@torch.no_grad()
def _fault(model: nn.Module, groups: Sequence[Group], inputs: Tensor) -> str:
    """Why the model without half of the groups' channels differs from the masked one; empty if it does not."""
    generator = np.random.default_rng(0)
    kept = []
    for group in groups:
        order = generator.permutation(group.size)
        flags = np.zeros(group.size, dtype=bool)
        flags[order[: max(1, group.size // 2)]] = True
        kept.append(flags)
    try:
        held = copy.deepcopy(model)
        kept_norm.hold(held, dict.fromkeys(path for group in groups for path in group.norms))
        channels = Channels.of(held, groups, (), {})
        axes = channels.axes(kept)
        big = _masked(held, channels, kept)
        small = slim.without(big, axes)
        expected, found = big(inputs), small(inputs)
        dense = model(inputs)
    except Exception as error:  # layers with sizes of their own may raise anything
        return f"the model without its channels fails: {first_line(error)}"
    if expected.shape != found.shape:
        return f"the model without its channels gives outputs of shape {tuple(found.shape)}"
    largest = max(float(expected.abs().max()), 1e-12)
    difference = float((expected - found).abs().max())
    if not difference <= _TOLERANCE * largest:
        return f"the model without its channels is not the masked one (outputs differ by {difference / largest:.2g})"
    if bool((dense == expected).all()):
        return "the outputs do not depend on its channels"
    return ""


def _masked(model: nn.Module, channels: Channels, kept: Sequence[Array]) -> nn.Module:
    """The model with 0 in the parameters of removed channels, in place."""
    every = {name: p.detach() for name, p in model.named_parameters() if name in channels.shapes}
    for name, mask in channels.masks(kept, every).items():
        every[name].mul_(mask)
    for name, flags in channels.buffers(kept).items():
        model.get_buffer(name).copy_(flags)
    return model


class _Union:
    """Sets of things that are joined; each is represented by the one that came first."""

    def __init__(self) -> None:
        self._parent: dict[Atom, Atom] = {}
        self._rank: dict[Atom, int] = {}

    def find(self, atom: Atom) -> Atom:
        self._parent.setdefault(atom, atom)
        self._rank.setdefault(atom, len(self._rank))
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def join(self, one: Atom, other: Atom) -> None:
        first, second = sorted((self.find(one), self.find(other)), key=self._rank.__getitem__)
        self._parent[second] = first
