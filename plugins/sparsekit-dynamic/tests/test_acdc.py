"""AC/DC: the plan and the masks worked by hand, and a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sparsekit_dynamic import ACDC

from sparsekit import Budget, PruningStep, Segment, Stage, Tensors
from sparsekit.cli.main import main
from sparsekit.pruning import masks
from sparsekit.testing import check_method


def test_plan_by_hand() -> None:
    # 10 epochs dense and 20 sparse leave 70 for two times two phases
    plan = ACDC(warmup=0.1, cycles=2, last=0.2).plan(Budget(100.0, 0.9))
    assert [segment.epochs for segment in plan] == pytest.approx([10.0, 17.5, 17.5, 17.5, 17.5, 20.0])
    assert [segment.sparsity for segment in plan] == [0.0, 0.9, 0.0, 0.9, 0.0, 0.9]


def test_without_cycles_it_prunes_once() -> None:
    assert ACDC(cycles=0, last=0.25).plan(Budget(8.0, 0.9)) == (Segment(0.0, 6.0), Segment(0.9, 2.0))


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.99])
def test_plan_spends_the_budget(sparsity: float) -> None:
    plan = ACDC(cycles=7).plan(Budget(6.0, sparsity))
    assert sum(segment.epochs for segment in plan) == pytest.approx(6.0)
    assert len(plan) == 16
    assert plan[-1].sparsity == sparsity


def test_one_schedule_goes_on_and_dense_phases_start_with_a_fresh_optimizer() -> None:
    budget = Budget(100.0, 0.9, decay=lambda done: 1.0 - done)
    method = ACDC(warmup=0.1, cycles=2, last=0.2)
    schedules = [method.learning_rate(Stage(budget, method.plan(budget), index)) for index in range(6)]
    assert [schedule(0.0) for schedule in schedules] == pytest.approx([1.0, 0.9, 0.725, 0.55, 0.375, 0.2])
    assert schedules[-1](1.0) == pytest.approx(0.0)
    assert [schedule.restarts for schedule in schedules] == [False, False, True, False, True, False]


def test_masks_take_back_all_and_choose_anew() -> None:
    weights = {"w": torch.tensor([[0.1, -0.9, 0.0, 0.4]])}
    kept = {"w": torch.tensor([[True, True, False, False]])}

    def chosen(sparsity: float) -> list[bool]:
        def select(scores: Tensors, regrow: bool = False) -> Tensors:
            return masks.select(scores, masks.full(kept) if regrow else kept, sparsity, "global")

        def none(*_: object) -> Tensors:
            raise AssertionError("not asked for")

        step = PruningStep(
            Budget(1.0, sparsity), (Segment(sparsity, 1.0),), 0, weights=weights, masks=kept, extra={},
            generator=torch.Generator(), select=select, gradients=none,
        )  # fmt: skip
        found: list[bool] = ACDC().masks(step)["w"][0].tolist()
        return found

    assert chosen(0.0) == [True] * 4
    assert chosen(0.5) == [False, True, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 0.0}, "--method.warmup is 0; give a fraction of the budget above 0 and below 1"),
        ({"cycles": -1}, "--method.cycles is -1; give 0 to 1000"),
        ({"last": 0.9}, "--method.last is 0.9; give a fraction of the budget above 0 and below what --method.warmup"),
        ({"last": float("nan")}, "--method.last is nan; give a fraction of the budget above 0 and below what"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=r"--method\.") as error:
        ACDC(**options)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


def test_planning_needs_no_torch() -> None:
    code = "import sys, sparsekit; from sparsekit_dynamic import ACDC; "
    code += "ACDC().plan(sparsekit.Budget(6.0, 0.9)); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"cycles": 0}, {"warmup": 0.3, "cycles": 1, "last": 0.4}])
def test_keeps_the_contract(options: dict[str, float]) -> None:
    check_method(ACDC, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("merge", "sparsity"), [("uniform", 0.95), ("greedy", 0.5), ("none", 0.99)])
def test_run(merge: str, sparsity: float, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = f"--method acdc --merge {merge} --sparsity {sparsity} --epochs 6 --replicas.count 2 --seed 1"
    options += " --data.image_size 8 --wandb.mode disabled --device cpu"
    model = ["--model.kwargs", '{"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}']
    assert main(["fit", *options.split(), *model, "--out", str(out)]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    starts = [line for line in lines if line["event"] == "segment"]
    expected = [segment.sparsity for segment in ACDC().plan(Budget(6.0, sparsity))]
    assert [line["sparsity"] for line in starts] == pytest.approx(expected, abs=1e-4)
    sparse = [line["mask"] for line in starts if line["sparsity"] > 0.0]
    assert len(set(sparse)) > 1  # chosen anew
