"""`sparsekit.Pruner` in loops written by hand: against the scheduler bit for bit, its state, its soups, its errors."""

from __future__ import annotations

import copy
import io
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plugin_classes import Pulled, Thresholds, Twice
from safetensors.torch import load_file
from tiny import Rewinding, assert_equal, differ, masked_are_zero, optimizer, tiny_config
from torch import Tensor, nn

import sparsekit
from sparsekit import (
    Budget,
    Candidate,
    CoefficientMerge,
    MergeStep,
    PruningMethod,
    PruningStep,
    Schedule,
    Score,
    Segment,
    Stage,
    Tensors,
    TrainingStep,
)
from sparsekit.config.options import MasksConfig, ReplicasConfig
from sparsekit.errors import RunError, UserError
from sparsekit.launch import fit
from sparsekit.merges.none import NoMerge
from sparsekit.methods.bimp import BIMP
from sparsekit.methods.gmp import GMP
from sparsekit.methods.imp import IMP
from sparsekit.pruning import masks
from sparsekit.seeds import derive
from sparsekit.training import optimizers
from sparsekit.training.prepare import prepare

Pruner = sparsekit.Pruner


# --- a loop of one's own against the scheduler ------------------------------------------------------


class Saliency(Twice):
    """Keeps the weights that the loss would miss most, and lets pruned ones come back."""

    def masks(self, step: PruningStep) -> Tensors:
        slope = step.gradients(2)
        return step.select({name: slope[name].abs() for name in step.weights}, regrow=True)


class Steered(Twice):
    """Changes gradients by the progress and the weight decay, and pulls weights to a constant."""

    def penalty(self, step: TrainingStep) -> Tensor | None:
        return 0.01 * sum(((w - 0.1) ** 2).sum() for w in step.weights.values()) if step.progress < 0.5 else None

    def gradients(self, step: TrainingStep, gradients: Tensors) -> Tensors:
        pull = step.progress + step.weight_decay * step.target
        return {name: g + 0.01 * pull * step.weights[name] for name, g in gradients.items()}


def own_loop(config: Any, pruner_options: dict[str, Any]) -> tuple[nn.Module, Any]:
    """The run of a configuration, by hand: the scheduler's model, optimizer, batches and rates."""
    setup = prepare(config)
    model, o = setup.model, config.optimizer
    built = optimizers.build(o, model, {}, o.lr, o.weight_decay)

    class Probes:
        """The batches on which the scheduler takes gradients."""

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            seed = derive(config.seed, "gradients", pruner.starts.index(pruner.done))
            return setup.data.train_batches(seed, 2)

    pruner = Pruner(
        model,
        built,
        method=config.method,
        sparsity=config.sparsity,
        epochs=config.epochs,
        steps_per_epoch=setup.data.steps_per_epoch,
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        batches=Probes(),
        **pruner_options,
    )
    assert pruner.plan == setup.plan[0].stage.plan
    model.train()
    for index, segment in enumerate(setup.plan):
        assert pruner.done == pruner.starts[index]
        seed = derive(config.seed, "segment", index, "replica", 0)
        for images, labels in setup.data.train_batches(seed, segment.steps):
            pruner.prune_if_due()
            for group in built.param_groups:
                group["lr"] = o.lr * pruner.learning_rate
            built.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            if o.clip_norm:
                # in the scheduler's order, in which norms are summed
                nn.utils.clip_grad_norm_([p for group in built.param_groups for p in group["params"]], o.clip_norm)
            built.step()
    pruner.finish()
    return model, pruner


