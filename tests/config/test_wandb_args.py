"""What W&B's own agent makes of sweep values, given to the option parser as it stands."""

import json
from pathlib import Path
from typing import Any

import pytest
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from sparsekit.config import parser as options
from sparsekit.config.options import FitConfig, describe, flatten, option_types
from sparsekit.config.wandb_args import plain
from sparsekit.errors import UserError

TYPES = option_types(FitConfig)
VALUES: list[dict[str, Any]] = [
    {"method": "imp", "merge": "greedy", "sparsity": 0.95, "seed": 3},
    {"method.cycles": 2, "method": "imp", "method.retrain": "slr"},  # options before the class that owns them
    {"optimizer.lr": 1e-05, "optimizer.weight_decay": 5e-4, "epochs": 12},
    {"replicas.vary": "lr", "replicas.values": [0.1, 0.05, 1e-05]},
    {"replicas.values": None, "model.name": None, "optimizer.clip_norm": None, "masks.allocation": None},
    {"optimizer.clip_norm": 1, "data.augment": True, "compile": True},
    {"model.kwargs": {"drop_path_rate": 0.1, "norm_layer": None, "aa": True}},
    {"optimizer.kwargs": {"betas": [0.9, 0.95], "deep": {"a": [None, False, "None"], "b": "it's"}}},
    {"masks.exclude": ["^conv1", 'a"b', "c'd", "\\d+"], "data.root": "/a path/with, commas"},
    {"masks.pattern": "2:4", "model.name": "local-dir:/some/where"},
    {"masks.exclude": []},
    {"model.kwargs": {}},
]
NESTED = [
    ({"optimizer": {"lr": 0.1, "kwargs": {"eps": 1e-8}}}, {"optimizer.lr": 0.1, "optimizer.kwargs": {"eps": 1e-8}}),
    (
        {"method": {"name": "imp", "cycles": 2}, "replicas": {"count": 5}},
        {"method": "imp", "method.cycles": 2, "replicas.count": 5},
    ),
    ({"method": {"end": 0.5}}, {"method.end": 0.5}),
    ({"method": {"class_path": "sparsekit.methods.imp.IMP"}}, {"method": "imp"}),
    ({"method": {"class_path": "sparsekit.methods.imp.IMP", "init_args": {"cycles": 2}}}, {"method.cycles": 2}),
    ({"sparsity": 0.5, "_wandb": {"requeued": True}}, {"sparsity": 0.5}),
    ({"optimizer": {"lr": 0.1, "_wandb": None}}, {"optimizer.lr": 0.1}),
]
FORMS = ["args", "args_no_equals", "args_no_boolean_flags", "args_json", "args_json_file", "config"]


def sent(form: str, values: dict[str, Any], folder: Path) -> list[str]:
    """The arguments that `${form}` in `command:` becomes."""
    made = create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    if form in ("args_json_file", "config"):
        path = folder / "config-run.json"
        path.write_text(made["args_json"][0])
        return ["--config", str(path)] if form == "config" else [str(path)]
    return list(made[form])


def parsed(*argv: str) -> dict[str, Any]:
    return flatten(describe(options.parse(options.build("sparsekit fit", "about"), argv)))


def differences(found: dict[str, Any]) -> dict[str, Any]:
    """What is not as by default."""
    return {key: value for key, value in found.items() if key not in BARE or value != BARE[key]}


