"""Listing, planning and help stay light: no command but a run itself imports torch, timm, torchvision or W&B."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from run_files import write_run

HEAVY = {"torch", "timm", "torchvision", "wandb", "safetensors", "sklearn", "matplotlib", "torchmetrics"}
COMMAND = Path(sys.executable).with_name("sparsekit")


def run(*command: str, folder: Path, code: int = 0) -> tuple[str, str, set[str]]:
    """Standard output, standard error, and the packages that Python says it imported."""
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    pattern = re.compile(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", re.M)
    modules = set(pattern.findall(done.stderr))
    said = re.sub(r"^import time:.*\n", "", done.stderr, flags=re.M)
    assert done.returncode == code, said
    assert "sparsekit.cli.main" in modules or "sparsekit.api" in modules  # so the list is what it should be
    return done.stdout, said, {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("--version", 0, ["sparsekit 0."]),
        ("--help", 0, ["usage: sparsekit", "fit", "plan", "evaluate", "report", "plugins"]),
        ("fit --help", 0, ["--method", "--replicas.count", "--optimizer.lr"]),
        ("merge --help", 0, ["--merge", "--masks", "--prune_again"]),
        ("export --help", 0, ["--format", "--measure", "--data.root"]),
        ("export x --format onxx", 2, ["--format"]),
        ("fit --method.help gmp", 0, ["--method.start", "Gradual magnitude pruning"]),
        ("fit --print_config", 0, ["method:", "name: gmp"]),
        ("plan --method gmp", 0, ["sparsity", "90.00 %", "replica-epochs"]),
        ("plan --method dpf --merge greedy", 0, ["sparsity", "90.00 %"]),
        ("plan --method imp --method.retrain allr", 0, ["90.00 %"]),
        ("sweep --help", 0, ["--jobs", "--count", "SWEEP.yaml"]),
        ("sweep nowhere.yaml", 2, ["nowhere.yaml"]),
        ("plugins list", 0, ["gmp", "uniform", "sparsekit-soups"]),
        ("plugins list --json", 0, ['"name": "gmp"']),
        ("evaluate --help", 0, ["--corruptions", "--batchnorm", "MODEL"]),
        ("evaluate nowhere", 2, ["nowhere"]),
        ("fit --sparsity 1", 2, ["--sparsity"]),
        ("fit --method oneshoot", 2, ["oneshot"]),
    ],
)
def test_a_command_that_does_not_train_imports_no_heavy_package(
    tmp_path: Path, arguments: str, code: int, words: list[str]
) -> None:
    out, err, packages = run(str(COMMAND), *arguments.split(), folder=tmp_path, code=code)
    assert not packages & HEAVY
    assert all(word in out + err for word in words)
    assert err == "" if code == 0 else err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    if arguments.endswith("--json"):
        assert {"gmp", "none"} <= {row["name"] for row in json.loads(out)}


def test_a_plan_lists_an_image_folder_without_torch(tmp_path: Path) -> None:
    for part, count in (("train", 20), ("val", 3)):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "pets" / part / name / f"{number}.png").touch()
    (tmp_path / "pets" / "train" / "cat" / "notes.txt").touch()
    arguments = ("plan", "--data.name", "imagefolder", "--data.root", "pets")
    out, err, packages = run(str(COMMAND), *arguments, folder=tmp_path)
    assert err == ""
    assert not packages & HEAVY
    first = out.splitlines()[:4]
    assert first[0] == "train: 36 images of 2 classes, from train/"
    assert "4 images" in first[1]
    assert first[2] == "test: 6 images of 2 classes, from val/"
    assert first[3] == "passed over: 1 .txt"
    (tmp_path / "pets" / "valid").mkdir()
    _, err, _ = run(str(COMMAND), *arguments, folder=tmp_path, code=2)
    assert "'valid/'" in err


def test_a_report_needs_a_plotting_library_and_no_torch(tmp_path: Path) -> None:
    run_directory = write_run(tmp_path / "run")
    folder = tmp_path / "here"
    folder.mkdir()
    command = (str(COMMAND), "report", str(run_directory))
    _, err, packages = run(*command, folder=folder)
    assert err == ""
    assert packages & HEAVY == {"matplotlib"}
    assert (run_directory / "report.html").is_file()
    assert list(folder.iterdir()) == []


def test_python_m_sparsekit_is_the_same_command(tmp_path: Path) -> None:
    module, _, _ = run(sys.executable, "-m", "sparsekit", "--version", folder=tmp_path)
    command, _, _ = run(str(COMMAND), "--version", folder=tmp_path)
    assert module == command


BLOCKED = f"""
import sys

HEAVY = {HEAVY!r}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise AssertionError(f"{{name}} was imported")


sys.meta_path.insert(0, Refuse())
"""


def test_every_built_in_plans_and_every_public_name_is_there_without_torch(tmp_path: Path) -> None:
    script = f"""{BLOCKED}
import sparsekit
made_of_torch = {{"ExportModel", "Format", "Loaded", "Pruner", "testing"}}
assert all(hasattr(sparsekit, name) for name in sparsekit.__all__ if name not in made_of_torch)
from sparsekit.cli.main import main

for method in ("gmp", "imp", "bimp", "dpf", "oneshot"):
    assert main(["plan", "--method", method, "--print_config"]) == 0
    for merge in ("uniform", "greedy", "best", "none"):
        assert main(["plan", "--method", method, "--merge", merge, "--replicas.vary", "lr"]) == 0
"""
    out, err, packages = run(sys.executable, "-c", script, folder=tmp_path)
    assert err == ""
    assert out.count("replica-epochs") == 20
    assert not packages & HEAVY


def test_importing_sparsekit_brings_the_contracts_and_nothing_that_waits_for_its_use(tmp_path: Path) -> None:
    code = "import sys; old = set(sys.modules); import sparsekit; print(*(set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    own = {name for name in done.stdout.split() if name.partition(".")[0] == "sparsekit"}
    assert own == {"sparsekit", "sparsekit._types", "sparsekit._version", "sparsekit.api", "sparsekit.errors"}
    assert not {"difflib", "heapq", "yaml", "jsonargparse", "importlib.metadata", "numpy"} & set(done.stdout.split())


@pytest.mark.parametrize("name", ["methods.GMP", "merges.Greedy", "tasks.Classification", "schedules", "testing.run"])
def test_what_the_pages_name_by_dots_is_there_after_importing_sparsekit_alone(tmp_path: Path, name: str) -> None:
    code = f"import sys, sparsekit; before = 'torch' in sys.modules; sparsekit.{name}; print(before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_the_refusal_above_works(tmp_path: Path) -> None:
    script = f"{BLOCKED}\nimport sparsekit.api\nimport torch"
    _, err, _ = run(sys.executable, "-c", script, folder=tmp_path, code=1)
    assert "torch was imported" in err
