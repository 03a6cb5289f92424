"""Optimizer state: out and in without a trace, zero where pruned, and no optimizer revives a masked weight."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from tiny import OnePrune, dense_then_pruned, masked_are_zero, optimizer, tiny_setup, trained
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekit.config.options import MasksConfig, OptimizerConfig
from sparsekit.errors import UserError
from sparsekit.models.state import pruned_optimizer_state
from sparsekit.training import optimizers, replica
from sparsekit.training.replica import Progress

# with and without momentum, counting their steps in tensors, numbers or groups, with state of other shapes; the last
# moves weights whose gradient and state are 0
NAMES = [
    "sgd",
    "momentum",
    "adamw",
    "lamb",
    "adafactor",
    "adafactorbv",
    "lion",
    "nadam",
    "rmsproptf",
    "madgrad",
    "adan",
    "muon",
]


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 16), nn.Linear(16, 5))


def build(name: str, model: nn.Module, extra: dict[str, Tensor] | None = None) -> Optimizer:
    return optimizers.build(OptimizerConfig(name), model, extra or {}, 0.01, 0.1)


def steps(
    model: nn.Module, optimizer: Optimizer, first: int, last: int, extra: dict[str, Tensor] | None = None
) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(6, 1, 8, 8, generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), torch.randint(5, (6,), generator=generator))
        for tensor in (extra or {}).values():
            loss = loss + (tensor - step).square().sum()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_optimizer_goes_on_as_if_nothing_had_happened(name: str) -> None:
    model, extra = network(), {"gate": torch.ones(3, requires_grad=True)}
    uninterrupted = build(name, model, extra)
    steps(model, uninterrupted, 0, 4, extra)
    flat = optimizers.export(uninterrupted, optimizers.names_of(uninterrupted, model, extra))
    assert all(not t.requires_grad and t.is_contiguous() for t in flat.values())

    other, other_extra = deepcopy(model), {"gate": extra["gate"].detach().clone().requires_grad_()}
    restored = build(name, other, other_extra)
    names = optimizers.names_of(restored, other, other_extra)
    optimizers.restore(restored, names, flat)
    again = optimizers.export(restored, names)
    assert list(again) == list(flat)
    for key, tensor in flat.items():
        assert again[key].dtype is tensor.dtype, key
        assert torch.equal(again[key], tensor), key

    steps(model, uninterrupted, 4, 8, extra)
    steps(other, restored, 4, 8, other_extra)
    for left, right in zip(
        [*model.parameters(), extra["gate"]], [*other.parameters(), other_extra["gate"]], strict=True
    ):
        assert torch.equal(left, right)

    fresh = deepcopy(model)
    steps(fresh, build(name, fresh), 8, 9)
    steps(model, uninterrupted, 8, 9)
    state_matters = any(not torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    assert state_matters


@pytest.mark.parametrize(("before", "after"), [(0.1, 0.0), (0.0, 0.1)])
def test_steps_counted_in_groups_reach_all_groups_of_another_weight_decay(before: float, after: float) -> None:
    model = network()
    old, new = (optimizers.build(OptimizerConfig("lamb"), model, {}, 0.01, decay) for decay in (before, after))
    assert len(old.param_groups) != len(new.param_groups)
    steps(model, old, 0, 3)
    optimizers.restore(
        new, optimizers.names_of(new, model, {}), optimizers.export(old, optimizers.names_of(old, model, {}))
    )
    assert [group["step"] for group in new.param_groups] == [3] * len(new.param_groups)


def test_exported_state_is_a_copy() -> None:
    model = network()
    sgd = build("sgd", model)
    steps(model, sgd, 0, 1)
    names = optimizers.names_of(sgd, model, {})
    flat = optimizers.export(sgd, names)
    before = {name: tensor.clone() for name, tensor in flat.items()}
    other = build("sgd", model)
    optimizers.restore(other, names, flat)
    steps(model, sgd, 1, 2)
    steps(model, other, 2, 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in flat.items())


def test_state_is_named_by_its_parameter() -> None:
    model = network()
    adam = build("adamw", model)
    steps(model, adam, 0, 3)
    flat = optimizers.export(adam, optimizers.names_of(adam, model, {}))
    assert set(flat) == {f"{n}/{key}" for n, _ in model.named_parameters() for key in ("step", "exp_avg", "exp_avg_sq")}
    for name, parameter in model.named_parameters():
        assert torch.equal(flat[f"{name}/exp_avg"], adam.state[parameter]["exp_avg"])
        assert float(flat[f"{name}/step"]) == 3.0


def test_extra_tensors_may_be_called_as_their_weights() -> None:
    """A threshold a layer is most naturally named after the layer."""
    model = network()
    extra = {name: torch.zeros_like(p).requires_grad_() for name, p in model.named_parameters() if p.ndim > 1}
    sgd = build("sgd", model, extra)
    steps(model, sgd, 0, 2, extra)
    names = optimizers.names_of(sgd, model, extra)
    assert len(set(names.values())) == len(names)
    flat = optimizers.export(sgd, names)
    other = build("sgd", model, extra)
    optimizers.restore(other, names, flat)
    for parameter in [*model.parameters(), *extra.values()]:
        assert torch.equal(other.state[parameter]["momentum_buffer"], sgd.state[parameter]["momentum_buffer"])
    # and what the weights' masks prune is the weights' state
    masks = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in extra.items()}
    optimizers.restore(other, names, pruned_optimizer_state(flat, masks))
    for name, parameter in model.named_parameters():
        assert other.state[parameter]["momentum_buffer"].any() == (name not in masks)
    assert all(other.state[tensor]["momentum_buffer"].all() for tensor in extra.values())


def test_pruned_state_is_zero_and_nothing_else_changes() -> None:
    model = network()
    adam = build("adamw", model)
    steps(model, adam, 0, 3)
    flat = optimizers.export(adam, optimizers.names_of(adam, model, {}))
    mask = torch.zeros(16, 144, dtype=torch.bool)
    mask[::2, 1::3] = True
    pruned = pruned_optimizer_state(flat, {"3.weight": mask})
    for name, tensor in flat.items():
        if name in ("3.weight/exp_avg", "3.weight/exp_avg_sq"):
            assert tensor.all()
            assert torch.equal(pruned[name] != 0, mask)
            assert torch.equal(pruned[name][mask], tensor[mask])
        else:
            assert torch.equal(pruned[name], tensor)


def test_weight_decay_spares_biases_and_norms_only() -> None:
    model = network()
    extra = {"gate": torch.ones(3, requires_grad=True)}
    sgd = build("sgd", model, extra)
    decay = {id(p): group["weight_decay"] for group in sgd.param_groups for p in group["params"]}
    by_name = {name: decay[id(p)] for name, p in [*model.named_parameters(), *extra.items()]}
    decayed = {"0.weight", "3.weight", "4.weight", "gate"}
    assert by_name == {name: 0.1 if name in decayed else 0.0 for name in by_name}
    assert len(by_name) == 9


def test_options_reach_the_optimizer() -> None:
    model = network()
    adam = optimizers.build(OptimizerConfig("adamw", kwargs={"betas": [0.5, 0.6]}), model, {}, 0.01, 0.0)
    assert list(adam.defaults["betas"]) == [0.5, 0.6]
    sgd = optimizers.build(OptimizerConfig("sgd", momentum=0.3), model, {}, 0.01, 0.0)
    expected = create_optimizer_v2(model, "sgd", lr=0.01, momentum=0.3)
    assert sgd.defaults == expected.defaults
    assert sgd.defaults["nesterov"] is True


def test_unknown_names_and_arguments_are_the_users_errors() -> None:
    with pytest.raises(UserError, match=r"--optimizer.name 'adamv' is not a timm optimizer. Did you mean 'adam"):
        optimizers.build(OptimizerConfig("adamv"), network(), {}, 0.1, 0.0)
    with pytest.raises(UserError, match=r"--optimizer.name sgd with .*--optimizer.kwargs {'beta': 1}: .*beta"):
        optimizers.build(OptimizerConfig("sgd", kwargs={"beta": 1}), network(), {}, 0.1, 0.0)


# --- no optimizer revives a masked weight -----------------------------------------------------------

UNIFORM = MasksConfig("uniform")  # so that every layer keeps some weights


@pytest.mark.parametrize("name", NAMES)
def test_masked_weights_stay_zero_at_every_step_after_dense_training(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "LOG_STEPS", 1)  # a report a step
    setup = tiny_setup(OnePrune(), epochs=2, masks=UNIFORM, optimizer=optimizer(name, 0.01, weight_decay=0.1))
    parent, stage = dense_then_pruned(setup)
    weights = dict(setup.model.named_parameters())
    seen = []

    def look(progress: Progress) -> None:
        seen.append(progress.done)
        assert masked_are_zero(weights, parent.masks)

    state = trained(setup, parent, stage, report=look)
    assert seen == list(range(1, 9))
    assert masked_are_zero(state.weights, state.masks)
    # nor do the weights that are kept stand still
    moved = [float((state.tensors[n] - parent.tensors[n])[mask].abs().max()) for n, mask in parent.masks.items()]
    assert min(moved) > 0.0


@pytest.mark.parametrize(
    ("name", "keys"),
    [("sgd", {"momentum_buffer"}), ("adamw", {"exp_avg", "exp_avg_sq"}), ("lamb", {"exp_avg", "exp_avg_sq"})],
)
def test_moments_of_masked_weights_are_zero_from_the_pruning_on(name: str, keys: set[str]) -> None:
    setup = tiny_setup(OnePrune(), epochs=2, masks=UNIFORM, optimizer=optimizer(name, 0.01))
    parent, stage = dense_then_pruned(setup)
    for state in (parent, trained(setup, parent, stage)):
        moments = [(n, k) for n in state.masks for k in keys]
        assert all(state.optimizer[f"{n}/{k}"].any() for n, k in moments)
        assert all(not state.optimizer[f"{n}/{k}"][~state.masks[n]].any() for n, k in moments)


def test_momentum_would_revive_pruned_weights_without_the_masks() -> None:
    """What the tests above rely on: a plain loop over the same parent does bring them back."""
    setup = tiny_setup(OnePrune(), epochs=2)
    parent, _ = dense_then_pruned(setup)
    setup.model.load_state_dict(parent.tensors)
    setup.model.train()
    sgd = optimizers.build(setup.config.optimizer, setup.model, {}, 0.01, 0.0)
    optimizers.restore(sgd, optimizers.names_of(sgd, setup.model, {}), parent.optimizer)
    for images, labels in setup.data.train_batches(0, 2):
        sgd.zero_grad()
        F.cross_entropy(setup.model(images), labels).backward()
        sgd.step()
    assert not masked_are_zero(dict(setup.model.named_parameters()), parent.masks)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_the_fused_step_is_the_plain_one_in_any_memory_order(name: str) -> None:
    """torch's fused kernels read gradients and state as they lie in memory, and are silently wrong on another order."""

    def trained(**kwargs: object) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5))
        model = model.to(memory_format=torch.channels_last)
        images = torch.randn(6, 1, 8, 8)
        for _ in range(3):  # each time a new optimizer, which gets its state from a file in plain order
            built = optimizers.build(OptimizerConfig(name, kwargs=kwargs), model, {}, 0.01, 1e-2)
            names = optimizers.names_of(built, model, {})
            if kept:
                optimizers.restore(built, names, kept.pop())
            F.cross_entropy(model(images), torch.arange(6) % 5).backward()
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad = optimizers.match_memory_format(parameter, parameter.grad.contiguous())
            built.step()
            used.append(bool(built.param_groups[0]["fused"]))
            kept.append(optimizers.export(built, names))
        return [p.detach().clone() for p in model.parameters()]

    results, flags = [], []
    for kwargs in ({}, {"foreach": True}, {"fused": False}):
        kept: list[dict[str, Tensor]] = []
        used: list[bool] = []
        results.append(trained(**kwargs))
        flags.append(all(used))
    assert flags == [True, False, False]
    for plain in results[1:]:
        torch.testing.assert_close(results[0], plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("decay", [0.0, 5e-4])
@pytest.mark.parametrize("name", ["sgd", "Momentum", "adam", "adamw"])
def test_torchs_own_optimizers_are_made_as_timm_makes_them(name: str, decay: float) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    model[2].weight.requires_grad_(False)
    config = OptimizerConfig(name, momentum=0.8)
    built = optimizers.build(config, model, {}, 0.03, decay)
    expected = create_optimizer_v2(model, name, lr=0.03, weight_decay=decay, momentum=0.8)
    assert type(built) is type(expected)
    assert len(built.param_groups) == len(expected.param_groups)
    for group, like in zip(built.param_groups, expected.param_groups, strict=True):
        assert [id(p) for p in group.pop("params")] == [id(p) for p in like.pop("params")]
        assert group | {"fused": None} == like


def test_timm_makes_the_optimizer_of_a_model_that_spares_weights_of_its_own_from_decay() -> None:
    class Spares(nn.Linear):
        def no_weight_decay(self) -> set[str]:
            return {"weight"}

    built = optimizers.build(OptimizerConfig("sgd"), Spares(3, 2), {}, 0.1, 0.5)
    assert [group["weight_decay"] for group in built.param_groups] == [0.0]
