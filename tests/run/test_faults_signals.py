"""Signals to real processes: a second one, one while W&B does not answer, and those that a `wandb agent` sends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_wandb import ENTITY, PROJECT, SWEEP, FakeWandb
from faulting import rows, wait_for_rows
from resuming import contents

pytestmark = [pytest.mark.slow, pytest.mark.faults]

OPTIONS = ["--epochs", "40", "--replicas.count", "2", "--model.kwargs", "{channels: [8, 8, 16, 16]}"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "sparsekit", "fit", *OPTIONS, "--out", str(out), *options]


def start(arguments: list[str], env: dict[str, str] = ENV) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, env=env, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.parametrize(("second", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_stops_at_once(second: signal.Signals, code: int, tmp_path: Path) -> None:
    """The first one comes in a training step; the checkpoint that it asks for is made to last a minute."""
    out = tmp_path / "out"
    script = (
        "import os, pathlib, signal, sys, time\n"
        "from sparsekit.cli.main import main\n"
        "from sparsekit.run import checkpoint\n"
        "from sparsekit.training.replica import Training\n"
        "done, step = 0, Training.step\n"
        "def counted(self, *batch):\n"
        "    global done\n"
        "    step(self, *batch)\n"
        "    done += 1\n"
        "    if done == 60:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "Training.step = counted\n"
        "commit = checkpoint.CheckpointStore.commit\n"
        "def slow(self, body, files):\n"
        "    if body['underway']:\n"
        f"        pathlib.Path({str(tmp_path / 'waiting')!r}).touch()\n"
        "        time.sleep(60)\n"
        "    commit(self, body, files)\n"
        "checkpoint.CheckpointStore.commit = slow\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    quiet = ("--wandb.mode", "disabled")
    process = start([sys.executable, "-c", script, *command(out, *quiet)[3:]])
    while process.poll() is None and not (tmp_path / "waiting").exists():
        time.sleep(0.02)
    assert process.poll() is None
    time.sleep(1.2)  # the same signal within a second is what GNU timeout sends
    asked = time.monotonic()
    process.send_signal(second)
    assert process.wait() == code
    assert time.monotonic() - asked < 5.0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    assert start(command(out, *quiet, "--resume")).wait() == 0
    assert start(command(tmp_path / "whole", *quiet)).wait() == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_a_stop_does_not_wait_for_a_server_that_went_away(tmp_path: Path) -> None:
    """W&B answered when the run began, and does no more when it is stopped: still 143 within 10 s."""
    out = tmp_path / "out"
    with FakeWandb("", []) as server:
        longer = ("--wandb.mode", "online", "--epochs", "2000")  # it must outlast the start of W&B
        process = start(command(out, *longer), env=server.environment(tmp_path))
        wait_for_rows(process, out, 5)
        while process.poll() is None and not list((out / "wandb").glob("run-*")):
            time.sleep(0.05)
        time.sleep(2.0)  # what is sent is under way
        server.hang.set()
        asked = time.monotonic()
        process.terminate()
        assert process.wait() == 143
        took = time.monotonic() - asked
    assert took < 10.0
    assert list((out / "checkpoints").glob("*.json"))


def test_as_the_child_of_a_wandb_agent(tmp_path: Path) -> None:
    """The server has the agent stop the run; it keeps a checkpoint, and `--resume` ends as if nothing had been."""
    out = tmp_path / "out"
    told = tmp_path / "exit"
    wrapper = tmp_path / "child.py"  # an agent does not tell how its child ended
    wrapper.write_text(
        "import sys\nfrom sparsekit.cli.main import main\n"
        f"code = main(sys.argv[1:])\nopen({str(told)!r}, 'w').write(str(code))\nsys.exit(code)\n"
    )
    arguments = json.dumps([sys.executable, str(wrapper), *command(out)[3:]])
    sweep = f"method: grid\nprogram: {wrapper}\ncommand: {arguments}\nparameters:\n  seed: {{values: [0]}}\n"
    with FakeWandb(sweep, ["first"]) as server:
        env = server.environment(tmp_path)
        poll = (
            "import wandb.wandb_agent as agent; agent.Agent.POLL_INTERVAL = 0.3; from wandb.cli.cli import cli; cli()"
        )
        agent = subprocess.Popen(
            [sys.executable, "-c", poll, "agent", f"{ENTITY}/{PROJECT}/{SWEEP}"],
            cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        wait_for_rows(agent, out, 5)
        asked = time.monotonic()
        server.stop.set()
        while agent.poll() is None and not told.exists():
            time.sleep(0.05)
        took = time.monotonic() - asked
        said = agent.communicate(timeout=600)[0]
    assert told.exists(), said
    assert told.read_text() == "143", said
    assert took < 10.0
    assert json.loads((out / "summary.json").read_text())["status"] == "stopped"
    assert list((out / "checkpoints").glob("*.json"))
    assert not any(row["event"] == "done" for row in rows(out))
    quiet = ("--wandb.mode", "disabled")
    assert start(command(out, *quiet, "--resume")).wait() == 0
    assert start(command(tmp_path / "whole", *quiet)).wait() == 0
    assert contents(out) == contents(tmp_path / "whole")
