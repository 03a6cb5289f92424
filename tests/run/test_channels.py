"""Runs with `--masks.pattern channels`: what they keep, resume, share and refuse."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import QUIET, TINY, contents, fit, strike
from safetensors.torch import load_file
from tiny import rows

from sparsekit.api import Budget, PruningMethod, PruningStep, Segment
from sparsekit.cli.main import main
from sparsekit.config.options import MasksConfig
from sparsekit.launch import fit as launch

CHANNELS = ["--masks.pattern", "channels", "--sparsity", "0.5"]


def summary(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_text()))


def whole_channels(out: Path) -> None:
    """Rows, columns, norms and biases of a saved model go together: by hand for the first block of a ResNet."""
    model, kept = load_file(out / "model" / "model.safetensors"), load_file(out / "masks.safetensors")
    rows_of = kept["layer1.0.conv1.weight"].any(dim=(1, 2, 3))
    columns_of = kept["layer1.0.conv2.weight"].any(dim=(0, 2, 3))
    assert torch.equal(rows_of, columns_of)
    assert 0 < int(rows_of.sum()) < len(rows_of)
    assert torch.equal(kept["layer1.0.bn1.weight"], rows_of)
    assert torch.equal(kept["layer1.0.bn1.bias"], rows_of)
    for name, mask in kept.items():
        assert not model[name][~mask].any(), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("channels") / "run"
    assert fit(out, *CHANNELS) == 0
    return out


def test_a_run_prunes_whole_channels_and_says_how_many(finished: Path) -> None:
    whole_channels(finished)
    kept = load_file(finished / "masks.safetensors")
    last = rows(finished, "segment")[-1]
    told = summary(finished)
    weights = {name: kept[name] for name in last["layers"]}
    total = sum(mask.numel() for mask in weights.values())
    masked = total - sum(int(mask.sum()) for mask in weights.values())
    assert told["sparsity"] == masked / total <= 0.5
    assert told["sparsity"] > 0.45
    assert last["channels"]["layer1.0.conv1"] == int(kept["layer1.0.bn1.weight"].sum())
    assert told["removed.weights"] == pytest.approx(told["sparsity"])
    first = rows(finished, "segment")[0]["channels"]
    assert all(last["channels"][name] <= first[name] for name in first)
    assert told["channels"] == sum(last["channels"].values())
    assert told["channels.dense"] == sum(last["channels.of"].values()) == sum(first.values())
    assert told["removed.flops"] == pytest.approx(1 - told["flops.sparse"] / told["flops.dense"])
    assert told["latency.slim_seconds"] > 0


def test_its_report_shows_the_channels_left(finished: Path, tmp_path: Path) -> None:
    assert main(["report", str(finished), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    last = rows(finished, "segment")[-1]
    for name, left in last["channels"].items():
        assert name in page
        assert f"{left:,} of {last['channels.of'][name]:,}" in page
    assert "What channels save" in page
    assert "without the removed channels" in page


METHODS = [["--method", "dpf"], ["--method", "imp"], ["--merge", "greedy", "--optimizer.name", "adamw"]]


@pytest.mark.parametrize("options", METHODS, ids=["dpf", "imp", "adamw"])
def test_a_stopped_run_goes_on_to_the_same_bits(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    options = [*CHANNELS, *options, "--data.limit", "200"]
    assert fit(whole, *options) == 0
    whole_channels(whole)
    with monkeypatch.context() as patch:
        strike(patch, 9)
        assert fit(out, *options) == 128 + signal.SIGTERM
    assert fit(out, *options, "--resume", "true") == 0
    assert contents(out) == contents(whole)


def test_stacked_replicas_prune_the_same_channels_at_first(tmp_path: Path) -> None:
    options = [*CHANNELS, "--method", "oneshot", "--data.limit", "200"]
    assert fit(tmp_path / "one", *options, "--replicas.executor", "sequential") == 0
    assert fit(tmp_path / "all", *options, "--replicas.executor", "vectorized") == 0
    whole_channels(tmp_path / "all")
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "all"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=2e-2, atol=2e-3)


class Foreign(PruningMethod):
    """A method of somebody who has not heard of channels."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return (Segment(budget.sparsity / 2, budget.epochs / 2), Segment(budget.sparsity, budget.epochs / 2))

    def scores(self, step: PruningStep) -> dict[str, torch.Tensor]:
        return {name: gradient * -step.weights[name] for name, gradient in step.gradients().items()}


