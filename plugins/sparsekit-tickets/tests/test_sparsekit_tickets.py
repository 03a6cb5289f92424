"""Lottery tickets, SNIP and SynFlow: plans and scores worked by hand, rewinding in a run, and the contract kit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from math import nan
from typing import Any

import pytest
import torch
from sparsekit_tickets.lth import LTH
from sparsekit_tickets.snip import SNIP
from sparsekit_tickets.synflow import SynFlow, positive, saliency
from torch import Tensor, nn

from sparsekit import Budget, PruningMethod, PruningStep, Segment, Stage, Tensors
from sparsekit.pruning import masks
from sparsekit.testing import check_method

# --- lottery tickets: the plan and the rate ---------------------------------------------------------------


def test_tickets_plan_by_hand() -> None:
    # three trainings of which two start at a quarter: T = 10 / (1 + 2 · 0.75) = 4, so 1 + 3 epochs dense, then 3 and 3
    plan = LTH(cycles=2, rewind=0.25).plan(Budget(10.0, 0.75))
    assert plan == (Segment(0.0, 1.0), Segment(0.0, 3.0), Segment(0.5, 3.0, rewind=1), Segment(0.75, 3.0, rewind=1))


def test_tickets_from_the_initial_weights() -> None:
    assert LTH(cycles=1, rewind=0.0).plan(Budget(8.0, 0.75)) == (Segment(0.0, 4.0), Segment(0.75, 4.0, rewind=0))


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95, 0.99])
@pytest.mark.parametrize("rewind", [0.0, 0.1, 0.9])
def test_each_cycle_prunes_the_same_fraction_and_ends_the_training(rewind: float, sparsity: float) -> None:
    plan = LTH(cycles=5, rewind=rewind).plan(Budget(30.0, sparsity))
    assert sum(segment.epochs for segment in plan) == pytest.approx(30.0)
    assert plan[-1].sparsity == sparsity
    kept = [1.0 - segment.sparsity for segment in plan[-6:]]
    assert [b / a for a, b in pairwise(kept)] == pytest.approx([(1.0 - sparsity) ** 0.2] * 5)
    dense = sum(segment.epochs for segment in plan if segment.rewind is None)
    assert [segment.epochs for segment in plan[-5:]] == pytest.approx([(1.0 - rewind) * dense] * 5)


def test_the_rate_is_replayed_from_the_rewound_epoch() -> None:
    # the original schedule rises over a fifth and falls from 1 to 0; a quarter of the training is done at 1 − 1/16
    budget = Budget(10.0, 0.75, warmup=0.2, decay=lambda done: 1.0 - done)
    method = LTH(cycles=2, rewind=0.25)
    first, rest, *cycles = [
        method.learning_rate(Stage(budget, method.plan(budget), index)) for index in range(len(method.plan(budget)))
    ]
    assert [first(done) for done in (0.0, 0.4, 0.8, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 0.9375])
    for schedule in (rest, *cycles):
        assert [schedule(done) for done in (0.0, 0.2, 0.6, 1.0)] == pytest.approx([0.9375, 0.75, 0.375, 0.0])
    assert [schedule.restarts for schedule in (first, rest, *cycles)] == [True, False, True, True]


def test_from_the_initial_weights_the_whole_schedule_is_replayed() -> None:
    budget = Budget(9.0, 0.75, warmup=0.2, decay=lambda done: 1.0 - done)
    method = LTH(cycles=2, rewind=0.0)
    for index in range(3):
        schedule = method.learning_rate(Stage(budget, method.plan(budget), index))
        assert [schedule(done) for done in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])
        assert schedule.restarts


# --- scores by hand on two layers -------------------------------------------------------------------------


class Net(nn.Sequential):
    """Two layers without biases: two inputs, two hidden units, one output."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
        self.load_state_dict({"0.weight": first, "2.weight": second})


FIRST, SECOND = torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([[-1.0, 3.0]])


