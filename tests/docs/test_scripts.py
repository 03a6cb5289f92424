"""The scripts of docs/scripts, each of thirty lines at most, run as they stand."""

from __future__ import annotations

import ast
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbclient
import nbformat
import pytest
import torch
from documents import blocks
from safetensors.torch import load_file

SCRIPTS = Path(__file__).parents[2] / "docs" / "scripts"


def start(name: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=-1, stderr=-1, text=True)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    return out


def check_soup(run: Path, sparsity: float) -> None:
    """A souped model at exactly the planned sparsity, counted in its file."""
    summary = json.loads((run / "summary.json").read_text())
    masks, weights = load_file(run / "masks.safetensors"), load_file(run / "model" / "model.safetensors")
    total = sum(mask.numel() for mask in masks.values())
    assert summary["merged"]
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(sparsity * total)
    assert all(not weights[name][~mask].any() for name, mask in masks.items())


@pytest.mark.docs
@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_has_thirty_lines_of_code_at_most(script: Path) -> None:
    tree = ast.parse(script.read_text())
    docstring = tree.body[0].end_lineno or 1
    code = [line for line in script.read_text().splitlines()[docstring:] if line.strip()]
    assert len(code) <= 30


@pytest.mark.docs
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_run_of_the_page_on_own_models_learns_with_any_seed(tmp_path: Path, seed: int) -> None:
    page = list(blocks(SCRIPTS.parent / "own-model.md"))
    for block in page:
        if block.file:
            (tmp_path / block.file).write_text(block.text)
    command = next(command for block in page for command in block.commands if " fit " in command)
    arguments = [*shlex.split(command)[1:], "--seed", str(seed), "--wandb.mode", "disabled"]
    done = subprocess.run(
        [sys.executable, "-m", "sparsekit", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "learned nothing" not in done.stderr
    assert json.loads((tmp_path / "runs" / "small" / "summary.json").read_text())["test.accuracy"] > 0.93


@pytest.mark.docs
def test_own_model(tmp_path: Path) -> None:
    out = ended(start("own_model.py", tmp_path))
    check_soup(tmp_path / "runs" / "own-model", 0.9)
    assert float(out.split()[-2]) > 0.7  # of three classes


@pytest.mark.docs
def test_own_dataset_is_killed_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    ended(start("own_dataset.py", tmp_path, "whole"))
    check_soup(tmp_path / "whole", 0.9)
    process = start("own_dataset.py", tmp_path, "killed")
    rows = tmp_path / "killed" / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and (not rows.exists() or rows.read_text().count('"candidate"') < 4):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "model").exists()
    ended(start("own_dataset.py", tmp_path, "killed", "--resume"))
    whole, killed = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.docs
def test_the_notebook_runs_and_shows_one_line_that_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a real kernel, whose output is text alone: no block of HTML for each line."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(SCRIPTS.parent / "notebooks" / "first-soup.ipynb", 4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (fit,) = (cell for cell in notebook.cells if "sparsekit.fit(" in cell.source)
    assert {output.output_type for output in fit.outputs} == {"stream"}
    shown = "".join(output.text for output in fit.outputs if output.name == "stdout")
    assert shown.count("\r") > 5  # the line of progress, written over itself
    assert "on the test split" in shown
    (run,) = (tmp_path / "runs").iterdir()
    check_soup(run, 0.9)


@pytest.mark.docs
@pytest.mark.parametrize(("task", "sparsity", "least"), [("multilabel", 0.9, 0.95), ("segmentation", 0.8, 0.7)])
def test_another_task(tmp_path: Path, task: str, sparsity: float, least: float) -> None:
    out = ended(start(f"{task}.py", tmp_path))
    check_soup(tmp_path / "runs" / task, sparsity)
    assert float(out.split()[-2]) > least