@pytest.mark.parametrize(
    ("method", "opt"),
    [
        (GMP(), optimizer("sgd", clip_norm=0.5)),
        pytest.param(BIMP(), optimizer("adamw", 0.01), marks=pytest.mark.slow),
        pytest.param(Saliency(), optimizer("sgd"), marks=pytest.mark.slow),
    ],
    ids=["gmp", "bimp", "saliency"],
)
def test_a_loop_by_hand_ends_with_the_schedulers_bits(method: PruningMethod, opt: Any, tmp_path: Path) -> None:
    """Momentum that goes on or starts anew, clipped gradients, rates that depend on the pruning, dense gradients."""
    replicas = ReplicasConfig(1, start=0.0, batchnorm="average")
    config = tiny_config(
        method, NoMerge(), tmp_path / "run", replicas, optimizer=opt, masks=MasksConfig("erk"), epochs=3
    )
    fit(config)
    model, pruner = own_loop(config, {"masks": {"allocation": "erk"}})
    chosen = load_file(tmp_path / "run" / "masks.safetensors")
    assert {*chosen} == {*pruner.masks}
    for name, mask in chosen.items():
        assert torch.equal(mask.bool(), pruner.masks[name]), name
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[name]), name
    assert pruner.sparsity == pytest.approx(0.9, abs=1e-4)


class Noisy(Twice):
    """Adds noise to the gradients."""

    def gradients(self, step: TrainingStep, gradients: Tensors) -> Tensors:
        assert step.generator is not None
        return {name: g + 0.1 * torch.randn(g.shape, generator=step.generator) for name, g in gradients.items()}


def test_hooks_draw_by_the_pruners_seed_alone() -> None:
    def trained(seed: int, other: int) -> Tensors:
        torch.manual_seed(0)
        model = nn.Linear(8, 8)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        pruner = Pruner(model, sgd, method=Noisy(), sparsity=0.5, epochs=3, steps_per_epoch=1, seed=seed)
        torch.manual_seed(other)
        for _ in range(pruner.steps):
            pruner.prune_if_due()
            model(torch.ones(2, 8)).square().mean().backward()
            sgd.step()
        return model.state_dict()

    assert_equal(trained(3, 1), trained(3, 2))
    assert differ(trained(3, 1), trained(4, 1))


def test_a_plan_may_rewind() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = Pruner(model, sgd, method=Rewinding(), sparsity=0.75, epochs=6, steps_per_epoch=2)
    beginning: Tensors = {}
    inputs, targets = torch.randn(16, 8), torch.arange(16) % 2
    for number in range(pruner.steps):
        if number == pruner.starts[1]:
            beginning = {name: t.clone() for name, t in model.state_dict().items()}
        if number == pruner.starts[2] + 1:  # a state in the middle knows where to go back to
            pruner.load_state_dict(copy.deepcopy(pruner.state_dict()))
        pruner.prune_if_due()
        if number in pruner.starts[2:]:
            for name, tensor in model.state_dict().items():
                expected = beginning[name] * pruner.masks[name] if name in pruner.masks else beginning[name]
                assert torch.equal(tensor, expected), name
            assert not sgd.state
        sgd.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        sgd.step()
    pruner.finish()


def test_penalties_and_changed_gradients_are_the_schedulers(tmp_path: Path) -> None:
    """Not bit for bit: the scheduler differentiates loss and penalty in one sum."""
    replicas = ReplicasConfig(1, start=0.0, batchnorm="average")
    config = tiny_config(Steered(), NoMerge(), tmp_path / "run", replicas, optimizer=optimizer("sgd", 0.01), epochs=3)
    fit(config)
    model, _ = own_loop(config, {})
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    plain, _ = own_loop(tiny_config(Twice(), NoMerge(), optimizer=optimizer("sgd", 0.01), epochs=3), {})
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), saved[name], rtol=1e-2, atol=2e-3)
    assert max(float((saved[name] - w.detach()).abs().max()) for name, w in plain.named_parameters()) > 0.02


# --- a small loop -----------------------------------------------------------------------------------


