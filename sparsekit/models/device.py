"""The device and precision of a model, a device that is too small, and warnings about the number of CPU threads."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from sparsekit.errors import RunError, UserError, first_line

_BUSY = 1.5
"""Load per core from which several threads lose more by waiting for each other than they gain."""


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A new autocast context; does nothing in fp32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def choose_device(name: str) -> torch.device:
    """The torch device for `--device`; with torchrun, one CUDA device per rank.

    Raises:
        UserError: the CUDA device does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device("cuda:0" if name == "cuda" else name)
    if device.type == "cuda":
        if (device.index or 0) >= (count := torch.cuda.device_count()):
            fix = "use auto or cpu"
            if "LOCAL_RANK" in os.environ:
                fix = (
                    f"start at most {count} ranks on it (--nproc-per-node), or, where each rank sees only its own GPU "
                    "or trains replicas of its own, give --device cuda:0"
                )
            raise UserError(f"--device {name}: this machine has {count} CUDA devices; {fix}")
        torch.cuda.set_device(device)  # collectives use the current device
    return device


def use_precision(precision: str, device: torch.device) -> torch.dtype:
    """Set up `--precision` on a device: the type that autocast computes in; float32 means no autocast.

    On CUDA devices float32 products are TF32 with `tf32` alone, in convolutions and matrix products alike (torch's own
    choice is TF32 in convolutions only). cuDNN's kernels are not chosen by timing them (`benchmark`): the choice, and
    with it the rounding, would change from run to run.

    Raises:
        UserError: the device has no TF32.
    """
    if precision == "tf32" and not (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise UserError(f"--precision tf32: {device} has no TF32, which NVIDIA GPUs from Ampere on have; give fp32")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = False
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else torch.float32
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def lacks_memory(error: BaseException) -> bool:
    """Whether torch raised an error because the device's memory does not suffice; it has no single type."""
    text = r"CUDA error: out of memory|CU(BLAS|DNN|SPARSE|SOLVER)_STATUS_ALLOC_FAILED"
    return isinstance(error, torch.OutOfMemoryError) or bool(re.search(text, str(error)))


@contextmanager
def enough_memory(fix: str, kind: type[UserError | RunError] = RunError) -> Iterator[None]:
    """Where the device's memory does not suffice inside, raise an error of this kind with one line and the fix."""
    try:
        yield
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        raise kind(f"{first_line(error).partition('. GPU')[0]}; {fix}") from error


def crowded_threads() -> str:
    """A warning if torch will use several threads on cores that are busy already; empty otherwise."""
    count, cores = torch.get_num_threads(), os.cpu_count() or 1
    if count == 1 or "OMP_NUM_THREADS" in os.environ or not hasattr(os, "getloadavg"):
        return ""
    load = os.getloadavg()[0]
    if load < _BUSY * cores:
        return ""
    return f"the processor is busy (load {load:.1f} on {cores} cores); OMP_NUM_THREADS=1 may be many times faster"


def changed_threads(before: object) -> str:
    """A warning if a resumed run used another number of threads before; empty otherwise.

    The number of threads changes the order of sums, and so the last bits of weights.
    """
    now = torch.get_num_threads()
    if not isinstance(before, int) or before == now:
        return ""
    return f"it had OMP_NUM_THREADS={before} before, and {now} now: its weights will differ in rounding"


def release_freed_memory() -> None:
    """Give freed memory back to the system: glibc keeps blocks below 32 MB, and they lie between those in use."""
    with suppress(OSError, AttributeError):  # another C library has no such function
        ctypes.CDLL(None).malloc_trim(0)
