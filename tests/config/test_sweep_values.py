"""A run whose options differ from what its sweep gave it is refused before it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
from wandb.sdk.lib.config_util import save_config_file_from_dict

from sparsekit.cli.main import main
from sparsekit.config import parser as options
from sparsekit.config.options import describe, flatten
from sparsekit.config.sweep_values import check_agent
from sparsekit.errors import UserError

VALUES: list[dict[str, Any]] = [
    {"sparsity": 0.5, "method": "imp", "method.cycles": 2, "seed": 3, "data.augment": False},
    {"method": "sparsekit.methods.imp.IMP", "optimizer.lr": 1e-05, "optimizer.clip_norm": None, "masks.pattern": None},
    {"optimizer": {"lr": 0.1, "kwargs": {"eps": 1e-8}}, "model.kwargs": {"channels": [4, 4, 8, 8], "aa": None}},
    {"replicas.vary": "lr", "replicas.values": [0.1, 0.05, 1], "wandb.tags": ["a b", "#1"], "epochs": "12"},
    {"method": "str", "replicas.vary": "method.strength", "replicas.values": [0.1, 0.05, 1]},
    {"replicas": {"vary": "augment", "count": 2}, "data.augment_strength": 0.5},
    {"method": "sparsekit_dynamic.RigL", "merge": "sparsekit.merges.best.Best"},
    {"method": {"name": "dpf", "start": 0.2}, "_wandb": {"requeued": True}, "fold": 3},
]


def agent(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What W&B's agent does before it starts a command: the file of the values, its variable, the arguments."""
    args = {key: {"value": value} for key, value in values.items()}
    path = tmp_path / "wandb" / "sweep-1" / "config-1.yaml"
    save_config_file_from_dict(str(path), args)
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))
    return list(create_sweep_command_args({"args": {k: v for k, v in args.items() if k != "fold"}})["args"])


def used(*argv: str) -> dict[str, Any]:
    return flatten(describe(options.parse(options.build("sparsekit fit", "about"), argv)))


@pytest.mark.parametrize("values", VALUES, ids=str)
def test_what_arrives_is_accepted(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_agent(used(*agent(values, tmp_path, monkeypatch)))


@pytest.mark.parametrize(
    ("behind", "option", "shown"),
    [
        (["--sparsity", "0.9"], "sparsity", "0.9"),
        (["--data.augment", "true"], "data.augment", "True"),
        (["--optimizer.lr", "0.01"], "optimizer.lr", "0.01"),
        (["--model.kwargs", "{channels: [4, 4, 8, 9]}"], "model.kwargs", "9"),
        (["--method", "gmp"], "method", "gmp"),
        (["--optimizer.kwargs", "{eps: 0.1}"], "optimizer.kwargs.eps", "0.1"),
        (["--wandb.notes", "None"], "wandb.notes", "None"),
    ],
)
def test_what_wins_over_the_sweep_is_refused(
    behind: list[str], option: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "method": "imp", "sparsity": 0.5, "data.augment": False, "optimizer": {"lr": 0.1}, "wandb.notes": "text",
        "model.kwargs": {"channels": [4, 4, 8, 8]}, "optimizer.kwargs.eps": 1e-8,
    }  # fmt: skip
    given = agent(values, tmp_path, monkeypatch)
    with pytest.raises(UserError) as error:
        check_agent(used(*given, *behind))
    for part in (f"--{option} is", shown, "before ${args}"):
        assert part in str(error.value)


def test_an_option_of_a_plugin_that_is_not_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent({"method.cycles": 2}, tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"--method\.cycles is no option of the method 'gmp'"):
        check_agent(used("--method", "gmp"))


def test_a_file_behind_the_values_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("data.augment: true\n")
    given = agent({"data.augment": False}, tmp_path, monkeypatch)
    assert main(["fit", *given, "--config", "base.yaml", "--out", "run"]) == 2
    assert "--data.augment is True" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_command_without_the_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent({"sparsity": 0.5}, tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"--sparsity is 0\.9, but the sweep gave 0\.5"):
        check_agent(used())


def test_sparsekits_own_sweep_refuses_them_all_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("sparsity: 0.9\n")
    sweep = {"command": ["${env}", "sparsekit", "fit", "${args}", "--config", "base.yaml"]}
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep | {"parameters": {"sparsity": {"values": [0.5, 0.8]}}}))
    assert main(["sweep", "sweep.yaml", "--out", "runs"]) == 2
    error = capsys.readouterr().err
    assert "--sparsity is 0.9, but the sweep gave 0.5" in error
    assert not Path("runs").exists()