def problem(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """Two Linear layers with BatchNorm between them, and data that they can learn."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, 10, generator=generator)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Dropout(0.1), nn.Linear(40, 2))
    return model, x, (x[:, 0] * x[:, 1] > 0).long()


OPTIONS: dict[str, Any] = {"method": "gmp", "sparsity": 0.8, "epochs": 10, "steps_per_epoch": 8}
TOTAL, PRUNED = 480, 384


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)


def batch(x: Tensor, y: Tensor, step: int) -> tuple[Tensor, Tensor]:
    rows = torch.arange(50 * step, 50 * (step + 1)) % len(x)
    return x[rows], y[rows]


def train(pruner: Any, model: nn.Module, built: torch.optim.Optimizer, x: Tensor, y: Tensor, until: int) -> None:
    """A plain loop, up to a number of steps."""
    while pruner.done < until:
        pruner.prune_if_due()
        inputs, targets = batch(x, y, pruner.done)
        torch.manual_seed(pruner.done)
        built.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        built.step()


def test_zeros_are_held_at_every_step_and_pruned_weights_have_no_momentum() -> None:
    model, x, y = problem()
    built = adamw(model)
    pruner = Pruner(model, built, **OPTIONS)
    assert (pruner.steps, pruner.done, pruner.sparsity, len(pruner.starts)) == (80, 0, 0.0, len(pruner.plan))
    weights = {name: p for name, p in model.named_parameters() if name in pruner.masks}
    assert list(weights) == ["0.weight", "4.weight"]
    seen = []
    while pruner.done < pruner.steps:
        before = pruner.done
        if pruner.prune_if_due():
            seen.append(before)
            for name, weight in weights.items():
                for value in built.state.get(weight, {}).values():
                    assert value.dim() == 0 or not value[~pruner.masks[name]].any()
        assert pruner.due_at > pruner.done or pruner.due_at == pruner.steps
        train(pruner, model, built, x, y, before + 1)
        assert masked_are_zero({n: w.detach() for n, w in weights.items()}, pruner.masks)
        assert masked_are_zero({n: w.grad for n, w in weights.items()}, pruner.masks)
        planned = pruner.plan[len(seen) - 1].sparsity
        assert TOTAL - masks.kept(pruner.masks) == round(planned * TOTAL)
    assert tuple(seen) == pruner.starts
    pruner.finish()
    assert sum(int((w == 0).sum()) for w in weights.values()) == PRUNED
    built.zero_grad()
    F.cross_entropy(model(x), y).backward()
    assert any(w.grad[w == 0].any() for w in weights.values())  # the hooks are gone


def test_it_learns() -> None:
    model, x, y = problem()
    built = adamw(model)
    pruner = Pruner(model, built, **{**OPTIONS, "epochs": 40})
    train(pruner, model, built, x, y, pruner.steps)
    assert (model.eval()(x).argmax(1) == y).float().mean() > 0.9


def test_a_state_in_the_middle_goes_on_to_the_same_bits() -> None:
    model, x, y = problem()
    built = adamw(model)
    pruner = Pruner(model, built, **OPTIONS)
    train(pruner, model, built, x, y, 37)
    file = io.BytesIO()
    torch.save((model.state_dict(), built.state_dict(), pruner.state_dict()), file)
    train(pruner, model, built, x, y, 80)
    pruner.finish()

    again, _, _ = problem(1)
    file.seek(0)
    weights, momentum, state = torch.load(file, weights_only=True)
    other = adamw(again)
    resumed = Pruner(again, other, **OPTIONS)
    resumed.load_state_dict(state)
    again.load_state_dict(weights)
    other.load_state_dict(momentum)
    assert resumed.done == 37
    assert resumed.due_at == pruner.starts[[start > 37 for start in pruner.starts].index(True)]
    train(resumed, again, other, x, y, 80)
    resumed.finish()
    assert_equal(again.state_dict(), model.state_dict())
    assert_equal(resumed.masks, pruner.masks)


def test_a_state_of_another_plan_or_model_is_refused() -> None:
    models = [problem()[0] for _ in range(3)]
    state = Pruner(models[0], adamw(models[0]), **OPTIONS).state_dict()
    with pytest.raises(UserError, match="another plan"):
        Pruner(models[1], adamw(models[1]), **{**OPTIONS, "sparsity": 0.7}).load_state_dict(state)
    with pytest.raises(UserError, match="other prunable weights"):
        Pruner(models[2], adamw(models[2]), **OPTIONS, masks={"exclude": ["4"]}).load_state_dict(state)


def test_a_weight_has_one_pruner() -> None:
    """A loop that was broken off in a notebook leaves its hooks behind."""
    model, x, y = problem()
    built = adamw(model)
    pruner = Pruner(model, built, **OPTIONS)
    train(pruner, model, built, x, y, 20)
    with pytest.raises(UserError, match="another pruner"):
        Pruner(model, adamw(model), **OPTIONS)
    pruner.release()
    again = Pruner(model, built, **OPTIONS)
    train(again, model, built, x, y, 80)
    again.finish()
    assert pruner.done == 20


@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_is_masked_after_it_made_the_gradients(by_name: bool) -> None:
    """Lightning's way to step."""

    def run(closed: bool) -> Tensors:
        model, x, y = problem()
        built = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        pruner = Pruner(model, built, **{**OPTIONS, "method": Steered()})

        def closure() -> Tensor:
            inputs, targets = batch(x, y, pruner.done)
            torch.manual_seed(pruner.done)
            built.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        while pruner.done < pruner.steps:
            pruner.prune_if_due()
            if closed:
                assert built.step(closure=closure) if by_name else built.step(closure)
            else:
                closure()
                built.step()
        pruner.finish()
        return model.state_dict()

    assert_equal(run(closed=True), run(closed=False))


def test_accumulated_gradients_are_masked_and_a_step_is_counted_once() -> None:
    model, x, y = problem()
    built = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Pruner(model, built, **OPTIONS)
    for _ in range(pruner.steps):
        built.zero_grad()
        for micro in range(2):
            pruner.prune_if_due()
            inputs, targets = batch(x, y, micro)
            F.cross_entropy(model(inputs), targets).backward()
            assert masked_are_zero({n: model.get_parameter(n).grad for n in pruner.masks}, pruner.masks)
        built.step()
    assert pruner.done == pruner.steps
    pruner.finish()


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradscaler_steps_as_ever(fused: bool) -> None:
    """A step that overflows is left out; only the optimizer's own step knows that where it is fused."""
    model, x, y = problem()
    built = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=fused)
    pruner = Pruner(model, built, **OPTIONS)
    scaler = torch.amp.GradScaler("cpu")
    while pruner.done < pruner.steps:
        pruner.prune_if_due()
        inputs, targets = batch(x, y, pruner.done)
        built.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        scaler.scale(loss * (1e38 if pruner.done == 50 and scaler.get_scale() == 65536.0 else 1.0)).backward()
        scaler.step(built)
        scaler.update()
    assert scaler.get_scale() == 32768.0
    pruner.finish()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("unscaled", [False, True])
