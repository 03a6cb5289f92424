"""A signal strikes inside a library that makes something else of Stopped: the run is stopped all the same."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import contents, fit

from sparsekit.executors import stacked
from sparsekit.run import loop, progress
from sparsekit.run.signals import STOP_SIGNALS, Stopped, StopSignals


class Struck:
    """An object that a signal strikes while torch first looks what it holds."""

    struck = False

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> float:
        if not self.struck:
            self.struck = True
            struck()
        return [0.0][index]


def translated() -> None:
    """torch makes a ValueError of it, as it did in a real run: "could not determine the shape of object type"."""
    torch.as_tensor(Struck())


def struck() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def swallowed() -> None:
    try:
        struck()
    except BaseException:
        return


@pytest.mark.parametrize("made", [struck, translated, swallowed])
def test_stopped_comes_out_whatever_was_made_of_it(made: Callable[[], None]) -> None:
    with StopSignals() as signals, pytest.raises(Stopped) as stop, signals.reraise_if_swallowed():
        made()
    assert stop.value.signum == signal.SIGTERM


def test_what_stopped_has_left_is_not_stopped_once_more() -> None:
    """A signal may strike on the way out of a with-statement; its generator ends when it is collected."""
    with StopSignals() as signals:
        reraise_if_swallowed = signals.reraise_if_swallowed()
        reraise_if_swallowed.__enter__()
        with pytest.raises(Stopped):
            struck()
        reraise_if_swallowed.gen.close()  # type: ignore[attr-defined]


def test_an_error_without_a_signal_stays_what_it_is() -> None:
    with StopSignals() as signals, pytest.raises(ValueError, match=r"^mine$"), signals.reraise_if_swallowed():
        raise ValueError("mine")


def test_an_error_after_a_deferred_signal_stays_what_it_is() -> None:
    """As where the disk is full when the checkpoint is written that the signal asked for."""

    def full() -> None:
        with signals.deferred():
            struck()
            raise OSError("full")

    with StopSignals() as signals, pytest.raises(OSError, match=r"^full$"), signals.reraise_if_swallowed():
        full()


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_each_stop_signal_stops(signum: signal.Signals) -> None:
    with StopSignals(), pytest.raises(Stopped) as stop:
        os.kill(os.getpid(), signum)
    assert stop.value.signum == signum


def test_nohup_keeps_a_run_from_the_signal_of_a_closing_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.requested is None
    finally:
        signal.signal(signal.SIGHUP, before)


def once(function: Callable[..., Any], before: Callable[[], None], after: int = 0) -> Callable[..., Any]:
    """The function, with something before one call of it, after so many others."""
    calls = itertools.count()

    def called(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == after:
            before()
        return function(*args, **kwargs)

    return called


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "made"),
    [
        (progress, "_same_tensors", translated),  # while a checkpoint is read: no damage
        (stacked, "_forward", translated),  # while vmap is tried: the model is not unfit
        (stacked, "_forward", swallowed),
    ],
)
def test_a_run_that_is_struck_as_it_goes_on_stops_and_ends_with_the_same_bits(
    owner: Any,
    name: str,
    made: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = ["--replicas.executor", "vectorized"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert fit(whole, *case) == 0
    with monkeypatch.context() as patch:
        patch.setattr(loop, "prune", once(loop.prune, struck, after=1))
        assert fit(out, *case) == 143
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, once(getattr(owner, name), made))
        assert fit(out, *case, "--resume") == 143
    said = capsys.readouterr()
    assert "damaged" not in said.out + said.err
    assert "SIGTERM" in said.err
    assert fit(out, *case, "--resume") == 0
    assert contents(out) == contents(whole)
