"""sparsekit from Python: own models, data and tasks; the same weights as the command line; errors by keyword."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import sparsekit
from sparsekit.cli import main
from sparsekit.methods.gmp import GMP
from sparsekit.python.run import Metrics

QUICK: dict[str, Any] = {
    "epochs": 6, "sparsity": 0.8, "device": "cpu", "wandb": {"mode": "disabled"}, "evaluation": {"report": False},
    "replicas": {"count": 2}, "data.workers": 0,
}  # fmt: skip


def problem(count: int = 320, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors of twelve numbers whose class is the largest of the first four."""
    x = torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :4].argmax(1)


def data(**more: Any) -> sparsekit.Data:
    return sparsekit.Data(train=problem(), test=problem(160, 1), **more)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))


def wider_network() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 4))


wider_network.__qualname__ = "network"  # a function that was changed


class Table(Dataset[Any]):
    """The same examples as a map-style data set, whose inputs get noise."""

    def __init__(self, count: int, seed: int, noise: float = 0.1) -> None:
        self.inputs, self.labels = problem(count, seed)
        self.noise = noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        drawn = torch.randn(12) + random.random() + np.random.rand()
        return self.inputs[index] + self.noise * drawn, int(self.labels[index])


def tensors(run: sparsekit.Run) -> dict[str, Tensor]:
    return load_file(run.out / "model" / "model.safetensors")


def same(one: sparsekit.Run, other: sparsekit.Run) -> bool:
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_own_module_on_vectors_ends_in_a_soup_at_exactly_the_sparsity(tmp_path: Path) -> None:
    own = network()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    run = sparsekit.fit(model=own, data=data(), out=tmp_path / "run", **QUICK)
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())  # it was copied
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[union-attr]
    pruned = sum(int((~mask).sum()) for mask in run.masks.values())
    assert pruned == round(0.8 * (12 * 32 + 32 * 4))
    assert run.summary["merged"]
    assert run.summary["test.accuracy"] > 0.6
    x, y = problem(160, 1)
    with torch.no_grad():
        accuracy = (run.model(x).argmax(1) == y).double().mean()
    assert run.summary["test.accuracy"] == pytest.approx(float(accuracy), abs=1e-9)
    assert type(run.model) is nn.Sequential
    assert [row["event"] for row in run.metrics][-1] == "done"
    assert run.notes


def test_two_calls_give_the_same_bits_and_a_function_makes_the_model_from_the_seed(tmp_path: Path) -> None:
    one, other = (sparsekit.fit(model=network, data=data(), out=tmp_path / str(i), **QUICK) for i in range(2))
    assert same(one, other)
    third = sparsekit.fit(model=network, data=data(), out=tmp_path / "third", seed=1, **QUICK)
    assert not same(one, third)
    named = {"model": {"name": network, "init": None}, "data": {"name": data(), "batch_size": 50}}
    assert same(one, sparsekit.fit(out=tmp_path / "named", **QUICK, **named))


@pytest.mark.slow
def test_digits_give_the_same_weights_as_the_command_line(tmp_path: Path) -> None:
    options = {"epochs": 6, "replicas.count": 2, "data.image_size": 8, "device": "cpu", "evaluation.report": False}
    run = sparsekit.fit(method=GMP(start=0.1), wandb={"mode": "disabled"}, out=tmp_path / "python", **options)
    flags = [f"--{name}={value}" for name, value in options.items()]
    rest = ["--method", "gmp", "--method.start", "0.1", "--wandb.mode", "disabled", "--out", str(tmp_path / "cli")]
    assert main.main(["fit", *flags, *rest]) == 0
    assert same(run, sparsekit.load(tmp_path / "cli"))
    assert (tmp_path / "python" / "config.yaml").read_text().replace(str(tmp_path / "python"), "") == (
        tmp_path / "cli" / "config.yaml"
    ).read_text().replace(str(tmp_path / "cli"), "")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_that_draws_gives_the_same_bits_with_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    options = {**QUICK, "data.workers": workers}
    drawn = sparsekit.Data(train=Table(320, 0), test=Table(160, 1), held_out=Table(80, 2))
    run = sparsekit.fit(model=network, data=drawn, out=tmp_path / "run", **options)
    torch.manual_seed(99)  # nothing outside counts
    other = sparsekit.fit(model=network, data=drawn, out=tmp_path / "other", **QUICK)
    assert same(run, other)


