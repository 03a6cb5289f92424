"""`torchrun --max-restarts`: ranks are killed at random instants, and the run ends with the undisturbed weights.

`KILLS=20 pytest tests/executors/test_restarts.py -k killed` kills twenty ranks; without it there are four.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from safetensors.torch import load_file
from tiny import ARGUMENTS

from sparsekit.errors import UserError
from sparsekit.training import ranks

KILLS = int(os.environ.get("KILLS", "4"))
RUN = [*ARGUMENTS, "--epochs", "12", "--replicas.count", "2", "--replicas.start", "0", "--checkpoint.minutes", "0.01"]
RESTARTING = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "3", "-m"]


def start(launch: list[str], *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *launch, "sparsekit", "fit", *RUN, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], out: Path) -> dict[str, Any]:
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 0, said[-3000:]
    return load_file(out / "model" / "model.safetensors") | load_file(out / "masks.safetensors")


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


@pytest.fixture(scope="module", params=["0", "0.9"])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return request.param, ended(start(["-m"], "--sparsity", request.param, "--out", str(out)), out)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(KILLS // 2))
def test_a_killed_rank_changes_no_bit(number: int, undisturbed: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """Without --resume, too: ranks that torchrun starts again resume by themselves."""
    sparsity, expected = undisturbed
    chance, out = random.Random(f"{number} {sparsity}"), tmp_path / "run"
    resume = ["--resume"] if number % 2 else []
    process = start(RESTARTING, "--sparsity", sparsity, "--out", str(out), *resume)
    kills: list[str] = []
    for _ in range(1 + number % 2):  # every other run loses a rank twice
        known = len((out / "metrics.jsonl").read_bytes()) if (out / "metrics.jsonl").exists() else 0
        while process.poll() is None and not (
            (out / "metrics.jsonl").exists() and len((out / "metrics.jsonl").read_bytes()) > known
        ):
            time.sleep(0.02)
        time.sleep(chance.uniform(0.0, 2.5))
        if process.poll() is None and len(found := ranks_of(process)) == 2:
            victim = chance.randrange(2)
            os.kill(found[victim], signal.SIGKILL)
            kills.append(f"rank {victim} after {len((out / 'metrics.jsonl').read_bytes())} bytes of metrics")
            time.sleep(0.5)
    found = ended(process, out)
    print(f"sparsity {sparsity}: {', '.join(kills) or 'it ended before'}")
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)


def test_messages_of_another_attempt_are_not_seen() -> None:
    """Two attempts of two ranks in one store, as torchrun keeps it: the second sees nothing of the first."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    for attempt in range(2):
        found: dict[int, Any] = {}

        def meet(rank: int, found: dict[int, Any] = found) -> None:
            found[rank] = ranks._attempts_own(store, rank, 2)

        threads = [threading.Thread(target=meet, args=(rank,)) for rank in (1, 0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        leader, other = (ranks.Ranks(rank, 2, found[rank]) for rank in (0, 1))
        assert leader.read("order/0") is None
        assert other.read("order/0") is None
        leader.tell("order/0", f"attempt {attempt}")
        assert other.ask("order/0") == f"attempt {attempt}"


@pytest.mark.slow
@pytest.mark.faults
def test_a_run_that_names_no_directory_goes_on_in_the_one_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    process = start(RESTARTING)
    while process.poll() is None and not list(tmp_path.glob("runs/*/metrics.jsonl")):
        time.sleep(0.02)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    (out,) = tmp_path.glob("runs/*")
    ended(process, out)
    assert list(tmp_path.glob("runs/*")) == [out]


def test_a_rank_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_LOST_SECONDS", 0.2)
    with pytest.raises(RuntimeError, match="rank 1 is not there"):
        ranks._attempts_own(dist.HashStore(), 0, 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("rank", "size", "part"),
    [("", "", "RANK is ''"), ("0", "", "WORLD_SIZE is ''"), ("x", "2", "RANK is 'x'"), ("2", "2", "WORLD_SIZE 2"),
     ("-1", "2", "RANK is '-1'"), ("0", "1.5", "WORLD_SIZE is '1.5'"), ("0", "0", "WORLD_SIZE 0")],
)  # fmt: skip
def test_variables_that_are_no_ranks_are_one_line(
    rank: str, size: str, part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sparsekit.cli.main import main

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(UserError):
        ranks.number()
    assert main(["plan"]) == 2
    error = capsys.readouterr().err
    assert part in error
    assert "torchrun" in error
    assert error.count("\n") == 1


def test_ranks_without_an_address_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from sparsekit.cli.main import main

    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert main(["fit", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "MASTER_ADDR" in error
    assert "torchrun" in error
    assert error.count("\n") == 1
