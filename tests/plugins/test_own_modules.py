"""What is in no package: `--import MODULE`, `module:Class` and `module:function`; and models that packages bring."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from fake_site import distribution, visible
from plugin_sources import METHOD, run
from resuming import contents, strike
from tiny import ARGUMENTS

import sparsekit

NETS = '''\
"""Nets registered with timm."""
from __future__ import annotations

from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet


@register_model
def {name}(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
    model = ResNet(BasicBlock, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), **kwargs)
    model.pretrained_cfg = {{"architecture": "{name}"}}
    return model
'''
DATA = '''\
"""Data of one's own."""
import torch
from PIL import Image

import sparsekit


class Pictures:
    """Grey images of two brightnesses."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return Image.new("L", (12, 10), 40 + 90 * (index % 2) + index % 13), index % 2


def pictures(root: str | None = None, count: int = 60):
    """Grey images of two brightnesses."""
    return Pictures(count), Pictures(20)


def noisy(count: int = 40, broken: int = -1) -> sparsekit.Data:
    """Squares in noise."""
    if count < 2:
        raise ValueError(f"--data.count is {count}; give 2 or more")
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(count + 20, 1, 8, 8, generator=generator)
    labels = torch.arange(count + 20) % 2
    images[labels == 1, :, 2:6, 2:6] += 1.0
    if broken >= 0:
        raise RuntimeError("no such square")
    return sparsekit.Data(train=(images[:count], labels[:count]), test=(images[count:], labels[count:]))
'''
TASK = '''\
"""A task of one's own."""
from sparsekit import Task


class Squares(Task):
    """A number for each example, scored by the squared error below 0.

    Args:
        weight: Factor of the loss.
    """

    score_name = "closeness"

    def __init__(self, weight: float = 1.0) -> None:
        if not 0 < weight < 1e6:
            raise ValueError(f"--task.weight is {weight}; give a positive number below 1e6")
        self.weight = weight

    def loss(self, outputs, targets):
        return self.weight * (outputs[:, 0] - targets).square().mean()

    def meter(self, device):
        return Errors()

    def num_outputs(self, targets):
        return 1

    def check(self, outputs, targets):
        if outputs.shape != (len(targets), 1) or targets.dim() != 1:
            raise ValueError("there must be a number each")


class Errors:
    def __init__(self):
        self.total, self.count = 0.0, 0

    def update(self, outputs, targets):
        self.total, self.count = self.total + (outputs[:, 0] - targets).square().sum(), self.count + len(targets)

    def compute(self):
        return {"closeness": -self.total / self.count}
