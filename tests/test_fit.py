"""Whole runs: every method with every merge, what they leave behind, and how they end when they cannot go on."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from tiny import (
    ARGUMENTS,
    KWARGS,
    MERGES,
    METHODS,
    masked_are_zero,
    optimizer,
    pruned,
    rows,
    tiny_config,
    tiny_setup,
)
from torch import nn

from sparsekit import Budget, MergeStrategy, PruningMethod, PruningStep, Segment, Tensors
from sparsekit.cli import main
from sparsekit.config.options import EvaluationConfig, FitConfig, MasksConfig, ModelConfig, ReplicasConfig
from sparsekit.data import ImageData
from sparsekit.display.text import percent
from sparsekit.errors import RunError, UserError
from sparsekit.executors import sequential
from sparsekit.files import load_tensors
from sparsekit.launch import fit
from sparsekit.merges.best import Best
from sparsekit.merges.greedy import Greedy
from sparsekit.merges.none import NoMerge
from sparsekit.merges.uniform import Uniform
from sparsekit.methods.bimp import BIMP
from sparsekit.methods.dpf import DPF
from sparsekit.methods.gmp import GMP
from sparsekit.methods.oneshot import OneShot
from sparsekit.models.state import State, effective
from sparsekit.pruning import masks
from sparsekit.run.progress import first_progress
from sparsekit.training.prepare import prepare
from sparsekit.training.replica import Training

SUMMARY = {
    "status", "method", "merge", "target_sparsity", "sparsity", "model_sparsity", "nonzero", "test.accuracy",
    "test.loss", "segments", "wall_seconds", "seed",
}  # fmt: skip
FILES = {
    "config.yaml",
    "plan.json",
    "data.json.gz",
    "metrics.jsonl",
    "summary.json",
    "model",
    "masks.safetensors",
    "checkpoints",
    "evaluation.json",
    ".lock",
}
KEYS = {
    "train": {"segment", "replica", "loss", "lr"},
    "segment": {"segment", "sparsity", "replicas"},
    "candidate": {"segment", "replica", "held_out.accuracy", "held_out.loss"},
    "merge": {"segment", "candidates", "ingredients", "soup", "barrier"},
    "evaluate": {"segment", "test.accuracy", "test.loss", "sparsity"},
    "done": {"status"},
}


def check_run(out: Path, config: FitConfig, summary: dict[str, Any]) -> None:
    """All that a finished run promises."""
    assert FILES <= {path.name for path in out.iterdir()} <= FILES | {"wandb"}
    assert {path.name for path in (out / "model").iterdir()} == {"config.json", "model.safetensors"}
    assert not list((out / "checkpoints").rglob("segment-*"))  # no candidate is left
    assert not list(out.rglob("*.part"))
    check_summary(out, config, summary)
    check_model(out, config, summary)
    check_metrics(out, config, summary)


def check_summary(out: Path, config: FitConfig, summary: dict[str, Any]) -> None:
    assert json.loads((out / "summary.json").read_text()) == summary
    assert set(summary) >= SUMMARY
    assert (summary["status"], summary["target_sparsity"], summary["seed"]) == ("done", config.sparsity, config.seed)
    shares = [key for key in summary if ("accuracy" in key or "sparsity" in key) and not key.startswith("gain.")]
    assert all(0.0 <= summary[key] <= 1.0 for key in shares)
    assert 0.0 < summary["test.loss"] < math.inf
    assert 0.0 < summary["wall_seconds"] < 1000.0
    plan = json.loads((out / "plan.json").read_text())
    assert summary["segments"] == len(plan["segments"])
    assert sum(segment["epochs"] for segment in plan["segments"]) == pytest.approx(config.epochs)
    complete = yaml.safe_load((out / "config.yaml").read_text())
    assert complete["method"]["name"] == summary["method"]
    assert complete["replicas"]["count"] == config.replicas.count
    if plan["segments"][-1]["replicas"] > 1:
        assert summary["candidates.mean_accuracy"] <= summary["candidates.best_accuracy"]


def check_model(out: Path, config: FitConfig, summary: dict[str, Any]) -> None:
    masks = load_file(out / "masks.safetensors")
    model = timm.create_model(f"local-dir:{out / 'model'}", pretrained=True)
    weights = dict(model.named_parameters())
    kinds = (nn.Conv2d, nn.Linear)
    prunable = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, kinds)}
    assert set(masks) == prunable if not config.masks.exclude else set(masks) < prunable
    total = sum(mask.numel() for mask in masks.values())
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    assert pruned == round(config.sparsity * total)
    assert masked_are_zero(weights, masks)
    assert summary["sparsity"] == pruned / total
    everything = sum(p.numel() for p in weights.values())
    assert summary["parameters"] == everything
    assert summary["model_sparsity"] == pytest.approx(pruned / everything, rel=1e-12)
    assert summary["nonzero"] == sum(int(p.count_nonzero()) for p in weights.values()) <= everything - pruned
    # what was measured is what was saved
    data = ImageData.load(config.data, torch.device("cpu"), channels_last=False)
    images, labels = (torch.cat(part) for part in zip(*data.evaluation_batches("test"), strict=True))
    with torch.no_grad():
        logits = model.eval()(images)
    assert nn.functional.cross_entropy(logits, labels).item() == pytest.approx(summary["test.loss"], rel=1e-3)
    assert float((logits.argmax(1) == labels).float().mean()) == pytest.approx(summary["test.accuracy"], abs=0.002)


def check_metrics(out: Path, config: FitConfig, summary: dict[str, Any]) -> None:
    found = rows(out)
    setup = prepare(config)
    steps = [segment.steps for segment in setup.plan]
    ends = [sum(steps[: i + 1]) for i in range(len(steps))]
    for row in found:
        assert set(row) >= KEYS[row["event"]] | {"step"}
        assert isinstance(row["step"], int)
        if "segment" in row:
            assert ends[row["segment"]] - steps[row["segment"]] <= row["step"] <= ends[row["segment"]]
    assert found[-1]["event"] == "done"
    assert found[-1]["step"] == ends[-1] == config.epochs * setup.data.steps_per_epoch
    total = sum(mask.numel() for mask in load_file(out / "masks.safetensors").values())
    for stage, count in ((segment.stage, len(segment.replicas)) for segment in setup.plan):
        mine = {
            event: [r for r in found if r["event"] == event and r["segment"] == stage.index]
            for event in KEYS
            if event != "done"
        }
        (segment,), (merge,), (test,) = mine["segment"], mine["merge"], mine["evaluate"]
        assert segment["sparsity"] == test["sparsity"] == round(stage.segment.sparsity * total) / total
        assert segment["replicas"] == count
        assert [r["replica"] for r in mine["candidate"]] == list(range(count))
        assert {r["replica"] for r in mine["train"]} == set(range(count))
        assert merge["candidates"] == [r["held_out.accuracy"] for r in mine["candidate"]]
        assert set(merge["ingredients"]) <= set(range(count))
        mean = sum(r["held_out.loss"] for r in mine["candidate"]) / count
        assert merge["barrier"] == pytest.approx(merge["soup.loss"] - mean, abs=1e-9)
    assert test["test.accuracy"] == summary["test.accuracy"]


# --- every method with every merge ---------------------------------------------------------------------


PAIRS = [(method, merge) for method in METHODS for merge in MERGES]
FAST = {("gmp", "uniform"), ("dpf", "none"), ("oneshot", "greedy")}


@pytest.mark.parametrize(
    ("method", "merge"),
    [pytest.param(*pair, marks=[] if pair in FAST else [pytest.mark.slow, pytest.mark.exhaustive]) for pair in PAIRS],
)
def test_every_method_with_every_merge(tmp_path: Path, method: str, merge: str) -> None:
    out = tmp_path / "run"
    config = tiny_config(METHODS[method](), MERGES[merge](), out, replicas=ReplicasConfig(2))
    summary = fit(config)
    check_run(out, config, summary)
    assert (summary["method"], summary["merge"]) == (method, merge)
    used = {len(row["ingredients"]) for row in rows(out, "merge")}
    assert used <= {"uniform": {1, 2}, "greedy": {1, 2}, "best": {1}, "none": {1}}[merge]


@pytest.mark.parametrize("sparsity", [0.0, 0.999])
@pytest.mark.parametrize("method", METHODS)
def test_no_and_almost_all_weights_are_pruned_as_planned(method: str, sparsity: float) -> None:
    """Every pruning of a plan, one after another, with no training between them."""
    setup = tiny_setup(METHODS[method](), sparsity=sparsity)
    state = first_progress(setup).parent
    total = sum(mask.numel() for mask in state.masks.values())
    for index, segment in enumerate(setup.plan):
        state, stage = pruned(setup, state, index)
        zeros = sum(int((~mask).sum()) for mask in state.masks.values())
        assert zeros == round(segment.stage.segment.sparsity * total)
        assert 0.0 <= stage.relative_change <= 1.0
        assert masked_are_zero(effective(setup.method, state).weights, state.masks)
    assert zeros == round(sparsity * total)


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.0, 0.999])
@pytest.mark.parametrize("method", METHODS)
def test_no_and_almost_all_pruning(tmp_path: Path, method: str, sparsity: float) -> None:
    out = tmp_path / "run"
    config = tiny_config(METHODS[method](), out=out, sparsity=sparsity, replicas=ReplicasConfig(2, start=0.5))
    check_run(out, config, fit(config))


@pytest.mark.parametrize(
    "changes",
    [
        {"masks": MasksConfig("uniform", exclude=["^conv1", "fc"])},
        {"masks": MasksConfig("erk")},
        {"optimizer": optimizer("adamw", 0.002), "sparsity": 0.5},
        {"optimizer": optimizer("lamb", 0.002, clip_norm=1.0), "sparsity": 0.5},
        {"precision": "fp32", "channels_last": False, "label_smoothing": 0.1, "sparsity": 0.777},
        {"replicas": ReplicasConfig(2, start=0.0, batchnorm="average")},
    ],
    ids=["uniform", "erk", "adamw", "lamb", "others", "batchnorm"],
)
def test_other_options(tmp_path: Path, changes: dict[str, Any]) -> None:
    out = tmp_path / "run"
    config = tiny_config(OneShot(), out=out, epochs=2, **changes)
    check_run(out, config, fit(config))


# --- what a run says of its layers ----------------------------------------------------------------------


class Favouring(OneShot):
    """Keeps nothing of one layer, unless it must."""

    def scores(self, step: PruningStep) -> Tensors:
        return {n: w.abs() * (1e-9 if n == "layer2.0.conv1.weight" else 1.0) for n, w in step.weights.items()}


@pytest.mark.parametrize(("floor", "empty"), [(0.0, ["layer2.0.conv1.weight"]), (3.0, [])])
def test_a_layer_that_loses_its_last_weight_is_named_where_it_happens_and_at_the_end(
    floor: float, empty: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(
        Favouring(), NoMerge(), tmp_path / "run", epochs=2, sparsity=0.8, masks=MasksConfig(floor=floor),
        evaluation=EvaluationConfig(report=True),
    )  # fmt: skip
    summary = fit(config)
    assert summary["layers.empty"] == json.loads((tmp_path / "run/summary.json").read_text())["layers.empty"] == empty
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if line.startswith("warning") and "layer2.0.conv1.weight" in line]
    assert len(told) == len(empty)
    assert all(part in line for line in told for part in ("80.00 %", "--masks.floor"))
    assert ("empty layers" in out) == bool(empty)
    page = (tmp_path / "run/report.html").read_text()
    assert ("layer2.0.conv1.weight: all weights are 0" in page) == bool(empty)
    kept = load_tensors(tmp_path / "run/masks.safetensors")
    assert int(kept["layer2.0.conv1.weight"].sum()) == floor
    assert masks.kept(kept) == 12_560 - round(0.8 * 12_560)
    assert f"prunable: 12,560 of 12,890 parameters ({percent(12_560 / 12_890, 2)})" in out
    assert (summary["prunable"], summary["prunable_share"]) == (12_560, 12_560 / 12_890)


def test_a_run_that_merges_nothing_says_so_from_the_start_to_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = ReplicasConfig(1)
    config = tiny_config(
        OneShot(), out=tmp_path / "run", epochs=2, replicas=alone, evaluation=EvaluationConfig(report=True)
    )
    summary = fit(config)
    assert (summary["merged"], summary["merge"]) == (False, "uniform")
    out = capsys.readouterr().out
    assert "--merge uniform has nothing to merge" in out
    assert "uniform  done" not in out
    assert "oneshot, nothing merged" in out
    page = (tmp_path / "run/report.html").read_text()
    assert "oneshot, nothing merged" in page
    assert "oneshot + uniform" not in page


# --- the same again ------------------------------------------------------------------------------------


def same(left: Path, right: Path) -> bool:
    files = ("model/model.safetensors", "model/config.json", "masks.safetensors", "metrics.jsonl", "plan.json")
    return all((left / file).read_bytes() == (right / file).read_bytes() for file in files)


REPEATED: dict[str, tuple[Callable[[], PruningMethod], Callable[[], MergeStrategy]]] = {
    "gmp-greedy": (lambda: GMP(interval=0.3), Greedy),
    "dpf-uniform": (lambda: DPF(interval=0.3), Uniform),
    "bimp-best": (BIMP, Best),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", list(REPEATED))
def test_the_same_config_and_seed_give_the_same_bits(tmp_path: Path, case: str) -> None:
    method, merge = REPEATED[case]
    epochs = 2 if case == "gmp-greedy" else 6
    model = ModelConfig(kwargs={**KWARGS, "drop_path_rate": 0.1})

    def run(name: str, seed: int = 3) -> Path:
        fit(tiny_config(method(), merge(), tmp_path / name, seed=seed, model=model, epochs=epochs))
        torch.randn(11)
        return tmp_path / name

    first = run("first")
    assert same(first, run("second"))
    other = run("other", seed=4)
    assert (first / "model/model.safetensors").read_bytes() != (other / "model/model.safetensors").read_bytes()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-m", "sparsekit", *arguments], env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same_bits(tmp_path: Path) -> None:
    fit(tiny_config(OneShot(), out=tmp_path / "here"))
    options = ["--method", "oneshot", "--epochs", "6", "--replicas.count", "2", "--replicas.start", "0"]
    done = command("fit", *ARGUMENTS, *options, "--device", "cpu", "--out", str(tmp_path / "there"))
    assert done.returncode == 0, done.stderr
    assert same(tmp_path / "here", tmp_path / "there")


# --- replicas --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("start", "counts"), [(0.0, [3] * 7), (0.35, [1, 1, 1, 3, 3, 3, 3]), (0.9, [1] * 7)])
def test_one_model_trains_alone_before_the_start(tmp_path: Path, start: float, counts: list[int]) -> None:
    out = tmp_path / "run"
    config = tiny_config(out=out, replicas=ReplicasConfig(3, start=start))  # segments at 0, 0.2, 0.3, … and 0.7
    summary = fit(config)
    check_run(out, config, summary)
    assert [row["replicas"] for row in rows(out, "segment")] == counts
    assert [len(row["candidates"]) for row in rows(out, "merge")] == counts
    plan = json.loads((out / "plan.json").read_text())
    assert [segment["replicas"] for segment in plan["segments"]] == counts


AXES: dict[str, list[float]] = {
    "seed": [5, 9],
    "weight_decay": [0.0, 0.05],
    "lr": [0.02, 0.1],
    "epochs": [0.5, 1.0],
    "subsample": [0.3, 1.0],
    "label_smoothing": [0.0, 0.3],
    "augment": [0.0, 2.0],
}


@pytest.mark.parametrize(
    "axis", ["seed", *(pytest.param(axis, marks=pytest.mark.slow) for axis in AXES if axis != "seed")]
)
def test_replicas_differ_along_every_axis(tmp_path: Path, axis: str) -> None:
    out = tmp_path / "run"
    replicas = ReplicasConfig(2, vary=axis, values=AXES[axis], start=0.0)
    config = tiny_config(OneShot(), out=out, replicas=replicas, epochs=2)
    check_run(out, config, fit(config))
    trained = rows(out, "train")
    rates = [max(row["lr"] for row in trained if row["replica"] == r) for r in (0, 1)]
    steps = [max(row["step"] for row in trained if row["replica"] == r) for r in (0, 1)]
    assert steps == ([12, 16] if axis == "epochs" else [16, 16])
    if axis != "epochs":  # shorter runs report at other places of their schedules
        assert rates[1] / rates[0] == pytest.approx(5.0 if axis == "lr" else 1.0)
    losses = [[row["loss"] for row in trained if row["replica"] == r] for r in (0, 1)]
    assert losses[0] != losses[1]


def test_defaults_along_every_axis_suit_any_count(tmp_path: Path) -> None:
    for axis in AXES:
        for count in (1, 2, 5):
            replicas = ReplicasConfig(count, vary=axis, start=0.0)
            setup = prepare(tiny_config(OneShot(), replicas=replicas))
            assert len(setup.plan[1].replicas) == count


# --- segments without training ---------------------------------------------------------------------------


class Pauses(PruningMethod):
    """Segments that only prune, between others and at the end."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        shares = ((0.0, 0.5), (0.3, 0.0), (0.6, 0.5), (0.8, 0.0), (budget.sparsity, 0.0))
        return tuple(Segment(sparsity, share * budget.epochs) for sparsity, share in shares)


