"""The processes that torchrun started for one run, and what they tell one another: short JSON messages in its store.

Replicas go through files in the run directory, so that ranks wait for one another's replicas outside of any collective,
for hours if need be. Only the ranks that share one replica use collectives (`team`).
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from sparsekit.errors import RunError

_POLL_SECONDS = 0.05
_BEAT_SECONDS = 5.0
_LOST_SECONDS = 300.0
"""A rank that gave no sign for this long is lost: torchrun on its node may be gone with it."""


class Ranks:
    """This process among those of its run. Rank 0 leads: it prunes, merges, evaluates, writes and logs.

    Args:
        rank: Number of this process, from 0.
        size: How many there are.
        store: torch's store between them; None for a process alone.

    Attributes:
        over: Set once there are no more orders: the store may go then.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank, self.size, self.store, self.over = rank, size, store, False
        self._heard: dict[int, tuple[bytes, float]] = {}

    @classmethod
    def here(cls) -> Ranks:
        """What torchrun's environment says; one rank without it.

        Raises:
            RunError: the ranks do not find one another.
        """
        if size() == 1:
            return cls()
        from torch.distributed.rendezvous import rendezvous

        try:
            store, rank, count = next(iter(rendezvous("env://")))
        except (RuntimeError, ValueError) as error:
            raise RunError(f"torchrun's ranks do not find one another: {str(error).splitlines()[0]}") from error
        ranks = cls(rank, count, store)
        threading.Thread(target=ranks.beat, name="ranks", daemon=True).start()
        return ranks

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
            self._look_after(range(self.size) if self.leads else range(1))
        return self.heard(key)

    def heard(self, key: str) -> Any:
        """A message, without waiting; None where there is none yet."""
        value = self._safely(partial(self._value, f"sparsekit/{key}"))
        return json.loads(value) if value else None

    def beat(self) -> None:
        """Give a sign of life now and then, for as long as the store is there."""
        with suppress(RuntimeError):
            for number in itertools.count():
                self.store.set(f"sparsekit/alive/{self.rank}", str(number))
                time.sleep(_BEAT_SECONDS)
        if not self.leads and not self.over:  # nobody is left to tell; another run may already go on here
            os.kill(os.getpid(), signal.SIGTERM)

    def _look_after(self, ranks: range) -> None:
        """Raise RunError where a rank gave no sign of life for long; the leader minds all, the others the leader."""
        now = time.monotonic()
        for rank in ranks:
            value, since = self._heard.get(rank, (b"", now))
            self._heard.setdefault(rank, (value, since))
            if rank == self.rank or now - since < _BEAT_SECONDS:
                continue
            key = f"sparsekit/alive/{rank}"
            found = self._safely(partial(self._value, key))
            if found != value:
                self._heard[rank] = (found, now)
            elif now - since > _LOST_SECONDS:
                raise RunError(f"rank {rank} gave no sign of life for {now - since:.0f} s; go on with --resume")

    def _value(self, key: str) -> bytes:
        return self.store.get(key) if self.store.check([key]) else b""

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
