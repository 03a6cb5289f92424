"""A release: the wheel and the sdist that `python -m build` makes, and what a user has once the wheel is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from documents import ROOT

from sparsekit import _version

pytestmark = [pytest.mark.docs, pytest.mark.slow, pytest.mark.timeout(900)]
BUILD = [sys.executable, "-m", "build", "--no-isolation"]
"""hatchling is here already, so that no network is needed."""
NAME = f"sparsekit_soups-{_version.__version__}"


def execute(command: list[str], folder: Path, timeout: float = 280) -> str:
    hidden = ("PYTHON", "WANDB", "PIP_")  # a user's shell, not this test's
    clean = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("built")
    execute([*BUILD, "--outdir", str(folder), str(ROOT)], folder)
    return folder


@pytest.fixture(scope="module")
def user(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment with the wheel, and with the dependencies of this one but no sparsekit of it."""
    folder = tmp_path_factory.mktemp("user")
    shared = folder / "shared"
    shared.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "sparsekit" not in entry.name and entry.suffix != ".pth":
            (shared / entry.name).symlink_to(entry)
    venv.create(folder / "env", with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
    (site / "shared.pth").write_text(f"{shared}\n")
    python = str(folder / "env" / "bin" / "python")
    wheel = str(built / f"{NAME}-py3-none-any.whl")
    # All dependencies are looked up in what is shared: a missing one fails here, as no index may be asked.
    execute([python, "-m", "pip", "install", "--quiet", "--no-index", wheel], folder)
    return folder / "env" / "bin"


def test_the_sdist_makes_the_wheel_that_the_checkout_makes(built: Path, tmp_path: Path) -> None:
    execute(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(ROOT)], tmp_path
    )
    direct = contents(tmp_path / f"{NAME}-py3-none-any.whl")
    assert contents(built / f"{NAME}-py3-none-any.whl") == direct
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "sparsekit").rglob("*.py")}
    assert modules <= direct.keys()
    assert {"sparsekit/py.typed", "sparsekit/data/digits.npz", "sparsekit/report/style.css"} <= direct.keys()
    assert not [name for name in direct if not name.startswith(("sparsekit/", f"{NAME}.dist-info/"))]


def test_the_sdist_has_what_a_packager_needs_and_nothing_that_lies_about(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    needed = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "mkdocs.yml", "pyproject.toml"}
    assert needed <= names
    assert {
        "docs/index.md",
        "docs/pictures/loop.svg",
        "tests/docs/test_release.py",
        "configs/sweeps/methods.yaml",
    } <= names
    assert not [name for name in names if name.startswith(("runs/", "site/", ".venv", ".git/", "wandb/"))]


def test_the_wheel_runs_where_it_is_installed(user: Path, tmp_path: Path) -> None:
    where = execute([str(user / "python"), "-c", "import sparsekit; print(sparsekit.__file__)"], tmp_path).strip()
    assert Path(where).is_relative_to(user.parent)
    sparsekit = str(user / "sparsekit")
    assert execute([sparsekit, "--version"], tmp_path) == f"sparsekit {_version.__version__}\n"
    rows = json.loads(execute([sparsekit, "plugins", "list", "--json"], tmp_path))
    assert {row["name"] for row in rows if row["kind"] == "method"} == {"gmp", "imp", "bimp", "dpf", "oneshot"}
    assert {row["name"] for row in rows if row["kind"] == "merge"} == {"uniform", "greedy", "best", "none"}
    assert all((row["distribution"], row["state"]) == ("sparsekit-soups", "found") for row in rows)
    short = ["--epochs", "1", "--data.batch_size", "10", "--wandb.mode", "disabled"]
    said = execute([sparsekit, "fit", "--out", "run", *short], tmp_path)
    assert "gmp + uniform   done" in said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["sparsity"] == 0.9
    assert (tmp_path / "run" / "report.html").is_file()