def test_scaled_gradients_are_not_given_to_a_method_that_changes_them(unscaled: bool) -> None:
    model, x, y = problem()
    built = torch.optim.SGD(model.parameters(), 0.1, fused=True)
    pruner = Pruner(model, built, **{**OPTIONS, "method": Steered()})
    pruner.prune_if_due()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    if unscaled:
        scaler.unscale_(built)
        scaler.step(built)
    else:
        with pytest.raises(UserError, match="unscale_"):
            scaler.step(built)
    assert pruner.done == unscaled


def test_a_gradient_for_a_method_leaves_everything_as_it_was() -> None:
    """Buffers, the random state, the optimizer's gradients; masked weights get one, too."""
    model, x, y = problem()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 50, shuffle=True)
    built = torch.optim.SGD(model.parameters(), 0.1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    pruner = Pruner(model, built, **{**OPTIONS, "method": Saliency()}, loss=loss, batches=loader)
    buffers, state = {n: b.clone() for n, b in model.named_buffers()}, torch.get_rng_state()
    pruner.prune_if_due()
    assert_equal(dict(model.named_buffers()), buffers)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    train(pruner, model, built, x, y, pruner.steps)
    pruner.finish()


RANK = """
import os
import sys

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import sparsekit
from sparsekit.pruning import masks

torch.manual_seed(0)
ranked = "RANK" in os.environ
model = torch.nn.Sequential(torch.nn.Linear(10, 40), torch.nn.ReLU(), torch.nn.Linear(40, 2))
x = torch.randn(400, 10)
y = (x[:, 0] * x[:, 1] > 0).long()
rank, size = 0, 1
if ranked:
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
wrapped = DistributedDataParallel(model) if ranked else model
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
pruner = sparsekit.Pruner(wrapped, optimizer, sparsity=0.8, epochs=10, steps_per_epoch=8)
while pruner.done < pruner.steps:
    pruner.prune_if_due()
    rows = torch.arange(pruner.done * 50, pruner.done * 50 + 50) % 400
    rows = rows[rank * len(rows) // size : (rank + 1) * len(rows) // size]
    optimizer.zero_grad()
    F.cross_entropy(wrapped(x[rows]), y[rows]).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
pruner.finish()
torch.save((model.state_dict(), pruner.masks), f"{sys.argv[1]}/{rank}-of-{size}.pt")
"""


@pytest.mark.slow
def test_ranks_that_share_a_model_keep_its_zeros(tmp_path: Path) -> None:
    """With DistributedDataParallel, whose hooks add up the gradients: as in one process, up to rounding."""
    script = tmp_path / "train.py"
    script.write_text(RANK)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for before in (launch, []):
        subprocess.run([sys.executable, *before, str(script), str(tmp_path)], check=True, timeout=120)
    first, second, alone = (torch.load(tmp_path / f"{name}.pt") for name in ("0-of-2", "1-of-2", "0-of-1"))
    assert_equal(first[0], second[0])
    assert_equal(first[1], second[1])
    assert sum(int((weight == 0).sum()) for weight in (first[0]["0.weight"], first[0]["2.weight"])) == PRUNED
    for name, tensor in alone[0].items():
        torch.testing.assert_close(first[0][name], tensor, rtol=1e-3, atol=1e-4)


# --- learning rates ---------------------------------------------------------------------------------


def test_a_lambda_lr_follows_the_methods_schedule() -> None:
    model, x, y = problem()
    built = torch.optim.SGD(model.parameters(), 2.0)
    pruner = Pruner(model, built, **{**OPTIONS, "method": {"name": "imp", "cycles": 2}}, schedule="linear", warmup=0.1)
    rates = torch.optim.lr_scheduler.LambdaLR(built, lambda _: pruner.learning_rate)
    seen = []
    while pruner.done < pruner.steps:
        seen.append(built.param_groups[0]["lr"])
        train(pruner, model, built, x, y, pruner.done + 1)
        rates.step()
    expected = []
    for index, segment in enumerate(pruner.plan):
        stage = Stage(Budget(10.0, 0.8, 0.1, lambda done: 0.01 + 0.99 * (1.0 - done)), pruner.plan, index)
        steps = round(8 * segment.epochs)
        expected += [2.0 * IMP(cycles=2).learning_rate(stage)((i + 0.5) / steps) for i in range(steps)]
    assert seen == pytest.approx(expected)


def squares(model: nn.Module) -> float:
    return sum(float(parameter.detach().double().square().sum()) for parameter in model.parameters())


def test_a_rate_that_depends_on_the_pruning_waits_for_it() -> None:
    model, x, y = problem()
    built = adamw(model)
    pruner = Pruner(model, built, **{**OPTIONS, "method": {"name": "bimp", "dense": 0.8}})
    train(pruner, model, built, x, y, pruner.starts[1])
    with pytest.raises(RunError, match="prune_if_due"):
        _ = pruner.learning_rate
    before, _, after = squares(model), pruner.prune_if_due(), squares(model)
    # ALLR by hand: d over all parameters, at half a step of the cycle, whose first tenth warms up
    d = ((before - after) / before / (1 - (1 - 0.8) ** (1 / 3))) ** 0.5
    done = 0.5 / (pruner.starts[2] - pruner.starts[1])
    assert pruner.learning_rate == pytest.approx(d * (1 - math.cos(math.pi * done / 0.1)) / 2, rel=1e-6)


def test_a_segment_that_restarts_forgets_momentum_and_one_that_goes_on_keeps_it() -> None:
    for method, kept in (("imp", False), ("gmp", True)):
        for make in (torch.optim.SGD, torch.optim.Adagrad):
            model, x, y = problem()
            built = make(model.parameters(), 0.1, **({"momentum": 0.9} if make is torch.optim.SGD else {}))
            pruner = Pruner(model, built, **{**OPTIONS, "method": method})
            train(pruner, model, built, x, y, pruner.starts[1])
            pruner.prune_if_due()
            left = sum(float(t.abs().sum()) for entry in built.state.values() for t in entry.values() if t is not None)
            assert (left > 0.0) is kept
            train(pruner, model, built, x, y, pruner.steps)
            pruner.finish()


# --- soups ------------------------------------------------------------------------------------------


def replicas(count: int = 3, **options: Any) -> tuple[Any, Tensors, list[Tensors]]:
    """A pruner at its last segment, that segment's parent, and copies of the model that were trained apart."""
    model, x, y = problem()
    built = adamw(model)
    pruner = Pruner(model, built, **{**OPTIONS, **options})
    train(pruner, model, built, x, y, pruner.starts[-1])
    pruner.prune_if_due()
    found = []
    for index in range(count):
        one = copy.deepcopy(model)
        own = adamw(one)
        of_copy = Pruner(one, own, **{**OPTIONS, **options})
        of_copy.load_state_dict(pruner.state_dict())
        train(of_copy, one, own, x[index:], y[index:], pruner.steps)
        of_copy.finish()
        found.append(one.state_dict())
    return pruner, copy.deepcopy(model.state_dict()), found


def test_a_soup_is_the_mean_with_exactly_the_same_zeros() -> None:
    pruner, _, found = replicas()
    assert differ(found[0], found[1])
    soup = pruner.soup(found)
    assert list(soup) == list(found[0])
    for name, tensor in soup.items():
        each = torch.stack([state[name] for state in found])
        expected = each.double().mean(0).to(tensor.dtype) if tensor.is_floating_point() else each[0]
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-8)
    assert sum(int((soup[name] == 0).sum()) for name in pruner.masks) == PRUNED
    assert masked_are_zero(soup, pruner.masks)
    problem()[0].load_state_dict(soup)


