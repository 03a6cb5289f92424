"""Where replicas are trained: one after another, or stacked and in lockstep, on one device; over ranks by torchrun.

An executor trains the given replicas of one segment and returns the place with them settled. It is chosen once a run.
"""

from __future__ import annotations

from sparsekit.executors import sequential, stacked
from sparsekit.run.context import Executor
from sparsekit.training.setup import Setup

AUTO_PARAMETERS = 5_000_000
AUTO_PIXELS = 64 * 64


def choose_executor(setup: Setup) -> tuple[Executor, str]:
    """The executor that `--replicas.executor` asks for, and why where it is not simply that."""
    wanted = setup.config.replicas.executor
    if wanted == "sequential" or all(len(segment.replicas) <= 1 for segment in setup.plan):
        return sequential.train_replicas, ""
    if wanted == "auto":
        if setup.device.type != "cuda":
            return sequential.train_replicas, "replicas one after another: stacking them is no faster on a CPU"
        if setup.data.image_size**2 > AUTO_PIXELS or sum(p.numel() for p in setup.model.parameters()) > AUTO_PARAMETERS:
            return sequential.train_replicas, "replicas one after another: one alone fills the device"
    if reason := stacked.obstacle(setup):
        return sequential.train_replicas, f"replicas one after another: they cannot be stacked, {reason}"
    return stacked.train_replicas, "" if wanted == "vectorized" else "replicas stacked: small enough for one device"
