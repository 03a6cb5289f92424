"""A run that is stopped and goes on ends with the bits of one that was not. Real signals, in this process."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
import xxhash
import yaml
from resuming import QUIET, contents, fit, strike
from safetensors.torch import save_file
from tiny import rows, tiny_config

from sparsekit.cli.main import main
from sparsekit.config.options import MasksConfig, describe
from sparsekit.data import ImageData
from sparsekit.errors import ReadError, UserError
from sparsekit.executors.stacked import Lockstep
from sparsekit.methods.oneshot import OneShot
from sparsekit.models.stored import StoredTensors
from sparsekit.run import directory
from sparsekit.run.metrics_log import Tracker
from sparsekit.training.replica import Training


@pytest.mark.parametrize("text", ["[1, 2]", '"done"', "null", "{", "[" * 100_000, '{"status": "failed"}'])
def test_what_is_no_summary_of_a_run_that_is_done_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(text)
    assert directory.finished(tmp_path) is None
    (tmp_path / "summary.json").write_text('{"status": "done", "seed": 3}')
    assert directory.finished(tmp_path) == {"status": "done", "seed": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, object]]:
    """Contents of a run that was not stopped, by its options; each is made once."""

    @cache
    def make(*options: str) -> dict[str, object]:
        out = tmp_path_factory.mktemp("whole") / "run"
        assert fit(out, *options) == 0
        return contents(out)

    return make


Whole = Callable[..., dict[str, object]]
CASES = {
    "gmp": ["--method", "gmp"],
    "gmp adamw": ["--method", "gmp", "--optimizer.name", "adamw", "--optimizer.lr", "0.003"],
    "imp dropout": ["--method", "imp", "--model.kwargs", "{channels: [8, 8, 16, 16], drop_rate: 0.2}"],
    "dpf greedy": ["--method", "dpf", "--method.interval", "0.2", "--merge", "greedy"],
    "bimp subsample": ["--method", "bimp", "--replicas.vary", "subsample", "--masks.allocation", "erk"],
    "gsm augment": ["--method", "gsm", "--replicas.vary", "augment", "--replicas.values", "[0.5, 2]"],
    "str strength": [
        *("--method", "str", "--replicas.vary", "method.strength", "--replicas.values", "[0.005, 0.05]"),
        *("--label_smoothing", "0.1", "--replicas.start", "0"),
    ],
    "oneshot none": ["--method", "oneshot", "--merge", "none"],
    "rewinding": ["--method", "tiny:Rewinding"],
}
INSIDE = [
    pytest.param(case, steps, marks=[] if steps == 13 else pytest.mark.exhaustive)
    for case in CASES
    for steps in (1, 13, 42)
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "steps"), INSIDE)
def test_stopped_inside_a_replica_and_resumed_equals_whole(
    case: str,
    steps: int,
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        strike(patch, steps)
        assert fit(out, *CASES[case]) == 143
    assert json.loads((out / "summary.json").read_text())["status"] == "stopped"
    assert "--resume" in capsys.readouterr().err
    assert fit(out, *CASES[case], "--resume") == 0
    assert contents(out) == whole(*CASES[case])
    assert json.loads((out / "summary.json").read_text())["status"] == "done"


@pytest.mark.slow
def test_another_executor_goes_on_with_what_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where replicas that were stacked do not fit into the device's memory any longer."""
    out, case = tmp_path / "cut", [*CASES["gmp"], "--replicas.executor"]
    with monkeypatch.context() as patch:
        taken, step = itertools.count(), Lockstep.step

        def struck(*arguments: Any) -> None:
            step(*arguments)
            if next(taken) == 9:
                signal.raise_signal(signal.SIGTERM)

        patch.setattr(Lockstep, "step", struck)
        assert fit(out, *case, "vectorized") == 143
    begun = len(rows(out, "train"))
    capsys.readouterr()
    assert fit(out, *case, "sequential", "--resume") == 0
    printed = "".join(capsys.readouterr())
    assert all(part in printed for part in ("stacked before", "one after another now", "rounding"))
    assert len(rows(out, "train")) > begun
    assert json.loads((out / "summary.json").read_text())["status"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["sequential", pytest.param("vectorized", marks=pytest.mark.slow)])