@pytest.mark.slow
def test_a_data_set_without_noise_trains_to_the_bits_of_its_tensors(tmp_path: Path) -> None:
    plain = sparsekit.Data(train=Table(320, 0, 0.0), test=TensorDataset(*problem(160, 1)))
    one = sparsekit.fit(model=network, data=plain, out=tmp_path / "one", **QUICK)
    other = sparsekit.fit(model=network, data=data(), out=tmp_path / "other", **QUICK)
    assert same(one, other)


class Reversed(Table):
    """A wrapper's kind: `targets` are inherited, and what it gives is something else."""

    def __init__(self) -> None:
        super().__init__(320, 0, 0.0)
        self.targets = self.labels

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        inputs, label = super().__getitem__(index)
        return inputs, label // 2


@pytest.mark.slow
def test_the_targets_are_those_that_a_data_set_gives(tmp_path: Path) -> None:
    x, y = problem(160, 1)
    two = lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))  # noqa: E731
    run = sparsekit.fit(model=two, data=sparsekit.Data(Reversed(), (x, y // 2)), out=tmp_path / "run", **QUICK)
    assert run.summary["test.accuracy"] > 0.6
    data = json.loads((tmp_path / "run" / "plan.json").read_text())["data"]
    assert data["train"]["classes"] == 2


class Worst(sparsekit.Task):
    """The mean squared error of one number, scored by its negative largest error."""

    score_name: ClassVar[str] = "closeness"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).square().mean()

    def meter(self, device: torch.device) -> sparsekit.Meter:
        return _Largest()

    def num_outputs(self, targets: Tensor) -> int:
        return 1

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.shape[1:] != (1,):
            raise ValueError("one output is needed")


class _Largest:
    def __init__(self) -> None:
        self.largest = torch.zeros(())

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.largest = torch.maximum(self.largest, (outputs[:, 0] - targets).abs().max())

    def compute(self) -> dict[str, Any]:
        return {"closeness": -self.largest, "largest": self.largest}


def regression(width: int = 1) -> dict[str, Any]:
    x, other = (torch.randn(n, 6, generator=torch.Generator().manual_seed(n)) for n in (320, 160))
    net = lambda: nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, width))  # noqa: E731
    return {"model": net, "data": sparsekit.Data(train=(x, x[:, 0] * x[:, 1]), test=(other, other[:, 0] * other[:, 1]))}


@pytest.mark.parametrize("merge", ["uniform", "greedy", "best"])
def test_an_own_loss_and_score_decide_in_every_merge(tmp_path: Path, merge: str) -> None:
    run = sparsekit.fit(
        task=Worst(), merge=merge, out=tmp_path / "run", **regression(), **QUICK, optimizer={"lr": 0.05}
    )
    x = torch.randn(160, 6, generator=torch.Generator().manual_seed(160))
    with torch.no_grad():
        errors = run.model(x)[:, 0] - x[:, 0] * x[:, 1]
    assert run.summary["test.closeness"] == pytest.approx(-float(errors.abs().max()), rel=1e-5)
    assert run.summary["test.loss"] == pytest.approx(float(errors.square().mean()), rel=1e-5)
    assert run.summary["score"] == "closeness"
    assert "test.accuracy" not in run.summary
    merges = [row for row in run.metrics if row["event"] == "merge"]
    if merge == "best":
        for row in merges:
            assert row["ingredients"] == [row["candidates"].index(max(row["candidates"]))]
    assert {"candidates.mean_closeness", "ensemble.closeness"} <= merges[-1].keys()


def stopped(folder: Path, out: str, *, when: str, **options: Any) -> None:
    """Interrupt a call once its metrics hold a word; it must raise KeyboardInterrupt and leave Python usable."""
    rows, previous = folder / out / "metrics.jsonl", signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and not (rows.exists() and when in rows.read_text()):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match="resume"):
        sparsekit.fit(out=folder / out, **options)
    thread.join()
    assert signal.getsignal(signal.SIGINT) is previous


