"""Messages between ranks, and ranks that fall silent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from sparsekit.errors import RunError
from sparsekit.executors import torchrun
from sparsekit.run.signals import Stopped, StopSignals
from sparsekit.training import ranks
from sparsekit.training.ranks import Ranks
from sparsekit.training.team import Team


def pair() -> tuple[Ranks, Ranks]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    return Ranks(0, 2, store), Ranks(1, 2, store)


def test_a_message_waits_for_who_asks_and_the_asker_for_the_message() -> None:
    leader, other = pair()
    leader.tell("early", {"shares": [[0], [1]]})
    assert other.ask("early") == {"shares": [[0], [1]]}
    threading.Timer(0.2, lambda: other.tell("late", None)).start()
    assert leader.ask("late") is None


@pytest.mark.parametrize("asker", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_silent_rank_is_lost_and_one_that_beats_is_not(asker: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(ranks, "_LOST_SECONDS", 1.0)
    both = pair()
    asking, silent = both[asker], both[1 - asker]
    with pytest.raises(RunError, match=rf"rank {1 - asker} gave no sign of life for \d+ s; go on with --resume"):
        asking.ask("never", silent.rank)
    threading.Thread(target=silent.beat, daemon=True).start()
    began = time.monotonic()
    threading.Timer(2.0, lambda: silent.tell("at last", 7)).start()
    assert asking.ask("at last", silent.rank) == 7
    assert time.monotonic() - began > 1.5


class Gone:
    """A store whose server was killed, as torch reports it."""

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object) -> None:
            raise dist.DistNetworkError("failed to recv, got 0 bytes")

        return fail


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("call", [lambda r: r.tell("a", 1), lambda r: r.ask("a"), lambda r: r.read("a")])
def test_without_the_store_every_call_ends_the_run(
    call: Callable[[Ranks], object], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsekit.training.ranks._SIGNAL_SECONDS", 0.0)
    with pytest.raises(RunError, match=rf"rank {rank} lost touch.*--resume"):
        call(Ranks(rank, 2, Gone()))


def test_a_signal_that_ended_the_store_too_is_what_stopped_the_rank() -> None:
    rank = Ranks(1, 2, Gone())
    with StopSignals() as signals, signals.deferred():
        rank.stop = signals.stop
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(Stopped, match="SIGUSR1"):
            rank.tell("a", 1)


@pytest.mark.parametrize(("rank", "over", "stops"), [(1, False, True), (1, True, False), (0, False, False)])
def test_a_rank_that_trains_without_a_store_stops_itself(rank: int, over: bool, stops: bool) -> None:
    """The leader and a rank that has no more orders do not."""
    left = Ranks(rank, 2, Gone())
    left.over = over
    with StopSignals() as signals, signals.deferred():
        left.beat()
        assert signals.requested == (signal.SIGTERM if stops else None)


def test_a_signal_ends_the_wait_for_a_message() -> None:
    leader, _ = pair()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with StopSignals(), pytest.raises(Stopped):
        leader.ask("never", 1)


def member(ranks: Ranks) -> Any:
    """What `_together` looks at, of one of two members of a team that no signal has reached."""
    return SimpleNamespace(setup=SimpleNamespace(team=Team(0, 1, ranks.rank, 2)), signals=StopSignals())


@pytest.mark.parametrize("torch_says", ["Connection closed by peer [127.0.0.1]:8", "[gloo/transport/tcp/pair.cc:561]"])
def test_a_team_is_stopped_by_the_signal_that_one_of_it_left_for(torch_says: str) -> None:
    one, other = pair()
    with pytest.raises(Stopped), torchrun._stop_together(member(other), other):
        raise Stopped(signal.SIGTERM)
    with pytest.raises(Stopped) as stop, torchrun._stop_together(member(one), one):
        raise RuntimeError(torch_says)
    assert stop.value.signum == signal.SIGTERM


def test_one_of_a_team_that_died_without_a_word_is_told() -> None:
    one, _ = pair()
    with (
        pytest.raises(RunError, match=r"a rank of this team is gone .*; go on with --resume"),
        torchrun._stop_together(member(one), one),
    ):
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(RuntimeError, match=r"^shape mismatch$"), torchrun._stop_together(member(one), one):
        raise RuntimeError("shape mismatch")


def test_one_process_alone_leads_and_tells_nobody() -> None:
    alone = Ranks.here()
    assert (alone.leads, list(alone.others), alone.store) == (True, [], None)
    alone.tell("anything", 1)


ENDS = """
import time
from torch.distributed import TCPStore
from sparsekit.training import ranks
ranks._BEAT_SECONDS = 0.0  # so that the thread is nearly always inside the store
ranks.Ranks(0, 2, TCPStore("127.0.0.1", 0, is_master=True)).begin()
time.sleep(0.2)
"""


def test_a_process_ends_well_while_its_heart_beats() -> None:
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
