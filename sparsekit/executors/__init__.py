"""How replicas are trained: one after another or stacked in lockstep on one device, or spread over torchrun's ranks.

An executor trains the given replicas of one segment and returns the progress with them finished. A run chooses one.
"""

from __future__ import annotations

import math

from sparsekit.executors import sequential, stacked
from sparsekit.run.context import Executor
from sparsekit.training.setup import Setup

AUTO_PARAMETERS = 5_000_000
AUTO_PIXELS = 64 * 64


def choose_executor(setup: Setup) -> tuple[Executor, str]:
    """Choose the executor for `--replicas.executor`.

    Returns:
        The executor, and the reason for the choice to show the user; empty if there is nothing to explain.
    """
    option = setup.config.replicas.executor
    if option == "sequential" or all(len(segment.replicas) <= 1 for segment in setup.plan):
        return sequential.train_replicas, ""
    if option == "auto":
        if setup.device.type != "cuda":
            return sequential.train_replicas, "replicas one after another: stacking them is no faster on a CPU"
        if (
            math.prod(setup.data.inputs.size) > AUTO_PIXELS
            or sum(p.numel() for p in setup.model.parameters()) > AUTO_PARAMETERS
        ):
            return sequential.train_replicas, "replicas one after another: one alone fills the device"
    if reason := stacked.obstacle(setup):
        return sequential.train_replicas, f"replicas one after another: they cannot be stacked, {reason}"
    return stacked.train_replicas, "" if option == "vectorized" else "replicas stacked: small enough for one device"


def executor_name(executor: Executor) -> str:
    """How an executor trains the replicas of a segment, for the user."""
    return "stacked" if executor is stacked.train_replicas else "one after another"
