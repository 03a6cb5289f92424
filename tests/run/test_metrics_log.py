"""metrics.jsonl is the truth and W&B its mirror, which may be missing, logged out, unreachable or broken."""

import json
import math
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from tracking import KEY, FakeWandb, Say, rows, use
from wandb_log import only_log

from sparsekit.config.options import WandbConfig
from sparsekit.run import wandb_mirror
from sparsekit.run.metrics_log import Tracker

OFF = WandbConfig(mode="disabled")


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without anybody's netrc; and W&B as talkative as it is by itself."""
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("NETRC", raising=False)
    return folder


def log_some(tracker: Tracker) -> None:
    """Two replicas that pass the same steps, and what follows."""
    for replica in (0, 1):
        for step in (1, 2):
            tracker.log("train", {"loss": 1.0 / step, "lr": 0.1}, step=step, segment=0, replica=replica)
        tracker.log("candidate", {"held_out.accuracy": 0.5 + replica / 4}, step=2, segment=0, replica=replica)
    tracker.log("merge", {"soup": 0.8, "ingredients": [0, 1], "barrier": math.nan}, step=2, segment=0)
    tracker.log("segment", {"mask": "0f3c", "layers": {"conv1.weight": 0.5}}, step=2, segment=1)
    tracker.log("done", step=2)


# --- metrics.jsonl --------------------------------------------------------------------------------


def test_a_row_is_one_json_object_on_disk_at_once(tmp_path: Path, quiet: Say) -> None:
    with Tracker(tmp_path, OFF, {}, "run", warn=quiet) as tracker:
        tracker.log("train", {"loss": 0.5, "kept.share": 0.1}, step=3, segment=0, replica=1)
        assert rows(tmp_path) == [
            {"event": "train", "step": 3, "segment": 0, "replica": 1, "loss": 0.5, "kept.share": 0.1}
        ]
        tracker.log("done", step=9)
    assert rows(tmp_path)[1] == {"event": "done", "step": 9}
    assert tracker.wandb_locations == ()


def test_what_json_cannot_say_is_null(tmp_path: Path, quiet: Say) -> None:
    with Tracker(tmp_path, OFF, {}, "run", warn=quiet) as tracker:
        tracker.log("merge", {"barrier": math.nan, "losses": (1.0, math.inf), "by": {"a": -math.inf}}, step=0)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "event": "merge", "step": 0, "barrier": None, "losses": [1.0, None], "by": {"a": None}
    }  # fmt: skip


