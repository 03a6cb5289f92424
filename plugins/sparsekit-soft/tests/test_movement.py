"""Movement pruning: its scores worked by hand, and against a training loop of plain PyTorch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from sparsekit_soft.movement import Movement
from torch import Tensor, nn

import sparsekit
from sparsekit import Budget, Candidate, CoefficientMerge, MergeStep, PruningStep, Segment, Tensors, TrainingStep
from sparsekit.testing import check_method


def test_scores_by_hand() -> None:
    # S − g · w: 0.5 − 2 · 0.5, 0 − 1 · (−3) although it is masked, 1 − (−1) · 2
    step = TrainingStep(
        {"a": torch.tensor([0.5, -3.0, 2.0])},
        {"a": torch.tensor([1.0, 0.0, 1.0])},
        {"a": torch.tensor([0.5, 0.0, 1.0])},
        0.5,
    )
    assert Movement().update(step, {"a": torch.tensor([2.0, 1.0, -1.0])})["a"].tolist() == [-0.5, 3.0, 3.0]


def test_masked_weights_stay_behind_the_mask_without_a_gradient() -> None:
    weights = torch.tensor([0.5, -3.0, 2.0]).requires_grad_()
    step = TrainingStep({"a": weights}, {"a": torch.tensor([1.0, 0.0, 1.0])}, {"a": torch.zeros(3)}, 0.5)
    effective = Movement().effective(step)["a"]
    assert effective.tolist() == [0.5, 0.0, 2.0]
    effective.sum().backward()  # type: ignore[no-untyped-call]
    assert weights.grad is not None
    assert weights.grad.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(("index", "expected"), [(0, [3.0, 2.0, 1.0]), (1, [0.1, 0.3, -0.2])])
def test_the_first_masks_are_by_magnitude_and_all_others_by_score(index: int, expected: list[float]) -> None:
    asked: list[tuple[Tensors, bool]] = []

    def select(scores: Tensors, regrow: bool = False) -> Tensors:
        asked.append((scores, regrow))
        return {}

    def none(*_: object) -> Tensors:
        raise AssertionError("not asked for")

    weights = {"b": torch.tensor([3.0, -2.0, 1.0])}
    step = PruningStep(
        Budget(2.0, 0.5),
        (Segment(0.0, 1.0), Segment(0.5, 1.0)),
        index,
        weights=weights,
        masks={"b": torch.ones(3, dtype=torch.bool)},
        extra={"b": torch.tensor([0.1, 0.3, -0.2])},
        generator=torch.Generator(),
        select=select,
        gradients=none,
    )
    Movement().masks(step)
    ((scores, regrow),) = asked
    assert scores["b"].tolist() == pytest.approx(expected)
    assert regrow


def test_plan_follows_the_cubic_ramp() -> None:
    plan = Movement(start=0.0, end=0.5, interval=0.25, freeze=1.0).plan(Budget(8.0, 0.8))
    assert [segment.epochs for segment in plan] == [2.0] * 4
    assert [segment.sparsity for segment in plan] == pytest.approx([0.0, 0.7, 0.8, 0.8])  # 0.8 (1 − ½³) = 0.7


# --- against plain PyTorch --------------------------------------------------------------------------------

EPOCHS, SPARSITY, LR, DECAY = 20, 0.75, 0.02, 0.1
METHOD = Movement(start=0.1, end=0.6, interval=0.1, freeze=0.8)
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=LR, weight_decay=DECAY),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=LR, momentum=0.9, nesterov=True, weight_decay=DECAY),
}


class Noting(CoefficientMerge):
    """Takes the only candidate and notes its tensors and masks."""

    noted: ClassVar[list[tuple[Tensors, Tensors]]] = []

    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        (candidate,) = candidates
        tensors = {name: candidate.read(name).clone() for name in candidate.names()}
        self.noted.append((tensors, {name: mask.clone() for name, mask in step.masks.items()}))
        return [1.0]


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def examples() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    return inputs, inputs[:, :3].argmax(1)


def by_hand(optimizer_name: str) -> list[tuple[Tensors, Tensors, Tensors]]:
    """Weights, scores and masks at the end of each segment, by torch alone: a batch is all examples."""
    net, (inputs, labels) = network(), examples()
    weights = {"0.weight": net[0].weight, "2.weight": net[2].weight}  # type: ignore[index]
    biases = [net[0].bias, net[2].bias]  # type: ignore[index]
    groups = [{"params": list(weights.values())}, {"params": biases, "weight_decay": 0.0}]
    optimizer = OPTIMIZERS[optimizer_name](groups)
    scores = {name: torch.zeros_like(w) for name, w in weights.items()}
    masks = {name: torch.ones_like(w) for name, w in weights.items()}
    total, ends = sum(w.numel() for w in weights.values()), []
    for index, segment in enumerate(METHOD.plan(Budget(float(EPOCHS), SPARSITY))):
        if index:
            kept = total - round(segment.sparsity * total)
            threshold = torch.cat([s.flatten() for s in scores.values()]).sort(descending=True).values[kept - 1]
            masks = {name: (s >= threshold).float() for name, s in scores.items()}
            assert sum(int(m.sum()) for m in masks.values()) == kept
        for _ in range(round(segment.epochs)):  # a step an epoch
            used = {name: (w.detach() * masks[name]).requires_grad_() for name, w in weights.items()}
            hidden = F.linear(inputs, used["0.weight"], biases[0]).relu()
            optimizer.zero_grad()
            F.cross_entropy(F.linear(hidden, used["2.weight"], biases[1]), labels).backward()  # type: ignore[no-untyped-call]
            for name, w in weights.items():
                gradient = used[name].grad
                assert gradient is not None
                scores[name] = scores[name] - gradient * w.detach()
                w.grad = gradient * masks[name]
            optimizer.step()
        ends.append(tuple({n: t.detach().clone() for n, t in each.items()} for each in (weights, scores, masks)))
    return ends  # type: ignore[return-value]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_scores_are_what_they_say_under_any_optimizer(optimizer: str, tmp_path: Path) -> None:
    Noting.noted.clear()
    sparsekit.fit(
        model=network(),
        data=sparsekit.Data(train=examples(), test=examples(), held_out=examples()),
        method=METHOD,
        merge=Noting(),
        sparsity=SPARSITY,
        epochs=EPOCHS,
        device="cpu",
        precision="fp32",
        label_smoothing=0.0,
        replicas={"count": 1},
        optimizer={"name": optimizer, "lr": LR, "weight_decay": DECAY, "schedule": "constant", "warmup": 0.0},
        wandb={"mode": "disabled"},
        evaluation={"report": False},
        out=tmp_path / "run",
        **{"data.batch_size": 40, "data.workers": 0},
    )
    expected = by_hand(optimizer)
    assert len(Noting.noted) == len(expected)
    moved = set()
    for (tensors, masks), (weights, scores, kept) in zip(Noting.noted, expected, strict=True):
        for name in weights:
            torch.testing.assert_close(tensors[f"extra.{name}"], scores[name], rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(tensors[name], weights[name], rtol=1e-3, atol=1e-5)
            assert torch.equal(masks[name], kept[name].bool())
        moved.add(tuple(masks["0.weight"].flatten().tolist()))
    assert len(moved) > 3


# --- options and the contract -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 1.0}, "--method.start is 1; give a fraction of the budget from 0 to below 1"),
        ({"end": 0.1}, "--method.end is 0.1; give a fraction of the budget above --method.start (0.1) and below 1"),
        ({"interval": 0.0}, "--method.interval is 0; give a fraction of the budget from 0.0001 to 1"),
        ({"freeze": 0.5}, "--method.freeze is 0.5; give a fraction of the budget from --method.end (0.6) to 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=r"--method\.") as error:
        Movement(**options)
    assert str(error.value) == message


def test_planning_needs_no_torch() -> None:
    code = "import sys, sparsekit; from sparsekit_soft.movement import Movement; "
    code += "Movement().plan(sparsekit.Budget(6.0, 0.9)); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"start": 0.0, "freeze": 1.0}])
def test_keeps_the_contract(options: dict[str, float]) -> None:
    check_method(Movement, **options)
