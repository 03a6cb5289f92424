"""A real `wandb agent`, driven by a server of the test's own, runs sweeps of `sparsekit fit`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_wandb import ENTITY, PROJECT, SWEEP, FakeWandb
from wandb_log import WandbLog, finished_log, read_log

from sparsekit.run.wandb_mirror import mirrored

pytestmark = pytest.mark.slow

AGENT = "import wandb.wandb_agent as agent; agent.Agent.POLL_INTERVAL = 0.3; from wandb.cli.cli import cli; cli()"
CONFIGS = Path(__file__).parents[2] / "configs" / "sweeps"
SMALL = {"epochs": 6, "replicas.count": 2, "model.kwargs": {"channels": [4, 4, 8, 8]}, "wandb.mode": "offline"}


def start_agent(server: FakeWandb, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", AGENT, "agent", f"{ENTITY}/{PROJECT}/{SWEEP}"],
        cwd=folder,
        env=server.environment(folder),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def parts(out: Path) -> list[Path]:
    """Logs of a run, first part first."""
    return sorted(out.glob("wandb/offline-run-*/*.wandb"))


def equal(logs: list[WandbLog], out: Path) -> bool:
    """Whether W&B has every row of metrics.jsonl, where the last row of each of W&B's steps counts."""
    last = {step: row for log in logs for step, row in zip(log.steps, log.history, strict=True)}
    seen = [last[step] for step in sorted(last) if not any(key.startswith("report/") for key in last[step])]
    return seen == [mirrored(row) for row in rows(out)] and sorted(last)[: len(seen)] == list(range(len(seen)))


def test_an_agent_runs_a_grid_to_its_end(tmp_path: Path) -> None:
    """The shipped command line; values in the forms of Python; what W&B keeps equals what sparsekit does."""
    command = yaml.safe_load((CONFIGS / "methods.yaml").read_text())["command"]
    sweep = yaml.safe_dump(
        {"program": "sparsekit", "command": command, "method": "grid", "parameters": {"seed": {"values": [0, 1]}}}
    )
    grid: dict[str, dict[str, Any]] = {
        f"{method}{index}{seed}": {
            "method": method, "merge": merge, "sparsity": 0.9, "seed": seed, "optimizer.weight_decay": 1e-05,
            "optimizer.clip_norm": None, "replicas": {"start": 0.2}, "_wandb": {"requeued": True},
        } | SMALL
        for index, (method, merge) in enumerate([("gmp", "uniform"), ("imp", "greedy")])
        for seed in (0, 1)
    }  # fmt: skip
    with FakeWandb(sweep, grid) as server:
        agent = start_agent(server, tmp_path)
        said = agent.communicate(timeout=900)[0]
        assert server.started == list(grid)
    for run, values in grid.items():
        out = tmp_path / "runs" / f"sweep-{SWEEP}" / f"{values['method']}-{values['merge']}-{run}"
        assert json.loads((out / "summary.json").read_text())["status"] == "done", said
        (path,) = parts(out)
        log = finished_log(path)
        assert equal([log], out)
        assert len(rows(out)) > 20
        assert log.history[-1]["report/_type"] == "html-file"  # the page, behind all rows
        assert len(log.history) == len(rows(out)) + 1
        assert (log.run.run_id, log.run.sweep_id, log.run.project) == (run, SWEEP, PROJECT)
        assert log.exit_code == 0
        # the sweep's columns are the options' names, and hold what the run used
        wanted = {key: value for key, value in values.items() if key not in ("replicas", "_wandb")}
        assert log.config.items() >= (wanted | {"replicas.start": 0.2, "replicas.vary": "seed"}).items()
        assert log.summary["test.accuracy"] == json.loads((out / "summary.json").read_text())["test.accuracy"]
        assert server.environment(tmp_path)["WANDB_API_KEY"].encode() not in b"".join(
            path.read_bytes()
            for path in out.rglob("*")
            if path.suffix in (".json", ".jsonl", ".yaml", ".wandb", ".log")
        )


def test_a_run_that_an_agent_stops_goes_on_when_it_is_handed_out_again(tmp_path: Path) -> None:
    """W&B requeues a run under its id; the same command finds its directory, its checkpoint and its W&B run."""
    told = tmp_path / "exits"
    wrapper = tmp_path / "sparsekit"  # an agent does not tell how its child ended
    wrapper.write_text(
        "import sys\nfrom sparsekit.cli.main import main\n"
        f"code = main(sys.argv[1:])\nopen({str(told)!r}, 'a').write(f'{{code}}\\n')\nsys.exit(code)\n"
    )
    command = [sys.executable, str(wrapper), "fit", "${args}", "--resume"]
    sweep = yaml.safe_dump({"program": "sparsekit", "command": command, "parameters": {"seed": {"value": 0}}})
    values = SMALL | {"epochs": 40, "method": "gmp", "merge": "uniform"}
    out = tmp_path / "runs" / f"sweep-{SWEEP}" / "gmp-uniform-first"
    with FakeWandb(sweep, {"first": values}) as server:
        agent = start_agent(server, tmp_path)
        while agent.poll() is None and not ((out / "metrics.jsonl").exists() and len(rows(out)) > 12 and parts(out)):
            time.sleep(0.05)
        server.stop.set()
        said = agent.communicate(timeout=900)[0]
    assert told.read_text() == "143\n", said
    assert json.loads((out / "summary.json").read_text())["status"] == "stopped"
    assert list((out / "checkpoints").glob("*.json"))
    with FakeWandb(sweep, {"first": values}) as server:
        said = start_agent(server, tmp_path).communicate(timeout=900)[0]
    assert told.read_text() == "143\n0\n", said
    assert json.loads((out / "summary.json").read_text())["status"] == "done"
    first, second = parts(out)
    logs = [read_log(first), finished_log(second)]
    assert {log.run.run_id for log in logs} == {"first"}
    assert (logs[0].run.resume, logs[1].run.resume) == (False, True)
    assert equal(logs, out)
    assert not equal(logs[1:], out)


def test_a_value_that_does_not_arrive_is_refused_before_training(tmp_path: Path) -> None:
    """An option behind the sweep's values wins over them, and W&B would show the sweep's value."""
    command = ["${env}", sys.executable, "-m", "sparsekit", "fit", "${args}", "--sparsity", "0.5"]
    sweep = yaml.safe_dump({"program": "sparsekit", "command": command, "parameters": {"sparsity": {"value": 0.9}}})
    with FakeWandb(sweep, {"first": SMALL | {"method": "gmp", "merge": "uniform", "sparsity": 0.9}}) as server:
        said = start_agent(server, tmp_path).communicate(timeout=900)[0]
    assert "--sparsity is 0.5, but the sweep gave 0.9" in said
    assert not (tmp_path / "runs").exists()
