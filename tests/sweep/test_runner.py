"""`sparsekit sweep` itself: real processes, started once each, whatever happens in between."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sparsekit.cli import main as cli
from sparsekit.cli import sweep as command
from sparsekit.run import directory as rundir
from sparsekit.sweep import pool, spec

Capture = pytest.CaptureFixture[str]
SWEEP = "parameters:\n  method: {values: [gmp, imp]}\n  seed: {values: [0, 1]}\n"

# Stands for `sparsekit fit`: it leaves what a finished run leaves, fails where seed is 1, or waits to be told to stop.
CHILD = """
import json, os, pathlib, signal, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(parents=True, exist_ok=True)
with (out / "starts").open("a") as file:
    file.write(json.dumps({key: os.environ.get(key) for key in %r}) + "\\n")
if pathlib.Path("wait").exists():
    signal.signal(signal.SIGTERM, lambda *_: (out.joinpath("told").touch(), sys.exit(143)))
    signal.signal(signal.SIGINT, lambda *_: (out.joinpath("told").touch(), sys.exit(130)))
    out.joinpath("ready").touch()
    time.sleep(60)
if "--seed=1" in sys.argv and not pathlib.Path("mended").exists():
    print("some talk")
    sys.exit("sparsekit: error: --seed is 1; this one fails")