def test_merges_that_compare_take_a_score_and_those_that_look_back_a_parent() -> None:
    pruner, parent, found = replicas()
    asked = []

    def score(tensors: Tensors) -> float:
        asked.append(tensors)
        return -float((tensors["4.weight"] - found[1]["4.weight"]).abs().sum())

    assert_equal(pruner.soup(found, "best", score=score), found[1])
    assert len(asked) == 3
    assert_equal(pruner.soup(found, {"name": "greedy"}, score=score), found[1])
    pulled = pruner.soup(found, Pulled(), score=score, parent=parent)
    assert differ(pulled, pruner.soup(found))
    assert masked_are_zero(pulled, pruner.masks)
    assert_equal(pulled, pruner.soup(found, Pulled(), score=score, parent=parent))
    assert_equal(pruner.soup(found[:1], "none"), found[0])


class Slope(CoefficientMerge):
    """All weight to the candidate where a loss is steepest."""

    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        slopes = []
        for candidate in candidates:
            tensors = {name: candidate.read(name) for name in candidate.names()}
            tensors["4.weight"] = tensors["4.weight"].clone().requires_grad_()
            (slope,) = torch.autograd.grad(step.loss(tensors), tensors["4.weight"])
            slopes.append(float(slope.abs().sum()))
        return [float(slope == max(slopes)) for slope in slopes]


