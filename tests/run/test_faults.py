"""The long fault suite (`make faults`): real processes, killed, crowded and starved."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from faulting import rows, start, wait_for_rows
from resuming import contents

pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.mark.parametrize("method", ["gmp", "imp", "dpf", "rigl"])
def test_killed_at_random_instants(method: str, tmp_path: Path) -> None:
    """Seven SIGKILLs a method, over as many runs as they need; the same command every time."""
    chance = random.Random(method)
    began = time.monotonic()
    assert start(tmp_path / "whole", "--method", method, "--resume").wait() == 0
    whole, seconds = contents(tmp_path / "whole"), time.monotonic() - began
    kills, runs = 0, 0
    while kills < 7:
        out = tmp_path / f"killed-{runs}"
        runs += 1
        for _ in range(40):
            process = start(out, "--method", method, "--resume")
            try:
                assert process.wait(timeout=chance.uniform(0.2, 1.0) * seconds) == 0
                break
            except subprocess.TimeoutExpired:
                process.kill() if kills < 7 else None
                kills += kills < 7
                assert process.wait() in (0, -signal.SIGKILL)
                if process.returncode == 0:
                    break
        assert contents(out) == whole
        assert json.loads((out / "summary.json").read_text())["status"] == "done"


def test_sigterm_checkpoints_and_leaves_within_ten_seconds(tmp_path: Path) -> None:
    out, longer = tmp_path / "out", ("--epochs", "60")
    process = start(out, *longer)
    while process.poll() is None and not list((out / "checkpoints").glob("*.json")):
        time.sleep(0.05)
    asked = time.monotonic()
    process.terminate()
    assert process.wait() == 143
    assert time.monotonic() - asked < 10.0
    assert process.stderr is not None
    assert f"--out {out} and --resume" in process.stderr.read()
    assert list((out / "checkpoints").glob("*.json"))
    assert start(out, *longer, "--resume").wait() == 0


def test_a_second_process_on_one_directory_is_refused_and_the_lock_dies_with_its_owner(tmp_path: Path) -> None:
    out, long = tmp_path / "out", ("--epochs", "5000", "--resume")  # it must outlast the start of the second
    first = start(out, *long)
    wait_for_rows(first, out, 3)
    second = start(out, *long)
    assert second.wait() == 2
    assert second.stderr is not None
    assert f"in use by process {first.pid}" in second.stderr.read()
    first.kill()
    first.wait()
    third = start(out, *long)
    before = len(rows(out))
    wait_for_rows(third, out, before + 3)
    assert third.poll() is None
    third.kill()
    third.wait()


def test_no_room_for_a_checkpoint_is_one_line_and_keeps_the_ones_before(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the write fails in the same place."""
    assert start(tmp_path / "whole").wait() == 0
    out = tmp_path / "out"
    process = start(out)
    wait_for_rows(process, out, 8)
    process.terminate()
    assert process.wait() == 143
    kept = {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()}

    def starve() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    starved = start(out, "--resume", prepare=starve)
    assert starved.stderr is not None
    error = starved.stderr.read()
    assert starved.wait() == 1
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    for name, data in kept.items():
        if name.endswith(".json"):
            assert (out / "checkpoints" / name).read_bytes() == data
    assert start(out, "--resume").wait() == 0
    assert contents(out) == contents(tmp_path / "whole")
