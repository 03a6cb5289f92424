"""Every path of a run ends well with `--device cuda`, as far as the host can tell."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from tiny import ARGUMENTS, rows

from sparsekit.plugins.registry import discover

if TYPE_CHECKING:
    from nullcuda.conftest import NullCuda

pytestmark = pytest.mark.nullcuda
CUDA = [*ARGUMENTS, "--device", "cuda", "--epochs", "6", "--replicas.count", "2"]


def fit(nullcuda: NullCuda, out: Path, *arguments: str, ranks: int = 1, **environment: str) -> str:
    return nullcuda.run("child.py", "fit", *CUDA, *arguments, "--out", str(out), ranks=ranks, **environment)


def all_end_well(nullcuda: NullCuda, runs: list[list[str]]) -> list[str]:
    """Run command lines in one child; what each printed."""
    printed = nullcuda.run("runs.py", stdin=json.dumps(runs))
    done = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert [run["arguments"] for run in done] == runs, printed[-3000:]
    failed = [f"{run['arguments']}\n{run['printed'][-500:]}\n{run['code']}" for run in done if run["code"] != 0]
    assert not failed, "\n\n".join(failed)
    return [run["printed"] for run in done]


@pytest.mark.slow
def test_a_run_gets_through(nullcuda: NullCuda, tmp_path: Path) -> None:
    fit(nullcuda, tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "turn",
    [
        pytest.param(0, id="fp32", marks=pytest.mark.exhaustive),
        pytest.param(1, id="bf16"),
        pytest.param(2, id="fp16", marks=pytest.mark.exhaustive),
    ],
)
def test_every_method_and_merge_gets_through(nullcuda: NullCuda, tmp_path: Path, turn: int) -> None:
    """In each precision; over all three, each method and each merge one after another and stacked."""
    precision, names = ["fp32", "bf16", "fp16"][turn], [list(discover().of(kind)) for kind in ("method", "merge")]
    runs = []
    for index, method in enumerate(names[0]):
        merge = names[1][(index + turn) % len(names[1])]
        executor = ["sequential", "vectorized"][(index + turn) % 2]
        chosen = ["--method", method, "--merge", merge, "--replicas.executor", executor, "--precision", precision]
        runs.append(["fit", *CUDA, *chosen, "--out", str(tmp_path / method)])
    for arguments, printed in zip(runs, all_end_well(nullcuda, runs), strict=True):
        assert "one after another" not in printed, arguments


@pytest.mark.slow
def test_models_of_many_kinds_train_in_half_precision(nullcuda: NullCuda, tmp_path: Path) -> None:
    """Under vmap autocast does something else to each kind of layer; alone, attention is cuDNN's."""
    convolutions = ("test_resnet", "test_efficientnet", "test_byobnet", "test_convnext", "test_nfnet")
    cases = [(name, "{}", "vectorized") for name in convolutions]
    cases += [("vit_tiny_patch16_224", "{img_size: 32}", executor) for executor in ("sequential", "vectorized")]
    runs = []
    for name, kwargs, executor in cases:
        model = ["--model.name", name, "--model.kwargs", kwargs, "--data.image_size", "32", "--replicas.start", "0"]
        short = ["--method", "oneshot", "--epochs", "2", "--replicas.executor", executor, "--precision", "bf16"]
        runs.append(["fit", *CUDA, *model, *short, "--out", str(tmp_path / f"{name}-{executor}")])
    for arguments, printed in zip(runs, all_end_well(nullcuda, runs), strict=True):
        assert "one after another" not in printed, arguments


@pytest.mark.slow
def test_a_stopped_run_goes_on(nullcuda: NullCuda, tmp_path: Path) -> None:
    """On CUDA, where AdamW counts its steps on the device, and where there is no such device.

    Segments are long enough for recorded steps: of stacked replicas, then of one, and none on the CPU.
    """
    out = tmp_path / "run"
    longer = ["--epochs", "18", "--method", "oneshot", "--replicas.start", "0", "--optimizer.name", "adamw"]
    longer += ["--replicas.executor", "vectorized", "--device", "auto"]
    process = nullcuda.start("child.py", "fit", *CUDA, *longer, "--out", str(out), "--resume")
    until = time.monotonic() + 200
    while not (out / "metrics.jsonl").exists() or len(rows(out, "train")) < 3:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.terminate()
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 128 + signal.SIGTERM, printed
    shutil.copytree(out, tmp_path / "elsewhere")
    for copy, devices in ((out, "1"), (tmp_path / "elsewhere", "0")):
        on = ["--out", str(copy), "--resume", "--replicas.executor", "sequential"]
        printed = nullcuda.run("child.py", "fit", *CUDA, *longer, *on, NULLCUDA_DEVICES=devices)
        assert all(part in printed for part in ("resuming in segment", "stacked before"))
        assert "not recorded" not in printed


@pytest.mark.slow
def test_an_image_folder_gets_through(nullcuda: NullCuda, tmp_path: Path) -> None:
    for split, count in (("train", 24), ("test", 6)):
        for name in "ab":
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{number}.png")
    data = ["--data.name", "imagefolder", "--data.root", str(tmp_path / "images"), "--data.batch_size", "8"]
    for workers in ("0", "1"):
        fit(nullcuda, tmp_path / workers, *data, "--data.image_size", "32", "--data.workers", workers)


@pytest.mark.slow
def test_finished_models_are_measured_and_merged(nullcuda: NullCuda, tmp_path: Path) -> None:
    models = [str(tmp_path / str(seed)) for seed in (0, 1)]
    for seed, model in enumerate(models):
        fit(nullcuda, Path(model), "--seed", str(seed))
    runs = [["evaluate", models[0], "--device", "cuda", "--corruptions", "true", "--batchnorm", "both"]]
    for merge in ("uniform", "greedy", "fisher"):
        out = str(tmp_path / merge)
        runs.append(["merge", *models, "--merge", merge, "--masks", "union", "--device", "cuda", "-o", out])
    all_end_well(nullcuda, runs)


@pytest.mark.slow
def test_two_ranks_have_a_device_each(nullcuda: NullCuda, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(nullcuda, out, ranks=2, NULLCUDA_DEVICES="2")
    who = {(row["replica"], row["rank"]) for row in rows(out, "candidate") if row["segment"] > 0}
    assert who == {(0, 0), (1, 1)}


@pytest.mark.slow
def test_two_ranks_train_one_replica(nullcuda: NullCuda, tmp_path: Path) -> None:
    """And ask one another whether to stop without a wait for the device."""
    team = ["--replicas.count", "1", "--replicas.sync_batchnorm", "true", "--out", str(tmp_path / "run")]
    printed = nullcuda.run("team.py", "fit", *CUDA, *team, ranks=2, NULLCUDA_DEVICES="2")
    assert printed.count("waits of many flags: 0") == 2
    assert printed.count("process group left: False") == 2
