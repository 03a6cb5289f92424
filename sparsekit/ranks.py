"""The processes that torchrun started for one run, and what they tell one another: short JSON messages in its store.

Tensors go through files in the run directory, so nothing waits inside a collective, and a wait can last for hours.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

from sparsekit.errors import RunError

_POLL_SECONDS = 0.05


class Ranks:
    """This process among those of its run. Rank 0 leads: it prunes, merges, evaluates, writes and logs.

    Args:
        rank: Number of this process, from 0.
        size: How many there are.
        store: torch's store between them; None for a process alone.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank, self.size, self.store = rank, size, store

    @classmethod
    def here(cls) -> Ranks:
        """What torchrun's environment says; one rank without it."""
        if size() == 1:
            return cls()
        from torch.distributed.rendezvous import rendezvous

        try:
            store, rank, count = next(iter(rendezvous("env://")))
        except (RuntimeError, ValueError) as error:
            raise RunError(f"torchrun's ranks do not find one another: {str(error).splitlines()[0]}") from error
        return cls(rank, count, store)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def others(self) -> range:
        """All ranks but the leader."""
        return range(1, self.size)

    def tell(self, key: str, value: Any) -> None:
        """Leave a message, for good."""
        if self.store is not None:
            self._safely(lambda: self.store.set(f"sparsekit/{key}", json.dumps(value)))

    def ask(self, key: str) -> Any:
        """Wait for a message; a signal ends the wait."""
        while not self._safely(lambda: self.store.check([f"sparsekit/{key}"])):
            time.sleep(_POLL_SECONDS)
        return json.loads(self._safely(lambda: self.store.get(f"sparsekit/{key}")))

    def _safely(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as error:  # torch's network errors are some
            raise RunError(f"rank {self.rank} lost touch with the others; go on with --resume") from error


def size() -> int:
    """How many ranks torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def number() -> int:
    """This process's rank; 0 without torchrun."""
    return int(os.environ["RANK"]) if size() > 1 else 0
