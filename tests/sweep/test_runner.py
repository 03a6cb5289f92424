"""`sparsekit sweep` itself: real processes, started once each, whatever happens in between."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

from sparsekit.cli import main as cli
from sparsekit.config import parser as options
from sparsekit.config.options import describe
from sparsekit.sweep import spec
from sparsekit.sweep.pool import Child

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
if "--seed=1" in sys.argv and pathlib.Path("kill").exists():
    os.kill(os.getpid(), signal.SIGKILL)
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


SCRIPT = f"""
import sys
from sparsekit.cli import main as cli
from sparsekit.sweep import spec
spec.Spec.arguments = lambda self, cell, out: [{sys.executable!r}, "child.py", "--out", str(out)]
sys.exit(cli.main(sys.argv[1:]))
"""


def starts(out: Path) -> dict[str, list[dict[str, str | None]]]:
    """The variables that each start of each run had."""
    return {p.parent.name: [json.loads(line) for line in p.read_text().splitlines()] for p in out.glob("*/starts")}


def test_a_failed_run_is_reported_and_a_second_start_runs_only_what_is_left(sweep: Path, capsys: Capture) -> None:
    assert cli.main(["sweep", "s.yaml", "--out", "o", "--jobs", "3"]) == 1
    out, _ = capsys.readouterr()
    assert "method=imp,seed=1: --seed is 1; this one fails" in out
    assert "2 of 4 runs done, 2 failed" in out
    (sweep / "mended").touch()
    assert cli.main(["sweep", "s.yaml", "--out", "o"]) == 0
    assert "2 done before" in capsys.readouterr().out
    assert {name: len(found) for name, found in starts(sweep / "o").items()} == {
        f"method={method},seed={seed}": 1 + seed for method in ("gmp", "imp") for seed in (0, 1)
    }
    assert "some talk" in (sweep / "o" / "logs" / "method=gmp,seed=1.log").read_text()


def test_each_run_says_what_it_reached_under_the_name_of_its_score(sweep: Path, capsys: Capture) -> None:
    (sweep / "mended").touch()
    assert cli.main(["sweep", "s.yaml", "--out", "accuracy"]) == 0
    assert "method=gmp,seed=0  done: 90.00 %, " in capsys.readouterr().out
    child = (sweep / "child.py").read_text()
    (sweep / "child.py").write_text(child.replace('"test.accuracy": 0.9', '"score": "mAP", "test.mAP": 0.9'))
    assert cli.main(["sweep", "s.yaml", "--out", "mAP"]) == 0
    assert "method=gmp,seed=0  done: mAP 0.9000, " in capsys.readouterr().out


def test_a_killed_run_fails_alone(sweep: Path, capsys: Capture) -> None:
    (sweep / "kill").touch()
    assert cli.main(["sweep", "s.yaml", "--out", "o", "--jobs", "2"]) == 1
    out, _ = capsys.readouterr()
    assert "method=gmp,seed=1: killed by SIGKILL" in out
    assert "2 of 4 runs done, 2 failed" in out


@pytest.mark.parametrize(("given", "expected"), [(None, "3"), ("7", "7")])
def test_the_variables_of_a_run(sweep: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str) -> None:
    (sweep / "mended").touch()
    (sweep / "s.yaml").write_text("project: mine\n" + SWEEP)
    monkeypatch.setenv("WANDB_RUN_ID", "another")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert cli.main(["sweep", "s.yaml", "--out", "o", "--jobs", "2"]) == 0
    found = [variables for each in starts(sweep / "o").values() for variables in each]
    common = {"OMP_NUM_THREADS": expected, "WANDB_RUN_GROUP": "o", "WANDB_RUN_ID": None, "WANDB_PROJECT": "mine"}
    assert all(variables.items() >= common.items() for variables in found)
    assert {variables["CUDA_VISIBLE_DEVICES"] for variables in found} == {"3", "5"}


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_runs_and_starts_no_more(sweep: Path, signum: signal.Signals, code: int) -> None:
    (sweep / "wait").touch()
    line = [sys.executable, "-c", SCRIPT, "sweep", "s.yaml", "--out", "o", "--jobs", "2"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and len(list(sweep.glob("o/*/ready"))) < 2:
        time.sleep(0.02)
    process.send_signal(signum)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert len(list(sweep.glob("o/*/told"))) == len(starts(sweep / "o")) == 2
    assert out.count("  stopped\n") == 2
    assert "0 of 4 done" in out


def test_ctrl_c_while_the_runs_still_import(tmp_path: Path) -> None:
    """A terminal sends it to every process in front."""
    (tmp_path / "s.yaml").write_text(SWEEP)
    line = [sys.executable, "-m", "sparsekit", "sweep", "s.yaml", "--out", "o", "--jobs", "2"]
    process = subprocess.Popen(
        line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and not (tmp_path / "o" / "logs").is_dir():
        time.sleep(0.02)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == ""
    assert "0 of 4 done" in out
    assert not list(tmp_path.glob("o/*/summary.json"))


def test_a_run_that_is_in_use_is_waited_for(sweep: Path) -> None:
    (sweep / "mended").touch()
    run = sweep / "o" / "method=gmp,seed=0"
    run.mkdir(parents=True)
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        released: list[float] = []
        timer = threading.Timer(1.0, lambda: (released.append(time.time()), fcntl.flock(lock, fcntl.LOCK_UN)))
        timer.start()
        assert cli.main(["sweep", "s.yaml", "--out", "o"]) == 0
        timer.join()
    assert (run / "summary.json").stat().st_mtime >= released[0]


def test_ctrl_c_ends_the_wait_for_a_run_that_is_in_use(sweep: Path) -> None:
    run = sweep / "o" / "method=gmp,seed=0"
    run.mkdir(parents=True)
    line = [sys.executable, "-m", "sparsekit", "sweep", "s.yaml", "--out", "o"]
    # a shell's background job has SIGINT ignored, and so have its children
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with (
        (run / ".lock").open("w") as lock,
        subprocess.Popen(line, stdout=subprocess.PIPE, text=True, preexec_fn=heard) as process,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert process.stdout
        assert "4 runs" in process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    assert not (sweep / "o" / "logs").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_runs_do_not_outlive_a_sweep_that_is_killed(sweep: Path) -> None:
    (sweep / "wait").touch()
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, "sweep", "s.yaml", "--out", "o"])
    while process.poll() is None and not list(sweep.glob("o/*/ready")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while not list(sweep.glob("o/*/told")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(sweep.glob("o/*/told"))


def test_other_values_under_the_same_names_are_refused(sweep: Path, capsys: Capture) -> None:
    run = sweep / "o" / "method=gmp,seed=0"
    run.mkdir(parents=True)
    config = options.parse(options.build("sparsekit fit", ""), ["--method=gmp", "--seed=0", "--model.kwargs={a: 1}"])
    (run / "config.yaml").write_text(yaml.safe_dump(describe(config)))
    (run / "summary.json").write_text('{"status": "done"}')
    (sweep / "mended").touch()
    (sweep / "s.yaml").write_text(SWEEP + "  epochs: {value: 40}\n  model.kwargs: {value: {a: 1}}\n")
    assert cli.main(["sweep", "s.yaml", "--out", "o"]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in ("another value of epochs;", "method=gmp,seed=0", "another --out"))
    assert not starts(sweep / "o")
    (sweep / "s.yaml").write_text(
        SWEEP + f"  epochs: {{value: {config.epochs}}}\n  model.kwargs: {{value: {{a: 1}}}}\n"
    )
    assert cli.main(["sweep", "s.yaml", "--out", "o"]) == 0
    assert len(starts(sweep / "o")) == 3


def test_a_run_with_bad_options_fails_before_anything_starts_and_if_all_do_it_is_bad_input(
    sweep: Path, capsys: Capture
) -> None:
    (sweep / "s.yaml").write_text("parameters: {method: {values: [gmp, nosuch]}}")
    assert cli.main(["sweep", "s.yaml", "--out", "o"]) == 1
    assert set(starts(sweep / "o")) == {"method=gmp"}
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("method=nosuch"))
    assert "'nosuch'" in line
    (sweep / "s.yaml").write_text("parameters: {sparsty: {values: [0.5, 0.9]}}")
    assert cli.main(["sweep", "s.yaml", "--out", "p"]) == 2
    error = capsys.readouterr().err
    assert "--sparsty" in error
    assert "'--sparsity'" in error
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


def test_early_stopping_is_left_to_wandb_with_a_note(sweep: Path, capsys: Capture) -> None:
    (sweep / "mended").touch()
    (sweep / "s.yaml").write_text("early_terminate: {type: hyperband}\n" + SWEEP)
    assert cli.main(["sweep", "s.yaml", "--out", "o"]) == 0
    assert "early_terminate is left to W&B" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("echo a; echo 'sparsekit: error: --x is 3'; echo b; exit 2", "--x is 3"),
        ("echo Traceback; echo 'ValueError: no'; exit 1", "ValueError: no"),
        ("exit 1", "exit code 1"),
        ("echo all is well; kill -9 $$", "killed by SIGKILL"),
    ],
)
def test_the_error_of_a_run_is_in_the_output_of_its_last_start(tmp_path: Path, command: str, expected: str) -> None:
    log = tmp_path / "log"
    log.write_text("sparsekit: error: an earlier one\n")
    child = Child("x", ["sh", "-c", command], log, {})
    child.process.wait()
    assert child.error() == expected


def test_a_launcher_that_is_missing_is_named(tmp_path: Path) -> None:
    child = Child("x", ["nosuch-launcher", "fit"], tmp_path / "log", {})
    assert child.process.wait() != 0
    assert "nosuch-launcher" in child.error()


def test_several_files_run_in_directories_of_their_own(sweep: Path) -> None:
    (sweep / "mended").touch()
    (sweep / "t.yaml").write_text("parameters: {seed: {values: [0, 1, 2]}}\n")
    assert cli.main(["sweep", "s.yaml", "t.yaml", "--out", "o", "--jobs", "2"]) == 0
    assert (len(starts(sweep / "o" / "s")), len(starts(sweep / "o" / "t"))) == (4, 3)


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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_runs_keep_a_checkpoint_and_leave_when_their_sweep_is_killed(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "parameters:\n  seed: {values: [1, 2]}\n  epochs: {value: 300}\n  wandb.mode: {value: disabled}\n"
    )
    process = subprocess.Popen([sys.executable, "-m", "sparsekit", "sweep", "s.yaml", "--out", "o"], cwd=tmp_path)
    run, log = tmp_path / "o" / "seed=1", tmp_path / "o" / "logs" / "seed=1.log"
    metrics = run / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and '"train"' in metrics.read_text()):
        time.sleep(0.05)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while "stopped by SIGTERM" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "stopped by SIGTERM" in log.read_text()
    assert json.loads((run / "summary.json").read_text())["status"] == "stopped"
    assert list((run / "checkpoints").glob("*.json"))


@pytest.mark.slow
def test_a_sweep_killed_twice_trains_each_run_once(tmp_path: Path) -> None:
    """A SIGKILL of the whole sweep, then a SIGTERM; what was done stays as it was, what was cut off goes on."""
    (tmp_path / "s.yaml").write_text(
        "method: grid\nparameters:\n"
        "  method: {values: [gmp, imp]}\n  merge: {values: [uniform, greedy]}\n"
        "  seed: {values: [0, 1]}\n"
        "  epochs: {value: 6}\n  model.kwargs: {value: {channels: [4, 4, 8, 8]}}\n"
        "  replicas.count: {value: 2}\n  wandb.mode: {value: disabled}\n"
    )
    out = tmp_path / "o"
    line = [sys.executable, "-m", "sparsekit", "sweep", "s.yaml", "--out", str(out), "--jobs", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    known: dict[str, tuple[int, ...]] = {}

    def done() -> dict[str, tuple[int, ...]]:
        found = {}
        for path in out.glob("*/summary.json"):
            if json.loads(path.read_text())["status"] == "done":
                name = path.parent.name
                files = (path, path.with_name("config.yaml"), out / "logs" / f"{name}.log")
                found[name] = tuple(file.stat().st_mtime_ns for file in files)
        return found

    for enough, signum in ((2, signal.SIGKILL), (5, signal.SIGTERM)):
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
        assert enough <= len(known) < 8
    last = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert last.returncode == 0, last.stdout + last.stderr
    assert "8 of 8 runs done" in last.stdout
    assert len(done()) == len(list(out.glob("*/config.yaml"))) == 8
    assert done().items() >= known.items()  # nothing that was done has been started again
    for path in out.glob("*/metrics.jsonl"):
        rows = [json.loads(row) for row in path.read_text().splitlines()]
        assert sum(row["event"] == "done" for row in rows) == 1
        assert [row["step"] for row in rows if row["event"] == "merge"] == sorted(
            {row["step"] for row in rows if row["event"] == "merge"}
        )
    page = (out / "report.html").read_text()
    assert "8 runs" in page
    assert "8 of them done" in page
    for method, merge in itertools.product(("gmp", "imp"), ("uniform", "greedy")):
        # a group over two seeds; between them another option that differs
        assert re.search(rf"<td>{method}</td>(<td>[^<]*</td>)?<td>{merge}</td>", page)


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
    """Its files too."""
    (tmp_path / "s.yaml").write_text(
        "method: grid\nparameters:\n  seed: {values: [0, 1]}\n  epochs: {value: 2}\n  data.image_size: {value: 8}\n"
        "  wandb.mode: {value: offline}\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ours = [sys.executable, "-m", "sparsekit"]
    subprocess.run([*ours, "sweep", "s.yaml", "--out", "swept"], cwd=tmp_path, env=environment, check=True)
    alone = [*ours, "fit", "--seed", "1", "--epochs", "2", "--data.image_size", "8"]
    subprocess.run([*alone, "--wandb.mode", "offline", "--out", "alone"], cwd=tmp_path, env=environment, check=True)
    swept, single = tmp_path / "swept" / "seed=1", tmp_path / "alone"
    for file in ("model/model.safetensors", "masks.safetensors", "metrics.jsonl"):
        assert (swept / file).read_bytes() == (single / file).read_bytes()
    assert sorted(path.name for path in swept.iterdir()) == sorted(path.name for path in single.iterdir())
    assert len(list(swept.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    log = (tmp_path / "swept" / "logs" / "seed=1.log").read_text()
    assert "gmp + uniform   done" in log