class Weighed(CoefficientMerge):
    """Weight by the information in one parameter."""

    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        found = [float(step.fisher(candidate, images=7)["4.bias"].sum()) for candidate in candidates]
        return [value / sum(found) for value in found]


def test_merges_that_differentiate_take_a_loss_and_those_that_weigh_an_information() -> None:
    pruner, _, found = replicas()
    model, x, y = problem()

    def loss(tensors: Tensors) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model.eval(), tensors, (x,)), y)

    def fisher(tensors: Tensors, examples: int) -> Tensors:
        index = next(i for i, each in enumerate(found) if torch.equal(each["4.bias"], tensors["4.bias"]))
        return {"4.bias": torch.full((2,), float(examples * (index + 1)))}

    assert any(torch.equal(pruner.soup(found, Slope(), loss=loss)["4.bias"], each["4.bias"]) for each in found)
    weighed = pruner.soup(found, Weighed(), fisher=fisher)
    expected = sum((i + 1) / 6 * each["4.weight"].double() for i, each in enumerate(found))
    torch.testing.assert_close(weighed["4.weight"], expected.float())
    scored = pruner.soup(found, "best", score=lambda tensors: Score(0.5, float(loss(tensors))))
    losses = [float(loss(each)) for each in found]
    assert_equal(scored, found[losses.index(min(losses))])


