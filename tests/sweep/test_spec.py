"""Sweep files in W&B's format: what they say, what is drawn from them, and the command line of each run."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from sparsekit.config import parser as options
from sparsekit.config.options import describe, flatten
from sparsekit.errors import UserError
from sparsekit.sweep import spec
from sparsekit.sweep.parameters import Parameter

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


def read(tmp_path: Path, text: str | dict[str, Any]) -> spec.Spec:
    path = tmp_path / "sweep.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
    return spec.read(path)


def config(arguments: list[str]) -> dict[str, Any]:
    given = arguments[arguments.index("fit") + 1 :]
    return flatten(describe(options.parse(options.build("sparsekit fit", "about"), given)))


# --- grids ------------------------------------------------------------------------------------------


def test_a_grid_is_the_product_in_the_files_order(tmp_path: Path) -> None:
    found = read(
        tmp_path, "parameters:\n  method: {values: [gmp, imp]}\n  epochs: {value: 6}\n  seed: {values: [1, 0]}"
    )
    assert [dict(cell.values) for cell in found.cells(None)] == [
        {"method": method, "epochs": 6, "seed": seed} for method, seed in itertools.product(["gmp", "imp"], [1, 0])
    ]
    assert found.cells(None)[0].name == "method=gmp,seed=1"
    assert found.cells(3) == found.cells(None)[:3]


def test_more_values_leave_the_names_of_earlier_runs_alone(tmp_path: Path) -> None:
    few = read(tmp_path, "parameters: {seed: {values: [1]}, sparsity: {values: [0.5, 0.9]}}").cells(None)
    more = read(tmp_path, "parameters: {seed: {values: [2, 1, 0]}, sparsity: {values: [0.9, 0.5, 0.7]}}").cells(None)
    assert {cell.name for cell in few} < {cell.name for cell in more}


def test_a_value_that_is_given_twice_is_run_once(tmp_path: Path) -> None:
    assert len(read(tmp_path, "parameters: {seed: {values: [0, 1, 0]}}").cells(None)) == 2


def test_whole_ranges_are_values_of_a_grid() -> None:
    assert Parameter("seed", {"min": 1, "max": 4}).all() == [1, 2, 3, 4]
    steps = Parameter("sparsity", {"distribution": "q_uniform", "min": 0.5, "max": 0.8, "q": 0.1})
    assert steps.all() == [0.5, 0.6, 0.7, 0.8]
    odd = Parameter("seed", {"distribution": "q_uniform", "min": 1, "max": 9, "q": 2}).all()
    assert odd == [1, 3, 5, 7, 9]
    assert all(type(value) is int for value in odd)


@pytest.mark.parametrize("law", [{"min": 0, "max": 10**12}, {"distribution": "q_uniform", "min": 0, "max": 1e9}])
def test_a_range_of_too_many_values_is_refused_before_it_is_written_out(law: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"parameter seed: more than 10,000 values"):
        Parameter("seed", law).all()


@pytest.mark.parametrize(
    "values",
    [
        {"model.kwargs": {"channels": [8]}},
        {"data.root": "/a/b"},
        {"x": "y" * 300},
        {"x": "a b"},
        {".x": "."},
        {"x": "é"},
        {"x": "é" * 100},
    ],
)
def test_a_name_is_one_folder_and_tells_values_apart(values: dict[str, Any]) -> None:
    name = spec.name_of(values)
    assert Path(name).name == name
    assert len(name.encode()) < 200
    assert not name.startswith(".")
    assert name != spec.name_of({key: f"{value} " for key, value in values.items()})


# --- random search ----------------------------------------------------------------------------------

SAMPLES = 4000
LAWS: list[tuple[dict[str, Any], Any]] = [
    ({"min": 0.5, "max": 2.0}, stats.uniform(0.5, 1.5)),
    ({"distribution": "uniform", "min": -1, "max": 1}, stats.uniform(-1, 2)),
    ({"distribution": "log_uniform", "min": -3, "max": 1}, stats.loguniform(np.exp(-3), np.exp(1))),
    ({"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2}, stats.loguniform(1e-5, 1e-2)),
]


def drawn(description: dict[str, Any], count: int = SAMPLES) -> list[Any]:
    parameter, chance = Parameter("x", description), random.Random(0)
    return [parameter.draw(chance) for _ in range(count)]


@pytest.mark.parametrize(("description", "law"), LAWS, ids=[str(description) for description, _ in LAWS])
def test_values_follow_the_law_that_scipy_has_for_it(description: dict[str, Any], law: Any) -> None:
    assert stats.kstest(drawn(description), law.cdf).pvalue > 0.01


def test_whole_numbers_and_choices_are_drawn_evenly() -> None:
    numbers = drawn({"min": 1, "max": 4})
    assert all(type(number) is int for number in numbers)
    assert stats.chisquare(np.bincount(numbers)[1:]).pvalue > 0.01
    assert stats.chisquare([drawn({"values": ["a", "b", None]}).count(v) for v in ("a", "b", None)]).pvalue > 0.01


def test_steps_are_rounded_draws() -> None:
    law = {"min": 1, "max": 2}
    found = drawn({"distribution": "q_uniform", "q": 0.25, **law}, 500)
    assert all(value * 4 == int(value * 4) for value in found)
    exact = drawn({"distribution": "uniform", **law}, 500)
    assert all(abs(a - b) <= 0.125 + 1e-9 for a, b in zip(found, exact, strict=True))
    assert pstdev(found) > 0
    assert mean(found) == pytest.approx(mean(exact), abs=0.1)


def test_the_draws_of_a_shipped_sweep_are_the_ones_of_earlier_versions() -> None:
    """Runs are found again by their values, so a draw may not change."""
    cells = spec.read(ROOT / "configs" / "sweeps" / "hyperband.yaml").cells(3)
    lrs = [0.09022900648517518, 0.35209697325326744, 0.1983161427690039]
    assert [cell.values["optimizer.lr"] for cell in cells] == pytest.approx(lrs, rel=1e-12)
    assert [cell.values["method.end"] for cell in cells] == [0.5, 0.4, 0.5]


def test_the_nth_run_of_a_random_search_is_always_the_same(tmp_path: Path) -> None:
    text = "method: random\nparameters:\n  optimizer.lr: {min: 0.1, max: 0.5}\n  seed: {min: 0, max: 9}\n"
    found = read(tmp_path, text)
    assert found.cells(5) == read(tmp_path, text).cells(9)[:5]
    more = read(tmp_path, text + "  epochs: {value: 6}\n").cells(5)
    assert [dict(cell.values) | {"epochs": 6} for cell in found.cells(5)] == [cell.values for cell in more]
    assert len({cell.name for cell in found.cells(9)}) == 9
    assert len(read(tmp_path, text + "run_cap: 4\n").cells(None)) == 4


def test_a_random_search_of_few_values_ends_with_them(tmp_path: Path) -> None:
    assert len(read(tmp_path, "method: random\nparameters: {seed: {values: [0, 1, 2]}}").cells(50)) == 3


# --- commands ---------------------------------------------------------------------------------------

FIT = [sys.executable, "-m", "sparsekit", "fit"]
END = ["--out", "o", "--resume"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [*FIT, "--seed=1", *END]),
        ("program: sparsekit\n", [*FIT, "--seed=1", *END]),
        ('program: sparsekit\ncommand: ["${env}", "${program}", fit, "${args}", --resume]\n', [*FIT, "--seed=1", *END]),
        ('command: [sparsekit, fit, --epochs=6, "${args_no_equals}"]\n', [*FIT, "--epochs=6", "--seed=1", *END]),
        ('command: ["${interpreter}", -m, sparsekit, fit, "${args_json}"]\n', [*FIT, "--seed=1", *END]),
        ('command: [sparsekit, fit, --config, "${args_json_file}"]\n', [*FIT, "--seed=1", *END]),
        ("command: sparsekit fit --config base.yaml ${args}\n", [*FIT, "--config", "base.yaml", "--seed=1", *END]),
        (
            'command: [torchrun, --nproc_per_node=2, -m, sparsekit, fit, "${args}"]\n',
            ["torchrun", "--nproc_per_node=2", "-m", "sparsekit", "fit", "--seed=1", *END],
        ),
    ],
)
def test_every_run_is_a_fit_that_can_go_on(tmp_path: Path, text: str, expected: list[str]) -> None:
    found = read(tmp_path, f"{text}parameters: {{seed: {{value: 1}}}}\n")
    assert found.arguments(found.cells(None)[0], Path("o")) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method: bayes", "'bayes'|`wandb agent`|grid, random"),
        ("method: gird", "'gird'|grid, random"),
        ("method: grid", "no parameters"),
        ("parameters: []", "no parameters"),
        ("methods: random\nparameters: {seed: {value: 1}}", "unknown key 'methods'|Did you mean 'method'?"),
        ("[1]", "no options"),
        ("a: [", "line 1"),
        ("parameters: {seed: 3}", "seed is 3|value"),
        ("parameters: {seed: {vals: [1]}}", "seed|'vals'|values"),
        ("parameters: {seed: {min: 3}}", "seed|{'min': 3}|min and max"),
        ("parameters: {seed: {values: 3}}", "seed|values is 3"),
        ("parameters: {seed: {values: []}}", "seed|list"),
        ("parameters: {x: {distribution: normal, mu: 1}}", "'mu'|`wandb agent`"),
        ("parameters: {x: {distribution: normal}}", "'normal'|`wandb agent`|log_uniform_values"),
        (
            "parameters: {x: {distribution: q_log_uniform_values, min: 1, max: 2}}",
            "'q_log_uniform_values'|`wandb agent`",
        ),
        ("parameters: {replicas: {parameters: {count: {value: 1}}}}", "'parameters'|`wandb agent`|replicas.OPTION"),
        ("parameters: {x: {distribution: uniform, min: 0}}", "max is None|number"),
        ("parameters: {x: {min: 3, max: 1}}", "min is 3 and max is 1"),
        ("parameters: {x: {distribution: log_uniform_values, min: 0, max: 1}}", "above 0"),
        ("parameters: {x: {distribution: q_uniform, min: 0, max: 1, q: 0}}", "q"),
        ("parameters: {x: {values: [1, 2], probabilities: [1, 0]}}", "'probabilities'|`wandb agent`"),
        ("parameters: {x: {distribution: uniform, min: 0, max: 1}}", "a grid cannot hold uniform|random"),
        ("parameters: {out: {values: [a, b]}}", "out|leave it out"),
        ("program: train.py\nparameters: {seed: {value: 1}}", "'train.py'|leave it out"),
        ("command: [python, train.py, '${args}']\nparameters: {seed: {value: 1}}", "sparsekit fit"),
        ("command: [sparksekit, fit, '${args}']\nparameters: {seed: {value: 1}}", "sparsekit fit"),
        ("command: [sparsekit, fit]\nparameters: {seed: {value: 1}}", "no ${args}"),
        ("command: [sparsekit, fit, '${args_append_hydra}']\nparameters: {seed: {value: 1}}", "${args_append_hydra}"),
        ("command: [sparsekit, fit, '${args}', --out, x]\nparameters: {seed: {value: 1}}", "--out"),
        ("run_cap: many\nparameters: {seed: {value: 1}}", "run_cap is 'many'"),
        ("parameters: {a: {min: 0, max: 999}, b: {min: 0, max: 999}}", "more than 10,000"),
        ("method: random\nparameters: {seed: {values: [1, 2]}}", "--count"),
    ],
)
def test_a_file_that_is_wrong_is_told_in_a_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, text).cells(None)
    assert "\n" not in str(error.value)
    for word in words.split("|"):
        assert word in str(error.value)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_shipped_sweep_gives_runs_that_fit_takes_here_and_from_an_agent(file: Path, tmp_path: Path) -> None:
    found = spec.read(file)
    cells = found.cells(20 if found.method == "random" else None)
    plain = yaml.safe_load(file.read_text())
    assert plain["metric"]["name"] == "evaluate/test.accuracy"
    lists = [
        line for line in file.read_text().splitlines() if line.startswith(("command:", "# Under torchrun: command:"))
    ]
    commands = [yaml.safe_load(line.removeprefix("# Under torchrun: "))["command"] for line in lists]
    assert plain["command"] in commands
    for cell in (cells[0], cells[-1]):
        assert config(found.arguments(cell, tmp_path / "x")).items() >= cell.values.items()
        sent = create_sweep_command_args({"args": {key: {"value": value} for key, value in cell.values.items()}})
        for command in commands:
            filled = [word for part in command for word in (sent["args"] if part == "${args}" else [part])]
            words = ["sparsekit" if word == "${program}" else word for word in filled]
            assert words[words.index("fit") - 1] == "sparsekit"
            assert config([*words, "--out", str(tmp_path)]).items() >= cell.values.items()
    assert len({cell.name for cell in cells}) == len(cells) > 1


def test_there_are_sweeps() -> None:
    assert {file.stem for file in SWEEPS} >= {"methods", "replicas", "vary", "hyperband"}


# --- texts and numbers ------------------------------------------------------------------------------


def test_values_are_read_as_in_a_config_file(tmp_path: Path) -> None:
    given = "{wandb.notes: {values: [0012, on, 2:4]}, model.kwargs: {value: {a: '010', b: 010}}, seed: {value: 010}}"
    cells = read(tmp_path, f"parameters: {given}").cells(None)
    assert [cell.values["wandb.notes"] for cell in cells] == ["0012", "on", "2:4"]
    assert cells[0].values["model.kwargs"] == {"a": "010", "b": 10}
    assert cells[0].values["seed"] == 10


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("{wandb.notes: {value: }}", "has no value"),
        ("{wandb.notes: {values: [a, ~]}}", "is ~"),
        ("{seed: {value: 1:30}}", "1:30"),
        ("{method: {value:\n #gmp\n }}", "has no value"),
        ("{optimizer.lr: {values: [0.1,\n #0.2\n {a: }]}}", "has no value"),
    ],
)
def test_what_a_config_file_may_not_hold_is_no_value(tmp_path: Path, given: str, part: str) -> None:
    with pytest.raises(UserError, match="sweep: --") as error:
        read(tmp_path, f"parameters: {given}")
    assert part in str(error.value)
