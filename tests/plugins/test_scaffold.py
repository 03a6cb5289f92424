"""The packages that `plugins new` writes, and the commands of the plugin guide."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fake_site import offline
from fake_wandb import ENTITY, PROJECT, SWEEP, FakeWandb
from plugin_sources import run
from safetensors.numpy import load_file

from sparsekit.plugins import scaffold
from sparsekit.plugins.registry import ALL_GROUPS, Kind

Capture = pytest.CaptureFixture[str]
GUIDE = Path(__file__).parents[2] / "docs" / "writing-a-plugin.md"


# --- plugins new -------------------------------------------------------------------------------------


KINDS: tuple[Kind, ...] = tuple(ALL_GROUPS)
PYTHON = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]


Execute = Callable[..., str]
OWN = {
    "method": "my_own",
    "merge": "my_own",
    "task": "my_own",
    "data.name": "my_own",
    "masks.allocation": "my_own",
    "optimizer.schedule": "my_own",
}
FEW = {"epochs": 6, "replicas.count": 2, "wandb.mode": "offline", "data.count": 100, "data.batch_size": 20}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Execute:
    """A command's output where one package with a plugin `my_own` of every kind is installed."""
    folder = tmp_path_factory.mktemp("everything")
    environment = offline(folder / "site")
    scaffold.create("my_own", KINDS, folder / "made")

    def execute(*command: str, cwd: Path = folder, more: Mapping[str, str] | None = None) -> str:
        settings = environment | dict(more or {})
        done = subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    execute(*PYTHON, "-m", "pip", "install", str(folder / "made" / "sparsekit-my-own"))
    return execute


@pytest.mark.slow
def test_one_of_everything_installs_and_keeps_the_contract(everything: Execute) -> None:
    rows = json.loads(everything("sparsekit", "plugins", "list", "--json"))
    mine = {row["kind"]: row for row in rows if row["name"] == "my_own"}
    assert mine.keys() == {*KINDS}
    assert {(row["distribution"], row["state"]) for row in mine.values()} == {("sparsekit-my-own", "found")}
    assert all(row["summary"] for row in mine.values())
    for kind in ("dataset", "allocation", "schedule", "format", "model"):
        assert "FAIL" not in everything("sparsekit", "plugins", "check", "my_own", "--kind", kind)
    assert "15 passed" in everything(*PYTHON, "-m", "pytest", "-q", "made/sparsekit-my-own")  # the others, too


@pytest.mark.slow
def test_one_of_everything_runs_together(everything: Execute, tmp_path: Path) -> None:
    """A run of all of them, its export, a sweep over their options."""
    own = OWN | {"model.name": "made_up:Net"}
    (tmp_path / "made_up.py").write_text(NET)
    options = [word for name, value in (own | FEW).items() for word in (f"--{name}", str(value))]
    execute = partial(everything, cwd=tmp_path)
    execute("sparsekit", "fit", *options, "--out", "run")
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (written["masks"]["allocation"], written["optimizer"]["schedule"]) == ("my_own", "my_own")
    execute("sparsekit", "export", "run", "--format", "my_own", "-o", "run.npz")
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    with np.load(tmp_path / "run.npz") as exported:
        assert {*exported.files} == {*weights}
        assert all((exported[name] == weights[name]).all() for name in weights)

    parameters: dict[str, Any] = {name: {"value": value} for name, value in (own | FEW).items()}
    parameters |= {"masks.allocation": {"values": ["global", "my_own"]}, "method.steps": {"values": [1, 2]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"method": "grid", "parameters": parameters}))
    assert "4 of 4 runs done" in execute("sparsekit", "sweep", "sweep.yaml", "--out", "swept")
    assert {path.parent.name for path in tmp_path.glob("swept/*/summary.json")} == {
        f"masks.allocation={allocation},method.steps={steps}" for allocation in ("global", "my_own") for steps in (1, 2)
    }
    execute(
        *("sparsekit", "fit", "--model.name", "my_own", "--data.image_size", "8", "--epochs", "2"),
        *("--wandb.mode", "disabled", "--out", "net"),
    )