def test_segments_of_no_epochs_prune_only(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny_config(Pauses(), out=out, epochs=2)
    summary = fit(config)
    check_summary(out, config, summary)
    check_model(out, config, summary)
    assert [row["replicas"] for row in rows(out, "segment")] == [2, 0, 2, 0, 0]
    assert [row["segment"] for row in rows(out, "merge")] == [0, 2]
    tested = rows(out, "evaluate")
    assert [row["segment"] for row in tested] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in tested] == [8, 8, 16, 16, 16]
    assert [row["sparsity"] for row in tested] == pytest.approx([0.0, 0.3, 0.6, 0.8, 0.9], abs=1e-4)
    last = [row for row in rows(out, "candidate") if row["segment"] == 2]
    assert summary["candidates.best_accuracy"] == max(row["test.accuracy"] for row in last)


# --- when it goes wrong ------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, value: float, *victims: tuple[int, int]) -> None:
    """Spoil the classifier of some replicas, as (segment, replica), after they were trained."""
    original = sequential.train

    def train(training: Training, *rest: Any) -> State:
        state = original(training, *rest)
        if (training.stage.index, training.replica.index) in victims:
            state.tensors["fc.bias"].fill_(value)
        return state

    monkeypatch.setattr(sequential, "train", train)


@pytest.mark.parametrize(
    "value", [math.nan, *(pytest.param(value, marks=pytest.mark.slow) for value in (math.inf, 3e38))]
)
def test_a_replica_that_blew_up_never_enters_a_soup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    out = tmp_path / "run"
    config = tiny_config(OneShot(), out=out, replicas=ReplicasConfig(3, start=0.0), epochs=2)
    poison(monkeypatch, value, (0, 1), (1, 0))
    if value == 3e38:  # finite weights, but logits beyond any number

        def overflow(self: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return output * 10

        build = prepare

        def hooked(config: FitConfig, **options: Any) -> Any:
            setup = build(config, **options)
            setup.model.get_submodule("fc").register_forward_hook(overflow)
            return setup

        monkeypatch.setattr("sparsekit.launch.prepare", hooked)
    summary = fit(config)
    assert summary["status"] == "done"
    first, second = rows(out, "merge")
    assert (first["ingredients"], second["ingredients"]) == ([0, 2], [1, 2])
    assert len(first["candidates"]) == len(second["candidates"]) == 2
    assert all(row["soup.loss"] is not None for row in (first, second))
    told = capsys.readouterr()
    assert all(part in told.err for part in ("segment 1, replica 2", "inf", "tried again", "left out"))
    assert all(t.isfinite().all() for t in load_file(out / "model/model.safetensors").values())


def test_a_run_whose_replicas_all_blow_up_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = ["--epochs", "6", "--replicas.count", "2", "--optimizer.lr", "1e9", "--out", str(out)]
    assert main.main(["fit", *ARGUMENTS, *options]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert all(part in error for part in ("segment 1", "finite", "--optimizer.lr"))
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["status"], summary["method"], summary["merge"]) == ("failed", "gmp", "uniform")
    assert summary["wall_seconds"] > 0.0
    assert not (out / "model").exists()
    assert [row["event"] for row in rows(out)] == ["segment", "fault", "fault"]


def test_a_failure_later_on_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    poison(monkeypatch, math.nan, (1, 0), (1, 1))
    with pytest.raises(RunError, match="segment 2: no replica stayed finite"):
        fit(tiny_config(OneShot(), out=out, epochs=2))
    assert json.loads((out / "summary.json").read_text())["status"] == "failed"
    assert rows(out)[-1]["event"] != "done"


def test_a_plugin_that_raises_leaves_a_failed_run(tmp_path: Path) -> None:
    class Broken(OneShot):
        """Raises what it likes."""

        def scores(self, step: Any) -> Any:
            raise KeyError("oh")

    out = tmp_path / "run"
    with pytest.raises(KeyError, match="oh"):
        fit(tiny_config(Broken(), out=out, epochs=2))
    assert json.loads((out / "summary.json").read_text())["status"] == "failed"


def test_a_directory_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match=r"--out .*; give a (new )?directory"):
            fit(tiny_config(out=out))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_bad_input_leaves_no_directory(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny_config(out=out)
    for bad in (
        replace(config, masks=MasksConfig(exclude=["nowhere"])),
        replace(config, model=replace(config.model, kwargs={"depht": 2})),
        replace(config, optimizer=optimizer("sdg")),
        replace(config, epochs=1, method=METHODS["dpf"]()),
        replace(config, sparsity=1.0),
    ):
        with pytest.raises(UserError, match="--"):
            fit(bad)
        assert not out.exists()


# --- as a user runs it -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_default_command(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = command("fit", "--wandb.mode", "disabled", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["status"], summary["method"], summary["merge"]) == ("done", "gmp", "uniform")
    masks = load_file(out / "masks.safetensors")
    weights = load_file(out / "model" / "model.safetensors")
    zeros = sum(int((weights[name] == 0).sum()) for name in masks)
    assert summary["sparsity"] == 0.9
    assert zeros == 0.9 * sum(mask.numel() for mask in masks.values()) == 218_160
    assert masked_are_zero(weights, masks)
    assert summary["test.accuracy"] > 0.93
    assert rows(out)[-1]["event"] == "done"
