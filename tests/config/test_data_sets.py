"""Options of a data set's own function, `--data.X`: on the command line, in YAML, and what is told of mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_site import distribution, visible

from sparsekit.cli import main as cli
from sparsekit.config import parser as options
from sparsekit.config.options import EvaluateConfig, FitConfig, describe, flatten
from sparsekit.config.sweep_values import check_arrived
from sparsekit.config.wandb_args import as_flags
from sparsekit.errors import UserError

SHAPES = '''\
"""Shapes to tell apart."""
from __future__ import annotations

from typing import Literal

import torch

import sparsekit


def shapes(
    root: str | None,
    count: int = 40,
    kind: Literal["round", "edgy"] = "round",
    noise: float | None = None,
    sizes: list[int] = [3, 4],
    words: str = "a",
) -> sparsekit.Data:
    """Shapes to tell apart, drawn at random."""
    inputs = torch.arange(count * 16).reshape(count, 1, 4, 4) % 7 / 7
    targets = torch.arange(count) % 2
    return sparsekit.Data(train=(inputs, targets), test=(inputs, targets))


def named(name: str, count: int = 4) -> sparsekit.Data:
    """A family of sets."""
    return shapes(None, count)
'''
ENTRY = "[sparsekit.datasets]\nshapes = made_up_shapes:shapes\nfamily = made_up_shapes:named\n"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with visible(tmp_path / "site") as folder:
        distribution(folder, "sparsekit_shapes", ENTRY, {"made_up_shapes": SHAPES})
        yield folder


def parse(*argv: str) -> FitConfig:
    return options.parse(options.build("sparsekit fit", "about"), argv)


def own(*argv: str) -> dict[str, Any]:
    return parse(*argv).data.options


def refused(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(*argv)
    return str(caught.value)


SHAPE = {"count": 40, "kind": "round", "noise": None, "sizes": [3, 4], "words": "a"}


@pytest.mark.parametrize(
    ("argv", "changes"),
    [
        (["--data.sizes+", "5"], {"sizes": [3, 4, 5]}),
        ([], {}),
        (["--data.count", "8", "--data.kind=edgy"], {"count": 8, "kind": "edgy"}),
        (["--data.noise", "1e-1", "--data.sizes", "[1]"], {"noise": 0.1, "sizes": [1]}),
        (["--data.noise", "null"], {}),
        (["--data.words", "010"], {"words": "010"}),
        (["--data", "{count: 8, words: b}"], {"count": 8, "words": "b"}),
        (["{'data.count': 8, 'data.noise': None}"], {"count": 8}),  # as W&B's agent writes them
        (["--data.count=8.0"], {"count": 8}),
    ],
)
def test_options_have_the_types_of_the_function(site: Path, argv: list[str], changes: dict[str, Any]) -> None:
    for order in ([*argv, "--data.name", "shapes"], ["--data.name=shapes", *argv]):
        found = parse(*order)
        assert found.data.options == SHAPE | changes, order
        assert found.data.name == "shapes"
    assert own("--data.name", "made_up_shapes:shapes", *argv) == SHAPE | changes


def test_yaml_and_the_command_line_and_back(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: {name: shapes, count: 8, words: '1e-05', batch_size: 4}\nsparsity: 0.5")
    expected = SHAPE | {"count": 8, "words": "1e-05"}
    assert own("--config", str(file)) == expected
    assert own("--config", str(file), "--data.noise", "2") == expected | {"noise": 2.0}
    assert own("--config", str(file), "--data.name", "shapes") == expected
    assert own("--config", str(file), "--data.name", "digits") == {}  # they were for shapes
    assert own("--config", str(file), "--data.name", "family/x") == {"count": 4}
    dotted = tmp_path / "dotted.yaml"
    dotted.write_text("data.name: shapes\ndata.count: 9")
    assert own("--config", str(dotted)) == SHAPE | {"count": 9}
    alone = tmp_path / "alone.yaml"
    alone.write_text("data: {count: 9}")
    assert own("--config", str(alone), "--data.name", "shapes") == SHAPE | {"count": 9}
    config = parse("--config", str(file))
    plain = describe(config)
    assert plain["data"]["count"] == 8
    assert "options" not in plain["data"]
    assert flatten(plain)["data.words"] == "1e-05"
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(plain))
    assert parse("--config", str(again)).data == config.data
    assert cli.main(["plan", "--config", str(file), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == plain


def test_the_values_of_a_sweep_arrive(site: Path) -> None:
    values = {"data.name": "shapes", "data.count": 8, "data.sizes": [1, 2], "data.noise": None, "data.words": "b"}
    config = parse(*as_flags(values))
    check_arrived(flatten(describe(config)), values)
    with pytest.raises(UserError, match=r"--data\.count is 8, but the sweep gave 9"):
        check_arrived(flatten(describe(config)), {"data.count": 9})


def test_options_of_a_run_hold_for_its_own_data_set_alone(site: Path) -> None:
    run = {"data.name": "shapes", "data.count": 8, "data.batch_size": 4, "imports": []}

    def parsed(*argv: str, run: dict[str, Any] | None) -> Any:
        return options.parse_as(EvaluateConfig, options.build("test", "", EvaluateConfig), argv, run).data

    found = parsed("--data.noise", "3", run=run)
    assert (found.name, found.batch_size, found.options) == ("shapes", 4, SHAPE | {"count": 8, "noise": 3.0})
    assert parsed("--data.name", "shapes", run=run).options["count"] == 8
    assert parsed("--data.name", "digits", run=run).options == {}
    assert parsed("--data.count", "3", run=None).options == {}  # it is not known yet whose it is
    with pytest.raises(UserError, match=r"--data\.count is no option of dataset 'digits', but of family and shapes"):
        parsed("--data.count", "3", run={})


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--data.name", "shape"], ["--data.name is 'shape'; choose from digits, ", "Did you mean 'shapes'?"]),
        (["--data.name", "shapes", "--data.cout", "3"], ["unknown option --data.cout. Did you mean '--data.count'?"]),
        (["--data.name", "shapes", "--data.batch", "3"], ["unknown option --data.batch. Did you mean '--data.batch_"]),
        (["--data.count", "3"], ["--data.count is no option of dataset 'digits', but of family and shapes; add"]),
        (["--data.name", "shapes", "--data.kind", "rond"], ["--data.kind is 'rond'; choose from round, edgy. Did"]),
        (["--data.name", "shapes", "--data.count", "x"], ["--data.count is 'x'; give a whole number"]),
        (["--data.name", "shapes", "--data.count", "null"], ["--data.count"]),
        (["--data.name", "shapes", "--data.count"], ["--data.count needs a value"]),
        (["--data.name", "csv", "--data.target", "y"], ["--data.file must be given"]),
        (["--data.name"], ["--data.name needs a value"]),
        (["--data.name", "shapes/x"], ["shapes takes no name behind a slash; leave it out"]),
        (["--data.name", "family"], ["family takes a name behind a slash; write family/NAME"]),
        (["--data.name", "wds/x"], ["wds/ is read as a stream", "imagetar"]),
        (["--data.name", "tfds/mnist"], ["tfds/ is read as a stream"]),
        (["--data.name", "made_up_shapes:shape"], ["--data.name made_up_shapes:shape", "has no attribute 'shape'"]),
        (["--data.name", "made_up_shapes:torch"], ["is module, not a function"]),
        (["--data.name", "os:system", "--data.command", "touch x"], ["os is one of Python's own modules"]),
        (["--data.fold", "6/5"], ["--data.fold is 6/5; give k/n"]),
        (["--data.fold", "1/5", "--data.held_out", "0.2"], ["--data.fold and --data.held_out both"]),
        (["--data.limit", "1.5"], ["--data.limit is 1.5; give a number of examples, 1 or more, or a fraction below 1"]),
        (["--data.limit", "0"], ["--data.limit is 0; give"]),
        (["--data.std", "[1, 0]"], ["--data.std is [1.0, 0.0]; give a number above 0"]),
        (["--data.mean", ".5", "--data.kwargs", "{mean: [0.5]}"], ["--data.mean and --data.kwargs both give mean"]),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(site: Path, argv: list[str], words: list[str]) -> None:
    message = refused(*argv)
    assert "\n" not in message
    for part in words:
        assert part in message, message


def test_mistakes_of_a_file_are_told_with_the_file(site: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    for text, word in (
        ("data: {name: shapes, cout: 8}", "unknown option --data.cout. Did you mean '--data.count'?"),
        ("data: {name: shapes, count: }", "--data.count has no value"),
        ("data: {name: shapes, kind: 3}", "--data.kind is '3'"),
        ("data: {name: nothing}", "--data.name is 'nothing'"),
        ("data: {name: digits, options: {}}", "unknown option --data.options"),
    ):
        file.write_text(text)
        message = refused("--config", str(file))
        assert word in message, message
        assert message.endswith(f"(in {file})"), message
    file.write_text("data: {name: shapes}")
    assert "--data.count stands before the --config that chooses" in refused("--data.count", "3", "--config", str(file))


BAD = {
    "no type": ("count: int = 40", "count=40", "'count' without a type"),
    "any options": ("count: int = 40", "count: int = 40, **more: int", "takes **more"),
    "taken": ("count: int = 40", "batch_size: int = 40", "called 'batch_size', which is reserved"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_function_that_breaks_the_contract_is_refused(tmp_path: Path, case: str) -> None:
    before, after, words = BAD[case]
    source = (
        SHAPES.replace(before, after) if case != "any options" else SHAPES.replace('words: str = "a",', "**more: int")
    )
    with visible(tmp_path / "site") as folder:
        distribution(folder, "sparsekit_shapes", ENTRY, {"made_up_bad": source, "made_up_shapes": source})
        message = refused("--data.name", "shapes")
    assert "dataset 'shapes' of sparsekit-shapes 1.2: made_up_shapes:shapes" in message
    assert words in message


def test_the_names_of_sparsekits_own_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with visible(tmp_path / "site") as folder:
        distribution(folder, "thief", "[sparsekit.datasets]\ndigits = made_up_shapes:shapes\n", {})
        assert cli.main(["plugins", "list", "--kind", "dataset"]) == 0
        assert "'digits' is the name of a built-in data set" in capsys.readouterr().err
        assert own() == {}
    assert cli.main(["fit", "--data.help", "digits"]) == 2
    assert "--data.help digits: it has no options of its own" in capsys.readouterr().err


def test_help_and_lists_show_data_sets(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("fit", "plan", "evaluate", "export", "merge"):
        assert cli.main([command, "--data.help", "shapes"]) == 0
        out = capsys.readouterr().out
        assert "Shapes to tell apart, drawn at random." in out
        assert "--data.kind: Literal['round', 'edgy'] = 'round'" in out
    assert cli.main(["fit", "--data.name", "shapes", "--help"]) == 0
    assert "--data.count" in capsys.readouterr().out
    assert cli.main(["plugins", "list", "--kind", "dataset", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["shapes"]["summary"] == "Shapes to tell apart, drawn at random."
    assert {row["state"] for row in rows.values()} == {"found"}
    assert {"csv", "npz", "imagetar", "torch", "hfds"} <= rows.keys()


def test_planning_with_a_data_set_of_files_imports_no_torch(tmp_path: Path) -> None:
    import subprocess

    code = "import sys; from sparsekit.cli import main; "
    code += "code = main.main(['plan', '--data.name', 'csv', '--data.file', 'a', '--data.target', 'b']); "
    code += "sys.exit(code or ('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


PLACES = '''\
"""Options of other types."""
from __future__ import annotations

from enum import Enum
from pathlib import Path

import sparsekit
import torch


class Mode(Enum):
    plain = 1
    noisy = 2


def places(extra: Path | None = None, mode: Mode = Mode.plain) -> sparsekit.Data:
    """Numbers."""
    return sparsekit.Data((torch.zeros(4, 2), torch.zeros(4)), (torch.zeros(4, 2), torch.zeros(4)))
'''


def test_paths_and_members_of_an_enum_are_written_and_read_again(tmp_path: Path) -> None:
    with visible(tmp_path / "site") as folder:
        distribution(folder, "sparsekit_places", "[sparsekit.datasets]\nplaces = made_up_places:places\n",
                     {"made_up_places": PLACES})  # fmt: skip
        config = parse("--data.name", "places", "--data.extra", "off.txt", "--data.mode", "noisy")
        assert isinstance(config.data.options["extra"], Path)
        written = describe(config)
        assert (written["data"]["extra"], written["data"]["mode"]) == ("off.txt", "noisy")
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(written))
        assert describe(parse("--config", str(tmp_path / "run.yaml"))) == written