@pytest.mark.slow
def test_an_agent_of_wandb_sweeps_over_the_options_of_everything(everything: Execute, tmp_path: Path) -> None:
    """`plugins new`, `pip install`, `wandb agent`: the options of the package stand in the runs."""
    (tmp_path / "made_up.py").write_text(NET)
    grid: dict[str, dict[str, Any]] = {
        f"run{number}": OWN
        | FEW
        | {"model.name": "made_up:Net", "method.steps": number, "data.noise": number / 10, "task.delta": 2.0}
        for number in (1, 2)
    }
    command = ["${env}", "${program}", "fit", "${args}", "--resume"]
    parameters = {name: {"values": [values[name] for values in grid.values()]} for name in grid["run1"]}
    sweep = {"program": "sparsekit", "command": command, "method": "grid", "parameters": parameters}
    with FakeWandb(yaml.safe_dump(sweep), grid) as server:
        said = everything(
            *(sys.executable, "-m", "wandb", "agent", f"{ENTITY}/{PROJECT}/{SWEEP}"),
            cwd=tmp_path,
            more={k: v for k, v in server.environment(tmp_path).items() if k not in ("PATH", "PYTHONPATH")},
        )
        assert server.started == list(grid)
    for name, values in grid.items():
        (out,) = tmp_path.glob(f"runs/sweep-{SWEEP}/*-{name}")
        assert json.loads((out / "summary.json").read_text())["status"] == "done", said
        written = yaml.safe_load((out / "config.yaml").read_text())
        assert (written["method"]["name"], written["task"]["delta"]) == ("my_own", 2.0)
        assert written["method"]["steps"] == values["method.steps"]
        assert written["data"]["noise"] == values["data.noise"]


NET = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, num_classes=1, in_chans=1):
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, num_classes))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_package_is_tidy(tmp_path: Path, kind: Kind) -> None:
    scaffold.create("a_b2", [kind], tmp_path)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        "sparsekit-a-b2/pyproject.toml",
        "sparsekit-a-b2/README.md",
        "sparsekit-a-b2/sparsekit_a_b2/__init__.py",
        "sparsekit-a-b2/tests/test_a_b2.py",
    }
    project = (tmp_path / "sparsekit-a-b2" / "pyproject.toml").read_text()
    assert f'[project.entry-points."sparsekit.{kind}s"]\na_b2 = "sparsekit_a_b2' in project
    assert all("$" not in path.read_text() for path in tmp_path.rglob("*.*") if path.is_file())
    options = ["--isolated", "--line-length", "120"]
    for command in (["check", "--select", "E,F,I,UP,B,C4,SIM,RUF"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options, "."],
            cwd=tmp_path / "sparsekit-a-b2",
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "my own",
        "sparsekit-",
        "class",
        "none.x",
        "1st",
        "_own",
        "own_",
        "ö",
        "../up",
        "self\n",
        "a" * 300,
    ],
)
def test_a_name_that_cannot_be_used_is_bad_input(tmp_path: Path, capsys: Capture, name: str) -> None:
    code, out, err = run(capsys, "plugins", "new", name, "--kind", "merge", "--out", str(tmp_path))
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith("sparsekit: error: plugins new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", ["gmp_sqrt", "gmp-sqrt", "sparsekit-gmp-sqrt", "sparsekit_gmp_sqrt"])
def test_a_name_may_be_written_as_a_package_is(tmp_path: Path, capsys: Capture, given: str) -> None:
    code, out, _ = run(capsys, "plugins", "new", given, "--kind", "method", "--out", str(tmp_path))
    assert code == 0
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("__init__.py")] == [
        "sparsekit-gmp-sqrt/sparsekit_gmp_sqrt/__init__.py"
    ]
    assert f"wrote {tmp_path / 'sparsekit-gmp-sqrt'}\n" in out
    assert "sparsekit plan --method gmp_sqrt\n" in out
    assert "sparsekit plugins check gmp_sqrt --kind method\n" in out


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("my_own", "MyOwn"),
        ("l0", "L0"),
        ("none", "NonePlugin"),
        ("true", "TruePlugin"),
        ("pruning_method", "PruningMethodPlugin"),
        ("sequence", "SequencePlugin"),
        ("error_meter", "ErrorMeterPlugin"),
        ("class_var", "ClassVarPlugin"),
    ],
)
def test_class_names(tmp_path: Path, name: str, cls: str) -> None:
    assert scaffold.class_name(name) == cls
    for kind in KINDS if name != "none" else ("method", "task"):  # there is a merge `none`
        scaffold.create(name, [kind], tmp_path / kind)
        (file,) = (tmp_path / kind).rglob("__init__.py")
        compile(file.read_text(), name, "exec")


