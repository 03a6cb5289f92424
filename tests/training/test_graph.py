"""Recorded steps, with a recorder of this file instead of CUDA's: what is checked is when a recording is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny import optimizer, pruned, tiny_setup
from torch import Tensor

from sparsekit.config.options import ModelConfig, OptimizerConfig, ReplicasConfig
from sparsekit.executors.stacked import Lockstep
from sparsekit.run.progress import first_progress
from sparsekit.training import graph
from sparsekit.training.graph import GraphedStep
from sparsekit.training.replica import Training

STEPS = 8


class Recording:
    """A graph whose replay takes the step again, as the recorded kernels would."""

    replays = 0

    def __init__(self) -> None:
        self.work: Callable[[], None] | None = None

    def replay(self) -> None:
        assert self.work is not None
        Recording.replays += 1
        self.work()


class Kept(GraphedStep):
    """Keeps the plain step that it was given last, for replays."""

    def __call__(self, step: Callable[..., Tensor], *batch: Tensor) -> Tensor:
        self.step = step
        return super().__call__(step, *batch)


def training(**changes: Any) -> Training:
    (single,), _ = begun(1, **changes)
    return single


def begun(count: int, **changes: Any) -> tuple[list[Training], Lockstep]:
    """The first replicas of the second segment: one by itself, or several stacked."""
    setup = tiny_setup(**{"optimizer": optimizer(), "epochs": 60, "replicas": ReplicasConfig(2, start=0.0)} | changes)
    parent, stage = pruned(setup, first_progress(setup).parent, 1)
    lockstep, schedule = Lockstep(setup, count), setup.method.learning_rate(stage)
    models = lockstep.models if count > 1 else [setup.model]
    replicas = zip(setup.plan[stage.index].replicas, models, strict=False)
    return [Training(setup, parent, stage, each, schedule, model=model) for each, model in replicas], lockstep


def take(trained: Training) -> dict[str, Tensor]:
    for _, (images, labels) in zip(range(STEPS), trained.batches(), strict=False):
        trained.step(images, labels)
    return trained.result().tensors | {"loss": trained.loss}


def take_together(trainings: list[Training], lockstep: Lockstep) -> dict[str, Tensor]:
    for _, *batches in zip(range(STEPS), *(each.batches() for each in trainings), strict=False):
        lockstep.step(trainings, [images for images, _ in batches], [labels for _, labels in batches])
    found = {f"{each.replica.index}.{k}": t for each in trainings for k, t in each.result().tensors.items()}
    return found | {f"{each.replica.index}.loss": each.loss for each in trainings}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces CUDA's recorder and random state; `wrong` is added to the last replica's weights by each replay."""
    options: dict[str, Any] = {"wrong": 0.0, "of": None, "free": 1 << 30}

    @contextmanager
    def record(recording: Recording, capture_error_mode: str) -> Iterator[None]:
        graphed: Kept = options["of"]
        tensors = graphed._tensors()
        before, drawn = [tensor.clone() for tensor in tensors], torch.get_rng_state()
        yield
        for tensor, value in zip(tensors, before, strict=True):  # a recording computes nothing
            tensor.copy_(value)
        torch.set_rng_state(drawn)
        loss = graphed.loss

        def work() -> None:
            loss.copy_(graphed.step(*graphed.batch))
            for weight in graphed.replicas[-1].weights.values():
                weight.data += options["wrong"]

        recording.work = work

    monkeypatch.setattr(Recording, "replays", 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 900)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (options["free"], 1 << 40))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(1))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    return options


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_recorded_steps_train_as_plain_ones_do(name: str, recorder: dict[str, Any]) -> None:
    changes = {"optimizer": OptimizerConfig(name, lr=0.01)}
    plain = take(training(**changes))
    recorded = training(**changes)
    recorded.graphed = recorder["of"] = Kept(recorded.take_step)
    found = take(recorded)
    assert Recording.replays == STEPS - graph._PLAIN_STEPS
    for key in plain:  # a learning rate on the device is rounded to float32
        torch.testing.assert_close(found[key], plain[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_stacked_replicas_are_recorded_together(name: str, recorder: dict[str, Any]) -> None:
    changes = {"optimizer": OptimizerConfig(name, lr=0.01)}
    plain = take_together(*begun(2, **changes))
    trainings, lockstep = begun(2, **changes)
    lockstep.graphed = recorder["of"] = Kept(*(each.take_step for each in trainings))
    found = take_together(trainings, lockstep)
    assert Recording.replays == STEPS - graph._PLAIN_STEPS
    for key in plain:
        torch.testing.assert_close(found[key], plain[key], rtol=1e-5, atol=1e-6)


def test_a_recording_that_trains_one_of_them_wrongly_is_not_used(recorder: dict[str, Any]) -> None:
    plain = take_together(*begun(2))
    (trainings, lockstep), recorder["wrong"] = begun(2), 1e-3
    lockstep.graphed = recorder["of"] = Kept(*(each.take_step for each in trainings))
    found = take_together(trainings, lockstep)
    assert Recording.replays == 1
    assert "plain one" in lockstep.graphed.obstacle
    assert all(torch.equal(plain[key], found[key]) for key in plain)


def test_a_recording_that_does_something_else_is_not_used(recorder: dict[str, Any]) -> None:
    plain = take(training())
    recorded, recorder["wrong"] = training(), 1e-3
    recorded.graphed = recorder["of"] = Kept(recorded.take_step)
    found = take(recorded)
    assert Recording.replays == 1
    assert "plain one" in recorded.graphed.obstacle
    assert all(torch.equal(plain[key], found[key]) for key in plain)


def test_a_model_that_draws_on_the_host_is_not_recorded(recorder: dict[str, Any]) -> None:
    """Its dropout on a CPU is such a draw."""
    model = ModelConfig("resnet18", kwargs={"channels": [4, 4, 8, 8], "layers": [1, 1, 1, 1], "drop_rate": 0.2})
    plain = take(training(model=model))
    recorded = training(model=model)
    recorded.graphed = recorder["of"] = Kept(recorded.take_step)
    found = take(recorded)
    assert Recording.replays == 0
    assert "host" in recorded.graphed.obstacle
    assert all(torch.equal(plain[key], found[key]) for key in plain)


def test_what_cannot_be_recorded_takes_plain_steps(recorder: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, recorded = take(training()), training()

    @contextmanager
    def refuse(*_: Any, **__: Any) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    recorded.graphed = GraphedStep(recorded.take_step)
    found = take(recorded)
    assert "not permitted" in recorded.graphed.obstacle
    assert "more" not in recorded.graphed.obstacle
    assert all(torch.equal(plain[key], found[key]) for key in plain)


@pytest.mark.cuda
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_on_a_device_recorded_steps_train_as_plain_ones_do(name: str, count: int) -> None:
    changes = {"optimizer": OptimizerConfig(name, lr=0.01), "epochs": 600, "device": "cuda", "precision": "fp32"}
    found = []
    for graphs in (False, True):
        trainings, lockstep = begun(count, cuda_graphs=graphs, **changes)
        found.append(take_together(trainings, lockstep) if count > 1 else take(trainings[0]))
        graphed = lockstep.graphed if count > 1 else trainings[0].graphed
        assert (graphed and graphed.obstacle) == ("" if graphs else None)
    for key, expected in found[0].items():
        torch.testing.assert_close(found[1][key].cpu(), expected.cpu(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("short", [0, 1])
def test_steps_are_not_recorded_where_the_copies_do_not_fit(short: int, recorder: dict[str, Any]) -> None:
    """Two copies of weights, buffers and momenta beside 200 bytes that torch has reserved and steps have not taken."""
    plain, recorded = take(training()), training()
    sizes = [tensor.nbytes for tensor in recorded.model.state_dict().values()]
    momenta = [parameter.nbytes for parameter in recorded.model.parameters()]
    recorder["free"] = 2 * sum(sizes + momenta) - 200 - short
    recorded.graphed = recorder["of"] = Kept(recorded.take_step)
    found = take(recorded)
    assert Recording.replays == (0 if short else STEPS - graph._PLAIN_STEPS)
    assert ("memory" in recorded.graphed.obstacle) == bool(short)
    assert all(torch.equal(plain[key], found[key]) for key in plain)


def test_a_finished_replica_keeps_no_recording(recorder: dict[str, Any]) -> None:
    """It has the memory of a step, which the scores that follow may need."""
    recorded = training()
    recorded.graphed = recorder["of"] = Kept(recorded.take_step)
    batches = recorded.batches()
    for _ in range(STEPS):
        recorded.step(*next(batches))
    assert recorded.graphed.graph
    recorded.result()
    assert not recorded.graphed.graph


def test_batches_of_another_shape_take_plain_steps(recorder: dict[str, Any]) -> None:
    plain, recorded = training(), training()
    recorded.graphed = recorder["of"] = Kept(recorded.take_step)
    batches = [
        (images[: 20 if i == 6 else None], labels[: 20 if i == 6 else None])
        for i, (images, labels) in zip(range(STEPS), plain.batches(), strict=False)
    ]
    for images, labels in batches:
        plain.step(images, labels)
        recorded.step(images, labels)
    assert Recording.replays == STEPS - graph._PLAIN_STEPS - 1
    found, expected = recorded.result().tensors, plain.result().tensors
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_only_steps_that_are_the_devices_alone_are_recorded() -> None:
    """Not on a CPU, and not where a method, fp16 or the optimizer needs the host."""
    assert training().graphed is None
    trainings, lockstep = begun(2)
    take_together(trainings, lockstep)
    assert lockstep.graphed is None