class Unstructured(Foreign):
    """It makes masks of its own."""

    def masks(self, step: PruningStep) -> dict[str, torch.Tensor]:
        flat = torch.cat([weight.abs().reshape(-1) for weight in step.weights.values()])
        threshold = flat.kthvalue(max(1, round(step.segment.sparsity * len(flat)))).values
        return {name: weight.abs() > threshold for name, weight in step.weights.items()}


def test_methods_that_know_nothing_of_channels(tmp_path: Path) -> None:
    from tiny import tiny_config

    from sparsekit.errors import RunError

    config = tiny_config(Foreign(), out=tmp_path / "run", sparsity=0.4, masks=MasksConfig(pattern="channels"))
    done = launch(config)
    assert 0.3 < done["sparsity"] <= 0.4
    whole_channels(tmp_path / "run")
    config = tiny_config(Unstructured(), out=tmp_path / "other", sparsity=0.4, masks=MasksConfig(pattern="channels"))
    with pytest.raises(RunError) as error:
        launch(config)
    assert "--masks.pattern channels" in str(error.value)
    assert "step.select" in str(error.value)


def test_half_the_flops(tmp_path: Path) -> None:
    options = ["--masks.pattern", "channels", "--sparsity", "0.5", "--masks.target", "flops", "--data.limit", "200"]
    assert fit(tmp_path / "run", *options) == 0
    told = summary(tmp_path / "run")
    assert told["removed.flops"] == pytest.approx(1 - told["flops.sparse"] / told["flops.dense"], abs=1e-6)
    assert 0.45 < told["removed.flops"] <= 0.5


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--masks.pattern", "channels:0"], ["--masks.pattern", "channels:8"]),
        (["--masks.pattern", "channel"], ["--masks.pattern", "channels"]),
        (["--masks.target", "flops"], ["--masks.target flops", "--masks.pattern channels"]),
        ([*CHANNELS[:2], "--sparsity", "0.99", "--masks.floor", "4"], ["--sparsity 0.99", "floor"]),
        ([*CHANNELS, "--masks.exclude", "['']"], ["--masks.exclude"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    options: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *TINY, *QUIET, "--out", str(tmp_path / "run"), *options]) == 2
    told = capsys.readouterr().err
    assert all(part in told for part in parts), told
    assert not (tmp_path / "run").exists()


def test_a_dense_model_begins_and_teaches(finished: Path, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    assert fit(dense, "--sparsity", "0", "--epochs", "2", "--method", "oneshot", "--data.limit", "200") == 0
    model = str(dense)
    assert fit(tmp_path / "run", *CHANNELS, "--model.init", model, "--distill.model", model, "--data.limit", "200") == 0
    whole_channels(tmp_path / "run")
    # and a pruned one goes on with the channels that it has
    options = ["--masks.pattern", "channels", "--sparsity", "0.6", "--data.limit", "200"]
    assert fit(tmp_path / "more", *options, "--model.init", str(finished)) == 0
    before, after = (load_file(out / "masks.safetensors") for out in (finished, tmp_path / "more"))
    assert all(not (after[name] & ~before[name]).any() for name in before)


def test_a_model_that_is_pruned_too_far_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = ["fit", *TINY, *QUIET, "--model.init", str(finished), "--masks.pattern", "channels"]
    assert main([*begin, "--sparsity", "0.3", "--out", str(tmp_path / "run")]) == 2
    assert "--sparsity is 0.3" in capsys.readouterr().err
    assert main([*begin, "--sparsity", "0.6", "--masks.floor", "14", "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert "--masks.floor 14" in told
    assert "--model.init" in told or "--sparsity 0.6" in told
    options = ["--sparsity", "0.8", "--masks.target", "flops", "--data.limit", "200", "--out", str(tmp_path / "flops")]
    assert main([*begin, *options]) == 0
    assert summary(tmp_path / "flops")["removed.flops"] <= 0.8


def test_zeros_that_are_no_whole_channels_are_trained_again(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--data.image_size",
        "8",
        "--data.limit",
        "200",
        "--epochs",
        "6",
        *QUIET,
        "--model.init",
        str(tiny_run),
    ]
    assert main(["fit", *arguments, *CHANNELS, "--out", str(tmp_path / "run")]) == 0
    assert "trained again" in capsys.readouterr().out
    kept = load_file(tmp_path / "run" / "masks.safetensors")
    for mask in kept.values():  # convolutions keep all of a row and column, or nothing
        if mask.dim() == 4:
            rows_of, columns_of = mask.any(dim=(1, 2, 3)), mask.any(dim=(0, 2, 3))
            assert torch.equal(mask, (rows_of[:, None] & columns_of)[..., None, None].expand_as(mask))
    told = summary(tmp_path / "run")
    assert told["channels"] < told["channels.dense"]
