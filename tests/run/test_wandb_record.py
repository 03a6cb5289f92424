"""What W&B is told beside rows: which run goes on, how it is filed, the model it made and where that came from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tracking import KEY, FakeWandb, Say, rows, use
from wandb_log import finished_log, read_log

from sparsekit.config.options import WandbConfig
from sparsekit.run import wandb_record
from sparsekit.run.metrics_log import Tracker
from sparsekit.run.wandb_mirror import mirrored


def log_steps(tracker: Tracker, first: int, end: int) -> None:
    for step in range(first, end):
        tracker.log("train", {"loss": 1.0 / (1 + step)}, step=step, segment=0, replica=0)


def test_offline_parts_of_a_resumed_run_make_up_metrics_jsonl(tmp_path: Path, quiet: Say) -> None:
    with Tracker(tmp_path, WandbConfig("offline"), {}, "run", warn=quiet) as tracker:
        log_steps(tracker, 0, 5)
        offset = tracker.offset
        log_steps(tracker, 5, 8)  # lost with the process, and written again
        (first,) = tracker.wandb_locations
    with Tracker(tmp_path, WandbConfig("offline"), {}, "run", warn=quiet, offset=offset) as tracker:
        log_steps(tracker, 5, 10)
        assert tracker.wandb_locations[0] == first
        _, second = tracker.wandb_locations
    logs = [finished_log(next(Path(folder).glob("*.wandb"))) for folder in (first, second)]
    assert logs[0].run.run_id == logs[1].run.run_id
    assert (logs[0].run.resume, logs[1].run.resume) == (False, True)  # `wandb sync` takes the parts in order
    assert [log.steps for log in logs] == [list(range(8)), list(range(5, 10))]
    merged = {step: row for log in logs for step, row in zip(log.steps, log.history, strict=True)}
    assert [merged[step] for step in sorted(merged)] == [mirrored(row) for row in rows(tmp_path)]
    # what was the same step before has the same values now
    assert [log.history[log.steps.index(5)] for log in logs] == [merged[5]] * 2

    next(Path(first).glob("*.wandb")).with_name("run-x.wandb.synced").touch()
    assert wandb_record.read(tmp_path).locations(tmp_path) == (second,)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert wandb_record.read(moved).locations(moved) == (second.replace(str(tmp_path), str(moved)),)


def test_an_online_run_goes_on_where_it_was(tmp_path: Path, quiet: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    fake = FakeWandb()
    use(monkeypatch, fake)
    with Tracker(tmp_path, WandbConfig("online"), {}, "run", warn=quiet) as tracker:
        log_steps(tracker, 0, 3)
        offset = tracker.offset
        log_steps(tracker, 3, 6)
        assert tracker.wandb_locations == (fake.url,)
    with Tracker(tmp_path, WandbConfig("online"), {}, "run", warn=quiet, offset=offset) as tracker:
        log_steps(tracker, 3, 9)
        assert tracker.wandb_locations == (fake.url,)
    assert [(given["id"], given["resume"]) for given in fake.inits] == [(None, None), ("run12345", "allow")]
    assert [row["step"] for row in fake.rows] == list(
        range(9)
    )  # the server has what it had, and takes it no second time
    assert KEY not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("agents", "expected"),
    [("run12345", (None, "allow")), ("another1", (None, None)), (None, ("run12345", "allow"))],
)
def test_an_agent_says_which_run_it_is(
    tmp_path: Path, quiet: Say, monkeypatch: pytest.MonkeyPatch, agents: str | None, expected: tuple[str | None, ...]
) -> None:
    wandb_record.write(tmp_path, wandb_record.Known("run12345"))
    if agents:
        monkeypatch.setenv("WANDB_RUN_ID", agents)
    fake = FakeWandb()
    use(monkeypatch, fake)
    with Tracker(tmp_path, WandbConfig("offline"), {}, "run", warn=quiet):
        pass
    assert [(given["id"], given["resume"]) for given in fake.inits] == [expected]


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"id": 1, "offline": []}', '{"offline": 3}', '{"other": 1}'])
def test_a_file_that_is_not_what_was_written_starts_a_new_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / wandb_record.FILE).write_text(text)
    assert wandb_record.read(tmp_path) == wandb_record.Known()


def test_how_a_run_is_filed(tmp_path: Path, quiet: Say) -> None:
    wanted = WandbConfig("offline", "p", "a group", ["one", "two"], "what it is about", "baseline")
    with Tracker(tmp_path, wanted, {}, "run", warn=quiet) as tracker:
        (folder,) = tracker.wandb_locations
    run = finished_log(next(Path(folder).glob("*.wandb"))).run
    assert (run.run_group, list(run.tags), run.notes, run.job_type) == (
        "a group", ["one", "two"], "what it is about", "baseline"
    )  # fmt: skip


class FakeArtifact:
    def __init__(self, name: str, type: str, metadata: dict[str, Any]) -> None:
        self.name, self.type, self.metadata = name, type, metadata
        self.added: list[str] = []

    def add_dir(self, path: str, name: str) -> None:
        self.added += [f"{name}/{entry.name}" for entry in Path(path).iterdir()]

    def add_file(self, path: str, name: str) -> None:
        self.added.append(name)

    def wait(self, timeout: int) -> None:
        self.name += ":v0"


def test_an_online_run_keeps_its_model_and_names_its_parent(
    tmp_path: Path, quiet: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    fake: Any = FakeWandb()
    kept: list[FakeArtifact] = []
    used: list[str] = []
    fake.Artifact, fake.entity, fake.project = FakeArtifact, "me", "mine"
    fake.log_artifact, fake.use_artifact = lambda artifact: kept.append(artifact) or artifact, used.append
    use(monkeypatch, fake)
    parent, child = tmp_path / "parent", tmp_path / "child"
    for out, model in ((parent, None), (child, f"local-dir:{parent}/model")):
        (out / "model").mkdir(parents=True)
        (out / "model" / "model.safetensors").touch()
        (out / "masks.safetensors").touch()
        with Tracker(out, WandbConfig("online"), {}, "run", warn=quiet) as tracker:
            metadata = wandb_record.summary_metadata(
                {"sparsity": 0.9, "test.accuracy": 0.96, "out": "/secret", "seed": 0}
            )
            tracker.model((out / "model", out / "masks.safetensors"), metadata, model)
    assert used == ["me/mine/model-run12345:latest"]
    assert wandb_record.read(child).artifact == used[0]
    for artifact in kept:
        assert (artifact.name, artifact.type) == ("model-run12345:v0", "model")
        assert artifact.metadata == {"sparsity": 0.9, "test.accuracy": 0.96, "seed": 0}
        assert artifact.added == ["model/model.safetensors", "masks.safetensors"]


@pytest.mark.parametrize("wanted", [WandbConfig("offline"), WandbConfig("online", artifact=False)])
def test_no_model_is_kept_offline_or_where_nobody_wants_it(
    tmp_path: Path, quiet: Say, monkeypatch: pytest.MonkeyPatch, wanted: WandbConfig
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    use(monkeypatch, FakeWandb())  # which has no artifacts
    with Tracker(tmp_path, wanted, {}, "run", warn=quiet) as tracker:
        tracker.model((tmp_path,), {}, None)


def test_a_page_is_shown_and_takes_no_rows_place(tmp_path: Path, quiet: Say) -> None:
    page = tmp_path / "report.html"
    page.write_text("<p>hello</p>")
    with Tracker(tmp_path, WandbConfig("offline"), {}, "run", warn=quiet) as tracker:
        log_steps(tracker, 0, 2)
        tracker.page(page)
        (folder,) = tracker.wandb_locations
    log = finished_log(next(Path(folder).glob("*.wandb")))
    assert log.steps == [0, 1, 2]
    assert log.history[2]["report/_type"] == "html-file"
    assert page.exists()
    assert next(Path(folder).glob("files/media/html/*.html")).read_text() == "<p>hello</p>"


def test_best_values_stand_beside_the_last_ones(tmp_path: Path, quiet: Say) -> None:
    with Tracker(tmp_path, WandbConfig("offline"), {}, "run", warn=quiet) as tracker:
        for step, accuracy in enumerate((0.5, 0.9, 0.7)):
            tracker.log("evaluate", {"test.accuracy": accuracy, "test.loss": 1 - accuracy}, step=step, segment=step)
        (folder,) = tracker.wandb_locations
    summary = finished_log(next(Path(folder).glob("*.wandb"))).summary
    assert summary["evaluate/test.accuracy"] == {"last": 0.7, "max": 0.9}
    assert summary["evaluate/test.loss"] == {"last": pytest.approx(0.3), "min": pytest.approx(0.1)}


def test_the_best_score_of_another_task_is_kept_too(tmp_path: Path, quiet: Say) -> None:
    with Tracker(tmp_path, WandbConfig("offline"), {}, "run", warn=quiet, score="mAP") as tracker:
        for step, value in enumerate((0.5, 0.9, 0.7)):
            tracker.log("evaluate", {"test.mAP": value}, step=step, segment=step)
        (folder,) = tracker.wandb_locations
    summary = finished_log(next(Path(folder).glob("*.wandb"))).summary
    assert summary["evaluate/test.mAP"] == {"last": 0.7, "max": 0.9}


def test_metadata_are_plain_values() -> None:
    summary = {"method": "gmp", "status": "done", "test.ece": 0.1, "candidates.count": 3, "wall_seconds": 1.0}
    assert wandb_record.summary_metadata(summary) == {"method": "gmp", "test.ece": 0.1, "candidates.count": 3}
    assert json.dumps(wandb_record.summary_metadata(summary))
    assert wandb_record.parent_artifact(None) is wandb_record.parent_artifact("resnet18") is None


@pytest.mark.slow
def test_a_process_that_is_killed_at_once_has_lost_no_row(tmp_path: Path) -> None:
    """The last row too, which W&B by itself keeps back until the next one, and all of them for up to 15 s."""
    code = (
        "import os, pathlib, signal, sys, time\n"
        "from sparsekit.config.options import WandbConfig\n"
        "from sparsekit.run.metrics_log import Tracker\n"
        "tracker = Tracker(pathlib.Path(sys.argv[1]), WandbConfig('offline'), {}, 'run', warn=print)\n"
        "tracker.wandb_locations\n"
        "for step in range(5):\n"
        "    tracker.log('train', {'loss': 0.5}, step=step, segment=0, replica=0)\n"
        "time.sleep(3.0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-9, "")
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert read_log(path).history == [mirrored(row) for row in rows(tmp_path)]
    assert len(rows(tmp_path)) == 5