@pytest.mark.slow
def test_state_dicts_that_do_not_belong_together_are_refused() -> None:
    pruner, _, found = replicas()
    revived = {**found[1], "0.weight": found[1]["0.weight"] + 1.0}
    cases: list[tuple[list[Any], dict[str, Any], str]] = [
        ([], {}, "0 state dicts"),
        (found, {"merge": "none"}, "3 state dicts"),
        ([found[0], revived], {}, "state dict 2.*0.weight.*masks"),
        ([found[0], {**found[1], "more": torch.ones(1)}], {}, "'more'"),
        ([found[0], {n: t for n, t in found[1].items() if n != "4.weight"}], {}, "'4.weight'"),
        ([found[0], {**found[1], "4.bias": torch.ones(3)}], {}, "'4.bias'.*(3,)"),
        ([{**found[0], "note": "text"}], {}, "'note'"),
        (found, {"merge": "best"}, "score="),
        (found, {"merge": Slope()}, "loss="),
        (found, {"merge": Weighed()}, "fisher="),
        (found, {"merge": Pulled()}, "parent="),
        (found, {"merge": "uniformly"}, "uniform"),
    ]
    for given, options, says in cases:
        with pytest.raises(UserError, match=says):
            pruner.soup(given, **options)


# --- what is refused --------------------------------------------------------------------------------


class Averaging(Twice):
    """Averages weights along the way."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return (Segment(budget.sparsity, budget.epochs, average_from=0.5),)


class Wrapper:
    """What Accelerate and Lightning put around an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


class Deaf(torch.optim.Optimizer):
    """Calls no hooks."""

    def __init__(self, parameters: Any) -> None:
        self.param_groups = [{"params": list(parameters)}]
        self.state: Any = {}

    def step(self) -> None:  # type: ignore[override]
        pass


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "dpf"}, ["DPF", "dense weights", "sparsekit fit"]),
        ({"method": Thresholds()}, ["Thresholds", "dense weights"]),
        ({"method": Averaging()}, ["Averaging", "averages"]),
        ({"method": "gpm"}, ["'gpm'", "'gmp'"]),
        ({"method": {"name": "gmp", "strat": 0.1}}, ["method.strat", "'method.start'"]),
        ({"method.strat": 0.1}, ["method.strat", "'method.start'"]),
        ({"method": {"name": "gmp", "start": 2.0}}, ["method.start is 2", "fraction"]),
        ({"method": 3}, ["method", "int", "PruningMethod"]),
        ({"replicas.count": 3}, ["replicas.count", "no keyword"]),
        ({"merge": "uniform"}, ["merge", "no keyword"]),
        ({"sparsity": 1.5}, ["sparsity is 1.5", "below 1"]),
        ({"epochs": 0}, ["epochs is 0", "1 or more"]),
        ({"epochs": 2.5}, ["epochs is '2.5'", "whole"]),
        ({"steps_per_epoch": 0}, ["steps_per_epoch is 0", "len(loader)"]),
        ({"epochs": 1, "steps_per_epoch": 5}, ["epochs 1", "too short"]),
        ({"warmup": 1.0}, ["optimizer.warmup is 1.0"]),
        ({"masks": {"alocation": "erk"}}, ["masks.alocation", "'masks.allocation'"]),
        ({"masks": {"allocation": "layerwise"}}, ["masks.allocation is 'layerwise'", "global, uniform, erk, lamp"]),
        ({"masks": {"exclude": "4"}}, ["masks.exclude is '4'", "list"]),
        ({"masks": {"exclude": ["nowhere"]}}, ["'nowhere'", "0.weight"]),
        ({"masks": {"pattern": "2:4"}}, ["2:4", "10 in 0.weight"]),
        ({"masks": {"floor": 0.5}}, ["masks.floor 0.5", "sparsity 0.8"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], says: list[str]) -> None:
    model, _, _ = problem()
    with pytest.raises(UserError) as caught:
        Pruner(model, adamw(model), **{**OPTIONS, **options})
    assert all(part in str(caught.value) for part in says)
    assert "--" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_optimizers_that_cannot_be_followed_are_refused() -> None:
    model, _, _ = problem()
    frozen, _, _ = problem()
    frozen[0].weight.requires_grad_(False)
    for given, trained, says in (
        (Deaf(model.parameters()), model, "Deaf"),
        (None, model, "NoneType"),
        (torch.optim.SGD(model[0].parameters(), 0.1), model, "4.weight"),
        (torch.optim.SGD(frozen.parameters(), 0.1), frozen, "0.weight"),
    ):
        with pytest.raises(UserError, match=says):
            Pruner(trained, given, **OPTIONS)
    groups = [{"params": [model[0].weight], "weight_decay": 0.1}, {"params": [model[4].weight], "weight_decay": 0.2}]
    built = torch.optim.SGD(groups, 0.1)
    pruner = Pruner(model, built, **{**OPTIONS, "method": Steered()})
    pruner.prune_if_due()
    with pytest.raises(UserError, match=r"0\.1, 0\.2"):
        built.step()


