"""Objects beside options, in one call: what does not go together is refused, with the option, its value and the fix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sparsekit
from sparsekit.config.options import EvaluateConfig, FitConfig
from sparsekit.data.sources import open_data
from sparsekit.merges import Greedy
from sparsekit.methods import GMP, IMP
from sparsekit.plugins.objects import brought
from sparsekit.python.options import read
from sparsekit.tasks import Classification


def flat(done: float, low: float) -> float:
    return 1.0


flat.__module__ = "__main__"  # as in a notebook


def even(shapes: Any, sparsity: float, available: Any, least: Any) -> Any:
    return shapes


class Margin(Classification):
    def __init__(self, width: float = 1.0) -> None:
        self.width = width


CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({"method": GMP(start=0.1), "method.start": 0.5}, ["method.start is 0.5", "method=GMP(start=0.5)"]),
    ({"method": GMP, "method.start": 0.5}, ["method.start is 0.5", "method=GMP(start=0.5)"]),
    ({"method": IMP(), "method.retrain": "allr"}, ["method.retrain is 'allr'", "method=IMP(retrain='allr')"]),
    ({"method": {"name": GMP(), "start": 0.5}}, ["method.start is 0.5", "method=GMP(start=0.5)"]),
    ({"merge": Greedy(), "merge.ensemble": True}, ["merge.ensemble is True", "has no option 'ensemble'", "leave"]),
    ({"method": IMP(), "method.retrian": "allr"}, ["method.retrian", "IMP has no option", "'retrain'"]),
    ({"task": Margin, "task.width": 2.0}, ["task.width is 2.0", "task=Margin(width=2.0)"]),
    ({"masks": {"allocation": flat}, "masks.allocation": "erk"}, ["masks.allocation", "twice"]),
    ({"masks": {"allocation": "erk"}, "masks.allocation": flat}, ["masks.allocation", "twice"]),
    ({"optimizer": {"schedule": "linear"}, "optimizer.schedule": flat}, ["optimizer.schedule", "twice"]),
    ({"model": {"name": nn.Identity}, "model.name": nn.ReLU}, ["model and model.name"]),
    ({"model": "resnet18", "model.name": nn.ReLU}, ["model and model.name"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("keywords", "words"), CASES, ids=lambda value: " ".join(value) if isinstance(value, dict) else ""
)
def test_an_option_beside_an_object_is_refused(keywords: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(sparsekit.UserError) as told:
        sparsekit.plan(**keywords)
    assert all(word in str(told.value) for word in words), told.value
    assert "\n" not in str(told.value)


def test_a_plan_takes_a_schedule_and_an_allocation_of_its_callers() -> None:
    own: dict[str, Any] = {"optimizer": {"schedule": flat, "lr": 0.5, "warmup": 0.0}, "masks.allocation": even}
    plan = sparsekit.plan(epochs=6, **own)
    assert {rate for row in plan.segments for rate in (*row.lr_first, *row.lr_last)} == {0.5}


def test_so_it_is_beside_the_task_of_a_runs_own_call() -> None:
    run = {"task": f"{__name__}:Margin", "task.width": 1.0}
    known = {f"--task {__name__}:Margin": Margin(1.0)}
    with pytest.raises(sparsekit.UserError, match=r"task\.width is 2.*task=Margin\(width=2\)"):
        read(EvaluateConfig, {"task.width": 2}, run, known)
    assert read(EvaluateConfig, {"task": Margin(2.0)}, run, known).config.task.width == 2.0


def test_pruner_refuses_them_likewise() -> None:
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(sparsekit.UserError, match=r"method\.start is 0\.5"):
        sparsekit.Pruner(model, optimizer, steps_per_epoch=5, method=GMP(), **{"method.start": 0.5})


def test_an_object_is_taken_by_the_dotted_name_and_in_a_mapping_too() -> None:
    for keywords in ({"method": {"name": IMP(cycles=2)}}, {"method": IMP(cycles=2)}):
        assert read(FitConfig, keywords).config.method.cycles == 2
    for keywords in ({"model.name": nn.ReLU}, {"model": {"name": nn.ReLU}}, {"model": nn.ReLU}):
        call = read(FitConfig, keywords)
        assert call.objects[f"--model.name {call.config.model.name}"] is nn.ReLU


def examples(noise: float = 0.0, count: int = 64) -> sparsekit.Data:
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    return sparsekit.Data(train=(x + noise, x[:, :4].argmax(1)), test=(x, x[:, :4].argmax(1)))


def bare(noise=0.0, layer=nn.Identity()):  # type: ignore[no-untyped-def]  # noqa: B008
    return examples(noise)


def test_a_function_for_data_takes_its_options_whether_it_is_named_or_given() -> None:
    by_name = read(FitConfig, {"data": {"name": f"{__name__}:examples", "noise": 0.5}})
    for keywords in ({"data": {"name": examples, "noise": 0.5}}, {"data": examples, "data.noise": 0.5}):
        call = read(FitConfig, keywords)
        assert call.config.data.options == {"noise": 0.5, "count": 64} == by_name.config.data.options
        with brought(call.objects):
            made = open_data(call.config.data)
        assert made is not None
        assert torch.equal(made.train[0], made.test[0] + 0.5)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"data": {"name": examples, "noisy": 0.5}}, ["data.noisy", "'data.noise'"]),
        ({"data": {"name": examples, "noise": "loud"}}, ["data.noise", "loud"]),
        ({"data": {"name": bare, "noise": 0.5}}, ["data.name", "bare", "'noise' without a type"]),
        ({"data": {"name": examples(), "noise": 0.5}}, ["data.noise"]),
    ],
)
def test_a_wrong_option_of_a_data_function_is_told(keywords: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(sparsekit.UserError) as told:
        sparsekit.plan(**keywords)
    assert all(word in str(told.value) for word in words), told.value


def test_a_function_whose_arguments_are_no_options_is_called_as_it_is() -> None:
    call = read(FitConfig, {"data": bare})
    assert call.config.data.options == {}
    with brought(call.objects):
        assert open_data(call.config.data) is not None


def test_what_a_run_recorded_of_its_data_function_holds_again() -> None:
    name = f"{__name__}:examples"
    run = {"data.name": name, "data.noise": 0.25, "data.count": 32}
    for keywords, noise in (({}, 0.25), ({"data.noise": 0.5}, 0.5)):
        config = read(EvaluateConfig, keywords, run, {f"--data.name {name}": examples}).config
        assert config.data.options == {"noise": noise, "count": 32}
    made = read(EvaluateConfig, {}, run, {f"--data.name {name}": examples()}).config
    assert made.data.options == {}
