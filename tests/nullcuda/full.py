"""The command line on a device whose memory is full after forty optimizer steps."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
from child import main

from sparsekit.training.step import MaskedStep

steps, update = itertools.count(1), MaskedStep.update


def filled(step: MaskedStep, now: Any) -> None:
    if next(steps) == 40:
        torch.empty(1 << 40, device="cuda")
    update(step, now)


MaskedStep.update = filled  # type: ignore[method-assign]
sys.exit(main())
