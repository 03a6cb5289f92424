"""timm's optimizers by name, and their state as plain tensors that can be pruned, averaged and saved."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekit._types import Tensors
from sparsekit.config.options import OptimizerConfig
from sparsekit.errors import UserError, nearest
from sparsekit.models.state import EXTRA
from sparsekit.models.stored import Lazy

_TORCH = {
    "sgd": (torch.optim.SGD, {"nesterov": True}),
    "momentum": (torch.optim.SGD, {"nesterov": False}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
}
"""Torch's own optimizers under timm's names: made as timm makes them, without its import, which takes seconds."""
_GROUP = "group"
"""Replaces the parameter's name in the names of state that an optimizer keeps per group."""


def build(
    config: OptimizerConfig,
    model: nn.Module,
    extra: Tensors,
    lr: float,
    weight_decay: float,
    undecayed: Collection[str] = (),
) -> Optimizer:
    """A new optimizer over the model's parameters and the method's extra tensors.

    Biases and norms get no weight decay, as in timm; extra tensors do, but for the `undecayed`.

    Raises:
        UserError: timm has no optimizer of that name, or the optimizer refuses an argument.
    """
    plain = config.name.lower() in _TORCH and not config.kwargs and not hasattr(model, "no_weight_decay")
    try:
        optimizer = (_of_torch if plain else _of_timm)(config, model, lr, weight_decay)
        for decay, names in ((weight_decay, [n for n in extra if n not in undecayed]), (0.0, undecayed)):
            if names:
                optimizer.add_param_group({"params": [extra[name] for name in names], "weight_decay": decay})
    except UserError:
        raise
    except (TypeError, ValueError, AssertionError, ImportError, ModuleNotFoundError) as error:
        given = f"--optimizer.momentum {config.momentum:g} and --optimizer.kwargs {config.kwargs}"
        raise UserError(f"--optimizer.name {config.name} with {given}: {error}") from error
    return _fused(optimizer)


def _of_torch(config: OptimizerConfig, model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """One of torch's own, with the groups that timm makes: biases, norms and other vectors get no weight decay."""
    kind, options = _TORCH[config.name.lower()]
    momentum = {"momentum": config.momentum} if kind is torch.optim.SGD else {}
    groups: dict[float, list[nn.Parameter]] = {0.0: [], weight_decay: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = parameter.ndim <= 1 or name.endswith(".bias")
            groups[0.0 if spared else weight_decay].append(parameter)
    made = [{"params": group, "weight_decay": decay} for decay, group in groups.items() if group]
    optimizer: Optimizer = kind(made, lr=lr, weight_decay=0.0, **momentum, **options)
    return optimizer


def _of_timm(config: OptimizerConfig, model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Any other by timm's name for it."""
    from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]  # only now: it costs 3 s

    if config.name.lower() not in (known := [str(name) for name in list_optimizers()]):
        raise UserError(f"--optimizer.name {config.name!r} is not a timm optimizer.{nearest(config.name, known)}")
    return create_optimizer_v2(
        model, config.name, lr=lr, weight_decay=weight_decay, momentum=config.momentum, **config.kwargs
    )


def _fused(optimizer: Optimizer) -> Optimizer:
    """Use torch's fused step where it can be chosen: on a CPU a half to a fourth of the time, on CUDA one launch."""
    # Adagrad has made its state before this, on the CPU
    devices = ("cpu", "cuda") if isinstance(optimizer, (torch.optim.SGD, torch.optim.Adam)) else ("cpu",)
    for group in optimizer.param_groups:
        chosen = group.get("fused") is not None or group.get("foreach") or group.get("differentiable")
        if "fused" in group and not chosen and all(p.device.type in devices for p in group["params"]):
            group["fused"] = True
    return optimizer


def skips_overflow(optimizer: Optimizer) -> bool:
    """Whether the optimizer's own step skips gradients that overflow, so that nobody waits to know whether they do.

    Not the first step: torch's fused SGD would begin with a momentum that nothing was written to.
    """
    return bool(optimizer.state) and all(group.get("fused") for group in optimizer.param_groups)


def match_memory_format(like: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in the memory format of `like`: fused steps assume that gradients and state have the weight's."""
    return tensor if tensor.stride() == like.stride() else torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def names_of(optimizer: Optimizer, model: nn.Module, extra: Tensors) -> dict[int, str]:
    """The name of each parameter by its index in the optimizer's state dict; extra tensors' start with `extra.`."""
    by_id = {id(p): EXTRA + name for name, p in extra.items()} | {id(p): name for name, p in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {index: by_id[id(p)] for index, p in enumerate(parameters)}


def export(optimizer: Optimizer, names: dict[int, str]) -> Tensors:
    """The optimizer's state as CPU tensors named `parameter/key`; numbers become 0-dim int64 or float64 tensors.

    Raises:
        UserError: the state holds something other than tensors and numbers.
    """
    return dict(exported(optimizer, names))


def exported(optimizer: Optimizer, names: dict[int, str]) -> Mapping[str, Tensor]:
    """What `export` returns, each tensor copied when it is read: before the optimizer's next step.

    Raises:
        UserError: the state holds something other than tensors and numbers.
    """
    state = optimizer.state_dict()
    flat = {f"{names[i]}/{key}": value for i, entry in state["state"].items() for key, value in entry.items()}
    # some optimizers keep their step count, equal in all groups; the number of groups depends on weight decay
    flat |= {f"{_GROUP}/step": group["step"] for group in state["param_groups"] if "step" in group}
    for value in flat.values():
        if value is not None and not isinstance(value, Tensor):
            _to_tensor(value)
    return Lazy({name: partial(_to_tensor, value) for name, value in flat.items() if value is not None})


def restore(optimizer: Optimizer, names: dict[int, str], flat: Mapping[str, Tensor]) -> None:
    """Load what `export` returned into a new optimizer of the same parameters."""
    state = optimizer.state_dict()
    indices = {name: index for index, name in names.items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in flat.items():
        parameter, _, key = name.rpartition("/")
        value = tensor.item() if tensor.dim() == 0 and tensor.dtype in (torch.int64, torch.float64) else tensor.clone()
        if parameter == _GROUP:
            for group in state["param_groups"]:
                group[key] = value.clone() if isinstance(value, Tensor) else value  # counted up in place
        else:
            index = indices[parameter]
            if isinstance(value, Tensor) and value.dim() and value.shape == parameters[index].shape:
                value = match_memory_format(parameters[index], value.to(parameters[index].device))
            state["state"].setdefault(index, {})[key] = value
    optimizer.load_state_dict(state)


def _to_tensor(value: object) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, (bool, int)):
        return torch.tensor(int(value), dtype=torch.int64)
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    raise UserError(
        f"--optimizer.name: its state holds a {type(value).__name__}, which cannot be saved; choose another"
    )