@pytest.mark.parametrize("where", [13, pytest.param(42, marks=pytest.mark.slow)])
def test_a_batch_that_cannot_be_read_costs_nothing_that_was_trained(
    executor: str, where: int, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, case = tmp_path / "cut", ["--replicas.executor", executor]
    with monkeypatch.context() as patch:
        count, read = itertools.count(), ImageData.train_batches

        def failing(self: ImageData, *arguments: Any, **options: Any) -> Iterator[Any]:
            for batch in read(self, *arguments, **options):
                if next(count) == where:
                    raise ReadError("a process that reads images ended")
                yield batch

        patch.setattr(ImageData, "train_batches", failing)
        assert fit(out, *case) == 1
    assert list((out / "checkpoints").glob("*.json"))
    assert fit(out, *case, "--resume") == 0
    assert contents(out) == whole(*case)


OUTSIDE = [
    ("sparsekit.launch.first_progress", 0),  # the model is there, and nothing was begun
    ("sparsekit.run.loop.prune", 1),
    ("sparsekit.run.loop.merge", 1),
    ("sparsekit.run.loop.probes.gradients", 0),
    ("sparsekit.training.setup.score_model", 3),
    ("sparsekit.training.setup.recalibrate_batchnorm", 1),
    ("sparsekit.merging.candidates.FileCandidate.save", 2),
    ("sparsekit.models.stored.save", 7),  # a checkpoint's file
    ("sparsekit.run.checkpoint.write_whole", 3),  # a manifest
    ("sparsekit.run.checkpoint.CheckpointStore._sweep", 2),
    ("sparsekit.run.finish.save_model", 0),
    ("sparsekit.launch.write_json", 1),  # the summary
]


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(("where", "calls"), [pytest.param(*row, id=row[0]) for row in OUTSIDE])
def test_a_signal_outside_of_a_training_step_leaves_a_good_checkpoint(
    where: str,
    calls: int,
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The signal strikes as a function begins, after so many calls of it."""
    case = ["--method", "rigl", "--method.interval", "0.15", "--merge", "greedy", "--replicas.start", "0"]
    out, count = tmp_path / "out", 0
    owner, _, name = where.rpartition(".")
    original = resolve_name(owner)

    function = getattr(original, name)

    def struck(*args: object, **kwargs: object) -> object:
        nonlocal count
        count += 1
        if count == calls + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **kwargs)

    closed = []
    close = Tracker.close
    with monkeypatch.context() as patch:
        patch.setattr(original, name, struck)
        patch.setattr(Tracker, "close", lambda self, code=0, *rest: (closed.append(code), close(self, code, *rest)))
        assert fit(out, *case) == 143
    assert count > calls
    assert closed == ([] if where == "sparsekit.launch.first_progress" else [1])
    assert f"go on with the same options, --out {out} and --resume" in capsys.readouterr().err
    assert fit(out, *case, "--resume") == 0
    assert contents(out) == whole(*case)


@pytest.mark.slow
def test_another_number_of_threads_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        strike(patch, 30)
        assert fit(tmp_path / "out") == 143
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert fit(tmp_path / "out", "--resume") == 0
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().err
    assert all(part in said for part in (f"OMP_NUM_THREADS={threads}", f"{threads + 1} now"))


def test_a_signal_while_preparing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sparsekit.training.prepare.build_model", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    assert fit(tmp_path / "out") == 143
    assert "nothing was begun" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sigint_leaves_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        strike(patch, 5, signal.SIGINT)
        assert fit(tmp_path / "out") == 130
    assert signal.getsignal(signal.SIGINT) is before


def test_resume_starts_a_run_that_was_not_begun_and_leaves_a_finished_one_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "out", "--merge", "none", "--resume") == 0
    before = (tmp_path / "out" / "metrics.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    assert fit(tmp_path / "out", "--merge", "none", "--resume=true") == 0
    assert "this run is done" in capsys.readouterr().out
    assert (tmp_path / "out" / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_config_is_refused_by_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        strike(patch, 5)
        assert fit(tmp_path / "out") == 143
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert fit(tmp_path / "out", "--sparsity", "0.5", "--method.start", "0.2", "--resume") == 2
    error = capsys.readouterr().err
    assert "--sparsity was 0.9, is 0.5" in error
    assert "--method.start was 0.1, is 0.2" in error
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    strike(monkeypatch, 1)  # what cannot change the result may differ: it trains on
    assert fit(tmp_path / "out", "--checkpoint.minutes", "1", "--wandb.project", "other", "--resume") == 143


def test_without_resume_a_run_directory_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert fit(tmp_path / "out") == 2
    assert "--out" in capsys.readouterr().err
    assert fit(tmp_path / "out", "--resume") == 2
    assert "holds no run" in capsys.readouterr().err


def test_resume_needs_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *QUIET, "--resume"]) == 2
    assert "--resume needs --out" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        strike(patch, 42)
        assert fit(tmp_path / "cut") == 143
    newest = sorted((tmp_path / "cut" / "checkpoints").glob("*.json"))[-1]
    newest.write_bytes(newest.read_bytes()[:-3])
    capsys.readouterr()
    assert fit(tmp_path / "cut", "--resume") == 0
    assert f"{newest.name} is damaged" in capsys.readouterr().err
    assert contents(tmp_path / "cut") == whole()


@pytest.mark.slow
def test_a_run_goes_on_from_a_checkpoint_of_format_2(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are plain safetensors, and a parent's has the optimizer's state."""
    with monkeypatch.context() as patch:
        strike(patch, 42)
        assert fit(tmp_path / "cut") == 143
    folder, known = tmp_path / "cut" / "checkpoints", dict[str, dict[str, Any]]()
    momenta = 0
    for path in folder.glob("*.json"):
        body = json.loads(path.read_bytes().partition(b"\n")[2])
        assert body["format"] == 3
        files = body["files"]
        stored = {key: dict(StoredTensors(folder / files[key]["name"])) for key in files}
        optimizer = stored.pop("optimizer", {})
        momenta += len(optimizer)
        for key, tensors in stored.items():
            if files[key]["name"] not in known:
                added = {f"optimizer.{name}": t for name, t in optimizer.items()} if key == "parent" else {}
                file = folder / ("plain-" + files[key]["name"])
                save_file({**tensors, **added}, file)
                checksum = xxhash.xxh128_hexdigest(file.read_bytes())
                known[files[key]["name"]] = {"name": file.name, "size": file.stat().st_size, "xxh128": checksum}
        text = json.dumps({**body, "format": 2, "files": {key: known[files[key]["name"]] for key in stored}}).encode()
        path.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
    assert momenta
    assert fit(tmp_path / "cut", "--resume") == 0
    assert contents(tmp_path / "cut") == whole()


SHORT = ["--method", "oneshot", "--epochs", "2"]


def test_a_replica_that_stops_being_finite_is_tried_again_and_then_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Training.step

    def poisoned(self: Training, *batch: object) -> None:
        step(self, *batch)  # type: ignore[arg-type]
        if self.stage.index == 1 and (self.replica.index, self.attempt) in ((0, 0), (1, 0), (1, 1)):
            self.loss += float("nan")

    monkeypatch.setattr(Training, "step", poisoned)
    assert fit(tmp_path / "out", *SHORT, "--replicas.start", "0.1") == 0
    rows = contents(tmp_path / "out")["rows"]
    assert isinstance(rows, list)
    faults = [(row["replica"], row["attempt"], row["outcome"]) for row in rows if row["event"] == "fault"]
    again, left = "tried again with another seed", "left out of the soup"
    assert faults == [(0, 0, again), (1, 0, again), (1, 1, left)]
    merges = [row for row in rows if row["event"] == "merge"]
    assert merges[1]["ingredients"] == [0]
    assert "left out" in capsys.readouterr().err


def test_no_finite_replica_ends_the_run_and_keeps_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Training.step

    def poisoned(self: Training, *batch: object) -> None:
        step(self, *batch)  # type: ignore[arg-type]
        if self.stage.index == 1:
            self.loss += float("inf")

    monkeypatch.setattr(Training, "step", poisoned)
    assert fit(tmp_path / "out", *SHORT) == 1
    assert "no replica stayed finite" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "failed"
    assert list((tmp_path / "out" / "checkpoints").glob("*.json"))


def test_a_run_that_is_older_than_an_option_had_its_default(tmp_path: Path) -> None:
    plain = describe(tiny_config(OneShot()))
    old = json.loads(json.dumps(plain))
    for group, option in (("masks", "floor"), ("model", "new_head"), ("data", "white")):
        del old[group][option]
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text(yaml.safe_dump(old))
    assert directory.choose(str(out), True, plain) == (out, True)
    changed = describe(tiny_config(OneShot(), masks=MasksConfig(floor=1.0)))
    with pytest.raises(UserError, match=r"--masks\.floor was 0\.0, is 1\.0"):
        directory.choose(str(out), True, changed)