def test_a_second_tracker_goes_on_where_the_first_stopped(tmp_path: Path, quiet: Say) -> None:
    with Tracker(tmp_path, OFF, {}, "run", warn=quiet) as tracker:
        tracker.log("train", step=1)
        offset = tracker.offset
        tracker.log("train", step=7)  # after the checkpoint: it is written again
    with Tracker(tmp_path, OFF, {}, "run", warn=quiet, offset=offset) as tracker:
        tracker.log("train", step=2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_tracking_loads_neither_torch_nor_wandb() -> None:
    code = "import sys, sparsekit.run.metrics_log, sparsekit.display.live; print({'torch', 'wandb'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# --- the mirror, through W&B itself ---------------------------------------------------------------


def test_an_offline_run_holds_what_metrics_jsonl_holds(tmp_path: Path, quiet: Say) -> None:
    config = {"method": "gmp", "method.steps": 8, "sparsity": 0.9, "wandb.mode": "offline"}
    with Tracker(tmp_path, WandbConfig("offline", "somewhere"), config, "a name", warn=quiet) as tracker:
        log_some(tracker)
        tracker.summary({"test.accuracy": 0.96, "status": "done", "candidates.best_accuracy": None, "x": math.nan})
        locations = tracker.wandb_locations
    log = only_log(tmp_path)

    assert (log.run.project, log.run.display_name, log.exit_code) == ("somewhere", "a name", 0)
    assert log.config == config
    assert log.step_metrics.items() >= {"*": "step", "merge/soup": "step"}.items()
    assert log.hidden == {"step", "segment"}
    assert log.summary.items() >= {"test.accuracy": 0.96, "status": "done", "replica/1/loss": 0.5}.items()
    assert log.summary["merge/soup"] == {"last": 0.8, "max": 0.8}
    assert log.steps == list(range(9))
    assert not log.summary.keys() & {"candidates.best_accuracy", "x"}
    (location,) = locations
    assert list(Path(location).glob("*.wandb"))
    assert Path(location).parent == tmp_path / "wandb"

    assert log.history[-2] == {"step": 2, "segment": 1, "segment/layers/conv1.weight": 0.5}
    prefixes = {"train": "replica/{replica}/", "candidate": "candidate/{replica}/"}
    assert len(log.history) == len(rows(tmp_path)) == 9
    for row, seen in zip(rows(tmp_path), log.history, strict=True):
        prefix = prefixes.get(row["event"], "{event}/").format_map(row)
        row |= {f"layers/{key}": value for key, value in row.pop("layers", {}).items()}
        numbers = {key: value for key, value in row.items() if isinstance(value, (int, float))}
        axes = {key: numbers.pop(key) for key in ("step", "segment") if key in numbers}
        numbers.pop("replica", None)
        assert seen == axes | {prefix + key: value for key, value in numbers.items()}


def test_a_failed_run_is_failed_in_wandb(tmp_path: Path, quiet: Say) -> None:
    def run() -> None:
        with Tracker(tmp_path, WandbConfig("offline"), {}, "run", warn=quiet) as tracker:
            tracker.log("train", {"loss": 1.0}, step=1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run()
    assert only_log(tmp_path).exit_code == 1


def fresh_process(out: Path, mode: str, **environment: str) -> str:
    """What a tracker warns of in a process of its own, as W&B reads the environment only once in each."""
    code = f"""
        import pathlib
        from sparsekit.config.options import WandbConfig
        from sparsekit.run import metrics_log, wandb_mirror
        wandb_mirror.INIT_SECONDS = 1.0
        out = pathlib.Path({str(out)!r})
        with metrics_log.Tracker(out, WandbConfig({mode!r}), {{"sparsity": 0.9}}, "run", warn=print) as tracker:
            tracker.log("train", {{"loss": 1.0}}, step=1, segment=0, replica=0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=os.environ | environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


NETRC = "machine {} login user password " + KEY


@pytest.mark.parametrize("netrc", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_unreachable_server_leaves_an_offline_run_and_one_warning(tmp_path: Path, home: Path, netrc: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (home / ".netrc").write_text(NETRC.format("127.0.0.1:9"))
    (home / ".netrc").chmod(0o600)
    environment = {} if netrc else {"WANDB_API_KEY": KEY, "NETRC": str(tmp_path / "nowhere")}
    said = fresh_process(out, "auto", WANDB_BASE_URL="http://127.0.0.1:9", **environment)
    assert said.count("\n") == 1
    assert "kept offline" in said
    assert only_log(out).history == [{"step": 1, "segment": 0, "replica/0/loss": 1.0}]
    everything = said.encode() + b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert KEY.encode() not in everything


@pytest.mark.parametrize(("mode", "warnings"), [("auto", 0), ("online", 1)])
def test_without_a_key_the_run_is_offline_and_nobody_is_asked(
    tmp_path: Path, home: Path, mode: str, warnings: int
) -> None:
    """Neither the user nor the server, which here would notice; a key for another server does not count."""
    (home / ".netrc").write_text(NETRC.format("github.com"))
    (home / ".netrc").chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        # W&B itself counts its uses there, offline too, unless this says no
        said = fresh_process(tmp_path, mode, WANDB_BASE_URL=url, WANDB_ERROR_REPORTING="false")
        with pytest.raises(BlockingIOError):
            server.accept()
    assert said.count("`wandb login`") == said.count("\n") == warnings
    assert only_log(tmp_path).history == [{"step": 1, "segment": 0, "replica/0/loss": 1.0}]


def test_a_sweep_agents_run_is_the_sweeps(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("wandb_version: 1\nsparsity:\n  value: 0.95\n")
    said = fresh_process(
        tmp_path, "auto", WANDB_SWEEP_ID="swp12345", WANDB_RUN_ID="run12345", WANDB_PROJECT="theirs",
        WANDB_SWEEP_PARAM_PATH=str(sweep),
    )  # fmt: skip
    log = only_log(tmp_path)
    assert said == ""
    assert (log.run.sweep_id, log.run.run_id, log.run.project) == ("swp12345", "run12345", "theirs")
    assert log.config == {"sparsity": 0.95}


# --- the mirror, through a W&B that is told what to do --------------------------------------------


@pytest.mark.parametrize(
    ("place", "count", "mirrored"),
    [("init", 1, 0), ("define_metric", 1, 0), ("log", 1, 0), ("log", 4, 3), ("summary", 1, 9), ("finish", 1, 9)],
)
@pytest.mark.parametrize("error", [RuntimeError("it broke\nin two lines"), SystemExit(1), BrokenPipeError()])
def test_a_wandb_that_breaks_says_so_once_and_the_rows_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, count: int, mirrored: int, error: BaseException
) -> None:
    fake, warnings = FakeWandb(place, error, count), list[str]()
    use(monkeypatch, fake)
    with Tracker(tmp_path, WandbConfig("offline"), {}, "run", warn=warnings.append) as tracker:
        log_some(tracker)
        tracker.summary({"test.accuracy": 0.9})
    assert len(rows(tmp_path)) == 9
    assert len(fake.rows) == mirrored
    (warning,) = warnings
    assert type(error).__name__ in warning
    assert "\n" not in warning


def test_a_missing_wandb_says_so_once_and_the_rows_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, None)
    warnings: list[str] = []
    with Tracker(tmp_path, WandbConfig(), {}, "run", warn=warnings.append) as tracker:
        log_some(tracker)
        assert tracker.wandb_locations == ()
    assert len(rows(tmp_path)) == 9
    assert len(warnings) == 1


@pytest.mark.parametrize("variable", [{}, {"WANDB_MODE": "disabled"}])
def test_disabled_never_imports_wandb(
    tmp_path: Path, quiet: Say, monkeypatch: pytest.MonkeyPatch, variable: dict[str, str]
) -> None:
    use(monkeypatch, None)  # importing it would end in a warning
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    config = WandbConfig("auto") if variable else OFF
    with Tracker(tmp_path, config, {}, "run", warn=quiet) as tracker:
        log_some(tracker)
    assert len(rows(tmp_path)) == 9


def test_training_does_not_wait_for_a_wandb_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, warnings = FakeWandb(), list[str]()
    fake.hold.clear()
    use(monkeypatch, fake)
    monkeypatch.setattr(wandb_mirror, "PATIENCE_SECONDS", 0.2)
    start = time.monotonic()
    with Tracker(tmp_path, WandbConfig("offline"), {}, "run", warn=warnings.append) as tracker:
        log_some(tracker)
    assert time.monotonic() - start < 5
    assert len(rows(tmp_path)) == 9
    assert len(warnings) == 1
    fake.hold.set()


@pytest.mark.parametrize(
    ("mode", "environment", "settings", "expected", "warned"),
    [
        ("auto", {}, "online", "offline", False),
        ("auto", {"WANDB_API_KEY": KEY}, "online", "online", False),
        ("auto", {"WANDB_API_KEY": ""}, "online", "offline", False),
        ("auto", {"WANDB_API_KEY": KEY}, "offline", "offline", False),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "online", "offline", False),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "dryrun"}, "online", "offline", False),
        ("auto", {"WANDB_MODE": "online"}, "online", "offline", True),
        ("online", {}, "online", "offline", True),
        ("online", {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "offline", "online", False),
        ("offline", {"WANDB_API_KEY": KEY, "WANDB_MODE": "online"}, "online", "offline", False),
    ],
)
def test_online_only_where_credentials_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    mode: Any, environment: dict[str, str], settings: str, expected: str, warned: bool,
) -> None:  # fmt: skip
    fake, warnings = FakeWandb(), list[str]()
    fake.mode = settings
    use(monkeypatch, fake)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with Tracker(tmp_path, WandbConfig(mode), {}, "run", warn=warnings.append) as tracker:
        locations = tracker.wandb_locations
    assert fake.modes == [expected]
    assert bool(warnings) is warned
    assert locations == (fake.url if expected == "online" else fake.settings.sync_dir,)


def test_beside_a_run_of_the_same_process_the_mirror_is_online(
    tmp_path: Path, quiet: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's `login` then says no in any case."""
    fake = FakeWandb()
    fake.run = object()
    use(monkeypatch, fake)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with Tracker(tmp_path, WandbConfig(), {}, "run", warn=quiet):
        pass
    assert fake.modes == ["online"]


def test_no_warning_shows_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    fake, warnings = FakeWandb("init", RuntimeError(f"bad key {KEY}, {KEY}")), list[str]()
    use(monkeypatch, fake)
    with Tracker(tmp_path, WandbConfig(), {}, "run", warn=warnings.append) as tracker:
        log_some(tracker)
    (warning,) = warnings
    assert "bad key ***, ***" in warning
    assert fake.modes == ["online", "offline"]
    assert len(fake.rows) == 9