def step_of(
    weights: Tensors,
    sparsity: float,
    gradients: Tensors | None = None,
    model: nn.Module | None = None,
    kept: Tensors | None = None,
    logged: dict[str, float | str] | None = None,
) -> PruningStep:
    """What the core would hand to a method that prunes once, before training."""
    before = masks.full(weights) if kept is None else kept

    def select(
        scores: Tensors, regrow: bool = False, sparsity: float | None = sparsity, among: Tensors | None = None
    ) -> Tensors:
        assert not regrow
        return masks.select(scores, before if among is None else among, sparsity or 0.0, "global")

    def given(batches: int = 1) -> Tensors:
        assert gradients is not None
        return gradients

    def images(split: str, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        assert (split, limit) == ("train", 1)
        yield torch.tensor([[0.3, -0.7]]), torch.tensor([0])

    return PruningStep(
        Budget(1.0, sparsity),
        (Segment(sparsity, 1.0),),
        0,
        weights=weights,
        masks=before,
        extra={},
        generator=torch.Generator(),
        select=select,
        gradients=given,
        model=lambda: model,
        images=images,
        log=({} if logged is None else logged).__setitem__,
    )


def test_snip_scores_by_hand() -> None:
    # input (1, 1): hidden units −1, cut off, and 3.5; with the output's slope 2, g = 0, 0, 6, 6 and 0, 7
    weights = {"0.weight": FIRST, "2.weight": SECOND}
    gradients = {"0.weight": torch.tensor([[0.0, 0.0], [6.0, 6.0]]), "2.weight": torch.tensor([[0.0, 7.0]])}
    net = Net(FIRST, SECOND)
    (2.0 * net(torch.ones(1, 2))).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradients[name])
    logged: dict[str, float | str] = {}
    step = step_of(weights, 0.5, gradients, logged=logged)
    scores = SNIP().scores(step)
    assert scores["0.weight"].tolist() == [[0.0, 0.0], [18.0, 3.0]]
    assert scores["2.weight"].tolist() == [[0.0, 21.0]]
    assert {name: mask.tolist() for name, mask in SNIP().masks(step).items()} == {
        "0.weight": [[False, False], [True, True]],
        "2.weight": [[False, True]],
    }
    assert logged == {"blind_layers": 0}


def test_snip_scores_layers_without_a_gradient_by_magnitude() -> None:
    # the other layer's mean score is (3 + 1) / 2 = 2; this one's |w| have the mean 2.5
    weights = {"a": torch.tensor([[1.0, -2.0, 3.0, 4.0]]), "b": torch.tensor([[1.0, -1.0]])}
    gradients = {"a": torch.zeros(1, 4), "b": torch.tensor([[3.0, 1.0]])}
    logged: dict[str, float | str] = {}
    scores = SNIP().scores(step_of(weights, 0.5, gradients, logged=logged))
    assert scores["a"][0].tolist() == pytest.approx([0.8, 1.6, 2.4, 3.2])
    assert scores["b"].tolist() == [[3.0, 1.0]]
    assert logged == {"blind_layers": 1}


def test_snip_without_any_gradient_prunes_all_the_same() -> None:
    weights = {"a": torch.tensor([[1.0, -2.0, 3.0, 4.0]])}
    assert SNIP().masks(step_of(weights, 0.5, {"a": torch.zeros(1, 4)}))["a"].sum() == 2


def test_synflow_scores_by_hand() -> None:
    # |W₁| 1 = (3, 3.5), so R = 1 · 3 + 3 · 3.5 = 13.5, which is each layer's sum, too
    model = positive(Net(FIRST, SECOND))
    everything = masks.full({"0.weight": FIRST, "2.weight": SECOND})
    scores = saliency(model, torch.ones(1, 2).double(), everything)
    assert scores["0.weight"].tolist() == [[1.0, 2.0], [9.0, 1.5]]
    assert scores["2.weight"].tolist() == [[3.0, 10.5]]
    assert scores["0.weight"].dtype is torch.float64


