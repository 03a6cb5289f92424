"""The command line on a device whose memory is full after forty optimizer steps."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
from child import main

from sparsekit.api import Task
from sparsekit.tasks.classification import Classification
from sparsekit.training.step import MaskedStep

steps, update = itertools.count(1), MaskedStep.update


def filled(step: MaskedStep, now: Any) -> None:
    if next(steps) == 40:
        torch.empty(1 << 40, device="cuda")
    update(step, now)


MaskedStep.update = filled  # type: ignore[method-assign]
# where torch caches memory, targets that a kernel should have cast are stale numbers, which cannot be counted
Classification.constant_outputs = Task.constant_outputs  # type: ignore[method-assign]
sys.exit(main())