'''
Capture = pytest.CaptureFixture[str]
PLAIN = [*ARGUMENTS[:4], "--epochs", "6", "--replicas.count", "2", "--optimizer.lr", "0.05"]
SMALL = ["--model.kwargs", '{"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}']


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with modules, which the path does not have."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)
    (tmp_path / "made_up_nets.py").write_text(NETS.format(name="made_up_net"))
    (tmp_path / "made_up_own.py").write_text(METHOD)
    (tmp_path / "made_up_sets.py").write_text(DATA)
    yield tmp_path
    for module in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]
    forget("made_up_net")
    forget("made_up_bare")


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_imported_module_brings_a_model_to_every_command(here: Path, capsys: Capture) -> None:
    options = ["--import", "made_up_nets", "--model.name", "made_up_net", *PLAIN, "--data.image_size", "8"]
    code, _, err = run(capsys, "fit", *options, "--out", "run")
    assert (code, err) == (0, [])
    assert yaml.safe_load((here / "run" / "config.yaml").read_text())["imports"] == ["made_up_nets"]
    for command in (
        ["evaluate", "run"],
        ["export", "run", "--format", "torch", "-o", "exported"],
        ["merge", "run", "run", "-o", "merged"],
        ["fit", "--model.init", "run", *PLAIN, "--data.image_size", "8", "--method", "oneshot", "--out", "next"],
    ):
        sys.modules.pop("made_up_nets")
        forget("made_up_net")
        code, _, err = run(capsys, *command)
        assert (code, err) == (0, []), command


def forget(model: str) -> None:
    """Take a model out of timm's list."""
    from timm.models import _registry

    _registry._model_entrypoints.pop(model, None)
    _registry._model_to_module.pop(model, None)


def test_modules_to_import_come_from_the_command_line_and_yaml(here: Path, capsys: Capture) -> None:
    (here / "made_up_more.py").write_text("")
    for text, expected in (
        ("import: made_up_nets", ["made_up_nets"]),
        ("imports: [made_up_nets, made_up_more]", ["made_up_nets", "made_up_more"]),
        ("import: [made_up_nets]", ["made_up_nets"]),
    ):
        (here / "run.yaml").write_text(text)
        code, out, _ = run(capsys, "plan", "--config", "run.yaml", "--print_config")
        assert (code, yaml.safe_load(out)["imports"]) == (0, expected)
    argv = ["--config", "run.yaml", "--import", "made_up_more", "--import=json"]
    assert yaml.safe_load(run(capsys, "plan", *argv, "--print_config")[1])["imports"] == [
        "made_up_nets", "made_up_more", "json",
    ]  # fmt: skip
    assert run(capsys, "plan", "--config", "run.yaml", "--import", "made_up_more")[0] == 0
    assert "made_up_more" in sys.modules


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--import", "made_up_nothing"], ["--import made_up_nothing: cannot be imported", "ModuleNotFoundError"]),
        (["--import", "nets/made_up.py"], ["--import nets/made_up.py: cannot be imported"]),
        (["--import"], ["--import needs a value"]),
        (["--import", "made_up_broken"], ["--import made_up_broken", "ZeroDivisionError: division by zero"]),
        (["--import", "os"], ["os is one of Python's own modules"]),
        (["--method", "made_up_own:Think"], ["--method made_up_own:Think", "has no attribute 'Think'"]),
        (["--method", "made_up_own:Budget"], ["--method made_up_own:Budget", "no subclass of sparsekit.PruningMethod"]),
        (["--merge", "made_up_own:Thing"], ["is no subclass of sparsekit.MergeStrategy; it is a method"]),
        (["--method", "os:system"], ["os is one of Python's own modules"]),
        (["--method", "made_up_own:Thing", "--method.shar", "1"], ["Did you mean '--method.share'?"]),
        (["--data.name", "made_up_sets:squares"], ["--data.name made_up_sets:squares", "has no attribute 'squares'"]),
    ],
)
def test_mistakes_are_told_in_one_line(here: Path, capsys: Capture, argv: list[str], words: list[str]) -> None:
    (here / "made_up_broken.py").write_text("1 / 0")
    code, out, err = run(capsys, "plan", *argv)
    assert (code, out, len(err)) == (2, "", 1), err
    for part in words:
        assert part in err[0], err


@pytest.mark.slow
def test_a_package_brings_models(here: Path, capsys: Capture) -> None:
    entry = "[sparsekit.models]\nmade_up = made_up_zoo\nbroken = made_up_gone\n"
    with visible(here / "site") as site:
        distribution(site, "zoo", entry, {"made_up_zoo": NETS.format(name="made_up_owl")})
        code, _, err = run(
            capsys, "fit", "--model.name", "made_up_owl", *PLAIN, "--data.image_size", "8", "--out", "run"
        )
        assert (code, err) == (0, [])
        code, _, err = run(capsys, "fit", "--model.name", "made_up_howl", *PLAIN, "--out", "no")
        assert code == 2
        assert "made_up_howl" in err[0]
        assert "made_up_gone" in err[0]  # it may have brought it
        code, out, _ = run(capsys, "plugins", "list", "--kind", "model", "--json")
        states = {row["name"]: (row["state"], row["summary"]) for row in json.loads(out)}
        assert states == {"made_up": ("found", "Nets registered with timm."), "broken": ("malformed", "")}
        assert run(capsys, "plugins", "check", "made_up")[0] == 0
        assert run(capsys, "plugins", "check", "broken")[0] == 1


BARE = '''\
"""A net that says nothing of itself."""
from timm.models import register_model
from torch import nn


@register_model
def made_up_bare(pretrained=False, num_classes=10, in_chans=3, **kwargs):
    pooled = nn.Conv2d(in_chans, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*pooled, nn.Linear(8, num_classes))
