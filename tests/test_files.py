"""`~` is the home directory wherever a path is given, also after `=` and in files, where no shell sees it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import ARGUMENTS

from sparsekit.cli import main
from sparsekit.files import expanded


def test_a_home_is_put_in_and_an_unknown_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/runs/one") == tmp_path / "runs" / "one"
    assert expanded("runs/~one") == Path("runs/~one")
    assert expanded("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")


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
        assert main.main(command) == 0, command
    made = ("run/summary.json", "again/summary.json", "found.json", "small.safetensors", "soup/merge.json", "page.html")
    assert [name for name in (*made, "new/sparsekit-mine/pyproject.toml") if not (home / name).is_file()] == []
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_so_does_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = "epochs: {values: [2]}, data.image_size: {value: 8}, wandb.mode: {value: disabled}"
    (tmp_path / "sweep.yaml").write_text(f"method: grid\nparameters: {{{settings}}}\n")
    assert main.main(["sweep", "~/sweep.yaml", "--out=~/swept"]) == 0
    assert len(list((tmp_path / "swept").glob("*/summary.json"))) == 1
