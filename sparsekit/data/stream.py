"""Images as a stream of batches that workers share in turns, with random states of their own."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils import signal_handling

from sparsekit.seeds import derive

Sample = tuple[Any, int]
"""Where an image is, such as its path, and its label."""
Read = Callable[[Any], Image.Image]
"""Reads the image at such a place."""
Batch = Callable[[int], "list[tuple[int, int | None]]"]
"""Maps a batch's number to its images' indices, each with the seed of its augmentation, or None without one."""


class Stream(IterableDataset[tuple[Any, int]]):
    """The images of batches `start` to `stop` - 1; workers take batches in turns."""

    transform: Callable[[Image.Image], Any]  # set by timm's loader

    def __init__(self, samples: list[Sample], read: Read, batch: Batch, start: int, stop: int) -> None:
        self.samples, self.read, self.batch, self.start, self.stop = samples, read, batch, start, stop
        # Ctrl-C, GNU timeout, Slurm and systemd signal the whole process group, but the run itself ends its workers
        self.signals = handled_signals()

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        first, every = 0, 1
        if worker := get_worker_info():
            first, every = worker.id, worker.num_workers
            for signum in self.signals:
                signal.signal(signum, signal.SIG_IGN)
        for number in range(self.start + first, self.stop, every):
            for index, seed in self.batch(number):
                place, label = self.samples[index]
                image = self.read(place)
                if seed is not None:
                    seed_all(seed)
                yield self.transform(image), label


def handled_signals() -> list[int]:
    """The signals for which this process has a handler of its own."""
    return [s for s in signal.valid_signals() - {signal.SIGCHLD} if callable(signal.getsignal(s))]


@contextmanager
def without_alarm() -> Iterator[None]:
    """Leave no handler of SIGCHLD behind: torch's raises a worker's death in the middle of a step, too.

    The next read raises it all the same.
    """
    before = signal.getsignal(signal.SIGCHLD)
    if getattr(before, "__module__", "") == signal_handling.__name__:  # of another loader in this process
        before = signal.SIG_DFL
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


class Seeded:
    """Random erasing that depends on (seed, batch number) alone."""

    def __init__(self, erase: Callable[[Tensor], Tensor], seed: int, number: int) -> None:
        self.erase, self.seed, self.number = erase, seed, number

    def __call__(self, images: Tensor) -> Tensor:
        seed = derive(self.seed, "erase", self.number)
        seed_all(seed)
        if images.is_cuda:
            torch.cuda.manual_seed(seed)
        self.number += 1
        return self.erase(images)


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's random generators of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


@contextmanager
def random_states_kept(device: torch.device | None) -> Iterator[None]:
    """Restore the process' random states at the end, including that of a CUDA device if given."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device is not None and device.type == "cuda" else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None and device is not None:
            torch.cuda.set_rng_state(cuda, device)