@pytest.mark.parametrize(
    ("rounds", "first", "second"),
    [
        # at once: 9, 10.5 and 3, an output of a unit that has no input any more
        (1, [[False, False], [True, False]], [[True, True]]),
        # one at a time: 1 goes, then 1.5; what is left of the first unit scores 2 on either side, and the second goes
        (3, [[False, True], [True, False]], [[False, True]]),
    ],
)
def test_synflow_prunes_in_rounds(rounds: int, first: list[list[bool]], second: list[list[bool]]) -> None:
    weights = {"0.weight": FIRST, "2.weight": SECOND}
    chosen = SynFlow(rounds).masks(step_of(weights, 0.5, model=Net(FIRST, SECOND)))
    assert {name: mask.tolist() for name, mask in chosen.items()} == {"0.weight": first, "2.weight": second}


def test_synflow_keeps_the_zeros_of_a_sparse_model() -> None:
    weights = {"0.weight": FIRST * torch.tensor([[1.0, 1.0], [0.0, 1.0]]), "2.weight": SECOND}
    before = {"0.weight": weights["0.weight"] != 0, "2.weight": SECOND != 0}
    chosen = SynFlow(3).masks(step_of(weights, 0.5, model=Net(weights["0.weight"], SECOND), kept=before))
    assert not chosen["0.weight"][1, 0]
    assert sum(int(mask.sum()) for mask in chosen.values()) == 3


def test_batchnorm_scales_and_shifts_by_absolute_values() -> None:
    norm = nn.BatchNorm1d(3, eps=0.0).eval()
    norm.load_state_dict(
        {
            "weight": torch.tensor([-2.0, 0.0, 1.0]),
            "bias": torch.tensor([-1.0, 0.5, 0.0]),
            "running_mean": torch.tensor([5.0, -5.0, 0.0]),
            "running_var": torch.tensor([4.0, 1.0, 1.0]),
            "num_batches_tracked": torch.tensor(1),
        }
    )
    # 2 · x / √4 + 1, 1 · x + 0.5 as a scale of 0 counts as 1, and x
    assert positive(norm)(torch.full((1, 3), 3.0).double()).tolist() == [[4.0, 3.5, 3.0]]


def test_no_layer_is_emptied_before_its_time() -> None:
    # a layer of few weights between wide ones, which one pruning by magnitude would empty
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 64, bias=False), nn.ReLU(), nn.Linear(64, 1, bias=False), nn.Linear(1, 64))
    weights = {name: p.detach().clone() for name, p in net.named_parameters() if name.endswith("weight")}
    chosen = SynFlow().masks(step_of(weights, 0.98, model=net))
    assert sum(int(mask.sum()) for mask in chosen.values()) == 5
    assert all(bool(mask.any()) for mask in chosen.values())


# --- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (LTH, {"cycles": 0}, "--method.cycles is 0; give 1 to 1000"),
        (LTH, {"rewind": 1.0}, "--method.rewind is 1; give a fraction of a training from 0 to below 1"),
        (LTH, {"rewind": nan}, "--method.rewind is nan; give a fraction of a training from 0 to below 1"),
        (SNIP, {"batches": 0}, "--method.batches is 0; give 1 to 1000"),
        (SynFlow, {"rounds": 1001}, "--method.rounds is 1001; give 1 to 1000"),
    ],
)
def test_options_out_of_range_are_refused(cls: type[PruningMethod], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**options)


def test_planning_needs_no_torch() -> None:
    code = "import sys, sparsekit; from sparsekit_tickets import lth, snip, synflow; "
    code += "[m().plan(sparsekit.Budget(6.0, 0.9)) for m in (lth.LTH, snip.SNIP, synflow.SynFlow)]; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "options"), [(LTH, {}), (LTH, {"rewind": 0.0, "cycles": 2}), (SNIP, {}), (SynFlow, {"rounds": 5})]
)
def test_keeps_the_contract(cls: type[PruningMethod], options: dict[str, Any]) -> None:
    check_method(cls, **options)