@pytest.mark.slow
def test_ctrl_c_keeps_a_checkpoint_from_which_the_same_call_goes_on(tmp_path: Path) -> None:
    drawn = sparsekit.Data(train=Table(320, 0), test=Table(160, 1))
    options = {**QUICK, "epochs": 12, "model": network, "data": drawn, "data.workers": 2}
    stopped(tmp_path, "run", when='"candidate"', **options)
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    changed = sparsekit.Data(train=Table(320, 5), test=Table(160, 1))
    with pytest.raises(sparsekit.UserError, match=r"resume.*other images"):
        sparsekit.fit(out=tmp_path / "run", resume=True, **{**options, "data": changed})
    with pytest.raises(sparsekit.UserError, match=r"resume.*first weights"):
        sparsekit.fit(out=tmp_path / "run", resume=True, **{**options, "model": wider_network})
    run = sparsekit.fit(out=tmp_path / "run", resume=True, **options)
    assert same(run, sparsekit.fit(out=tmp_path / "whole", **options))
    assert sparsekit.fit(out=tmp_path / "run", resume=True, **options).summary == run.summary  # done already


def numbers() -> Any:
    class Numbers(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    return Numbers()


def broken(index: int) -> Any:
    class Broken(Table):
        def __getitem__(self, at: int) -> Any:
            if at == index:
                raise OSError("this file is damaged")
            return super().__getitem__(at)

    return Broken(320, 0)


X, Y = problem()


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"sparsity": 95}, ["sparsity is 95", "0.95"]),
        ({"epoch": 3}, ["epoch", "'epochs'"]),
        ({"replicas": {"cout": 3}}, ["replicas.cout", "replicas.count"]),
        ({"method": "gpm"}, ["method 'gpm'", "'gmp'"]),
        ({"method": nn.ReLU}, ["method", "ReLU", "PruningMethod"]),
        ({"task": "regresion"}, ["task", "regresion"]),
        ({"data": "digitss"}, ["data.name", "'digits'"]),
        ({"data": numbers}, ["data.name", "Numbers", "sparsekit.Data"]),
        ({"data": sparsekit.Data(train=numbers(), test=(X, Y))}, ["data.train", "Numbers", "map-style"]),
        ({"data": sparsekit.Data(train=(X, Y[:9]), test=(X, Y))}, ["data.train", "(320, 12)", "(9,)"]),
        ({"data": sparsekit.Data(train=(X, Y.float()), test=(X, Y))}, ["data.train", "float32", "task"]),
        ({"data": sparsekit.Data(train=(X, Y), test=(X, Y + 9))}, ["data.test", "class 12", "0 to 3"]),
        ({"data": sparsekit.Data(train=(X, Y), test=(X, Y), class_names=["a"])}, ["class_names", "1", "4"]),
        ({"data": sparsekit.Data(train=(X[:0], Y[:0]), test=(X, Y))}, ["data.train", "no example"]),
        ({"data.image_size": 16}, ["data.image_size", "16", "leave it out"]),
        ({"data.batch_size": 5000}, ["data.batch_size", "5000", "288"]),
        ({"label_smoothing": 0.1, "task": Worst}, ["label_smoothing 0.1", "Worst", "leave it out"]),
        ({"evaluation": {"corruptions": True, "report": False}}, ["evaluation.corruptions", "leave it out"]),
        ({"model": "resnet18"}, ["model.name resnet18", "(2, 12)"]),
        ({"model": lambda: nn.Linear(12, 7)}, ["task classification", "4 classes", "(2, 7)"]),
        ({"model": lambda: nn.Linear(11, 4)}, ["model.name", "(2, 12)"]),
        ({"data": sparsekit.Data(train=(X.double(), Y), test=(X.double(), Y))}, ["float64", "torch.float32"]),
        ({"model": lambda: 3}, ["model.name", "int", "torch.nn.Module"]),
        ({"model": nn.ReLU()}, ["model.name", "Conv or Linear"]),
        ({**regression(2), "task": Worst()}, ["task", "one output is needed", "(2, 2)"]),
        ({"data": sparsekit.Data(train=(X, Y), test=(X[:, :5], Y))}, ["(2, 5)", "the data"]),
        ({"data": sparsekit.Data(train=(X, [[1]] * 320), test=(X, Y))}, ["data.train", "(320, 1)"]),
        ({"data": sparsekit.Data(train=(X, np.array(["a"] * 320)), test=(X, Y))}, ["data.train", "numbers"]),
        ({"model": network(), "model.kwargs": {"width": 3}}, ["model.kwargs", "class or function"]),
        ({"model.name": "resnet18"}, ["model and model.name"]),
        ({"replicas": {"count": 2}, "replicas.count": 3}, ["replicas.count", "twice"]),
        ({"device": torch.device("cpu")}, ["device", "give text"]),
        ({"model": lambda: nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 4))}, ["lazy", "forward pass"]),
        ({"data": (X, Y)}, ["data", "one split", "train=(x, y)"]),
        ({"data": sparsekit.Data(train=(X.log(), Y), test=(X, Y))}, ["data.train", "example 0 is not finite"]),
        ({"model": {"name": "nowhere:Net"}}, ["model.name nowhere:Net", "cannot be imported"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_keyword_is_told_by_its_name_and_nothing_is_written(
    tmp_path: Path, keywords: dict[str, Any], words: list[str]
) -> None:
    options = {**QUICK, "model": network, "data": data(), **keywords}
    with pytest.raises(sparsekit.UserError) as told:
        sparsekit.fit(out=tmp_path / "run", **options)
    assert all(word in str(told.value) for word in words), told.value
    assert "--" not in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_data_set_that_raises_in_a_worker_ends_the_process(tmp_path: Path) -> None:
    """Its workers ignore the signal with which Python would end them; the error must not keep them."""
    code = """
        import sparsekit, torch
        from torch import nn
        class Bad(torch.utils.data.Dataset):
            targets = [0, 1] * 100
            def __len__(self): return 200
            def __getitem__(self, i):
                if i == 77: raise ValueError("number 77 is bad")
                return torch.zeros(4), i % 2
        data = sparsekit.Data(train=Bad(), test=(torch.zeros(4, 4), torch.tensor([0, 1, 0, 1])))
        options = {"epochs": 6, "device": "cpu", "wandb": {"mode": "disabled"}, "data.batch_size": 20}
        sparsekit.fit(data=data, model=lambda: nn.Linear(4, 2), **options)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "data.train: an example cannot be read" in done.stderr
    assert "number 77 is bad" in done.stderr


def test_a_module_of_a_class_that_can_be_imported_is_not_made_again_from_its_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = sparsekit.fit(model=network(), data=data(), out=tmp_path / "run", **QUICK)
    assert main.main(["export", str(run.out), "--format", "torch", "-o", str(tmp_path / "model.pt2")]) == 2
    assert "give it again from Python" in capsys.readouterr().err
    assert not (tmp_path / "model.pt2").exists()


def test_what_a_call_gives_back_is_its_own_and_leaves_random_numbers_alone(tmp_path: Path) -> None:
    one = network()
    first = sparsekit.fit(model=lambda: one, data=data(), out=tmp_path / "first", **QUICK)
    weight = first.model[0].weight.clone()  # type: ignore[index, operator]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    second = sparsekit.fit(model=lambda: one, data=data(), out=tmp_path / "second", **QUICK, seed=4)
    assert second.model is not first.model
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.model[0].weight, weight)  # type: ignore[index]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        again = sparsekit.fit(model=lambda: one, data=data(), out=tmp_path / "again", **QUICK)
    assert same(first, again)


def test_a_frozen_layer_that_is_pruned_is_told(tmp_path: Path) -> None:
    own = network()
    own[0].requires_grad_(False)  # type: ignore[index]
    with pytest.warns(UserWarning, match=r"0\.weight: pruned, but not trained.*masks\.exclude"):
        sparsekit.fit(model=own, data=data(), out=tmp_path / "run", **QUICK)


def test_an_example_that_cannot_be_read_is_told_with_its_split(tmp_path: Path) -> None:
    damaged = sparsekit.Data(train=broken(17), test=Table(160, 1), held_out=Table(80, 2))
    with pytest.raises((sparsekit.RunError, sparsekit.UserError), match=r"data.train: .*this file is damaged"):
        sparsekit.fit(model=network, data=damaged, out=tmp_path / "run", **QUICK)


def test_nothing_is_printed_but_warnings_are_given(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        sparsekit.fit(model=network, data=data(), out=tmp_path / "run", **{**QUICK, "sparsity": 0.999})
    assert capfd.readouterr() == ("", "")
    assert any("all weights are 0" in str(warning.message) for warning in found)
    sparsekit.fit(model=network, data=data(), out=tmp_path / "shown", display=True, **QUICK)
    assert "on the test split" in capfd.readouterr().out


@pytest.mark.slow
def test_a_run_of_a_module_is_worked_with_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            """
            import torch, sparsekit
            from torch import nn
            def examples():
                x = torch.randn(480, 12, generator=torch.Generator().manual_seed(0))
                y = x[:, :4].argmax(1)
                return sparsekit.Data(train=(x[:320], y[:320]), test=(x[320:], y[320:]))
            class Net(nn.Sequential):
                def __init__(self, width=32):
                    super().__init__(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 4))
            if __name__ == "__main__":
                import mine
                options = {"device": "cpu", "wandb": {"mode": "disabled"}, "evaluation": {"report": False}}
                options["model.kwargs"] = {"width": 24}
                run = sparsekit.fit(model=mine.Net, data=mine.examples, epochs=6, out="run", **options)
                print(run.summary["test.accuracy"])
            """
        )
    )

    def python(*command: str) -> str:
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    accuracy = float(python("mine.py"))
    sparse = "import sys; from sparsekit.cli.main import main; sys.exit(main(sys.argv[1:]))"
    python("-c", sparse, "evaluate", "run", "--device", "cpu", "-o", "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["variants"]["saved"]["test"]["accuracy"] == accuracy
    python("-c", sparse, "merge", "run", "run", "-o", "soup", "--device", "cpu")
    python("-c", sparse, "export", "run", "--format", "torch", "-o", "model.pt2")
    cli = ["--model.name", "mine:Net", "--model.kwargs", "{width: 24}", "--data.name", "mine:examples", "--epochs", "6"]
    quiet = ["--device", "cpu", "--wandb.mode", "disabled", "--evaluation.report", "false", "--out", "again"]
    python("-c", sparse, "fit", *cli, *quiet)
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_run_from_a_notebook_is_worked_with_from_python_and_refused_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = lambda: network()  # noqa: E731  (a name that cannot be imported)
    run = sparsekit.fit(model=made, data=data(), out=tmp_path / "run", **QUICK)
    assert main.main(["evaluate", str(tmp_path / "run")]) == 2
    assert "give it again from Python" in capsys.readouterr().err
    again = sparsekit.evaluate(run)["variants"]["saved"]["test"]["accuracy"]
    assert again == run.summary["test.accuracy"]
    loaded = sparsekit.load(tmp_path / "run", model=network)
    x, _ = problem(8, 3)
    assert torch.equal(loaded.model(x), run.model(x))
    with pytest.raises(sparsekit.UserError, match="timm does not know"):
        sparsekit.export(run, format="timm", out=tmp_path / "timm")
    merged = sparsekit.merge([run, run], out=tmp_path / "soup")
    assert merged["sparsity"] == run.summary["sparsity"]
    sparsekit.export(run, format="torch", out=tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").is_file()


def test_metrics_make_a_data_frame_or_say_what_that_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Metrics([{"event": "train", "loss": 1.5}, {"event": "done", "test.accuracy": 0.5}])
    monkeypatch.setitem(sys.modules, "pandas", None)  # as if it were not installed
    with pytest.raises(sparsekit.UserError, match="pip install pandas"):
        rows.to_pandas()
    made = types.SimpleNamespace(DataFrame=list)  # what pandas gets
    monkeypatch.setitem(sys.modules, "pandas", made)
    assert rows.to_pandas() == rows


def test_a_plan_adds_up_to_its_epochs() -> None:
    """Its parts are fractions, such as 0.4 · 12 and three times 0.2 · 12."""
    plan = sparsekit.plan(method="imp", epochs=12, sparsity=0.95)
    assert (plan.critical_epochs, plan.total_epochs) == (12.0, 26.4)


def test_a_plan_needs_no_torch() -> None:
    code = "import sys, sparsekit; p = sparsekit.plan(epochs=10); print(p.critical_epochs, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["10.0", "False"]


def test_what_replicas_differ_in_is_given_as_keywords() -> None:
    vary: dict[str, Any] = {"count": 2, "vary": "method.strength", "values": np.array([0.01, 0.04]).tolist()}
    plan = sparsekit.plan(method="str", epochs=10, replicas=vary)
    assert (plan.vary, plan.values) == ("method.strength", (0.01, 0.04))
    with pytest.raises(sparsekit.UserError) as caught:
        sparsekit.plan(method="str", epochs=10, replicas={**vary, "vary": "method.strengt"})
    assert all(part in str(caught.value) for part in ("replicas.vary", "'method.strength'"))
    assert "--" not in str(caught.value)
