"""The processes that torchrun started for one run, and the short JSON messages between them in torchrun's store.

Replicas are exchanged through files in the run directory, so that ranks can wait for each other outside of any
collective, for hours if need be. Only ranks that share one replica use collectives (`team`). When a rank fails,
torchrun ends the ranks of its node, but not those of other nodes. So each rank has a heartbeat in the store, and a rank
whose heartbeat stops counts as lost.

torchrun keeps its store when it starts ranks again (`--max-restarts`), so messages of earlier attempts are still in it.
The ranks of an attempt first agree on a prefix for their messages that no other attempt has.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sparsekit.errors import RunError, UserError, first_line

_POLL_SECONDS = 0.05
_BEAT_SECONDS = 5.0
_LOST_SECONDS = 300.0
_SIGNAL_SECONDS = 1.0
"""A signal to all processes may end torchrun before it reaches the ranks."""
_TORCHRUN = "start with torchrun, which sets it, or unset RANK and WORLD_SIZE"
_RUN = "sparsekit/run directory"


class Ranks:
    """This process among those of its run. Rank 0 is the leader: it prunes, merges, evaluates, writes and logs.

    Args:
        rank: Number of this process, from 0.
        size: Number of processes.
        store: The torch store that they share; None for a single process.
        lasting: The store that the ranks of earlier and later attempts share, too; None for a single process.

    Attributes:
        over: True once the leader has no more orders; the store may be gone from then on.
        stop: Raises where a signal stopped the run; called where the others are gone, which a signal may explain.
    """

    stop: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None, lasting: Any = None) -> None:
        self.rank, self.size, self.store, self.lasting, self.over = rank, size, store, lasting, False
        self.resting = threading.Event()

    @classmethod
    def here(cls) -> Ranks:
        """The ranks that torchrun's environment describes; one rank without it.

        Raises:
            UserError: torchrun's variables are wrong.
        RunError: the ranks cannot connect to each other.
        """
        if size() == 1:
            return cls()
        if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
            raise UserError(f"{missing[0]} is not set, but WORLD_SIZE is {size()}; {_TORCHRUN}")
        from torch.distributed.rendezvous import rendezvous

        try:
            store, rank, count = next(iter(rendezvous("env://")))
            ranks = cls(rank, count, _attempts_own(store, rank, count), store)
        except (RuntimeError, ValueError) as error:
            raise RunError(f"torchrun's ranks do not find one another: {first_line(error)}") from error
        ranks.begin()
        return ranks

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def others(self) -> range:
        """All ranks but the leader."""
        return range(1, self.size)

    def earlier_run(self) -> str | None:
        """The run directory of an earlier attempt, after which torchrun started the ranks again; None without one."""
        if self.lasting is None or not self._safely(lambda: self.lasting.check([_RUN])):
            return None
        return str(self._safely(lambda: self.lasting.get(_RUN)).decode())

    def remember_run(self, out: str) -> None:
        """Leave the run directory to later attempts."""
        if self.lasting is not None:
            self._safely(lambda: self.lasting.set(_RUN, out))

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
                if self.resting.wait(_BEAT_SECONDS):
                    return
        if not self.leads and not self.over:  # if torchrun was killed, a resumed run may already write to this folder
            os.kill(os.getpid(), signal.SIGTERM)

    def begin(self) -> None:
        """Send heartbeats until the process ends: with an abort, if a thread were inside torch's store by then."""
        beating = threading.Thread(target=self.beat, name="ranks", daemon=True)
        beating.start()

        def rest() -> None:
            self.resting.set()
            beating.join(_SIGNAL_SECONDS)

        atexit.register(rest)

    def _safely(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as error:  # torch's network errors are RuntimeErrors
            time.sleep(_SIGNAL_SECONDS)
            self.stop()
            raise RunError(
                f"rank {self.rank} lost touch with the others; torchrun may be gone; go on with --resume"
            ) from error


def _attempts_own(store: Any, rank: int, size: int) -> Any:
    """The part of torchrun's store that this attempt alone uses; waits until all of its ranks are there.

    Every rank but the leader leaves a word that is new each time. The leader answers each word with the attempt's
    prefix, an old word too, until every rank has taken up the prefix.

    Raises:
        RuntimeError: a rank is not there after five minutes.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    began, word = time.monotonic(), os.urandom(16).hex()
    if rank:
        store.set(f"sparsekit/hello/{rank}", word)
    waiting, answered = set(range(1, size)) if rank == 0 else {0}, set[bytes]()
    own = PrefixStore(word, store)
    while waiting:
        for other in list(waiting):
            if rank == 0 and store.check([hello := f"sparsekit/hello/{other}"]):
                if (theirs := store.get(hello)) not in answered:
                    store.set(f"sparsekit/welcome/{theirs.decode()}", word)
                    answered.add(theirs)
                waiting -= {other} if own.check([f"here/{other}"]) else set()
            elif rank and store.check([f"sparsekit/welcome/{word}"]):
                own = PrefixStore(store.get(f"sparsekit/welcome/{word}").decode(), store)
                own.set(f"here/{rank}", "")
                waiting.clear()
        if waiting and time.monotonic() - began > _LOST_SECONDS:
            raise RuntimeError(f"rank {min(waiting)} is not there after {_LOST_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS if waiting else 0.0)
    return own


def size() -> int:
    """Number of ranks that torchrun started; 1 without it. Raises UserError where torchrun's variables are wrong."""
    if "RANK" not in os.environ:
        return 1
    rank, count = _variable("RANK"), _variable("WORLD_SIZE")
    if rank >= count:
        raise UserError(f"RANK is {rank} and WORLD_SIZE {count}: a rank is below their number; {_TORCHRUN}")
    return count


def number() -> int:
    """This process's rank; 0 without torchrun. Raises UserError where torchrun's variables are wrong."""
    return _variable("RANK") if size() > 1 else 0


def _variable(name: str) -> int:
    value = os.environ.get(name, "1" if name == "WORLD_SIZE" else "")
    if not re.fullmatch(r"\d+", value):
        raise UserError(f"{name} is {value!r}, no number; {_TORCHRUN}")
    return int(value)
