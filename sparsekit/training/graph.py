"""A training step recorded as a CUDA graph: one launch by the host instead of hundreds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsekit.errors import first_line
from sparsekit.training.setup import Setup
from sparsekit.training.step import MaskedStep

_PLAIN_STEPS = 3
"""Steps before the recording, in which torch and its libraries allocate what they keep."""
_FEWEST = 50
"""Steps of a segment from which a recording is worth the two steps that it costs."""
_TOLERANCE = 1e-2
"""Largest difference of the recorded step from the plain one, as a share of the step."""


def applies(setup: Setup, step: MaskedStep, steps: int) -> bool:
    """Whether a training's steps can be recorded, so that each does the same work on the device alone.

    Hooks of methods take the progress as a number of the host, fp16's scaler decides there whether to step, and of
    the optimizers only torch's fused ones read the learning rate from the device.
    """
    fused = type(step.optimizer) in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW) and all(
        group.get("fused") for group in step.optimizer.param_groups
    )
    alone = setup.team.size == 1 and not setup.config.compile and not step.scaler.is_enabled()
    on_device = setup.config.cuda_graphs and setup.device.type == "cuda" and fused
    return on_device and alone and not step.hooked and steps >= _FEWEST


class GraphedStep:
    """Takes optimizer steps, soon by replaying a recording of one: of a replica, or of replicas that share a pass.

    The recording is used only if it takes its first step as the plain step does, and not where a step draws random
    numbers on the host, which a recording would freeze. Batches of another shape take plain steps.

    Args:
        replicas: The masked steps of the replicas that a step trains.

    Attributes:
        obstacle: Why there is no recording; empty while none was tried, and where it is used.
    """

    def __init__(self, *replicas: MaskedStep) -> None:
        self.replicas, self.taken, self.obstacle = replicas, 0, ""
        self.graph: torch.cuda.CUDAGraph | None = None
        for group in (group for replica in replicas for group in replica.optimizer.param_groups):
            # from the first step on, or a resumed run would round otherwise
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=group["params"][0].device)
            group["capturable"] = True
        torch.cuda.reset_peak_memory_stats(replicas[0].setup.device)  # what plain steps take at most is asked for below

    def __call__(self, step: Callable[..., Tensor], *batch: Tensor) -> Tensor:
        """Take a step on a batch and return its loss, or its losses; `step(*batch)` is the plain one."""
        self.taken += 1
        if self.taken == _PLAIN_STEPS + 1:
            return self._record(step, batch)
        if self.graph is None or any(given.shape != own.shape for given, own in zip(batch, self.batch, strict=True)):
            return step(*batch)
        _copy(self.batch, batch)
        self.graph.replay()
        return self.loss

    def release(self) -> None:
        """Free the recording, which keeps the memory of a step; steps are plain ones from here on."""
        self.graph = None

    def _record(self, step: Callable[..., Tensor], batch: Sequence[Tensor]) -> Tensor:
        """Take a plain step, then the same step by a recording, which is kept if both agree."""
        tensors, host, device = self._tensors(), _host_random(), batch[0].device
        if not _have_room(tensors, device):
            self.obstacle = f"as the memory of {device} has no room for two copies of weights and optimizer"
            return step(*batch)
        before, drawn = [tensor.clone() for tensor in tensors], torch.cuda.get_rng_state(device)
        loss = step(*batch)
        plain, drawn_after = [tensor.clone() for tensor in tensors], torch.cuda.get_rng_state(device)
        if host != _host_random():
            self.obstacle = "as the model draws random numbers on the host"
            return loss
        _copy(tensors, before)
        self.batch = [tensor.clone() for tensor in batch]
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads may call CUDA meanwhile: those that pin memory, for one
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.loss = step(*self.batch)
            torch.cuda.set_rng_state(drawn, device)
            graph.replay()
            if _agree(tensors, plain, before):
                self.graph = graph
                return self.loss
            self.obstacle = "as a recorded step does not do what a plain one does"
        except RuntimeError as error:
            self.obstacle = f"as the model or its loss cannot be recorded: {first_line(error)}"
        _copy(tensors, plain)
        torch.cuda.set_rng_state(drawn_after, device)
        return loss

    def _tensors(self) -> list[Tensor]:
        """All tensors that a step changes."""
        found: list[Tensor] = []
        for one in self.replicas:
            state = [t for entry in one.optimizer.state.values() for t in entry.values() if isinstance(t, Tensor)]
            found += [*one.model.parameters(), *one.model.buffers(), *one.extra.values(), *state]
        return [tensor.detach() for tensor in found]


def _have_room(tensors: Sequence[Tensor], device: torch.device) -> bool:
    """Whether two copies of the tensors fit beside what plain steps have taken at most, so that none runs out of it."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = free + torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)
    return unused >= 2 * sum(tensor.nbytes for tensor in tensors)


def _host_random() -> object:
    """The state of the random numbers that a model may draw on the host."""
    return random.getstate(), torch.get_rng_state().tolist()


def _copy(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _agree(found: Sequence[Tensor], expected: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    """Whether two steps from the same tensors differ by little of what a step changes."""
    wrong, step = torch.zeros(2, dtype=torch.float64, device=found[0].device)
    for one, other, start in zip(found, expected, before, strict=True):
        wrong += (one.double() - other.double()).square().sum()
        step += (other.double() - start.double()).square().sum()
    return float(wrong) <= _TOLERANCE**2 * float(step)  # not so where one is NaN
