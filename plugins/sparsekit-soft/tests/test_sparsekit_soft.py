"""Known answers worked by hand, the plans, the options and the contract kit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from math import exp, inf, log, nan
from typing import Any

import pytest
import torch
from sparsekit_soft._shared import Steered, TwoPhases, kept_count, top
from sparsekit_soft.cs import CS
from sparsekit_soft.dnw import DNW, erk_counts
from sparsekit_soft.dst import DST, _slopes
from sparsekit_soft.gsm import GSM
from sparsekit_soft.lc import LC
from sparsekit_soft.str import STR
from torch import Tensor

from sparsekit import Budget, PruningStep, Segment, Tensors, TrainingStep
from sparsekit.testing import check_method

METHODS: list[type[Any]] = [STR, CS, DST, GSM, LC, DNW]
SOFT: list[type[Any]] = [STR, CS, DST, DNW]


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0])


def training(
    weights: Tensors,
    extra: Tensors | None = None,
    progress: float = 0.0,
    masks: Tensors | None = None,
    **changes: float,
) -> TrainingStep:
    """A training step whose tensors take gradients."""
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    own = {name: t.clone().requires_grad_() for name, t in (extra or {}).items()}
    masks = masks or {name: torch.ones_like(w) for name, w in weights.items()}
    return TrainingStep(leaves, masks, own, progress, **changes)


def pruning(weights: Tensors, extra: Tensors) -> PruningStep:
    def none(*_: object, **__: object) -> Tensors:
        raise AssertionError("not asked for")

    return PruningStep(
        Budget(10.0, 0.5),
        (Segment(0.5, 10.0),),
        0,
        weights=weights,
        masks={name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()},
        extra=extra,
        generator=torch.Generator(),
        select=none,
        gradients=none,
    )


def close(found: Tensor | None, *expected: Any) -> None:
    assert found is not None
    torch.testing.assert_close(found.detach(), tensor(*expected), rtol=1e-5, atol=1e-6)


def backward(value: Tensor | None) -> None:
    assert value is not None
    value.backward()  # type: ignore[no-untyped-call]


# --- what all share ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cls", METHODS)
def test_keeps_the_contract(cls: type[Any]) -> None:
    check_method(cls)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        *((cls, {"search": 1.0, "interval": 0.5}) for cls in METHODS),
        *((cls, {"steer": False}) for cls in (STR, CS, DST)),
        (STR, {"init": -3200.0, "strength": 0.0}),
        (CS, {"init": -0.5, "beta": 1e6}),
        (DST, {"reset": 0.3}),
        (GSM, {"decay": 0.05}),
        (LC, {"decay": 0.05}),
    ],
)
def test_keeps_the_contract_with_other_options(cls: type[Any], options: dict[str, float]) -> None:
    check_method(cls, **options)


@pytest.mark.parametrize("cls", METHODS)
def test_plan_searches_unmasked_and_prunes_once(cls: type[Any]) -> None:
    # 0.7 of 30 epochs in three equal parts of at most 0.3 of them, then the rest at the target
    plan = cls(search=0.7, interval=0.3).plan(Budget(30.0, 0.9))
    assert [segment.sparsity for segment in plan] == [0.0, 0.0, 0.0, 0.9]
    assert [segment.epochs for segment in plan] == pytest.approx([7.0, 7.0, 7.0, 9.0])


def test_plan_without_a_last_stretch_prunes_only() -> None:
    assert STR(search=1.0, interval=0.5).plan(Budget(6.0, 0.9)) == (*[Segment(0.0, 3.0)] * 2, Segment(0.9, 0.0))


def test_plan_has_as_many_parts_as_the_interval_fits_in() -> None:
    assert len(STR(search=0.7, interval=0.1).plan(Budget(30.0, 0.9))) == 8
    assert len(STR(search=0.3, interval=1.0).plan(Budget(30.0, 0.9))) == 2


@pytest.mark.parametrize("cls", METHODS)
def test_the_whole_search_is_soft_its_end_included(cls: type[Any]) -> None:
    method = cls(search=0.7)
    assert method.searching(training({}, progress=0.7 + 1e-16))
    assert not method.searching(training({}, progress=0.701))


def test_masks_let_every_weight_compete() -> None:
    asked = []

    def select(scores: Tensors, regrow: bool = False) -> Tensors:
        asked.append((scores, regrow))
        return {"a": torch.tensor([True, False])}

    given = pruning({"a": tensor(1.0, -2.0)}, {"a": tensor(0.5, 0.1)})
    step = PruningStep(**{**vars(given), "select": select})
    assert CS().masks(step)["a"].tolist() == [True, False]
    ((scores, regrow),) = asked
    assert scores["a"].tolist() == pytest.approx([0.5, 0.1])
    assert regrow


def test_top_counts_exactly_over_all_tensors() -> None:
    first, second = top([tensor([[1.0, 4.0], [2.0, 0.0]]), tensor(3.0, 5.0)], 3, -1.0, 0.5)
    assert first.tolist() == [[0.5, -1.0], [0.5, 0.5]]
    assert second.tolist() == [-1.0, -1.0]
    assert sum(int(mask.sum()) for mask in top([torch.ones(7), torch.ones(2, 3)], 5)) == 5
    assert not top([torch.ones(7)], 0)[0].any()


@pytest.mark.parametrize(("sparsity", "kept"), [(0.0, 10), (0.9, 1), (0.97, 0), (0.95, 0), (0.85, 2)])
def test_kept_count_is_the_cores(sparsity: float, kept: int) -> None:
    assert kept_count(10, sparsity) == kept  # 10 − round(10 · sparsity), a half to even


@pytest.mark.parametrize("cls", SOFT)
def test_effective_weights_can_be_differentiated_a_sample(cls: type[Any]) -> None:
    method = cls()
    weights = {"a": torch.linspace(-1.0, 1.2, 8).reshape(2, 4)}
    extra, masks = method.extra(weights), {"a": torch.ones(2, 4)}

    def loss(values: Tensors, image: Tensor) -> Tensor:
        step = TrainingStep(values, masks, extra, 0.3, target=0.5)
        outputs: Tensor = method.effective(step)["a"] @ image
        return outputs.square().sum()

    images = torch.arange(12.0).reshape(3, 4)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, images)["a"]
    alone = torch.stack([torch.func.grad(loss)(weights, image)["a"] for image in images])
    torch.testing.assert_close(each, alone)
    assert each.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: STR(search=0.0), "--method.search is 0; give a fraction of the budget above 0 and up to 1"),
        (lambda: GSM(search=1.01), "--method.search is 1.01; give a fraction of the budget above 0 and up to 1"),
        (lambda: LC(search=nan), "--method.search is nan; give a fraction of the budget above 0 and up to 1"),
        (lambda: DNW(interval=0.0), "--method.interval is 0; give a fraction of the budget from 0.0001 to 1"),
        (lambda: STR(init=inf), "--method.init is inf; give a number from -10000 to 10000"),
        (lambda: STR(strength=-1.0), "--method.strength is -1; give a number of 0 or more"),
        (lambda: CS(strength=inf), "--method.strength is inf; give a number of 0 or more"),
        (lambda: CS(init=101.0), "--method.init is 101; give a number from -80 to 100"),
        (lambda: CS(init=-81.0), "--method.init is -81; give a number from -80 to 100"),
        (lambda: CS(beta=0.5), "--method.beta is 0.5; give a number from 1 to 1000000"),
        (lambda: DST(reset=1.0), "--method.reset is 1; give a fraction from 0 to below 1"),
        (lambda: GSM(decay=-0.1), "--method.decay is -0.1; give a weight decay of 0 or more"),
        (lambda: LC(decay=inf), "--method.decay is inf; give a weight decay of 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(make: Callable[[], TwoPhases], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


def test_importing_them_needs_no_torch() -> None:
    modules = ", ".join(f"sparsekit_soft.{name}" for name in ("str", "cs", "dst", "gsm", "lc", "dnw"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the push towards the target ---------------------------------------------------------------------


def test_penalties_rest_while_the_model_is_sparse_enough() -> None:
    # half of the search done: wanted density 1 − 0.75 · (1 − 0.5³) = 0.34375, of 8 weights 2.75
    method = STR(search=0.5, strength=3.0)
    step = training({"a": torch.ones(4), "b": torch.ones(2, 2)}, progress=0.25, target=0.75)
    assert method.push(step, tensor(3)) == 3.0
    assert method.push(step, tensor(2)) == 0.0
    assert STR(search=0.5, strength=3.0, steer=False).push(step, tensor(0)) == 3.0


@pytest.mark.parametrize("method", [STR(search=1.0, strength=0.05), DST(search=1.0)])
@pytest.mark.parametrize("target", [0.0, 0.5, 0.9])
def test_the_penalty_alone_leads_to_the_target(method: Steered, target: float) -> None:
    weights = {"a": torch.linspace(-0.4, 0.4, 400).reshape(4, 100)}
    extra = {name: t.requires_grad_() for name, t in method.extra(weights).items()}
    optimizer = torch.optim.SGD(extra.values(), lr=0.1, momentum=0.9)
    steps = 800
    for done in range(steps):
        optimizer.zero_grad()
        penalty = method.penalty(TrainingStep(weights, {}, extra, done / steps, target))
        backward(penalty)
        optimizer.step()
    ones = {"a": torch.ones(4, 100)}
    soft = method.effective(TrainingStep(weights, ones, extra, 1.0, target))["a"]
    assert float((soft == 0).float().mean()) == pytest.approx(target, abs=0.1)


# --- STR ---------------------------------------------------------------------------------------------


def test_str_shrinks_by_the_threshold_and_learns_it() -> None:
    # σ(0) = 1/2; σ'(0) = 1/4
    step = training({"a": tensor(1.5, -0.75, 0.25, -0.5)}, {"a": tensor(0.0)})
    effective = STR().effective(step)["a"]
    close(effective, 1.0, -0.25, 0.0, 0.0)
    backward((effective * tensor(1.0, 2.0, 4.0, 8.0)).sum())
    close(step.weights["a"].grad, 1.0, 2.0, 0.0, 0.0)
    # −σ'(s) · Σ gradient · sign(w) where |w| > σ(s): −(1 · 1 + 2 · −1) / 4
    close(step.extra["a"].grad, 0.25)


def test_str_has_one_threshold_a_layer_that_starts_low() -> None:
    extra = STR(init=-7.0).extra({"a": torch.ones(2, 2), "b": torch.ones(3)})
    assert {name: t.item() for name, t in extra.items()} == {"a": -7.0, "b": -7.0}


def test_str_penalty_draws_the_thresholds_up() -> None:
    step = training({"a": torch.ones(2), "b": torch.ones(2)}, {"a": tensor(-2.0), "b": tensor(3.0)}, target=0.5)
    penalty = STR(strength=0.5, steer=False).penalty(step)
    close(penalty, 0.25 * (4.0 + 9.0))
    backward(penalty)
    close(step.extra["a"].grad, -1.0)
    assert STR().penalty(training({"a": torch.ones(2)}, {"a": tensor(-2.0)}, progress=0.9)) is None


def test_str_goes_on_from_the_shrunk_weights() -> None:
    masks = {"a": tensor(1.0, 0.0, 1.0, 1.0)}
    step = training({"a": tensor(1.5, -0.75, 0.25, -0.5)}, {"a": tensor(0.0)}, progress=0.9, masks=masks)
    effective = STR().effective(step)["a"]
    close(effective, 1.0, 0.0, 0.0, 0.0)
    backward((effective * tensor(1.0, 2.0, 4.0, 8.0)).sum())
    close(step.weights["a"].grad, 1.0, 0.0, 4.0, 8.0)  # those below the threshold can grow past it
    assert step.extra["a"].grad is None


def test_str_ranks_by_the_distance_to_the_threshold() -> None:
    # σ(log(1/3)) = 1/4
    step = pruning({"a": tensor(1.5, -0.25), "b": tensor([-1.0])}, {"a": tensor(0.0), "b": tensor(log(1 / 3))})
    scores = STR().scores(step)
    close(scores["a"], 1.0, -0.25)
    close(scores["b"], [0.75])


# --- CS ----------------------------------------------------------------------------------------------


def test_cs_gates_harden() -> None:
    # half of the search done: β = 16^(1/2) = 4, and σ(4 · log(3)/4) = 3/4
    logits = {"a": tensor(log(3) / 4, -log(3) / 4, 0.0)}
    step = training({"a": tensor(2.0, 4.0, -6.0)}, logits, progress=0.25)
    effective = CS(search=0.5, beta=16.0).effective(step)["a"]
    close(effective, 3.0, 2.0, -6.0)  # 2 w σ(β m), as σ(0) = 1/2
    backward(effective.sum())
    close(step.weights["a"].grad, 1.5, 0.5, 1.0)
    # 2 w β σ (1 − σ)
    close(step.extra["a"].grad, 2 * 2 * 4 * 0.1875, 2 * 4 * 4 * 0.1875, 2 * -6 * 4 * 0.25)


def test_cs_starts_with_the_weights_as_they_are() -> None:
    method, weights = CS(init=-0.7), {"a": tensor([[2.0, -4.0]])}
    extra = method.extra(weights)
    close(extra["a"], [[-0.7, -0.7]])
    close(method.effective(training(weights, extra))["a"], [[2.0, -4.0]])


def test_cs_penalty_closes_gates() -> None:
    step = training({"a": torch.ones(3)}, {"a": tensor(log(3) / 4, -log(3) / 4, 0.0)}, progress=0.25)
    penalty = CS(search=0.5, beta=16.0, strength=0.1, steer=False).penalty(step)
    close(penalty, 0.1 * (0.75 + 0.25 + 0.5))
    backward(penalty)
    close(step.extra["a"].grad, 0.1 * 4 * 0.1875, 0.1 * 4 * 0.1875, 0.1 * 4 * 0.25)
    assert CS().penalty(training({"a": torch.ones(1)}, {"a": tensor([1.0])}, progress=0.9)) is None


def test_cs_counts_open_gates() -> None:
    # at the end of the search half of the weights should be left
    method = CS(search=0.5, beta=1.0)
    for logits, resting in (([1.0, 1.0, 1.0, -1.0], False), ([1.0, 1.0, -1.0, 0.0], True)):
        penalty = method.penalty(training({"a": torch.ones(4)}, {"a": tensor(logits)}, progress=0.5, target=0.5))
        assert penalty is not None
        assert (penalty.item() == 0.0) == resting


@pytest.mark.parametrize("init", [-80.0, 100.0])
def test_cs_starts_with_the_weights_as_they_are_at_the_ends_of_inits_range(init: float) -> None:
    method, weights = CS(init=init), {"a": tensor(0.5, -2.0)}
    close(method.effective(training(weights, method.extra(weights), progress=0.0))["a"], 0.5, -2.0)


def test_cs_ends_with_open_gates_for_what_is_kept() -> None:
    step = training({"a": tensor(2.0, 4.0)}, {"a": tensor(9.0, -9.0)}, progress=0.9, masks={"a": tensor(0.0, 1.0)})
    effective = CS(init=log(3)).effective(step)["a"]
    close(effective, 0.0, 4.0 * 4 / 3)  # w / σ(log 3)
    backward(effective.sum())
    close(step.weights["a"].grad, 0.0, 4 / 3)
    assert step.extra["a"].grad is None
    close(CS().scores(pruning({"a": tensor(2.0, 4.0)}, {"a": tensor(9.0, -9.0)}))["a"], 9.0, -9.0)


# --- DST ---------------------------------------------------------------------------------------------

WEIGHTS = {"a": tensor([[0.5, -0.1], [0.2, 0.9]])}
THRESHOLDS = {"a": tensor(0.2, 0.3)}  # |w| − t: 0.3 and −0.1, −0.1 and 0.6


def test_dst_surrogate_of_the_steps_derivative() -> None:
    close(_slopes([tensor(0.0, -0.2, 0.4, -0.5, 1.0, 1.5)])[0], 2.0, 1.2, 0.4, 0.4, 0.4, 0.0)


def test_dst_cuts_at_the_thresholds_and_learns_them() -> None:
    step = training(WEIGHTS, THRESHOLDS)
    effective = DST().effective(step)["a"]
    close(effective, [[0.5, 0.0], [0.0, 0.9]])
    backward(effective.sum())
    # slopes 0.8 and 1.6, 1.6 and 0.4; a weight gets mask + |w| · slope
    close(step.weights["a"].grad, [[1.0 + 0.4, 0.16], [0.32, 1.0 + 0.36]])
    # a threshold gets −Σ w · slope of its channel
    close(step.extra["a"].grad, -(0.5 * 0.8 - 0.1 * 1.6), -(0.2 * 1.6 + 0.9 * 0.4))


def test_dst_has_a_threshold_an_output_channel() -> None:
    extra = DST().extra({"a": torch.ones(4, 2, 3, 3), "b": torch.ones(5, 4)})
    assert {name: t.tolist() for name, t in extra.items()} == {"a": [0.0] * 4, "b": [0.0] * 5}
    kernel = torch.linspace(0.1, 1.6, 16).reshape(2, 2, 2, 2)
    effective = DST().effective(training({"a": kernel}, {"a": tensor(0.45, 1.35)}))["a"]
    close(effective, torch.where(kernel > tensor(0.45, 1.35).reshape(2, 1, 1, 1), kernel, 0.0).tolist())


def test_dst_penalty_raises_thresholds() -> None:
    step = training(WEIGHTS, THRESHOLDS)
    penalty = DST(strength=0.1, steer=False).penalty(step)
    close(penalty, 0.1 * (exp(-0.2) + exp(-0.3)))
    backward(penalty)
    close(step.extra["a"].grad, -0.1 * exp(-0.2), -0.1 * exp(-0.3))
    assert DST().penalty(training(WEIGHTS, THRESHOLDS, progress=0.9)) is None


def test_dst_does_not_let_a_layer_vanish() -> None:
    method = DST(strength=0.1, steer=False)
    weights = {"a": torch.arange(1, 101).reshape(1, 100) / 100}
    two = training(weights, {"a": tensor([0.985])})
    assert int((method.effective(two)["a"] != 0).sum()) == 2  # 2 % is enough
    close(method.penalty(two), 0.1 * exp(-0.985))

    one = training(weights, {"a": tensor([0.995])})
    effective = method.effective(one)["a"]
    close(effective, weights["a"].tolist())  # 1 % is not
    backward(effective.sum())
    assert one.extra["a"].grad is not None
    assert one.extra["a"].grad.item() < 0.0  # the loss still moves the threshold, here up
    one.extra["a"].grad = None
    penalty = method.penalty(one)
    close(penalty, 0.5 * 0.995**2)
    backward(penalty)
    close(one.extra["a"].grad, [0.995])  # and this draws it down
    close(method.scores(pruning(weights, {"a": tensor([0.995])}))["a"], weights["a"].tolist())


def test_dst_prunes_what_is_below_its_threshold_first() -> None:
    scores = DST().scores(pruning(WEIGHTS, {"a": tensor(0.6, 0.1)}))["a"]
    assert scores.flatten().argsort(descending=True).tolist() == [3, 2, 0, 1]  # 0.9, 0.2, then 0.5, 0.1


def test_dst_ends_with_the_kept_weights_themselves() -> None:
    step = training(WEIGHTS, THRESHOLDS, progress=0.9, masks={"a": tensor([[0.0, 1.0], [0.0, 1.0]])})
    effective = DST().effective(step)["a"]
    close(effective, [[0.0, -0.1], [0.0, 0.9]])
    backward(effective.sum())
    close(step.weights["a"].grad, [[0.0, 1.0], [0.0, 1.0]])


# --- GSM and LC --------------------------------------------------------------------------------------

TWO_LAYERS = {"a": tensor(1.0, -2.0), "b": tensor([[3.0, 0.5]])}
GRADIENTS = {"a": tensor(0.4, 0.1), "b": tensor([[0.2, 0.6]])}


def test_gsm_keeps_the_gradients_that_matter() -> None:
    # |w · gradient|: 0.4 and 0.2, 0.6 and 0.3; half of them all
    found = GSM().gradients(training(TWO_LAYERS, target=0.5), GRADIENTS)
    close(found["a"], 0.4, 0.0)
    close(found["b"], [[0.2, 0.0]])
    decayed = GSM(decay=0.1).gradients(training(TWO_LAYERS, target=0.5), GRADIENTS)
    close(decayed["a"], 0.5, -0.2)
    close(decayed["b"], [[0.5, 0.05]])


def test_gsm_shrinks_the_rest() -> None:
    # lr 1, momentum 1/2, decay 0.1: −2 → −2 + 0.2 = −1.8 → −1.8 + 0.18 + 0.2/2 = −1.52
    weight = tensor(3.0, -2.0).requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.5, weight_decay=0.1)
    for _ in range(2):
        step = TrainingStep({"a": weight}, {"a": torch.ones(2)}, {}, 0.1, target=0.5, weight_decay=0.1)
        weight.grad = GSM().gradients(step, {"a": tensor(0.0, 0.0) + tensor(0.5, 0.5)})["a"]
        optimizer.step()
    assert weight[1].item() == pytest.approx(-1.52)


def test_lc_cancels_the_decay_of_the_largest() -> None:
    # −2 and 3 are the largest; −weight_decay · w is added to theirs
    found = LC().gradients(training(TWO_LAYERS, target=0.5, weight_decay=0.1), GRADIENTS)
    close(found["a"], 0.4, 0.1 + 0.2)
    close(found["b"], [[0.2 - 0.3, 0.6]])

    weight = TWO_LAYERS["a"].clone().requires_grad_()
    weight.grad = found["a"]
    torch.optim.SGD([weight], lr=1.0, weight_decay=0.1).step()
    close(weight, 1.0 - 0.4 - 0.1, -2.0 - 0.1)  # only the first decays


def test_lc_draws_the_rest_harder_as_the_search_goes_on() -> None:
    step = training(TWO_LAYERS, progress=0.25, target=0.5, weight_decay=0.1)
    found = LC(search=0.5, decay=0.2).gradients(step, GRADIENTS)
    close(found["a"], 0.4 + 0.1, 0.1 + 0.2)
    close(found["b"], [[0.2 - 0.3, 0.6 + 0.05]])


@pytest.mark.parametrize("method", [GSM(decay=0.1), LC(decay=0.1)])
def test_the_last_stretch_trains_as_usual(method: TwoPhases) -> None:
    step = training(TWO_LAYERS, progress=0.9, target=0.5, weight_decay=0.1)
    assert method.gradients(step, GRADIENTS) is GRADIENTS


@pytest.mark.parametrize("method", [GSM(), LC()])
def test_they_rank_by_magnitude(method: TwoPhases) -> None:
    close(method.scores(pruning(TWO_LAYERS, {}))["a"], 1.0, 2.0)


# --- DNW ---------------------------------------------------------------------------------------------


def test_dnw_uses_the_largest_and_trains_all() -> None:
    step = training({"a": tensor([[3.0, -1.0, 2.0], [0.5, -4.0, 1.5]])}, target=0.5)
    effective = DNW().effective(step)["a"]
    assert effective.tolist() == [[3.0, 0.0, 2.0], [0.0, -4.0, 0.0]]
    backward((effective * tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).sum())
    close(step.weights["a"].grad, [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def test_dnw_ends_with_a_fixed_mask() -> None:
    masks = {"a": tensor([[0.0, 1.0, 0.0]])}
    step = training({"a": tensor([[3.0, -1.0, 2.0]])}, progress=0.9, masks=masks, target=0.7)
    effective = DNW().effective(step)["a"]
    close(effective, [[0.0, -1.0, 0.0]])
    backward(effective.sum())
    close(step.weights["a"].grad, [[0.0, 1.0, 0.0]])


def test_dnw_shares_weights_out_by_the_kernel() -> None:
    shapes = {"a": (2, 2), "b": (8, 8)}  # 4 and 64 weights, dimensions sum up to 4 and 16
    assert erk_counts(shapes, 0.75) == {"a": 3, "b": 14}  # ε = 17/20
    assert erk_counts(shapes, 0.5) == {"a": 4, "b": 30}  # ε = 34/20 would keep 6.8 of 4; then 30/16
    assert erk_counts(shapes, 0.0) == {"a": 4, "b": 64}
    assert erk_counts({"a": (1, 1), "b": (100, 100)}, 0.999) == {"a": 1, "b": 10}
