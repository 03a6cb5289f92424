"""The threads that torch works with on a CPU: how many there are decides on bits and, on busy cores, on speed."""

from __future__ import annotations

import os

import torch

_BUSY = 1.5
"""Processes that want to run, to a core: threads that wait for one another then lose far more than they gain."""


def crowded() -> str:
    """What to say where threads that nobody asked for are about to share busy cores; empty otherwise."""
    count, cores = torch.get_num_threads(), os.cpu_count() or 1
    if count == 1 or "OMP_NUM_THREADS" in os.environ or not hasattr(os, "getloadavg"):
        return ""
    load = os.getloadavg()[0]
    if load < _BUSY * cores:
        return ""
    return f"the processor is busy (load {load:.1f} on {cores} cores); OMP_NUM_THREADS=1 may be many times faster"


def changed(before: object) -> str:
    """What to say where a run goes on that had another number of threads before; empty otherwise."""
    now = torch.get_num_threads()
    if not isinstance(before, int) or before == now:
        return ""
    return f"it had OMP_NUM_THREADS={before} before, and {now} now: its weights will differ in rounding"
