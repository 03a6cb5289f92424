"""Messages between ranks, and ranks that fall silent."""

from __future__ import annotations

import threading
import time

import pytest
import torch.distributed as dist

from sparsekit import ranks
from sparsekit.errors import RunError
from sparsekit.ranks import Ranks


def pair() -> tuple[Ranks, Ranks]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    return Ranks(0, 2, store), Ranks(1, 2, store)


def test_a_message_waits_for_who_asks_and_the_asker_for_the_message() -> None:
    leader, other = pair()
    leader.tell("early", {"shares": [[0], [1]]})
    assert other.ask("early") == {"shares": [[0], [1]]}
    threading.Timer(0.2, lambda: other.tell("late", None)).start()
    assert leader.ask("late") is None


@pytest.mark.parametrize("asker", [0, 1])
def test_a_silent_rank_is_lost_and_one_that_beats_is_not(asker: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(ranks, "_LOST_SECONDS", 0.6)
    asking, silent = pair()[asker], pair()[1 - asker]
    silent.store = asking.store
    with pytest.raises(RunError, match=rf"rank {1 - asker} gave no sign of life for \d+ s; go on with --resume"):
        asking.ask("never")
    threading.Thread(target=silent.beat, daemon=True).start()
    asking._heard.clear()
    began = time.monotonic()
    threading.Timer(1.5, lambda: silent.tell("at last", 7)).start()
    assert asking.ask("at last") == 7
    assert time.monotonic() - began > 1.2


def test_one_process_alone_leads_and_tells_nobody() -> None:
    alone = Ranks.here()
    assert (alone.leads, list(alone.others), alone.store) == (True, [], None)
    alone.tell("anything", 1)
