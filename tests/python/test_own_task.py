"""Runs and soups of what cannot be imported again, such as a notebook's: from Python they go on as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparsekit
from sparsekit.cli import main

QUICK: dict[str, Any] = {
    "epochs": 6, "sparsity": 0.5, "device": "cpu", "wandb": {"mode": "disabled"}, "evaluation": {"report": False},
    "replicas": {"count": 2}, "data.workers": 0, "optimizer": {"lr": 0.05},
}  # fmt: skip


class Scaled(sparsekit.Task):
    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    score_name: ClassVar[str] = "closeness"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * (outputs[:, 0] - targets).square().mean()

    def meter(self, device: torch.device) -> sparsekit.Meter:
        return _Distance(self.scale)

    def num_outputs(self, targets: Tensor) -> int:
        return 1


class _Distance:
    def __init__(self, scale: float) -> None:
        self.scale, self.total, self.count = scale, torch.zeros(()), 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.total = self.total + (outputs[:, 0] - targets).abs().sum()
        self.count += len(targets)

    def compute(self) -> dict[str, Any]:
        return {"closeness": -self.scale * self.total / self.count}


Scaled.__module__ = "__main__"  # as in a notebook


class Net(nn.Sequential):
    def __init__(self, width: int = 16) -> None:
        super().__init__(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 1))


Net.__module__ = "__main__"


def data() -> sparsekit.Data:
    x, other = (torch.randn(n, 6, generator=torch.Generator().manual_seed(n)) for n in (320, 160))
    return sparsekit.Data(train=(x, x[:, 0] * x[:, 1]), test=(other, other[:, 0] * other[:, 1]))


EXAMPLES = data()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> sparsekit.Run:
    out = tmp_path_factory.mktemp("own") / "run"
    return sparsekit.fit(model=Net, data=EXAMPLES, task=Scaled(2.0), out=out, **QUICK)


def closeness(found: dict[str, Any]) -> float:
    return float(found["variants"]["saved"]["test"]["closeness"])


def by_hand(model: nn.Module) -> float:
    x, y = EXAMPLES.test
    with torch.no_grad():
        return -float((model(x)[:, 0] - y).abs().mean())


def test_the_run_that_fit_returned_needs_nothing_given_again(run: sparsekit.Run, tmp_path: Path) -> None:
    assert run.summary["test.closeness"] == pytest.approx(2.0 * by_hand(run.model), rel=1e-5)
    assert closeness(sparsekit.evaluate(run)) == pytest.approx(run.summary["test.closeness"], rel=1e-6)
    merged = sparsekit.merge([run, run], out=tmp_path / "soup", merge="greedy")
    assert merged["test.closeness"] == pytest.approx(run.summary["test.closeness"], rel=1e-5)
    sparsekit.export(run, format="torch", out=tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").is_file()


def test_another_task_is_taken_in_place_of_the_runs(run: sparsekit.Run) -> None:
    assert closeness(sparsekit.evaluate(run, task=Scaled(1.0))) == pytest.approx(by_hand(run.model), rel=1e-5)
    found = sparsekit.evaluate(run, task="regression")["variants"]["saved"]["test"]
    assert "R2" in found
    assert "closeness" not in found


def test_a_loaded_run_takes_what_is_given_again(run: sparsekit.Run, tmp_path: Path) -> None:
    loaded, again = sparsekit.load(run.out), {"model": Net, "data": EXAMPLES}
    expected = pytest.approx(run.summary["test.closeness"], rel=1e-6)
    assert closeness(sparsekit.evaluate(loaded, task=Scaled(2.0), **again)) == expected
    assert closeness(sparsekit.evaluate(run.out, task=Scaled, **again)) == expected  # with the run's own options
    for name in ("one", "other"):
        sparsekit.merge([loaded, loaded], out=tmp_path / name, task=Scaled(2.0), **again)
    sparsekit.export(loaded, format="torch", out=tmp_path / "model.pt2", task=Scaled(2.0), **again)
    whole = sparsekit.load(run.out, task=Scaled, **again)
    assert closeness(sparsekit.evaluate(whole)) == expected
    sparsekit.merge([run, whole], out=tmp_path / "both", **again)  # equal tasks are one


def test_two_runs_of_tasks_that_differ_want_to_be_told_which_holds(run: sparsekit.Run, tmp_path: Path) -> None:
    other = sparsekit.load(run.out, model=Net, data=EXAMPLES, task=Scaled(3.0))
    with pytest.raises(sparsekit.UserError, match=r"task.*different.*task="):
        sparsekit.merge([run, other], out=tmp_path / "soup")
    sparsekit.merge([run, other], out=tmp_path / "soup", task=Scaled(3.0))


def test_a_loaded_run_says_what_to_give_again(run: sparsekit.Run) -> None:
    with pytest.raises(sparsekit.UserError, match=r"task __main__:Scaled.*task=") as told:
        sparsekit.evaluate(run.out, model=Net, data=EXAMPLES)
    assert "--" not in str(told.value)


def test_the_command_line_takes_another_task_for_a_run_whose_own_is_not_there(
    run: sparsekit.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["evaluate", str(run.out), "--task", "classification", "--model.name", "resnet18"]) == 2
    told = capsys.readouterr().err
    assert "__main__:Scaled" not in told
    assert main.main(["evaluate", str(run.out)]) == 2
    assert "--task __main__:Scaled" in capsys.readouterr().err


def test_load_says_where_an_object_stands_for_nothing(run: sparsekit.Run) -> None:
    for given, words in (({"task": "regression"}, "task is 'regression'"), ({"task": nn.ReLU}, "ReLU")):
        with pytest.raises(sparsekit.UserError, match=words):
            sparsekit.load(run.out, **given)


def test_a_soup_of_what_cannot_be_imported_is_used_as_a_run_is(run: sparsekit.Run, tmp_path: Path) -> None:
    soup = tmp_path / "soup"
    merged = sparsekit.merge([run, run], out=soup)
    again: dict[str, Any] = {"model": Net, "data": EXAMPLES, "task": Scaled}
    loaded = sparsekit.load(soup, **again)
    assert loaded.summary == merged
    assert torch.equal(loaded.model(EXAMPLES.test[0]), run.model(EXAMPLES.test[0]))
    assert loaded.masks.keys() == run.masks.keys()
    for found in (sparsekit.evaluate(soup, **again), sparsekit.evaluate(loaded)):
        assert closeness(found) == pytest.approx(2.0 * by_hand(run.model), rel=1e-6)
    for model, given in ((soup, again), (loaded, {})):
        sparsekit.export(model, format="sparse", out=tmp_path / f"{len(given)}.safetensors", **given)
    sparsekit.merge([soup, loaded], out=tmp_path / "more", **again)
    with pytest.raises(sparsekit.UserError, match=r"__main__:Net.*model="):
        sparsekit.evaluate(soup, data=EXAMPLES, task=Scaled)
    with pytest.raises(sparsekit.UserError, match="is a soup"):
        _ = loaded.metrics
    with pytest.raises(sparsekit.UserError, match="is a soup"):
        loaded.report()


def test_a_soup_is_measured_on_the_data_of_its_runs(tmp_path: Path) -> None:
    x, y = EXAMPLES.train
    np.savez(tmp_path / "xy.npz", x=x, y=y)
    file = {"name": "npz", "file": str(tmp_path / "xy.npz"), "test_fraction": 0.4}
    run = sparsekit.fit(model=Net, data=file, task="regression", out=tmp_path / "run", **QUICK)
    sparsekit.merge([run, run], out=tmp_path / "soup")
    found = sparsekit.evaluate(tmp_path / "soup", model=Net)
    assert found["data"]["name"] == "npz"
    assert found["data"]["images"] == 128
    assert found["variants"]["saved"]["test"]["R2"] == run.summary["test.R2"]
    assert not (tmp_path / "soup" / "evaluation.json").exists()


def test_a_model_of_no_known_data_says_which_option_is_missing(run: sparsekit.Run, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((run.out / "model" / "model.safetensors").read_bytes())
    with pytest.raises(sparsekit.UserError, match=r"digits.*data\.name") as told:
        sparsekit.evaluate(tmp_path / "model.safetensors", model={"name": Net, "kwargs": {"width": 16}})
    assert "image_size" not in str(told.value)


class Other(nn.Linear):
    def __init__(self, width: int = 16) -> None:
        super().__init__(6, 1)


def test_a_loaded_runs_model_says_what_load_needs(run: sparsekit.Run) -> None:
    with pytest.raises(sparsekit.UserError) as told:
        _ = sparsekit.load(run.out).model
    assert all(word in str(told.value) for word in ("model", "__main__:Net", "load(", "model=")), told.value
    assert "model.name" not in str(told.value)
    with pytest.raises(sparsekit.UserError) as told:
        _ = sparsekit.load(run.out, model=Other).model
    assert all(word in str(told.value) for word in ("model", ":Other", "0.bias", "load(", "model=")), told.value
    assert "several models" not in str(told.value)
    with pytest.raises(sparsekit.UserError, match=r"0\.bias.*another architecture") as told:
        sparsekit.evaluate(run.out, model=Other, data=EXAMPLES, task=Scaled)
    assert "several models" not in str(told.value)
