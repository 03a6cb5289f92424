"""Real processes under torchrun: the same weights as one process, whatever happens to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import ARGUMENTS, rows

VIT = {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 2}
# no BatchNorm, which normalises by what a rank sees
MODEL = ["--model.name", "vit_tiny_patch16_224", "--model.kwargs", json.dumps(VIT), "--optimizer.name", "adamw"]
NO_BATCHNORM = [*ARGUMENTS[:-2], *MODEL, "--optimizer.lr", "0.002"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """As torchrun gives its ranks: another number of threads makes other bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def command(ranks: int, *arguments: str) -> list[str]:
    """`sparsekit fit` on six epochs, under torchrun where there are several ranks."""
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else ["-m"]
    )
    return [sys.executable, *launch, "sparsekit", "fit", "--epochs", "6", *arguments]


def fit(ranks: int, *arguments: str, expect: int = 0) -> str:
    done = subprocess.run(command(ranks, *arguments), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == expect, done.stderr[-3000:]
    return done.stdout + done.stderr


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors") | load_file(out / "masks.safetensors")


def same(left: Path, right: Path) -> bool:
    one, two = tensors(left), tensors(right)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def plain(out: Path) -> list[dict[str, Any]]:
    """The rows without ranks, in an order of their own."""
    found = [{key: value for key, value in row.items() if key not in ("rank", "wall_seconds")} for row in rows(out)]
    return sorted(found, key=lambda row: json.dumps(row, sort_keys=True))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three replicas, one after another in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    fit(1, *ARGUMENTS, "--out", str(out))
    return out


@pytest.mark.slow
def test_two_ranks_train_three_replicas_to_the_bits_of_one_process(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(2, *ARGUMENTS, "--out", str(out))
    assert same(alone, out)
    assert plain(out) == plain(alone)
    who = {(row["replica"], row["rank"]) for row in rows(out, "candidate") if row["segment"] > 0}
    assert who == {(0, 0), (1, 1), (2, 0)}
    assert not any((out / "checkpoints").iterdir())


@pytest.mark.slow
def test_two_ranks_prune_whole_channels_to_the_bits_of_one_process(tmp_path: Path) -> None:
    options = [*ARGUMENTS, "--masks.pattern", "channels", "--sparsity", "0.5", "--data.limit", "300"]
    fit(1, *options, "--out", str(tmp_path / "one"))
    fit(2, *options, "--out", str(tmp_path / "two"))
    assert same(tmp_path / "one", tmp_path / "two")
    assert plain(tmp_path / "one") == plain(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    "axis",
    [
        ["--method", "str", "--replicas.vary", "method.strength", "--replicas.values", "[0.005, 0.02, 0.08]"],
        ["--replicas.vary", "augment", "--label_smoothing", "0.1"],
    ],
)
def test_ranks_train_replicas_that_differ_in_more_than_their_seed(tmp_path: Path, axis: list[str]) -> None:
    for ranks in (1, 2):
        fit(ranks, *ARGUMENTS, *axis, "--out", str(tmp_path / f"{ranks}"))
    assert same(tmp_path / "1", tmp_path / "2")
    assert plain(tmp_path / "1") == plain(tmp_path / "2")


@pytest.mark.slow
def test_a_rank_that_has_other_images_ends_the_run(tmp_path: Path) -> None:
    """As where a node's copy of the data set is not complete: each rank here reads a folder of its own."""
    for rank, count in enumerate((8, 7)):
        for name in "ab":
            (tmp_path / f"images{rank}" / name).mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (32, 32), (40 * number, 0, 0))
                image.save(tmp_path / f"images{rank}" / name / f"{number}.png")
    script = tmp_path / "go.py"
    script.write_text(
        "import os, sys\nfrom sparsekit.cli.main import main\n"
        "sys.exit(main([*sys.argv[1:], '--data.root', f\"images{os.environ['RANK']}\"]))\n"
    )
    data = ["--data.name", "imagefolder", "--data.image_size", "32", "--data.batch_size", "4", "--data.held_out", "0.2"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), "fit"]
    model = ["--model.name", "test_resnet", "--wandb.mode", "disabled", "--out", "run"]
    done = subprocess.run(
        [sys.executable, *launch, *data, *model], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode != 0
    assert "rank 1: its images in --data.root are not rank 0's" in done.stderr
    assert not (tmp_path / "run").exists()


LONGER = [*ARGUMENTS, "--epochs", "18"]


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `alone`, three times as long."""
    out = tmp_path_factory.mktemp("longer") / "run"
    fit(1, *LONGER, "--out", str(out))
    return out


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(("first", "then"), [(2, 2), (2, 1), (1, 2), (3, 2)])
def test_a_killed_rank_ends_the_run_and_other_ranks_go_on(longer: Path, tmp_path: Path, first: int, then: int) -> None:
    """SIGKILL to one rank at some instants; each time torchrun ends, and the next number of ranks resumes."""
    out = tmp_path / "run"
    arguments = [*LONGER, "--out", str(out), "--checkpoint.minutes", "0.0005", "--resume"]
    ranks, killed = first, 0
    for pause in (0.3, 0.9, 1.6):
        process = subprocess.Popen(
            command(ranks, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        victim = wait_for_training(process, out, ranks)
        time.sleep(pause)
        if victim is not None:
            killed += kill(victim)
        process.wait(200)
        ranks = then
    fit(then, *arguments)
    assert killed >= 2
    assert same(longer, out)
    assert plain(out) == plain(longer)


def wait_for_training(process: subprocess.Popen[bytes], out: Path, ranks: int) -> int | None:
    """The process id of the last rank, once it trains; None where the run ended before."""
    before = len((out / "metrics.jsonl").read_text()) if (out / "metrics.jsonl").exists() else 0
    while process.poll() is None:
        grown = (out / "metrics.jsonl").exists() and len((out / "metrics.jsonl").read_text()) != before
        found = children(process.pid) if ranks > 1 else [process.pid]
        if grown and found:
            return found[-1]
        time.sleep(0.02)
    return None


def children(parent: int) -> list[int]:
    listed = subprocess.run(
        ["pgrep", "-P", str(parent), "-f", "sparsekit"], capture_output=True, text=True, check=False
    )
    return [int(line) for line in listed.stdout.split()]


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.faults
def test_a_signal_to_torchrun_stops_every_rank_after_a_checkpoint(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = [*ARGUMENTS, "--out", str(out), "--resume"]
    process = subprocess.Popen(command(2, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    victim = wait_for_training(process, out, 2)
    assert victim is not None
    time.sleep(0.5)
    process.terminate()
    _, errors = process.communicate(timeout=200)
    assert "SIGKILL" not in errors.decode()  # which torchrun sends to ranks that have not stopped after 30 s
    assert "stopped by SIGTERM; go on with" in errors.decode()
    assert json.loads((out / "summary.json").read_text())["status"] == "stopped"
    assert children(process.pid) == []
    fit(2, *arguments)
    assert same(alone, out)
    assert plain(out) == plain(alone)


@pytest.mark.slow
@pytest.mark.faults
def test_a_signal_that_ends_torchrun_stops_its_ranks_after_a_checkpoint(alone: Path, tmp_path: Path) -> None:
    """SIGUSR1 to all processes, as Slurm sends it to a step: torchrun has no handler for it, and dies."""
    out = tmp_path / "run"
    arguments = [*ARGUMENTS, "--out", str(out), "--resume"]
    process = subprocess.Popen(command(2, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert wait_for_training(process, out, 2) is not None
    time.sleep(0.5)
    ranks = children(process.pid)
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.3)
    for pid in ranks:
        os.kill(pid, signal.SIGUSR1)
    _, errors = process.communicate(timeout=100)  # the ranks hold the pipe, too
    assert process.returncode == -signal.SIGUSR1
    assert "stopped by SIGUSR1; go on with" in errors.decode()
    assert "lost touch" not in errors.decode()
    assert json.loads((out / "summary.json").read_text())["status"] == "stopped"
    fit(2, *arguments)
    assert same(alone, out)
    assert plain(out) == plain(alone)


@pytest.mark.slow
def test_two_ranks_a_replica_agree_with_one_process(tmp_path: Path) -> None:
    """Data parallel, without BatchNorm: equal but for rounding. Masks may differ where two magnitudes nearly tie."""
    for ranks in (1, 2):
        fit(ranks, *NO_BATCHNORM, "--replicas.count", "1", "--out", str(tmp_path / str(ranks)))
    one, two = tensors(tmp_path / "1"), tensors(tmp_path / "2")
    agree = sum(int((one[name] == two[name]).sum()) for name in one if one[name].dtype is torch.bool)
    assert agree >= 0.998 * sum(t.numel() for t in one.values() if t.dtype is torch.bool)
    distance = sum(float((one[n].double() - two[n].double()).square().sum()) for n in one if one[n].is_floating_point())
    norm = sum(float(one[n].double().square().sum()) for n in one if one[n].is_floating_point())
    assert (distance / norm) ** 0.5 < 0.02
    assert {row["rank"] for row in rows(tmp_path / "2", "train")} == {0}


@pytest.mark.slow
@pytest.mark.faults
def test_a_team_stops_together_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """The signal goes to the second member alone; a finished run that is resumed says so and ends."""
    arguments = [*NO_BATCHNORM, "--replicas.count", "1", "--epochs", "12"]
    whole, out = tmp_path / "whole", tmp_path / "cut"
    fit(2, *arguments, "--out", str(whole))
    cut = [*arguments, "--out", str(out), "--resume"]
    process = subprocess.Popen(command(2, *cut), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    victim = wait_for_training(process, out, 2)
    assert victim is not None
    os.kill(victim, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert "stopped by SIGTERM; go on with" in errors.decode()
    fit(2, *cut)
    assert same(whole, out)
    assert plain(whole) == plain(out)
    assert "this run is done" in fit(2, *cut)


@pytest.mark.slow
def test_four_ranks_train_two_replicas_in_teams_of_two(tmp_path: Path) -> None:
    fit(4, *NO_BATCHNORM, "--replicas.count", "2", "--out", str(tmp_path / "run"))
    who = {(row["replica"], row["rank"]) for row in rows(tmp_path / "run", "candidate") if row["segment"] > 0}
    assert who == {(0, 0), (1, 2)}


@pytest.mark.slow
def test_a_team_ends_its_process_group(tmp_path: Path) -> None:
    script = tmp_path / "go.py"
    script.write_text(
        "import sys\nimport torch.distributed as dist\nfrom sparsekit.cli.main import main\n"
        "code = main()\nprint('group left' if not dist.is_initialized() else 'group kept')\nsys.exit(code)\n"
    )
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), "fit"]
    arguments = [*NO_BATCHNORM, "--replicas.count", "1", "--epochs", "6", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, *launch, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("group left") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "arguments", "error"),
    [
        (3, ["--replicas.count", "2"], "3 ranks for 2 replicas: they cannot be shared out; start up to 2 ranks, or"),
        (2, ["--replicas.count", "1", "--data.batch_size", "51"], "--data.batch_size 51 cannot be shared by 2 ranks"),
        (2, ["--replicas.count", "1", "--replicas.sync_batchnorm", "true"], "--replicas.sync_batchnorm needs CUDA"),
        (2, ["--sparsity", "2"], "--sparsity is 2.0; give a fraction from 0 to below 1"),
    ],
)
def test_bad_input_is_said_once_and_nothing_is_made(
    tmp_path: Path, ranks: int, arguments: list[str], error: str
) -> None:
    said = fit(ranks, *ARGUMENTS, *arguments, "--out", str(tmp_path / "run"), expect=1)  # torchrun's own exit code
    assert said.count(f"sparsekit: error: {error}") == 1
    assert "exitcode  : 2" in said
    assert not (tmp_path / "run").exists()
