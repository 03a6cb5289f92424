"""Several ranks that train one replica together, each on its part of every batch."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparsekit._types import Tensors
from sparsekit.errors import UserError
from sparsekit.training.ranks import Ranks


@dataclass(frozen=True)
class Team:
    """A group of ranks with the same replicas to train; its first one reports, scores and saves.

    Attributes:
        index: Number of the team.
        count: How many teams there are.
        member: This rank's number in it, from 0.
        size: Ranks in it.
        group: torch's process group of it; None for a team of one.
        sync_batchnorm: Whether BatchNorm normalises by the whole batch.
    """

    index: int = 0
    count: int = 1
    member: int = 0
    size: int = 1
    group: Any = None
    sync_batchnorm: bool = False

    @property
    def heads(self) -> bool:
        """Whether this rank is the team's first."""
        return self.member == 0

    def model(self, model: nn.Module) -> nn.Module:
        """The model to train in the place of the working one."""
        if not self.sync_batchnorm:
            return model
        return convert_sync_batchnorm(copy.deepcopy(model), self.group)  # type: ignore[no-any-return,no-untyped-call]

    def forward(self, model: nn.Module, forward: Any) -> Any:
        """A forward pass whose backward pass averages the gradients of the model's parameters over the team."""
        whole = _Forward(model, forward)
        # BatchNorm statistics are the first member's; torch 2.15 renamed the option
        known = inspect.signature(DistributedDataParallel).parameters
        apart: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
        }
        shared = DistributedDataParallel(whole, process_group=self.group, **apart)
        return lambda _, weights, images: shared(weights, images)

    def average(self, tensors: list[Tensor]) -> None:
        """Put the team's mean into each tensor."""
        for tensor in tensors:
            dist.all_reduce(tensor, group=self.group)
            tensor.div_(self.size)

    def lead(self, tensor: Tensor) -> None:
        """Put the first member's values into a tensor."""
        if self.size > 1:
            dist.broadcast(tensor, self.index * self.size, group=self.group)

    def agree(self, well: bool) -> bool:
        """Whether all is well with the first member, which scores and decides for all."""
        verdict = self._flag(well)
        self.lead(verdict)
        return bool(verdict)

    def any(self, asked: bool) -> bool:
        """Whether a member is asked for something."""
        verdict = self._flag(asked)
        if self.size > 1:
            dist.all_reduce(verdict, dist.ReduceOp.MAX, group=self.group)
        return bool(verdict)

    def _flag(self, value: bool) -> Tensor:
        on_cuda = self.size > 1 and dist.get_backend(self.group) == "nccl"
        return torch.tensor(int(value), device="cuda" if on_cuda else "cpu")


class _Forward(nn.Module):
    """A forward function as a module, for DistributedDataParallel."""

    def __init__(self, model: nn.Module, forward: Any) -> None:
        super().__init__()
        self.model, self._function = model, forward

    def forward(self, weights: Tensors, images: Tensor) -> Tensor:
        return self._function(self.model, weights, images)  # type: ignore[no-any-return]


def make_team(ranks: Ranks, replicas: int, batch_size: int, sync_batchnorm: bool, device: torch.device) -> Team:
    """This rank's team: one rank each where there are no more ranks than replicas, else equal teams. See `gathered`.

    Raises:
        UserError: the ranks cannot be shared out equally, nor a batch within a team.
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


def gathered(team: Team, ranks: Ranks, device: torch.device) -> Team:
    """The team with its process group; waits for all ranks, so only once nothing keeps one of them from coming."""
    if team.size == 1:
        return team
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=ranks.store, rank=ranks.rank, world_size=ranks.size)
    groups = [dist.new_group(list(range(i, i + team.size))) for i in range(0, ranks.size, team.size)]
    return replace(team, group=groups[team.index])
