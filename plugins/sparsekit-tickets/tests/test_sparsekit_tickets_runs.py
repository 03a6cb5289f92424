"""Whole runs: what lottery tickets return to, and exact counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sparsekit_tickets.lth import LTH

from sparsekit.cli.main import main
from sparsekit.merges.uniform import Uniform
from sparsekit.models.state import State
from sparsekit.testing import problem

pytestmark = pytest.mark.slow
KWARGS = '{"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}'
SMALL = ["--epochs", "6", "--model.kwargs", KWARGS, "--data.image_size", "8", "--device", "cpu"]
SMALL += ["--replicas.count", "2", "--replicas.start", "0", "--wandb.mode", "disabled"]
N_M = ["--masks.pattern", "2:4", "--masks.exclude", "[conv1]"]  # one input channel


@pytest.mark.parametrize(("rewind", "begins"), [(0.0, 0), (0.25, 1)])
def test_what_is_left_returns_bit_for_bit(rewind: float, begins: int) -> None:
    run = problem.run(LTH(cycles=2, rewind=rewind), Uniform(), sparsity=0.75)
    pruned = {each.stage.index: each.state for each in run.moments if each.where.startswith("after the pruning")}
    start = pruned[begins]  # a dense segment: its pruning changes nothing
    assert run.setup.plan[begins].stage.segment.sparsity == 0.0
    for index in range(begins + 1, begins + 3):
        state, segment = pruned[index], run.setup.plan[index].stage.segment
        total = sum(mask.numel() for mask in state.masks.values())
        assert sum(int(mask.sum()) for mask in state.masks.values()) == total - round(segment.sparsity * total)
        assert not state.optimizer
        for name, tensor in state.tensors.items():
            assert torch.equal(tensor, start.tensors[name] * state.masks.get(name, torch.tensor(1, dtype=tensor.dtype)))
        trained = next(e.state for e in reversed(run.moments) if e.stage.index == index - 1)
        assert is_top(trained, state)


def is_top(before: State, after: State) -> bool:
    """Whether the masks keep the largest of the weights that were trained, not of those returned to."""
    size = torch.cat([before.weights[name].abs().flatten() for name in after.masks])
    kept = torch.cat([mask.flatten() for mask in after.masks.values()])
    return bool(size[kept].min() >= size[~kept].max())


@pytest.mark.parametrize(
    ("options", "segments"),
    [
        (["lth", "--sparsity", "0.95"], 5),
        (["lth", "--method.rewind", "0", "--method.cycles", "2", "--merge", "none"], 3),
        (["snip", "--merge", "greedy"], 1),
        (["snip", "--model.kwargs", KWARGS[:-1] + ', "zero_init_last": false}'], 1),
        (["synflow", "--sparsity", "0.99"], 1),
        (["synflow", *N_M, "--sparsity", "0.5", "--method.rounds", "10"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_fit_ends_at_the_target(options: list[str], segments: int, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["fit", *SMALL, "--out", str(out), "--method", *options]) == 0
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text("utf-8"))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    starts = [row for row in rows if row["event"] == "segment"]
    masks, model = load_file(out / "masks.safetensors"), load_file(out / "model" / "model.safetensors")
    target = float(options[options.index("--sparsity") + 1]) if "--sparsity" in options else 0.9
    total = sum(mask.numel() for mask in masks.values())
    assert summary["status"] == "done"
    assert sum(int((mask == 0).sum()) for mask in masks.values()) == round(target * total)
    assert all(not model[name][mask == 0].any() for name, mask in masks.items())
    assert len(starts) == segments
    if options[0] == "snip":  # timm's ResNet has four blocks of two convolutions before a scale that starts at 0
        assert starts[0]["method.blind_layers"] == (0 if "zero_init_last" in options[-1] else 8)
