"""A device without enough memory: one line that says what to lower, and what was trained is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from nullcuda.test_paths import CUDA, fit

if TYPE_CHECKING:
    from nullcuda.conftest import NullCuda

pytestmark = [pytest.mark.nullcuda, pytest.mark.slow]
# torch raises another error where its allocator does not cache: as everywhere outside of its allocator, too
ALLOCATORS = pytest.mark.parametrize("caching", [{"PYTORCH_NO_CUDA_MEMORY_CACHING": ""}, {}], ids=["caching", "plain"])


def error_of(printed: str) -> str:
    assert "Traceback" not in printed
    return next(line for line in printed.splitlines() if line.startswith("sparsekit: error: "))


@ALLOCATORS
def test_a_step_that_does_not_fit_is_bad_input(nullcuda: NullCuda, tmp_path: Path, caching: dict[str, str]) -> None:
    arguments = ["--data.image_size", "32", "--out", str(tmp_path / "run")]
    printed = nullcuda.run("child.py", "fit", *CUDA, *arguments, expect=2, NULLCUDA_LIMIT="30", **caching)
    assert all(part in error_of(printed) for part in ("out of memory", "--data.batch_size", "--precision bf16"))
    assert not (tmp_path / "run").exists()


@ALLOCATORS
def test_a_run_that_does_not_fit_any_longer_keeps_its_checkpoints(
    nullcuda: NullCuda, tmp_path: Path, caching: dict[str, str]
) -> None:
    out = tmp_path / "run"
    printed = nullcuda.run("full.py", "fit", *CUDA, "--out", str(out), expect=1, **caching)
    fixes = ("out of memory", "--data.batch_size", "--replicas.executor sequential", "--precision bf16", "checkpoints")
    assert all(part in error_of(printed) for part in fixes)
    assert json.loads((out / "summary.json").read_text())["status"] == "failed"
    assert "resuming in segment" in fit(nullcuda, out, "--resume")


def test_replicas_that_do_not_fit_together_are_trained_one_after_another(nullcuda: NullCuda, tmp_path: Path) -> None:
    """Sixteen at 50 images of 32×32 pixels: one alone takes less than 200 MiB, all of them more than 350."""
    many = ["--replicas.count", "16", "--replicas.start", "0", "--method", "oneshot", "--epochs", "2"]
    more = ["--data.image_size", "32", "--replicas.executor", "auto"]
    printed = fit(nullcuda, tmp_path / "run", *many, *more, NULLCUDA_LIMIT="250")
    assert "one after another" in printed
    assert "16 of them do not fit into the memory of cuda:0" in printed


def test_a_finished_model_that_does_not_fit_is_one_line(nullcuda: NullCuda, tmp_path: Path) -> None:
    fit(nullcuda, tmp_path / "run")
    model = str(tmp_path / "run")
    for command in (["evaluate", model], ["merge", model, model, "-o", str(tmp_path / "soup")]):
        printed = nullcuda.run("child.py", *command, "--device", "cuda", expect=1, NULLCUDA_LIMIT="1")
        assert all(part in error_of(printed) for part in ("out of memory", "--data.batch_size"))