BARE = parsed()


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("values", VALUES, ids=str)
def test_every_form_of_every_value_is_the_value_that_was_chosen(
    form: str, values: dict[str, Any], tmp_path: Path
) -> None:
    found = parsed(*sent(form, values, tmp_path))
    assert found.items() >= values.items()
    named = values.get("method", "gmp")
    rest = {key: value for key, value in found.items() if not key.startswith("method.") and key not in values}
    assert {key: BARE[key] for key in rest} == rest
    assert found["method"] == named


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("values", "expected"), NESTED, ids=str)
def test_nested_values_are_dotted_ones_and_w_and_bs_own_is_dropped(
    form: str, values: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    found = parsed(*sent(form, values, tmp_path))
    assert found.items() >= expected.items()
    assert {key for key in differences(found) if not key.startswith("method")} <= expected.keys()


def test_false_is_false_where_the_agent_says_so(tmp_path: Path) -> None:
    values = {"data.augment": False, "channels_last": False}
    for form in set(FORMS) - {"args_no_boolean_flags"}:  # that form leaves out what is false, as if it were not there
        assert differences(parsed(*sent(form, values, tmp_path))) == values, form


@pytest.mark.parametrize("form", ["args_no_hyphens", "args_append_hydra", "args_override_hydra"])
def test_hydras_forms_are_refused_with_the_way_to_write_options(form: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="options are written --name value"):
        parsed(*sent(form, {"sparsity": 0.5}, tmp_path))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--sparsity 0.9 --compile", "--sparsity 0.9 --compile=true"),
        ("--compile --sparsity 0.9", "--compile=true --sparsity 0.9"),
        ("--compile false", "--compile false"),
        ("--sparsity", "--sparsity"),
        ("--print_config --help", "--print_config --help"),
        ("--method.help imp", "--method.help imp"),
        ("--model.kwargs {channels: 1}".replace(": ", ":"), "--model.kwargs {channels:1}"),
        ("--masks.pattern=None --resume", "--masks.pattern=null --resume=true"),
        ("--_wandb x --seed 1 --_wandb=y", "--seed 1"),
        ("-x", "-x"),
        ("no.json", "no.json"),
    ],
)
def test_what_no_agent_sends_stays_as_it_is(argv: str, expected: str) -> None:
    assert plain(argv.split(), TYPES) == expected.split()


@pytest.mark.parametrize("text", ["[" * 2000, "{" * 10_000, "[" + "9" * 9000 + "]", "{'a': __import__('os')}", "{(:}"])
def test_a_value_that_is_no_literal_is_left_to_the_parser(text: str) -> None:
    assert plain([f"--model.kwargs={text}"], TYPES) == [f"--model.kwargs={text}"]
    try:
        assert parsed(f"--model.kwargs={text}")["model.kwargs"] == {"a": "__import__('os')"}
    except UserError:
        assert "__import__" not in text


def test_an_option_that_stands_both_ways_in_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "both.json"
    path.write_text(json.dumps({"optimizer": {"lr": 0.1}, "optimizer.lr": 0.2}))
    with pytest.raises(UserError, match=r"--optimizer\.lr .* twice"):
        parsed("--config", str(path))


@pytest.mark.parametrize("text", ["(1)", "{'a': None}", "[1, 2]", "(1, 2)", "[a, ]"])
def test_a_text_with_brackets_stays_as_it_is(text: str) -> None:
    assert parsed("--wandb.notes", text)["wandb.notes"] == text


@pytest.mark.parametrize("text", ["[2024, a, 010, on]", "['2024', a, '010', \"on\"]", "('2024', 'a', '010', 'on')"])
def test_items_of_a_list_of_texts_stay_as_they_are(text: str) -> None:
    assert parsed("--wandb.tags", text)["wandb.tags"] == ["2024", "a", "010", "on"]


def test_whole_numbers_with_a_point_are_whole_numbers() -> None:
    assert parsed("--epochs=30.0", "--method=imp", "--method.cycles=2.0")["epochs"] == 30
    with pytest.raises(UserError, match=r"--epochs is '30\.5'"):
        parsed("--epochs=30.5")


def test_null_as_a_text_in_json_is_refused() -> None:
    assert parsed('{"wandb.notes": null}')["wandb.notes"] is None
    with pytest.raises(UserError, match=r"--wandb\.notes is null"):
        parsed('{"wandb.notes": "null"}')


def test_switches_take_a_value_of_their_own() -> None:
    assert parsed("--resume", "--seed", "1")["resume"] is True
    assert [parsed("--resume", word, "--seed", "1")["resume"] for word in ("True", "False")] == [True, False]
