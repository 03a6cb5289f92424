"""Several ranks that train one replica together, each on its part of every batch."""

from __future__ import annotations

import copy
import inspect
import socket
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparsekit._types import Tensors
from sparsekit.errors import UserError
from sparsekit.training.ranks import Ranks


@dataclass(frozen=True)
class Team:
    """A group of ranks that train the same replicas; its first member reports, scores and saves them.

    Attributes:
        index: Number of the team, from 0.
        count: Number of teams.
        member: This rank's number in the team, from 0.
        size: Number of ranks in the team.
        group: The team's torch process group; None for a team of one.
        sync_batchnorm: Whether BatchNorm normalises by the whole batch of all members.
    """

    index: int = 0
    count: int = 1
    member: int = 0
    size: int = 1
    group: Any = None
    sync_batchnorm: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this rank is the team's first member."""
        return self.member == 0

    def model(self, model: nn.Module) -> nn.Module:
        """The model to train instead of the working one: a copy with SyncBatchNorm, or the working model itself."""
        if not self.sync_batchnorm:
            return model
        from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]  # only now: it costs 3 s

        return convert_sync_batchnorm(copy.deepcopy(model), self.group)  # type: ignore[no-any-return,no-untyped-call]

    def forward(self, model: nn.Module, forward: Any) -> Any:
        """A forward pass whose backward pass averages the gradients of the model's parameters over the team."""
        # buffers stay separate, and the first member's BatchNorm statistics are kept; torch 2.15 renamed the option
        parameters = inspect.signature(DistributedDataParallel).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
        options: dict[str, Any] = {option: False}
        parallel = DistributedDataParallel(_Forward(model, forward), process_group=self.group, **options)
        return lambda _, weights, images: parallel(weights, images)

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the team, in place."""
        for tensor in tensors:
            dist.all_reduce(tensor, group=self.group)
            tensor.div_(self.size)

    def broadcast(self, tensor: Tensor) -> None:
        """Copy the first member's values into the tensor of every member."""
        if self.size > 1:
            dist.broadcast(tensor, self.index * self.size, group=self.group)

    def agree(self, value: bool) -> bool:
        """The first member's value; it scores the replica and so decides for all."""
        flag = torch.tensor(int(value))
        self.broadcast(flag)
        return bool(flag)

    def any(self, value: bool) -> bool:
        """Whether the value is true on any member."""
        flag = torch.tensor(int(value))
        if self.size > 1:
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.group)
        return bool(flag)

    def leave(self) -> None:
        """End the process groups, once all replicas are trained; all members call it, or NCCL waits for them."""
        if self.group is not None:
            dist.destroy_process_group()


class _Forward(nn.Module):
    """A forward function as a module, for DistributedDataParallel."""

    def __init__(self, model: nn.Module, forward: Any) -> None:
        super().__init__()
        self.model, self._function = model, forward

    def forward(self, weights: Tensors, images: Tensor) -> Tensor:
        return self._function(self.model, weights, images)  # type: ignore[no-any-return]


def make_team(ranks: Ranks, replicas: int, batch_size: int, sync_batchnorm: bool, device: torch.device) -> Team:
    """This rank's team, without its process group (`with_process_group` adds it).

    With no more ranks than replicas every rank is a team of its own; otherwise teams are of equal size.

    Raises:
        UserError: the ranks cannot be divided into equal teams, or a batch cannot be divided within a team.
    """
    size = max(1, ranks.size // replicas)
    if ranks.size > replicas and ranks.size % replicas:
        raise UserError(
            f"{ranks.size} ranks for {replicas} replicas: they cannot be shared out; start up to {replicas} ranks, or "
            f"a multiple of {replicas}, such as torchrun --nproc-per-node {size * replicas}"
        )
    if batch_size % size:
        raise UserError(
            f"--data.batch_size {batch_size} cannot be shared by {size} ranks a replica; give a multiple of {size}"
        )
    if sync_batchnorm and size > 1 and device.type != "cuda":
        raise UserError("--replicas.sync_batchnorm needs CUDA devices; leave it out on a CPU")
    index, member = divmod(ranks.rank, size)
    return Team(index, ranks.size // size, member, size, sync_batchnorm=sync_batchnorm and size > 1)


def _check_devices(team: Team, ranks: Ranks, device: str) -> None:
    """Raise UserError where two ranks of a team share a GPU, which NCCL cannot do; ranks of two teams may."""
    ranks.tell(f"device/{ranks.rank}", device)
    members = range(team.index * team.size, (team.index + 1) * team.size)
    devices = [ranks.ask(f"device/{rank}", rank) for rank in members]
    if len(set(devices)) < team.size:
        raise UserError(
            f"--device: {team.size} ranks train one replica, and two of them share a GPU, which NCCL cannot do; start "
            f"{team.count} ranks (--nproc-per-node), which may share one, or give each rank a GPU of its own"
        )


def with_process_group(team: Team, ranks: Ranks, device: torch.device) -> Team:
    """The team with its process group. Waits for all ranks: call it only when every rank is sure to call it too.

    Raises:
        UserError: two of its ranks share a GPU.
    """
    if team.size == 1:
        return team
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"  # flags stay on the CPU, where reading them does not wait for the device
        _check_devices(team, ranks, f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}")
    dist.init_process_group(backend, store=ranks.store, rank=ranks.rank, world_size=ranks.size)
    groups = [dist.new_group(list(range(i, i + team.size)), backend=backend) for i in range(0, ranks.size, team.size)]
    return replace(team, group=groups[team.index])