out.joinpath("summary.json").write_text(json.dumps({"status": "done", "test.accuracy": 0.9}))
"""
WATCHED = ["OMP_NUM_THREADS", "WANDB_RUN_GROUP", "WANDB_RUN_ID", "WANDB_PROJECT", "CUDA_VISIBLE_DEVICES"]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep file in the current folder whose runs are stand-ins."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "child.py").write_text(CHILD % WATCHED)
    child = [sys.executable, str(tmp_path / "child.py")]
    monkeypatch.setattr(
        spec.Spec, "arguments", lambda self, cell, out: [*child, *self.options(cell), "--out", str(out.absolute())]
    )
    (tmp_path / "s.yaml").write_text(SWEEP)
    return tmp_path


def state(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "sweep.json").read_text())["cells"])


def starts(out: Path) -> dict[str, list[dict[str, str | None]]]:
    return {p.parent.name: [json.loads(line) for line in p.read_text().splitlines()] for p in out.glob("*/starts")}


def test_a_failure_is_recorded_and_a_second_start_runs_only_what_is_left(sweep: Path, capsys: Capture) -> None:
    assert cli.main(["sweep", "s.yaml", "--out", "o", "--jobs", "3"]) == 1
    out, _ = capsys.readouterr()
    assert "method=imp,seed=1: --seed is 1; this one fails" in out
    assert "2 of 4 runs done, 2 failed" in out
    cells = state(sweep / "o")
    assert [cells[f"method=gmp,seed={seed}"]["status"] for seed in (0, 1)] == ["done", "failed"]
    assert cells["method=gmp,seed=1"]["error"] == "--seed is 1; this one fails"
    (sweep / "mended").touch()
    assert cli.main(["sweep", "s.yaml", "--out", "o"]) == 0
    assert {name: len(found) for name, found in starts(sweep / "o").items()} == {
        f"method={method},seed={seed}": 1 + seed for method in ("gmp", "imp") for seed in (0, 1)
    }
    assert all(cell["status"] == "done" and cell["error"] is None for cell in state(sweep / "o").values())
    assert [len(cell["attempts"]) for cell in state(sweep / "o").values()] == [1, 2, 1, 2]
    assert "some talk" in (sweep / "o" / "logs" / "method=gmp,seed=1.log").read_text()


def test_what_the_runs_are_told(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sweep / "mended").touch()
    (sweep / "s.yaml").write_text("project: mine\n" + SWEEP)
    monkeypatch.setenv("WANDB_RUN_ID", "another")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert cli.main(["sweep", "s.yaml", "--out", "o", "--jobs", "2"]) == 0
    found = [told for each in starts(sweep / "o").values() for told in each]
    common = {"OMP_NUM_THREADS": "3", "WANDB_RUN_GROUP": "o", "WANDB_RUN_ID": None, "WANDB_PROJECT": "mine"}
    assert all(told.items() >= common.items() for told in found)
    assert {told["CUDA_VISIBLE_DEVICES"] for told in found} == {"3", "5"}
    assert pool.threads(4, {"OMP_NUM_THREADS": "7"}) == {}


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_runs_and_starts_no_more(sweep: Path, signum: signal.Signals, code: int) -> None:
    (sweep / "wait").touch()
    script = (
        "import sys\nfrom sparsekit import cli\nfrom sparsekit.sweep import spec\n"
        f"spec.Spec.arguments = lambda self, cell, out: [{sys.executable!r}, 'child.py', '--out', str(out)]\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, "sweep", "s.yaml", "--out", "o", "--jobs", "2"])
    while process.poll() is None and len(list(sweep.glob("o/*/ready"))) < 2:
        time.sleep(0.02)
    process.send_signal(signum)
    assert process.wait(timeout=60) == code
    assert len(list(sweep.glob("o/*/told"))) == len(starts(sweep / "o")) == 2
    statuses = [cell["status"] for cell in state(sweep / "o").values()]
    assert statuses == ["stopped", "stopped", "waiting", "waiting"]


@pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux alone")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_group_while_all_is_imported(tmp_path: Path, signum: signal.Signals, code: int) -> None:
    (tmp_path / "s.yaml").write_text(SWEEP)
    line = [sys.executable, "-m", "sparsekit", "sweep", "s.yaml", "--out", "o", "--jobs", "2"]
    process = subprocess.Popen(
        line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and not (tmp_path / "o" / "logs").is_dir():
        time.sleep(0.02)
    time.sleep(0.3)
    os.killpg(process.pid, signum)
    out, err = process.communicate(timeout=600)
    assert process.returncode == code
    assert err == ""
    assert "0 of 4 done; the same command goes on" in out
    assert not list(tmp_path.glob("o/*/summary.json"))
    assert {cell["status"] for cell in state(tmp_path / "o").values()} == {"stopped", "waiting"}


def test_a_signal_ends_the_wait_for_a_run_that_is_in_use(sweep: Path) -> None:
    for name in ("method=gmp,seed=0", "method=gmp,seed=1"):
        (sweep / "o" / name).mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-m", "sparsekit", "sweep", "s.yaml", "--out", "o"])
    with (sweep / "o" / "method=gmp,seed=0" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        while process.poll() is None and not (sweep / "o" / "sweep.json").is_file():
            time.sleep(0.02)
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    assert not (sweep / "o" / "logs").exists()


def test_what_is_done_is_written_down_once(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sweep / "mended").touch()
    assert cli.main(["sweep", "s.yaml", "--out", "o"]) == 0
    written = []
    monkeypatch.setattr("sparsekit.sweep.state.write_whole", lambda path, data: written.append(data))
    assert cli.main(["sweep", "s.yaml", "--out", "o"]) == 0
    assert len(written) == 2
    assert json.loads(written[-1]) == json.loads((sweep / "o" / "sweep.json").read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_runs_do_not_outlive_a_sweep_that_is_killed(sweep: Path) -> None:
    (sweep / "wait").touch()
    script = (
        "import sys\nfrom sparsekit import cli\nfrom sparsekit.sweep import spec\n"
        f"spec.Spec.arguments = lambda self, cell, out: [{sys.executable!r}, 'child.py', '--out', str(out)]\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, "sweep", "s.yaml", "--out", "o"])
    while process.poll() is None and not list(sweep.glob("o/*/ready")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while not list(sweep.glob("o/*/told")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(sweep.glob("o/*/told"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux alone")
def test_forked_runs_keep_a_checkpoint_and_leave_when_their_sweep_is_killed(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "parameters:\n  seed: {values: [1, 2]}\n  epochs: {value: 300}\n  wandb.mode: {value: disabled}\n"
    )
    process = subprocess.Popen([sys.executable, "-m", "sparsekit", "sweep", "s.yaml", "--out", "o"], cwd=tmp_path)
    run, log = tmp_path / "o" / "seed=1", tmp_path / "o" / "logs" / "seed=1.log"
    while process.poll() is None and not rundir.size(run / "metrics.jsonl"):
        time.sleep(0.05)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while "stopped by SIGTERM" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "stopped by SIGTERM" in log.read_text()
    assert json.loads((run / "summary.json").read_text())["status"] == "stopped"
    assert list((run / "checkpoints").glob("*.json"))


def test_other_values_under_the_same_names_are_refused(sweep: Path, capsys: Capture) -> None:
    (sweep / "mended").touch()
    assert cli.main(["sweep", "s.yaml", "--out", "o"]) == 0
    (sweep / "s.yaml").write_text(SWEEP + "  epochs: {value: 40}\n")
    assert cli.main(["sweep", "s.yaml", "--out", "o"]) == 2
    assert "another value of epochs; give another --out" in capsys.readouterr().err


def test_a_run_with_bad_options_is_told_before_anything_starts_and_all_of_them_are_bad_input(
    sweep: Path, capsys: Capture
) -> None:
    (sweep / "s.yaml").write_text("parameters: {method: {values: [gmp, nosuch]}}")
    assert cli.main(["sweep", "s.yaml", "--out", "o"]) == 1
    assert set(starts(sweep / "o")) == {"method=gmp"}
    assert "'nosuch'" in state(sweep / "o")["method=nosuch"]["error"]
    (sweep / "s.yaml").write_text("parameters: {sparsty: {values: [0.5, 0.9]}}")
    capsys.readouterr()
    assert cli.main(["sweep", "s.yaml", "--out", "p"]) == 2
    assert "unknown option --sparsty. Did you mean '--sparsity'?" in capsys.readouterr().err
    assert not (sweep / "p").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "SWEEP.yaml must be given"),
        ("nowhere.yaml", "sweep file 'nowhere.yaml' does not exist"),
        ("s.yaml --jobs 0", "--jobs|0|1 or more"),
        ("s.yaml --count x", "--count|'x'|number"),
        ("s.yaml --job 2", "--job"),
    ],
)
def test_bad_arguments(sweep: Path, capsys: Capture, arguments: str, words: str) -> None:
    assert cli.main(["sweep", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in words.split("|"):
        assert word in error
    assert not (sweep / "runs").exists()


def test_early_stopping_is_left_to_wandb_and_said_so(sweep: Path, capsys: Capture) -> None:
    (sweep / "mended").touch()
    (sweep / "s.yaml").write_text("early_terminate: {type: hyperband}\n" + SWEEP)
    assert cli.main(["sweep", "s.yaml", "--out", "o"]) == 0
    assert "early_terminate is left to W&B" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("a\nsparsekit: error: --x is 3\nb\n", 2, "--x is 3"),
        ("Traceback\nValueError: no\n\n", 1, "ValueError: no"),
        ("", 1, "exit code 1"),
        ("all is well\n", -9, "killed by SIGKILL"),
    ],
)
def test_the_last_word_of_a_run(tmp_path: Path, text: str, code: int, expected: str) -> None:
    log = tmp_path / "log"
    log.write_text("sparsekit: error: an earlier one\n" + text)
    assert pool.last_word(log, len("sparsekit: error: an earlier one\n"), code) == expected


@pytest.mark.slow
def test_twenty_four_runs_killed_twice_are_each_run_once(tmp_path: Path) -> None:
    """A SIGKILL of the whole sweep, then a SIGTERM; what was done stays as it was, what was cut off goes on."""
    (tmp_path / "s.yaml").write_text(
        "method: grid\nparameters:\n"
        "  method: {values: [gmp, imp]}\n  merge: {values: [uniform, greedy]}\n"
        "  sparsity: {values: [0.5, 0.8, 0.9]}\n  seed: {values: [0, 1]}\n"
        "  epochs: {value: 6}\n  model.kwargs: {value: {channels: [4, 4, 8, 8]}}\n"
        "  replicas.count: {value: 2}\n  wandb.mode: {value: disabled}\n"
    )
    out = tmp_path / "o"
    line = [sys.executable, "-m", "sparsekit", "sweep", "s.yaml", "--out", str(out), "--jobs", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    known: dict[str, tuple[int, int]] = {}
    cut_off: set[str] = set()

    def done() -> dict[str, tuple[int, int]]:
        found = {}
        for path in out.glob("*/summary.json"):
            if json.loads(path.read_text())["status"] == "done":
                written = path.with_name("config.yaml").stat().st_mtime_ns
                found[path.parent.name] = (path.stat().st_mtime_ns, written)
        return found

    for enough, signum in ((7, signal.SIGKILL), (15, signal.SIGTERM)):
        process = subprocess.Popen(line, cwd=tmp_path, env=environment)
        while process.poll() is None and len(done()) < enough:
            time.sleep(0.1)
        process.send_signal(signum)
        assert process.wait(timeout=60) == (143 if signum == signal.SIGTERM else -9)
        deadline = time.monotonic() + 60
        while any(_locked(path) for path in out.glob("*/.lock")) and time.monotonic() < deadline:
            time.sleep(0.1)  # the children of the killed one leave by themselves
        assert done().items() >= known.items()
        known = done()
        assert enough <= len(known) < 24
        cut_off |= {path.parent.name for path in out.glob("*/.lock")} - set(known)
    last = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert last.returncode == 0, last.stdout + last.stderr
    assert "24 of 24 runs done" in last.stdout
    assert len(done()) == len(list(out.glob("*/config.yaml"))) == 24
    assert done().items() >= known.items()  # nothing that was done has been written again
    attempts = {name: len(cell["attempts"]) for name, cell in state(out).items()}
    assert {name for name, count in attempts.items() if count > 1} <= cut_off
    assert sum(attempts.values()) <= 24 + 4
    for path in out.glob("*/metrics.jsonl"):
        rows = [json.loads(row) for row in path.read_text().splitlines()]
        assert sum(row["event"] == "done" for row in rows) == 1
        assert [row["step"] for row in rows if row["event"] == "merge"] == sorted(
            {row["step"] for row in rows if row["event"] == "merge"}
        )
    page = (out / "report.html").read_text()
    assert "24 runs" in page
    assert "24 of them done" in page
    for method, merge in itertools.product(("gmp", "imp"), ("uniform", "greedy")):
        assert page.count(f"<td>{method}</td><td>{merge}</td>") >= 3  # a group a sparsity, over two seeds


def _locked(lock: Path) -> bool:
    """Whether a process holds a run."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


