"""When a run says that its threads stand in one another's way."""

from __future__ import annotations

import os

import pytest
import torch

from sparsekit.models import device


@pytest.mark.parametrize(
    ("count", "load", "chosen", "told"),
    [(2, 3.3, None, True), (2, 2.9, None, False), (2, 3.3, "2", False), (1, 9.0, None, False)],
)
def test_busy_cores_are_told_of_where_nobody_chose_the_threads(
    count: int, load: float, chosen: str | None, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    expected = "the processor is busy (load 3.3 on 2 cores); OMP_NUM_THREADS=1 may be many times faster"
    assert device.crowded_threads() == (expected if told else "")


def test_a_run_that_goes_on_with_another_number_of_threads_is_told() -> None:
    now = torch.get_num_threads()
    assert device.changed_threads(None) == device.changed_threads(now) == ""
    told = device.changed_threads(now + 1)
    assert all(part in told for part in (f"OMP_NUM_THREADS={now + 1}", f"{now} now"))
