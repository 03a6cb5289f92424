"""Values in YAML: the same in a file and on the command line; text where text is due; none only where it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsekit.config import parser as options
from sparsekit.config import yaml_file
from sparsekit.config.options import describe, flatten
from sparsekit.config.plugin_yaml import text
from sparsekit.errors import UserError


def parse(*argv: str) -> dict[str, Any]:
    return flatten(describe(options.parse(options.build("sparsekit fit", "about"), argv)))


def in_file(tmp_path: Path, line: str) -> dict[str, Any]:
    path = tmp_path / "run.yaml"
    path.write_text(line, "utf-8")
    return parse("--config", str(path))


@pytest.mark.parametrize(
    ("option", "given", "value"),
    [
        ("seed", "010", 10),
        ("seed", "0x1f", 31),
        ("optimizer.lr", "010", 10.0),
        ("optimizer.lr", "1e-05", 1e-5),
        ("data.augment", "off", False),
        ("masks.pattern", "2:4", "2:4"),
        ("wandb.notes", "1:30", "1:30"),
        ("wandb.notes", "010", "010"),
        ("wandb.notes", "1.50", "1.50"),
        ("wandb.notes", "on", "on"),
        ("wandb.notes", "2026-11-28", "2026-11-28"),
        ("model.name", "1e3", "1e3"),
    ],
)
def test_a_value_is_the_same_in_a_file_and_on_the_command_line(
    tmp_path: Path, option: str, given: str, value: Any
) -> None:
    assert in_file(tmp_path, f"{option}: {given}\nsparsity: 0.6")[option] == value
    assert parse(f"--{option}", given, "--sparsity", "0.6")[option] == value
    assert parse(f"--{option}={given}", "--sparsity=0.6")[option] == value


def test_lists_of_texts_keep_what_is_written(tmp_path: Path) -> None:
    found = in_file(tmp_path, "wandb.tags: [1, 010, on, 2:4]\nmasks: {exclude: [conv1]}")
    assert found["wandb.tags"] == ["1", "010", "on", "2:4"]
    assert found["masks.exclude"] == ["conv1"]


@pytest.mark.parametrize("given", ["1:30", "1:30.5", "-1:30", "1:2:3"])
@pytest.mark.parametrize("option", ["epochs", "seed", "optimizer.lr", "replicas.start", "method.start", "data.workers"])
def test_a_time_is_no_number(tmp_path: Path, option: str, given: str) -> None:
    for attempt in (lambda: parse(f"--{option}={given}"), lambda: in_file(tmp_path, f"{option}: {given}")):
        with pytest.raises(UserError) as error:
            attempt()
        assert f"--{option}" in str(error.value)
        assert repr(given) in str(error.value)


def test_a_time_in_a_list_is_no_number(tmp_path: Path) -> None:
    for attempt in (
        lambda: parse("--replicas.values", "[1:30, 2]"),
        lambda: in_file(tmp_path, "replicas.values: [1:30, 2]"),
    ):
        with pytest.raises(UserError, match=r"--replicas\.values is '1:30'"):
            attempt()


@pytest.mark.parametrize("given", ["#1 try", "~", "&a", "~/data", "#", "{1}"])
@pytest.mark.parametrize("option", ["wandb.notes", "data.root", "model.init", "out", "wandb.group", "distill.model"])
def test_an_argument_that_yaml_would_drop_is_text(option: str, given: str) -> None:
    assert parse(f"--{option}", given)[option] == given


@pytest.mark.parametrize("option", ["wandb.notes", "masks.pattern", "out", "wandb.project", "model.init"])
def test_null_as_an_argument_is_refused_where_it_may_be_a_text(option: str) -> None:
    with pytest.raises(UserError, match=rf"--{option} is null.* None"):
        parse(f"--{option}", "null")


def test_none_and_null_in_a_file_are_none(tmp_path: Path) -> None:
    assert parse("--wandb.notes", "None")["wandb.notes"] is None
    assert parse("--replicas.values", "null")["replicas.values"] is None
    assert in_file(tmp_path, "wandb: {notes: null}\nreplicas.values: null")["wandb.notes"] is None


@pytest.mark.parametrize("value", ["", "#gmp", "# a comment"])
@pytest.mark.parametrize("option", ["method", "merge", "wandb.notes", "data.root", "model.init", "replicas.values"])
def test_nothing_but_a_comment_is_not_none(tmp_path: Path, option: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"--{option} has no value"):
        in_file(tmp_path, f"{option}: {value}")


@pytest.mark.parametrize("line", ["out: ~", "data: {root: ~}", "wandb.tags: [a, ~]"])
def test_a_lone_tilde_in_a_file_is_neither_none_nor_the_home_directory(tmp_path: Path, line: str) -> None:
    with pytest.raises(UserError, match=r"--\S+ is ~.*null"):
        in_file(tmp_path, line)
    assert in_file(tmp_path, "data.root: '~'")["data.root"] == "~"


@pytest.mark.parametrize(
    "given", ['{a: "010"}', "{a: '1e3', b: [\"on\", {c: 'null'}]}", "{a: 010, b: {c: 1e3}}", "{a: ~}"]
)
@pytest.mark.parametrize("option", ["model.kwargs", "data.kwargs"])
def test_texts_in_quotes_stay_texts_inside_mappings(tmp_path: Path, option: str, given: str) -> None:
    plain = yaml_file.parse(given)
    assert parse(f"--{option}", given)[option] == in_file(tmp_path, f"{option}: {given}")[option] == plain
    written = text({option: plain})
    assert {type(value) for value in parse(f"--{option}", given)[option].values()} <= {str, int, list, dict, type(None)}
    assert in_file(tmp_path, written)[option] == plain


@pytest.mark.parametrize(
    ("line", "option", "value"),
    [
        ("sparsity: '0.6'", "sparsity", 0.6),
        ("epochs: '010'", "epochs", 10),
        ("data.augment: 'off'", "data.augment", False),
    ],
)
def test_a_number_in_quotes_is_a_number_where_one_is_due(tmp_path: Path, line: str, option: str, value: Any) -> None:
    assert in_file(tmp_path, line)[option] == value
    assert in_file(tmp_path, f"method: imp\nmethod.cycles: '2'\n{line}")["method.cycles"] == 2


@pytest.mark.parametrize("given", ["{a: }", "{a: 1, b: {c: }}", "{a: [1, {b: }]}"])
def test_an_entry_of_a_mapping_without_a_value_is_refused(tmp_path: Path, given: str) -> None:
    for attempt in (lambda: parse("--model.kwargs", given), lambda: in_file(tmp_path, f"model.kwargs: {given}")):
        with pytest.raises(UserError, match=r"--model\.kwargs has no value"):
            attempt()


@pytest.mark.parametrize("value", ["~", "null"])
def test_a_plugins_name_is_never_none(tmp_path: Path, value: str) -> None:
    for attempt in (lambda: parse("--method", value), lambda: in_file(tmp_path, f"method: {value}")):
        with pytest.raises(UserError, match="--method"):
            attempt()


def test_an_empty_item_of_a_list_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--wandb\.tags has no value"):
        in_file(tmp_path, "wandb.tags:\n- a\n- #b\n")


@pytest.mark.parametrize(
    "value", ["2:4", "1:30", "010", "089", "0o17", "1e-05", "1e5", "on", "null", "~", "", "#1", "2026-11-28", "<<", "x"]
)
def test_a_text_that_we_write_is_that_text_for_us_and_for_other_readers_of_yaml(value: str) -> None:
    assert yaml_file.parse(text({"key": value})) == {"key": value}
    assert yaml.safe_load(text({"key": value})) == {"key": value}
