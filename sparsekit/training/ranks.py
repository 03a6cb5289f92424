"""The processes that torchrun started for one run, and the short JSON messages between them in torchrun's store.

Replicas are exchanged through files in the run directory, so that ranks can wait for each other outside of any
collective, for hours if need be. Only ranks that share one replica use collectives (`team`). When a rank fails,
torchrun ends the ranks of its node, but not those of other nodes. So each rank has a heartbeat in the store, and a rank
whose heartbeat stops counts as lost.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sparsekit.errors import RunError, first_line

_POLL_SECONDS = 0.05
_BEAT_SECONDS = 5.0
_LOST_SECONDS = 300.0


class Ranks:
    """This process among those of its run. Rank 0 is the leader: it prunes, merges, evaluates, writes and logs.

    Args:
        rank: Number of this process, from 0.
        size: Number of processes.
        store: The torch store that they share; None for a single process.

    Attributes:
        over: True once the leader has no more orders; the store may be gone from then on.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank, self.size, self.store, self.over = rank, size, store, False

    @classmethod
    def here(cls) -> Ranks:
        """The ranks that torchrun's environment describes; one rank without it.

        Raises:
            RunError: the ranks cannot connect to each other.
        """
        if size() == 1:
            return cls()
        from torch.distributed.rendezvous import rendezvous

        try:
            store, rank, count = next(iter(rendezvous("env://")))
        except (RuntimeError, ValueError) as error:
            raise RunError(f"torchrun's ranks do not find one another: {first_line(error)}") from error
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
        """Store a message permanently; raises RunError if the store is gone."""
        if self.store is not None:
            self._safely(lambda: self.store.set(f"sparsekit/{key}", json.dumps(value)))

    def ask(self, key: str, sender: int = 0) -> Any:
        """Wait for a message from the rank `sender`, and return it; a signal ends the wait.

        Raises:
            RunError: the store is gone, or the sender had no heartbeat for five minutes.
        """
        beats, since = 0, time.monotonic()
        while not self._safely(lambda: self.store.check([f"sparsekit/{key}"])):
            time.sleep(_POLL_SECONDS)
            now, found = time.monotonic(), self._safely(lambda: self.store.add(f"sparsekit/beats/{sender}", 0))
            if found != beats:
                beats, since = found, now
            elif now - since > _LOST_SECONDS:
                raise RunError(f"rank {sender} gave no sign of life for {now - since:.0f} s; go on with --resume")
        return self.read(key)

    def read(self, key: str) -> Any:
        """Read a message without waiting; None if it is not there yet. Raises RunError if the store is gone."""
        name = f"sparsekit/{key}"
        return self._safely(lambda: json.loads(self.store.get(name)) if self.store.check([name]) else None)

    def beat(self) -> None:
        """Send heartbeats until the store is gone; then ranks other than the leader stop themselves."""
        with suppress(RuntimeError):
            while True:
                self.store.add(f"sparsekit/beats/{self.rank}", 1)
                time.sleep(_BEAT_SECONDS)
        if not self.leads and not self.over:  # if torchrun was killed, a resumed run may already write to this folder
            os.kill(os.getpid(), signal.SIGTERM)

    def _safely(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as error:  # torch's network errors are RuntimeErrors
            raise RunError(f"rank {self.rank} lost touch with the others; go on with --resume") from error


def size() -> int:
    """Number of ranks that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def number() -> int:
    """This process's rank; 0 without torchrun."""
    return int(os.environ["RANK"]) if size() > 1 else 0
