"""Whole runs from the command line, on tasks that the digits bring."""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from sparsekit_tasks.segmentation import Segmentation

pytestmark = pytest.mark.slow

Sparsekit = Callable[..., int]
KINDS = {
    "multilabel": ["--data.name", "digits_tasks:segments", "--model.kwargs", '{"channels": [8, 8, 16, 16]}'],
    "regression": ["--data.name", "digits_tasks:moments", "--model.name", "digits_tasks:Numbers"],
    "segmentation": ["--data.name", "digits_tasks:ink", "--model.name", "digits_tasks:Pixels", "--task.ignore", "255"],
}
BETTER = {"multilabel": ("mAP", 0.9), "regression": ("R2", 0.8), "segmentation": ("mean_IoU", 0.8)}
"""The score, and what a model surely exceeds that learned something."""
RUN = ["--epochs", "6", "--sparsity", "0.8", "--replicas.count", "2", "--replicas.start", "0", "--device", "cpu"]
RUN += ["--wandb.mode", "disabled"]


@pytest.fixture
def sparsekit(monkeypatch: pytest.MonkeyPatch) -> Sparsekit:
    """Run a command of sparsekit here, which finds the module of this folder; the exit code."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["sparsekit", *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("sparsekit", run_name="__main__")
        assert isinstance(stop.value.code, int)
        return stop.value.code

    return run


def finished(out: Path, sparsity: float = 0.8) -> dict[str, Any]:
    """The summary of a finished run, its masks checked to be exact and the model to follow them."""
    masks, model = load_file(out / "masks.safetensors"), load_file(out / "model" / "model.safetensors")
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int((mask == 0).sum()) for mask in masks.values()) == round(sparsity * total)
    assert all(not model[name][mask == 0].any() for name, mask in masks.items())
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text("utf-8"))
    assert summary["status"] == "done"
    assert summary["merged"]
    return summary


@pytest.mark.parametrize("merge", ["greedy", "best", "learned", "likelihood"])
@pytest.mark.parametrize("task", KINDS)
def test_a_run_ends_in_a_soup_that_learned_at_the_planned_sparsity(
    task: str, merge: str, tmp_path: Path, sparsekit: Sparsekit, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert sparsekit("fit", "--task", task, *KINDS[task], *RUN, "--merge", merge, "--out", str(out)) == 0
    summary, (score, least) = finished(out), BETTER[task]
    assert (summary["task"], summary["score"]) == (task, score)
    assert summary[f"test.{score}"] > least
    assert {f"candidates.mean_{score}", f"candidates.best_{score}", f"candidates.ensemble_{score}"} <= summary.keys()
    assert f"{score} {summary[f'test.{score}']:.4f} on the test split" in capsys.readouterr().out
    assert (out / "report.html").is_file()


@pytest.mark.parametrize("task", KINDS)
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(
    task: str, tmp_path: Path, sparsekit: Sparsekit, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["fit", "--task", task, *KINDS[task], *RUN, "--merge", "greedy", "--evaluation.report", "false"]
    assert sparsekit(*options, "--out", str(tmp_path / "whole")) == 0
    cut = [*options, "--out", str(tmp_path / "cut"), "--resume"]
    with monkeypatch.context() as patch:
        _stop_at_backward(patch, 30)
        assert sparsekit(*cut) == 143
    assert sparsekit(*cut) == 0
    finished(tmp_path / "cut")
    for name in ("model/model.safetensors", "masks.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def _stop_at_backward(patch: pytest.MonkeyPatch, number: int) -> None:
    """Send this process SIGTERM in the n-th backward pass from here on."""
    from torch import Tensor

    backward, done = Tensor.backward, 0

    def counted(self: Tensor, *arguments: Any, **options: Any) -> None:
        nonlocal done
        backward(self, *arguments, **options)
        done += 1
        if done == number:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(Tensor, "backward", counted)


def test_evaluate_and_merge_know_the_task_of_a_run(
    tmp_path: Path, sparsekit: Sparsekit, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(tmp_path / name) for name in ("a", "b")]
    options = ["fit", "--task", "segmentation", *KINDS["segmentation"], *RUN, "--evaluation.report", "false"]
    for number, run in enumerate(runs):
        assert sparsekit(*options, "--seed", str(number), "--out", run) == 0
    assert sparsekit("evaluate", runs[0], "--dense", runs[1], "-o", str(tmp_path / "found.json")) == 0
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))["variants"]["saved"]
    summary = finished(tmp_path / "a")
    assert found["test"]["mean_IoU"] == pytest.approx(summary["test.mean_IoU"], abs=1e-9)
    assert found["test"]["pixel_accuracy"] == pytest.approx(summary["test.pixel_accuracy"], abs=1e-9)
    assert 0.5 < found["agreement"] < 1.0
    capsys.readouterr()
    assert sparsekit("merge", *runs, "--masks", "union", "--merge", "best", "-o", str(tmp_path / "soup")) == 0
    assert "mean_IoU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--task", "multilabel"], "--task multilabel: "),
        (["--task", "segmentation", *KINDS["multilabel"]], "--task segmentation: "),
        (["--task", "regression", *KINDS["regression"], "--label_smoothing", "0.1"], "--label_smoothing 0.1: "),
        (["--task", "segmentation", *KINDS["segmentation"][:4], "--task.classes", "2"], "--task.ignore"),
    ],
)
def test_what_does_not_suit_a_task_is_told_before_training(
    options: list[str], reason: str, tmp_path: Path, sparsekit: Sparsekit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sparsekit("fit", *options, *RUN, "--out", str(tmp_path / "run")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("sparsekit: error: ")
    assert reason in line
    assert not (tmp_path / "run").exists()


def test_segmentation_is_listed_with_its_options(sparsekit: Sparsekit, capsys: pytest.CaptureFixture[str]) -> None:
    assert sparsekit("fit", "--task.help", "segmentation") == 0
    said = capsys.readouterr().out
    assert (Segmentation.__doc__ or "").splitlines()[0] in said
    assert "--task.ignore: int | None = None" in said