@pytest.mark.slow
def test_a_run_of_a_sweep_is_the_command_bit_for_bit(tmp_path: Path) -> None:
    """Runs are forked from a process that did the imports; here against a process of its own."""
    (tmp_path / "s.yaml").write_text(
        "method: grid\nparameters:\n  seed: {values: [0, 1]}\n  epochs: {value: 3}\n  wandb.mode: {value: offline}\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ours = [sys.executable, "-m", "sparsekit"]
    subprocess.run([*ours, "sweep", "s.yaml", "--out", "swept"], cwd=tmp_path, env=environment, check=True)
    alone = [*ours, "fit", "--seed", "1", "--epochs", "3", "--wandb.mode", "offline", "--out", "alone"]
    subprocess.run(alone, cwd=tmp_path, env=environment, check=True)
    swept, single = tmp_path / "swept" / "seed=1", tmp_path / "alone"
    for file in ("model/model.safetensors", "masks.safetensors", "metrics.jsonl"):
        assert (swept / file).read_bytes() == (single / file).read_bytes()
    assert sorted(path.name for path in swept.iterdir()) == sorted(path.name for path in single.iterdir())
    assert len(list(swept.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    log = (tmp_path / "swept" / "logs" / "seed=1.log").read_text()
    assert "gmp + uniform   done" in log


def test_several_files_run_in_directories_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, int]] = []
    monkeypatch.setattr(command.Sweep, "run", lambda self: ran.append((str(self._out), len(self._cells))) or 0)
    for name, seeds in (("a", "[0, 1]"), ("b", "[0, 1, 2]")):
        (tmp_path / f"{name}.yaml").write_text(f"parameters: {{seed: {{values: {seeds}}}}}\nmethod: grid\n")
    files = [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]
    assert cli.main(["sweep", *files, "--out", str(tmp_path / "o")]) == 0
    assert ran == [(str(tmp_path / "o" / "a"), 2), (str(tmp_path / "o" / "b"), 3)]


def test_files_of_one_name_are_refused(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "x").mkdir()
    for path in (tmp_path / "a.yaml", tmp_path / "x" / "a.yaml"):
        path.write_text("parameters: {seed: {values: [0]}}\nmethod: grid\n")
    assert cli.main(["sweep", str(tmp_path / "a.yaml"), str(tmp_path / "x" / "a.yaml")]) == 2
    assert "would share directories; give files of different names" in capsys.readouterr().err


def test_help_names_the_options(capsys: Capture) -> None:
    assert cli.main(["sweep", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("SWEEP.yaml", "--count", "--jobs", "--out"))
