"""The packages that `plugins new` writes, and the commands of the plugin guide."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_site import offline
from plugin_sources import run

from sparsekit.plugins import scaffold
from sparsekit.plugins.registry import Kind

Capture = pytest.CaptureFixture[str]
GUIDE = Path(__file__).parents[2] / "docs" / "writing-a-plugin.md"


# --- plugins new -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["method", "merge", "task"])
def test_a_new_package_installs_and_passes_its_own_tests(tmp_path: Path, capsys: Capture, kind: Kind) -> None:
    code, out, err = run(capsys, "plugins", "new", "my_own", "--kind", kind, "--out", str(tmp_path / "made"))
    assert (code, err) == (0, [])
    folder, environment = tmp_path / "made" / "sparsekit-my_own", offline(tmp_path / "site")
    assert f"install:  pip install -e {folder}\n" in out

    def execute(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
    execute(*python, "-m", "pip", "install", str(folder))
    rows = json.loads(execute("sparsekit", "plugins", "list", "--json", "--kind", kind))
    assert [(row["distribution"], row["state"]) for row in rows if row["name"] == "my_own"] == [
        ("sparsekit-my-own", "found")
    ]
    assert "2 passed" in execute(*python, "-m", "pytest", "-q", str(folder))
    assert "my_own" in execute("sparsekit", "plan", f"--{kind}", "my_own", "--print_config")


@pytest.mark.parametrize("kind", ["method", "merge", "task"])
def test_a_new_package_is_tidy(tmp_path: Path, kind: Kind) -> None:
    scaffold.create("a_b2", kind, tmp_path)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        "sparsekit-a_b2/pyproject.toml",
        "sparsekit-a_b2/README.md",
        "sparsekit-a_b2/sparsekit_a_b2/__init__.py",
        "sparsekit-a_b2/tests/test_a_b2.py",
    }
    assert all("$" not in path.read_text() for path in tmp_path.rglob("*.*") if path.is_file())
    options = ["--isolated", "--line-length", "120"]
    for command in (["check", "--select", "E,F,I,UP,B,C4,SIM,RUF"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options, "."],
            cwd=tmp_path / "sparsekit-a_b2",
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "name", ["", "A", "my-own", "my own", "class", "none.x", "1st", "_own", "own_", "ö", "../up", "self\n", "a" * 300]
)
def test_a_name_that_cannot_be_used_is_bad_input(tmp_path: Path, capsys: Capture, name: str) -> None:
    code, out, err = run(capsys, "plugins", "new", name, "--kind", "merge", "--out", str(tmp_path))
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith("sparsekit: error: plugins new")
    assert list(tmp_path.iterdir()) == []


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
    kinds: tuple[Kind, ...] = (
        ("method", "merge", "task") if name != "none" else ("method", "task")
    )  # there is a merge `none`
    for kind in kinds:
        scaffold.create(name, kind, tmp_path / kind)
        compile((tmp_path / kind / f"sparsekit-{name}" / f"sparsekit_{name}" / "__init__.py").read_text(), name, "exec")


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
    [("gmp", "method", "method 'gmp' of"), ("merges", "merge", "a package 'sparsekit_merges'")],
)
def test_a_name_that_is_taken_is_refused(tmp_path: Path, capsys: Capture, name: str, kind: str, taken: str) -> None:
    code, _, err = run(capsys, "plugins", "new", name, "--kind", kind, "--out", str(tmp_path))
    assert (code, len(err)) == (2, 1)
    assert f"plugins new {name}: {taken}" in err[0]
    assert "is installed already; choose another name" in err[0]
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
