"""Files are written whole; `~` is the home directory wherever a path is given, also after `=` and in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny import ARGUMENTS

from sparsekit.cli import main as cli
from sparsekit.errors import first_line
from sparsekit.files import expanded, write_json, write_yaml


def test_a_value_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    value = {"name": "größe", "values": [1, 0.5, None, True], "text": "null"}
    write_json(tmp_path / "new" / "a.json", value)
    write_yaml(tmp_path / "new" / "a.yaml", value)
    assert json.loads((tmp_path / "new" / "a.json").read_text("utf-8")) == value
    assert yaml.safe_load((tmp_path / "new" / "a.yaml").read_text("utf-8")) == value
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.json", "a.yaml"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparsekit.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("\n  one \ntwo")) == "one"
    assert first_line(ValueError()) == first_line(ValueError("\n")) == "ValueError"


def test_a_home_is_put_in_and_an_unknown_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/runs/one") == tmp_path / "runs" / "one"
    assert expanded("runs/~one") == Path("runs/~one")
    assert expanded("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")


@pytest.mark.slow
def test_every_command_takes_paths_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    (home / "run.yaml").write_text("out: ~/run\nepochs: 2\n")
    for command in (
        ["fit", "--config=~/run.yaml", *ARGUMENTS],
        ["fit", "--model.init=~/run", "--epochs=2", "--out=~/again", *ARGUMENTS],
        [
            "fit",
            "--model.name=local-dir:~/run/model",
            "--model.pretrained=true",
            "--out=~/third",
            "--epochs=2",
            *ARGUMENTS,
        ],
        ["evaluate", "~/run", "--output=~/found.json"],
        ["export", "~/run", "--format=sparse", "-o=~/small.safetensors"],
        ["merge", "~/run", "~/again", "--prune-again=0.9", "--masks=union", "-o=~/soup"],
        ["report", "~/run", "-o=~/page.html"],
        ["plugins", "new", "mine", "--kind=merge", "--out=~/new"],
    ):
        assert cli.main(command) == 0, command
    made = ("run/summary.json", "again/summary.json", "found.json", "small.safetensors", "soup/merge.json", "page.html")
    assert [name for name in (*made, "new/sparsekit-mine/pyproject.toml") if not (home / name).is_file()] == []
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_so_does_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = "epochs: {values: [2]}, data.image_size: {value: 8}, wandb.mode: {value: disabled}"
    (tmp_path / "sweep.yaml").write_text(f"method: grid\nparameters: {{{settings}}}\n")
    assert cli.main(["sweep", "~/sweep.yaml", "--out=~/swept"]) == 0
    assert len(list((tmp_path / "swept").glob("*/summary.json"))) == 1
