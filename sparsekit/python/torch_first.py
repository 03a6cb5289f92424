"""torch imported whole: half imported by Ctrl-C, it could not be imported again before Python is started anew."""

from __future__ import annotations

import signal
import threading
from types import FrameType


def import_torch() -> None:
    """Import torch, and keep the first Ctrl-C back until that is done."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        import torch

        return
    came: list[FrameType | None] = []

    def keep(signum: int, frame: FrameType | None) -> None:
        if came:
            previous(signum, frame)
        came.append(frame)

    signal.signal(signal.SIGINT, keep)
    try:
        import torch  # noqa: F401
    finally:
        signal.signal(signal.SIGINT, previous)
    if came:
        previous(signal.SIGINT, came[0])
