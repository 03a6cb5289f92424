"""What a call leaves as it was: random states, torch's settings; and Ctrl-C as Python's own exception."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sparsekit.data.stream import random_states_kept
from sparsekit.run.signals import Stopped

_ONE = threading.RLock()
"""Random states and torch's settings are the whole process', so calls in several threads wait for one another."""


@contextmanager
def as_it_was() -> Iterator[None]:
    """Restore random states and torch's settings at the end; raise KeyboardInterrupt where a signal stopped a run."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
    before = torch.get_float32_matmul_precision()
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    flags = cudnn.allow_tf32, cudnn.benchmark, mkldnn.enabled
    try:
        with (
            _ONE, random_states_kept(device), torch.inference_mode(False), torch.enable_grad(),
            torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False),
        ):  # fmt: skip
            yield
    except Stopped as stop:
        traceback.clear_frames(stop.__traceback__)  # or a notebook, which keeps it, would keep workers and the lock
        how = f"its checkpoint is in {stop.out}; give out={stop.out!r}, resume=True to go on" if stop.out else ""
        raise KeyboardInterrupt(f"stopped by {stop}; {how or 'nothing was begun'}") from None
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        torch.set_float32_matmul_precision(before)
        cudnn.allow_tf32, cudnn.benchmark, mkldnn.enabled = flags