def test_an_existing_folder_is_left_alone(tmp_path: Path, capsys: Capture) -> None:
    mine = tmp_path / "sparsekit-own" / "README.md"
    mine.parent.mkdir()
    mine.write_text("mine")
    code, _, err = run(capsys, "plugins", "new", "own", "--kind", "merge", "--out", str(tmp_path))
    assert code == 2
    (line,) = err
    assert f"plugins new own: {mine.parent} " in line
    assert "choose another name or --out" in line
    assert [path.name for path in mine.parent.iterdir()] == ["README.md"]
    code, _, err = run(capsys, "plugins", "new", "own", "--kind", "merge", "--out", str(mine))
    assert code == 2
    assert "choose another --out" in err[0]


@pytest.mark.parametrize(
    ("name", "kind", "taken"),
    [
        ("gmp", "method", "method 'gmp' of"),
        ("merges", "merge", "a package 'sparsekit_merges'"),
        ("erk", "allocation", "allocation 'erk'"),
    ],
)
def test_a_name_that_is_taken_is_refused(tmp_path: Path, capsys: Capture, name: str, kind: str, taken: str) -> None:
    code, _, err = run(capsys, "plugins", "new", name, "--kind", kind, "--out", str(tmp_path))
    assert (code, len(err)) == (2, 1)
    assert f"plugins new {name}: {taken}" in err[0]
    assert "; choose another name" in err[0]
    assert list(tmp_path.iterdir()) == []
    assert run(capsys, "plugins", "new", "gmp", "--kind", "merge", "--out", str(tmp_path / "other"))[0] == 0


def test_the_kind_is_needed(capsys: Capture) -> None:
    code, _, err = run(capsys, "plugins", "new", "own")
    assert code == 2
    assert "--kind" in err[0]


# --- the guide ---------------------------------------------------------------------------------------


def blocks(*languages: str) -> list[str]:
    found = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE.read_text("utf-8"), re.M | re.S)
    assert {language for language, _ in found} == {"python", "toml", "console"}
    return [text for language, text in found if language in languages]


def steps() -> list[tuple[str, list[str]]]:
    """Each command of the guide, and the lines that it says come out."""
    found: list[tuple[str, list[str]]] = []
    for line in "".join(blocks("console")).splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        else:
            found[-1][1].append(line)
    return found


@pytest.mark.slow
def test_the_guide_does_what_it_says(tmp_path: Path) -> None:
    for block in blocks("python", "toml"):
        name, _, text = block.partition("\n")
        path = tmp_path / name.removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    environment = offline(tmp_path / "site")
    for command, expected in steps():
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
        )
        said = done.stdout + done.stderr
        assert done.returncode == (2 if expected and "error: " in expected[0] else 0), f"{command}\n{said}"
        for line in expected:
            pattern = " *".join(map(re.escape, line.split())).replace("…", ".*")
            assert re.search(rf"^ *{pattern} *$", said, re.M), f"{command}\nsaid nothing like: {line}\n{said}"


def test_the_guide_covers_the_way_of_a_plugin() -> None:
    commands = [command for command, _ in steps()]
    for start in (
        "pip install -e ./",
        "sparsekit plugins list",
        "sparsekit fit --method.help saliency",
        "sparsekit fit --method saliency --method.round 5",
        "sparsekit fit --method saliency --merge near_best --epochs 6",
        "sparsekit plugins check saliency",
        "sparsekit plugins check near_best",
    ):
        assert any(command.startswith(start) for command in commands), start
