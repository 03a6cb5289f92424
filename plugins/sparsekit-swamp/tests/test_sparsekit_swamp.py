"""The plan and the schedule of SWAMP by hand, the contract kit, and whole runs."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise, product
from math import nan
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from sparsekit_swamp.swamp import SWAMP

from sparsekit import Budget, Segment, Stage
from sparsekit.testing import check_method

Fit = Callable[..., list[dict[str, Any]]]
KWARGS = '{"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}'
SMALL = ["--epochs", "6", "--model.kwargs", KWARGS, "--data.image_size", "8", "--device", "cpu"]
SMALL += ["--replicas.count", "2", "--replicas.start", "0", "--wandb.mode", "disabled"]


@pytest.mark.slow
def test_keeps_the_contract() -> None:
    check_method(SWAMP)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"dense": 0.5, "cycles": 2, "single": 0, "average": 0.0, "rate": 1.0}, {"rewind": 0.25, "cycles": 2}]
)
def test_keeps_the_contract_with_other_options(options: dict[str, Any]) -> None:
    check_method(SWAMP, **options)


def test_plan_by_hand() -> None:
    # 3/4 pruned in two rounds keep half each; a quarter of 16 epochs dense, then six each
    plan = SWAMP(dense=0.25, cycles=2, single=2, average=0.5).plan(Budget(16.0, 0.75))
    assert plan == (
        Segment(0.0, 4.0, average_from=0.5, replicas=1),
        Segment(0.5, 6.0, average_from=0.5, replicas=1),
        Segment(0.75, 6.0, average_from=0.5, replicas=None),
    )


def test_plan_with_rewinding_by_hand() -> None:
    # the dense round of four epochs is parted at a quarter; from half of the round on, a third of the rest, it averages
    plan = SWAMP(dense=0.25, cycles=2, average=0.5, rewind=0.25).plan(Budget(16.0, 0.75))
    assert plan == (
        Segment(0.0, 1.0, average_from=None, replicas=1),
        Segment(0.0, 3.0, average_from=pytest.approx(1 / 3), replicas=1),
        Segment(0.5, 6.0, average_from=0.5, replicas=1, rewind=1),
        Segment(0.75, 6.0, average_from=0.5, rewind=1),
    )
    first = SWAMP(dense=0.25, cycles=2, rewind=0.0).plan(Budget(16.0, 0.75))
    assert [segment.rewind for segment in first] == [None, 0, 0]


def test_the_parted_dense_round_has_the_rates_of_the_whole() -> None:
    budget = Budget(10.0, 0.9, warmup=0.2, decay=lambda done: 1.0 - done)
    whole, parted = SWAMP(average=0.5, rate=0.2), SWAMP(average=0.5, rate=0.2, rewind=0.25)
    dense = whole.learning_rate(Stage(budget, whole.plan(budget), 0))
    first, rest, *rounds = [
        parted.learning_rate(Stage(budget, parted.plan(budget), index)) for index in range(len(parted.plan(budget)))
    ]
    for done in (0.0, 0.05, 0.1, 0.2):
        assert first(done / 0.25) == pytest.approx(dense(done))
    for done in (0.25, 0.4, 0.5, 1.0):
        assert rest((done - 0.25) / 0.75) == pytest.approx(dense(done), abs=1e-9)
    assert [schedule.restarts for schedule in (first, rest, *rounds)] == [True, False, True, True, True, True]
    assert [rounds[-1](done / 10) for done in range(11)] == pytest.approx([dense(done / 10) for done in range(11)])


def test_every_round_may_have_particles() -> None:
    assert [segment.replicas for segment in SWAMP(cycles=2, single=0).plan(Budget(6.0, 0.9))] == [None] * 3


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95, 0.99])
def test_plan_spends_the_budget_and_ends_at_the_target(sparsity: float) -> None:
    plan = SWAMP(cycles=7).plan(Budget(6.0, sparsity))
    assert sum(segment.epochs for segment in plan) == pytest.approx(6.0)
    assert plan[0].sparsity == 0.0
    assert plan[-1].sparsity == sparsity
    kept = [1.0 - segment.sparsity for segment in plan]
    assert [b / a for a, b in pairwise(kept)] == pytest.approx([(1.0 - sparsity) ** (1 / 7)] * 7)


def test_learning_rate_warms_up_falls_and_stays() -> None:
    # the original schedule, a warm-up of a fifth and a fall from 1 to 0, squeezed into the first half above 0.2
    budget = Budget(10.0, 0.9, warmup=0.2, decay=lambda done: 1.0 - done)
    method = SWAMP(average=0.5, rate=0.2)
    for index in range(5):
        schedule = method.learning_rate(Stage(budget, method.plan(budget), index))
        assert schedule.restarts
        found = [schedule(done) for done in (0.0, 0.05, 0.1, 0.3, 0.499999, 0.5, 0.9, 1.0)]
        assert found == pytest.approx([0.2, 0.6, 1.0, 0.6, 0.2, 0.2, 0.2, 0.2], abs=1e-5)


def test_learning_rate_is_constant_where_the_whole_round_is_averaged() -> None:
    budget, method = Budget(10.0, 0.9, warmup=0.2), SWAMP(average=0.0, rate=0.3)
    schedule = method.learning_rate(Stage(budget, method.plan(budget), 1))
    assert {schedule(done / 10) for done in range(11)} == {0.3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense": 0.0}, "--method.dense is 0; give a fraction of the budget above 0 and below 1"),
        ({"cycles": 0}, "--method.cycles is 0; give 1 to 1000"),
        ({"cycles": 3, "single": 4}, r"--method.single is 4; give 0 to --method.cycles \(3\)"),
        ({"average": 1.0}, "--method.average is 1; give a fraction of a round from 0 to below 1"),
        ({"average": nan}, "--method.average is nan; give a fraction of a round from 0 to below 1"),
        ({"rewind": 0.6}, r"--method.rewind is 0.6; give a fraction of the dense round, 0 to --method.average \(0.5\)"),
        ({"rewind": nan}, "--method.rewind is nan; give a fraction of the dense round"),
        ({"rate": 0.0}, "--method.rate is 0; give a fraction of --optimizer.lr above 0 and up to 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SWAMP(**options)


def test_importing_it_needs_no_torch() -> None:
    code = "import sys, sparsekit_swamp.swamp; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Run `sparsekit fit` here; the rows of metrics.jsonl, masks checked to be exact and the model to follow them."""

    def run(*options: str, sparsity: float = 0.9) -> list[dict[str, Any]]:
        out = tmp_path / "run"
        argv = ["sparsekit", "fit", "--method", "swamp", *SMALL, "--sparsity", str(sparsity), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", [*argv, *options])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("sparsekit", run_name="__main__")
        assert stop.value.code == 0
        masks, model = load_file(out / "masks.safetensors"), load_file(out / "model" / "model.safetensors")
        total = sum(mask.numel() for mask in masks.values())
        assert sum(int((mask == 0).sum()) for mask in masks.values()) == round(sparsity * total)
        assert all(not model[name][mask == 0].any() for name, mask in masks.items())
        assert json.loads((out / "summary.json").read_text("utf-8"))["status"] == "done"
        return [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("merge", "sparsity"), [("greedy", 0.95), *product(["uniform", "none"], [0.0, 0.5, 0.95, 0.99])]
)
def test_fit_ends_at_the_target(merge: str, sparsity: float, fit: Fit) -> None:
    rows = fit("--merge", merge, sparsity=sparsity)
    particles = 1 if merge == "none" else 2
    assert [row["replicas"] for row in rows if row["event"] == "segment"] == [1, 1, particles, particles, particles]


@pytest.mark.slow
def test_fit_with_rewinding(fit: Fit) -> None:
    rows = fit("--method.rewind", "0.25", "--method.cycles", "2")
    assert [row["replicas"] for row in rows if row["event"] == "segment"] == [1, 1, 1, 2]


@pytest.mark.slow
def test_particles_differ_in_batch_order(fit: Fit) -> None:
    rows = fit("--method.single", "0")
    last = [row["held_out.loss"] for row in rows if row["event"] == "candidate" and row["segment"] == 0]
    assert len(last) == 2
    assert last[0] != last[1]
