"""What the parts of gpu.py share: the time that they have, how they tell what they found, and ranks of torchrun."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from sparsekit.errors import first_line

Case = TypeVar("Case")
REPLICAS = 3


@dataclass(frozen=True)
class Part:
    """What a part is given.

    Attributes:
        until: When its time is over, in seconds of the monotonic clock, which all processes share.
        quick: Whether problems are tiny.
        data: Folder of Fashion-MNIST.
    """

    until: float
    quick: bool
    data: str

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def each(self, cases: Mapping[str, Case], measure: Callable[[str, Case, float], object]) -> None:
        """Measure cases in turn, each up to the end of its share of the time that is left.

        One that fails is told in a line, and so is one for which there is no time.
        """
        for index, (what, case) in enumerate(cases.items()):
            if self.left <= 0.0:
                tell(what, "not measured: no time was left")
                continue
            try:
                measure(what, case, time.monotonic() + self.left / (len(cases) - index))
            except Exception as error:  # CUDA, cuDNN and compilers may raise anything
                tell(what, failed(error))
            gc.collect()
            torch.cuda.empty_cache()


def failed(error: BaseException | str) -> str:
    """Why something did not run, in one line."""
    text = error if isinstance(error, str) else first_line(error) or type(error).__name__
    return f"did not run: {text}"[:200]


def tell(
    what: str,
    ours: object = "",
    against: str = "",
    theirs: object = "",
    ratio: object = "",
    rounds: object = "",
    **numbers: object,
) -> None:
    """Print a row for gpu.py's table, and the same as numbers."""
    row = [str(cell).replace("|", "/") for cell in (what, ours, against, theirs, ratio, rounds)]
    print(json.dumps({"row": row, "numbers": numbers}), flush=True)


def in_ranks(name: str, part: Part, **environment: str) -> str:
    """Start a part again as a rank for each replica on this machine; why they failed, or an empty text."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(REPLICAS)]
    options = ["--part", name, "--until", str(part.until), *(["--quick"] if part.quick else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment}
    command = [*torchrun, sys.argv[0], *options]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if re.search(r"^(\[rank\d\]:)?\s*[\w.]*[Ee]rror: ", line)]
    return (errors or [f"torchrun ended with {done.returncode}"])[0] if done.returncode else ""