def test_what_is_wrapped_is_found() -> None:
    model, x, y = problem()
    built = adamw(model)
    pruner = Pruner(model, Wrapper(Wrapper(built)), **OPTIONS)  # type: ignore[arg-type]
    train(pruner, model, built, x, y, pruner.steps)
    pruner.finish()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "loss="),
        ({"loss": lambda model, batch: model(batch).sum(), "batches": [torch.randn(4, 10)]}, "2 batches"),
    ],
)
def test_a_method_that_needs_gradients_says_so(given: dict[str, Any], says: str) -> None:
    model, _, _ = problem()
    with pytest.raises(UserError, match=says):
        Pruner(model, adamw(model), **{**OPTIONS, "method": Saliency()}, **given).prune_if_due()


def test_a_loader_that_serves_one_loop_at_a_time_is_refused() -> None:
    model, x, _ = problem()
    loader = torch.utils.data.DataLoader(x, num_workers=1, persistent_workers=True)
    with pytest.raises(UserError, match="another DataLoader"):
        Pruner(model, adamw(model), **OPTIONS, batches=loader)


def test_a_forgotten_call_and_a_short_loop_are_noticed() -> None:
    model, x, y = problem()
    built = adamw(model)
    pruner = Pruner(model, built, **OPTIONS)
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(RunError, match="prune_if_due"):
        built.step()
    assert pruner.done == 0
    train(pruner, model, built, x, y, 30)
    with pytest.raises(RunError, match="30 of 80 optimizer steps"):
        pruner.finish()
    train(pruner, model, built, x, y, 80)
    with torch.no_grad():
        model[0].weight += 1.0
    with pytest.raises(RunError, match=r"0\.weight"):
        pruner.finish()


class AtTheEnd(Twice):
    """Prunes after all training."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return Segment(0.0, budget.epochs), Segment(budget.sparsity, 0.0)

    def learning_rate(self, stage: Stage) -> Schedule:
        return Schedule(lambda done: 1.0 - done)


def test_a_plan_may_end_with_a_pruning_and_a_loop_may_go_on() -> None:
    for more in (0, 5):
        model, x, y = problem()
        built = adamw(model)
        pruner = Pruner(model, built, **{**OPTIONS, "method": AtTheEnd()})
        train(pruner, model, built, x, y, pruner.steps + more)
        pruner.finish()
        assert sum(int((model[i].weight == 0).sum()) for i in (0, 4)) == PRUNED
        assert pruner.learning_rate == 0.0


def test_half_precision_weights_are_pruned() -> None:
    model, x, y = problem()
    model, x = model.bfloat16(), x.bfloat16()
    built = torch.optim.SGD(model.parameters(), 0.01)
    pruner = Pruner(model, built, **OPTIONS)
    train(pruner, model, built, x, y, pruner.steps)
    pruner.finish()
    assert sum(int((model[i].weight == 0).sum()) for i in (0, 4)) >= PRUNED
