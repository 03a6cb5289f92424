"""Tensors that a method updates itself, and what its hooks draw from: against plain torch, outside of the optimizer."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from tiny import OnePrune, optimizer, pruned, tiny_setup
from torch import Tensor

from sparsekit import Tensors, TrainingStep
from sparsekit.config.options import ReplicasConfig
from sparsekit.errors import RunError
from sparsekit.executors.stacked import Lockstep
from sparsekit.models.state import State
from sparsekit.planning.replicas import replicas_of
from sparsekit.run.progress import first_progress
from sparsekit.training.replica import Training

LAYER = "layer1.0.conv1.weight"


class Sums(OnePrune):
    """Adds up gradient times weight, as movement pruning does."""

    def __init__(self, dense: float = 1.0, decay: float = 0.0) -> None:
        super().__init__(dense)
        self.decay = decay

    def extra(self, weights: Tensors) -> Tensors:
        return {f"sum.{name}": torch.zeros_like(weight) for name, weight in weights.items()}

    def update(self, step: TrainingStep, gradients: Tensors) -> Tensors:
        return {f"sum.{n}": step.extra[f"sum.{n}"] + g * step.weights[n] for n, g in gradients.items()}

    def penalty(self, step: TrainingStep) -> Tensor | None:
        if not self.decay:
            return None
        return self.decay * torch.stack([weight.square().sum() for weight in step.weights.values()]).sum()


class Behind(Sums):
    """The same with dense weights behind the masks."""

    def effective(self, step: TrainingStep) -> Tensors:
        return {name: weight * step.masks[name] for name, weight in step.weights.items()}


def start(method: OnePrune, **changes: Any) -> tuple[Any, State, Any]:
    setup = tiny_setup(method, replicas=ReplicasConfig(count=2, start=0.0), sparsity=0.5, **changes)
    first, stage = pruned(setup, first_progress(setup).parent, 0)
    parent, stage = pruned(setup, first, 1)
    return setup, parent, stage


def training(setup: Any, parent: State, stage: Any, replica: int = 0, model: Any = None) -> Training:
    return Training(
        setup, parent, stage, replicas_of(setup.config, stage)[replica], setup.method.learning_rate(stage), model=model
    )


def by_hand(setup: Any, work: Training, images: Tensor, labels: Tensor, masks: Tensors) -> Tensors:
    """The gradient of the cross-entropy with respect to the masked weights, by autograd alone."""
    model = copy.deepcopy(work.model).train()
    used = {name: (model.get_parameter(name).detach() * mask).requires_grad_() for name, mask in masks.items()}
    loss = F.cross_entropy(torch.func.functional_call(model, used, (images,)), labels)
    return dict(zip(used, torch.autograd.grad(loss, list(used.values())), strict=True))


@pytest.mark.parametrize(
    "method",
    [Sums(), Behind(), Sums(decay=0.1), Behind(decay=0.1)],
    ids=["masked", "dense", "masked penalty", "dense penalty"],
)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_update_gets_the_dense_gradients_of_the_loss(method: Sums, name: str) -> None:
    setup, parent, stage = start(method, optimizer=optimizer(name, lr=0.01, weight_decay=0.1, clip_norm=0.01))
    work = training(setup, parent, stage)
    expected = {key: torch.zeros_like(mask, dtype=torch.float32) for key, mask in parent.masks.items()}
    for number, (images, labels) in enumerate(work.batches()):
        gradients = by_hand(setup, work, images, labels, parent.masks)
        for key, gradient in gradients.items():
            expected[key] += gradient * work.model.get_parameter(key).detach()
        work.step(images, labels)
        if number == 2:
            break
    for key, total in expected.items():
        assert torch.allclose(work.extra[f"sum.{key}"], total, rtol=1e-4, atol=1e-6), key
    assert any(gradient[~parent.masks[key]].any() for key, gradient in gradients.items())  # masked weights have some
    held = {id(p) for group in work.optimizer.param_groups for p in group["params"]}
    assert not held & {id(t) for t in work.extra.values()}


def test_stacked_replicas_update_as_one_after_another() -> None:
    for method in (Sums(), Behind()):
        setup, parent, stage = start(method)
        lockstep = Lockstep(setup, 2)
        both = [training(setup, parent, stage, i, lockstep.models[i]) for i in range(2)]
        batches = [next(iter(work.batches())) for work in both]
        lockstep.step(both, [images for images, _ in batches], [labels for _, labels in batches])
        for index, (images, labels) in enumerate(batches):
            alone = training(setup, parent, stage, index)
            alone.step(images, labels)
            for name, tensor in alone.extra.items():
                assert torch.allclose(tensor, both[index].extra[name], rtol=1e-3, atol=1e-6), name


class Trained(OnePrune):
    """Two tensors that the optimizer trains, one of them without decay, and one that it does not."""

    def extra(self, weights: Tensors) -> Tensors:
        return {"decays": torch.ones(1), "stays": torch.ones(1), "own": torch.ones(1)}

    def extra_trained(self, name: str) -> bool:
        return name != "own"

    def extra_decays(self, name: str) -> bool:
        return name == "decays"

    def penalty(self, step: TrainingStep) -> Tensor:
        return 0.0 * sum(step.extra[name].sum() for name in ("decays", "stays"))  # type: ignore[return-value]

    def update(self, step: TrainingStep, gradients: Tensors) -> Tensors:
        return {"own": step.extra["own"] * 2.0}


def test_weight_decay_and_the_optimizer_can_be_left() -> None:
    setup, parent, stage = start(Trained(), optimizer=optimizer("adamw", lr=0.1, weight_decay=0.5))
    work = training(setup, parent, stage)
    for number, batch in enumerate(work.batches()):
        work.step(*batch)
        if number == 1:
            break
    found = {name: float(tensor) for name, tensor in work.result().extra.items()}
    assert found == {"decays": pytest.approx(found["decays"]), "stays": 1.0, "own": 4.0}
    assert found["decays"] < 1.0


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"sum": torch.zeros(1)}, ["update()", "'sum'", "extra_trained"]),
        ({f"sum.{LAYER}": torch.zeros(1)}, ["update()", LAYER, "shape (1,)"]),
    ],
)
def test_values_that_belong_nowhere_are_told(values: Tensors, parts: list[str]) -> None:
    class Wrong(Sums):
        """Gives values to what is not its own."""

        def update(self, step: TrainingStep, gradients: Tensors) -> Tensors:
            return values

    setup, parent, stage = start(Wrong())
    work = training(setup, parent, stage)
    with pytest.raises(RunError) as caught:
        work.step(*next(iter(work.batches())))
    assert all(part in str(caught.value) for part in ["method Wrong", *parts])


class Draws(OnePrune):
    """Notes what its hook draws."""

    drawn: ClassVar[list[tuple[int | None, float]]] = []

    def gradients(self, step: TrainingStep, gradients: Tensors) -> Tensors:
        assert step.generator is not None
        self.drawn.append((step.replica, float(torch.rand(1, generator=step.generator))))
        return gradients


def test_hooks_draw_by_replica_and_step_and_again_alike() -> None:
    setup, parent, stage = start(Draws())

    def drawn(replica: int, steps: int, skipped: int = 0) -> list[tuple[int | None, float]]:
        Draws.drawn = []
        work = training(setup, parent, stage, replica)
        batches = iter(list(work.batches())[:steps])
        for number, batch in enumerate(batches):
            if number < skipped:
                work.done += 1  # as after a resume
                continue
            work.step(*batch)
        return Draws.drawn

    first = drawn(0, 3)
    assert first == drawn(0, 3)
    assert first[2:] == drawn(0, 3, skipped=2)
    assert [replica for replica, _ in drawn(1, 1)] == [1]
    values = [value for _, value in (*first, *drawn(1, 3))]
    assert len(set(values)) == 6


def test_outside_of_training_there_is_no_generator_and_no_replica() -> None:
    seen = []

    class Looks(OnePrune):
        """Notes what it is given."""

        def effective(self, step: TrainingStep) -> Tensors:
            seen.append((step.generator, step.replica))
            return {name: weight * step.masks[name] for name, weight in step.weights.items()}

    setup, parent, _ = start(Looks())
    setup.score(parent, "held_out")
    assert seen
    assert set(seen) == {(None, None)}