'''


@pytest.mark.slow
def test_a_finished_model_knows_how_many_outputs_it_has(here: Path, capsys: Capture) -> None:
    with visible(here / "site") as site:
        distribution(site, "bare", "[sparsekit.models]\nbare = made_up_plain\n", {"made_up_plain": BARE})
        argv = ["fit", "--model.name", "made_up_bare", *PLAIN, "--data.image_size", "8", "--out", "run"]
        assert run(capsys, *argv)[0] == 0
        assert sparsekit.load("run").model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.slow
def test_a_model_that_says_nothing_of_itself_is_saved_and_resumed(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "made_up_bare_nets.py").write_text(BARE)
    argv = ["fit", "--import", "made_up_bare_nets", "--model.name", "made_up_bare", *PLAIN, "--data.image_size", "8"]
    assert run(capsys, *argv, "--out", "whole")[0] == 0
    with monkeypatch.context() as patched:
        strike(patched, 20)
        assert run(capsys, *argv, "--out", "stopped")[0] == 128 + signal.SIGTERM
    assert run(capsys, *argv, "--out", "stopped", "--resume")[0] == 0
    assert contents(here / "stopped") == contents(here / "whole")
    assert run(capsys, *argv, "--out", "stopped", "--resume")[0] == 0  # it is done
    accuracy = json.loads((here / "stopped" / "summary.json").read_text())["test.accuracy"]
    assert run(capsys, "evaluate", "stopped", "-o", "found.json", "--precision", "fp32")[0] == 0
    found = json.loads((here / "found.json").read_text())
    assert found["variants"]["saved"]["test"]["accuracy"] == accuracy


# --- plugins and data in no package ---------------------------------------------------------------


@pytest.mark.slow
def test_a_class_in_no_package_is_a_method_as_others_are(here: Path, capsys: Capture) -> None:
    own = ["--method", "made_up_own:Thing", "--method.share", "0.5"]
    code, out, err = run(capsys, "plan", *own, "--epochs", "10")
    assert (code, err) == (0, [])
    assert [line.split()[:3] for line in out.splitlines() if line.split()[:1] in (["1"], ["2"])] == [
        ["1", "0", "5"], ["2", "5", "5"],
    ]  # fmt: skip
    assert "Prune once, after a share of the budget." in run(capsys, "plan", "--method.help", "made_up_own:Thing")[1]
    code, out, _ = run(capsys, "plan", *own, "--print_config")
    assert yaml.safe_load(out)["method"] == {"name": "made_up_own:Thing", "share": 0.5}
    (here / "run.yaml").write_text(out)
    assert run(capsys, "plan", "--config", "run.yaml", "--print_config")[1] == out
    argv = [*own, *PLAIN, *SMALL, "--data.image_size", "8", "--merge", "none", "--out", "run"]
    assert run(capsys, "fit", *argv)[0] == 0
    assert yaml.safe_load((here / "run" / "config.yaml").read_text())["method"]["name"] == "made_up_own:Thing"


@pytest.mark.slow
def test_a_class_in_no_package_is_a_task_of_every_command(here: Path, capsys: Capture) -> None:
    (here / "made_up_task.py").write_text(TASK)
    code, out, _ = run(capsys, "plugins", "check", "made_up_task:Squares", "--kind", "task")
    assert (code, out) == (0, "--task made_up_task:Squares\n")  # the rules are printed by a process of their own
    code, _, err = run(capsys, "plugins", "check", "made_up_task:Squares")
    assert (code, "--kind" in err[0]) == (2, True)
    for out in ("a", "b"):
        options = ["--task", "made_up_task:Squares", "--task.weight", "0.1", "--sparsity", "0.5"]
        code, _, err = run(capsys, "fit", *PLAIN, *SMALL, *options, "--seed", str(ord(out)), "--out", out)
        assert (code, err) == (0, [])
    found = json.loads(Path("a/summary.json").read_text())
    assert (found["task"], found["score"]) == ("made_up_task:Squares", "closeness")
    code, out, err = run(capsys, "evaluate", "a")
    assert (code, err) == (0, [])
    assert f"{found['test.closeness']:.4f}" in out
    code, out, err = run(capsys, "merge", "a", "b", "--masks", "union", "--merge", "best", "-o", "soup")
    assert (code, err, "closeness" in out) == (0, [], True)
    assert run(capsys, "export", "a", "--format", "torch", "-o", "a.pt2")[0] == 0


@pytest.mark.slow
def test_a_function_in_no_package_is_a_data_set(here: Path, capsys: Capture) -> None:
    own = [
        "--data.name",
        "made_up_sets:noisy",
        "--data.count",
        "50",
        "--data.batch_size",
        "10",
        "--data.held_out",
        "0.2",
    ]
    argv = [*own, *SMALL, *PLAIN, "--data.workers", "0"]
    code, _, err = run(capsys, "fit", *argv, "--out", "run")
    assert (code, err) == (0, [])
    data = yaml.safe_load((here / "run" / "config.yaml").read_text())["data"]
    assert (data["name"], data["count"], data["broken"]) == ("made_up_sets:noisy", 50, -1)
    plan = json.loads((here / "run" / "plan.json").read_text())["data"]
    assert (plan["train"]["images"], plan["held_out"]["images"], plan["test"]["images"]) == (40, 10, 20)
    assert run(capsys, "evaluate", "run")[0] == 0
    code, _, err = run(capsys, "fit", *argv, "--data.count", "60", "--out", "run", "--resume")
    assert code == 2
    assert "--data.count was 50, is 60" in err[0]
    code, _, err = run(capsys, "evaluate", "run", "--data.broken", "1")
    assert code == 2
    assert "--data.name made_up_sets:noisy: it raises RuntimeError: no such square" in err[0]
    code, _, err = run(capsys, "evaluate", "run", "--data.root", "somewhere")
    assert "--data.root somewhere: --data.name made_up_sets:noisy takes no folder" in err[0]
    code, _, err = run(capsys, "evaluate", "run", "--data.count", "1")
    assert (code, err) == (2, ["sparsekit: error: --data.count is 1; give 2 or more"])


def test_pillow_images_are_made_as_those_of_a_folder(here: Path, capsys: Capture) -> None:
    from sparsekit.config.options import DataConfig
    from sparsekit.data import FolderData, load

    sys.path.append(str(here))
    config = DataConfig(
        "made_up_sets:pictures", batch_size=8, image_size=8, workers=0, limit=0.5, options={"count": 80}
    )
    data = load(config, torch.device("cpu"), False)
    assert isinstance(data, FolderData)
    assert (data.train_size, data.held_out_size, data.test_size) == (36, 8, 20)
    batches = list(data.train_batches(5, 6))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(batches[2:], data.train_batches(5, 6, start=2), strict=True))
    for images, labels in data.raw_batches("test"):
        assert torch.equal((images[:, 0, 4, 4] > 100).long(), labels)


@pytest.mark.slow
def test_a_run_on_pillow_images_is_saved_with_their_mean_and_std(here: Path, capsys: Capture) -> None:
    argv = ["--data.name", "made_up_sets:pictures", "--data.image_size", "8", "--data.batch_size", "8", *SMALL, *PLAIN]
    code, _, err = run(
        capsys, "fit", *argv, "--data.workers", "0", "--data.mean", "0.5", "--data.std", "0.25", "--out", "r"
    )
    assert (code, err) == (0, [])
    card = json.loads((here / "r" / "model" / "config.json").read_text())
    assert (card["pretrained_cfg"]["mean"], card["pretrained_cfg"]["std"]) == ([0.5] * 3, [0.25] * 3)
    assert run(capsys, "evaluate", "r")[0] == 0


@pytest.mark.slow
def test_a_data_set_is_held_against_the_contract(here: Path, capsys: Capture) -> None:
    entry = "[sparsekit.datasets]\nnoisy = made_up_sets:noisy\nwrong = made_up_wrong:wrong\nfile = made_up_wrong:file\n"
    wrong = "def wrong(root, many: int = 3):\n    return [1, 2, 3, 4]\ndef file(file: str):\n    'A file.'\n"
    with visible(here / "site") as site:
        distribution(site, "sets", entry, {"made_up_sets": DATA, "made_up_wrong": wrong})
        code, out, _ = run(capsys, "plugins", "check", "noisy", "--kind", "dataset")
        assert code == 0, out
        assert run(capsys, "plugins", "check", "wrong")[0] == 1
        assert run(capsys, "plugins", "check", "file")[0] == 0
