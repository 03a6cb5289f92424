"""The processes that read images: signals to their whole group, their deaths, and the shared memory they need."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from sparsekit.config.options import DataConfig
from sparsekit.data import folder, load
from sparsekit.data.batches import Examples
from sparsekit.errors import ReadError, UserError

FIT = ["--data.name", "imagefolder", "--data.image_size", "32", "--data.batch_size", "12", "--device", "cpu"]
FIT += ["--model.name", "test_resnet", "--optimizer.lr", "0.01", "--replicas.count", "2", "--replicas.start", "0"]
FIT += ["--wandb.mode", "disabled", "--evaluation.report", "false"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", 24), ("val", 4)):
        for channel, name in enumerate(("aardvark", "bobcat", "caribou")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                colour = tuple(9 * number + 30 * (i == channel) for i in range(3))
                Image.new("RGB", (40, 40), colour).save(root / part / name / f"{number}.png")
    return root


def start(images: Path, out: Path, epochs: int, *options: str, before: list[str] = []) -> subprocess.Popen[str]:  # noqa: B006
    arguments = [*FIT, "--data.root", str(images), "--epochs", str(epochs), "--out", str(out), *options]
    return subprocess.Popen(
        [*before, sys.executable, "-m", "sparsekit", "fit", *arguments], start_new_session=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for_rows(process: subprocess.Popen[str], out: Path, count: int) -> None:
    path = out / "metrics.jsonl"
    while process.poll() is None and not (path.exists() and len(path.read_text().splitlines()) >= count):
        time.sleep(0.02)


def workers(pid: int) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors") | load_file(out / "masks.safetensors")


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_whole_group_keeps_a_checkpoint(signum: signal.Signals, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(images, out, 400, "--data.workers", "2")
    wait_for_rows(process, out, 15)
    began, running = time.monotonic(), workers(process.pid)
    os.killpg(process.pid, signum)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signum
    assert time.monotonic() - began < 10.0
    assert "Traceback" not in error
    assert f"stopped by {signum.name}" in error
    assert list((out / "checkpoints").glob("*.json"))
    assert json.loads((out / "summary.json").read_text())["status"] == "stopped"
    assert running
    assert not any(Path(f"/proc/{pid}").exists() for pid in running)


@pytest.mark.slow
@pytest.mark.faults
def test_gnu_timeout_stops_a_run_after_a_checkpoint(images: Path, tmp_path: Path) -> None:
    """It sends SIGTERM to its child and then to the child's whole process group."""
    out = tmp_path / "run"
    process = start(images, out, 4000, "--data.workers", "2", before=["timeout", "--preserve-status", "25"])
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 143
    assert "stopped by SIGTERM" in error
    assert list((out / "checkpoints").glob("*.json"))


@pytest.mark.slow
@pytest.mark.faults
def test_a_worker_that_is_killed_is_one_line_after_a_checkpoint(images: Path, tmp_path: Path) -> None:
    """As by the kernel where memory runs out; the run that resumes ends with the bits of an undisturbed one."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert start(images, whole, 30, "--data.workers", "2").wait(300) == 0
    process = start(images, out, 30, "--data.workers", "2")
    wait_for_rows(process, out, 8)
    killed = False
    while process.poll() is None and not killed:
        for pid in workers(process.pid)[:1]:
            try:
                os.kill(pid, signal.SIGKILL)
                killed = True
            except ProcessLookupError:
                continue
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1, error
    assert "Traceback" not in error
    assert error.count("sparsekit: error:") == 1
    for part in ("reads images ended", "--data.workers", "--resume"):
        assert part in error
    assert list((out / "checkpoints").glob("*.json"))
    resumed = start(images, out, 30, "--data.workers", "2", "--resume")
    assert resumed.wait(300) == 0
    expected, found = weights(whole), weights(out)
    assert all(found[name].equal(expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True], ids=["images", "own examples"])
def test_the_death_of_a_worker_is_raised_by_the_next_read_alone(images: Path, own: bool) -> None:
    """Not in the middle of an optimizer step, where torch's handler of SIGCHLD would raise it."""
    other = DataLoader(TensorDataset(torch.zeros(4)), num_workers=1)  # such as a user's own, which sets the handler
    assert len(list(other)) == 4
    if own:
        loaded = Examples(TensorDataset(torch.zeros(5000, 3), torch.zeros(5000)), torch.device("cpu"), 1, "train")
        batches = loaded.batches([(n, 0)] for n in range(5000))
    else:
        config = DataConfig("imagefolder", str(images), batch_size=12, image_size=16, workers=1)
        batches = load(config, torch.device("cpu"), False).train_batches(0, 100)
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGKILL)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        pass
    with pytest.raises(ReadError, match="cannot be read.*--data.workers" if own else "reads images ended"):
        list(batches)


# --- shared memory -----------------------------------------------------------------------------------

Room = namedtuple("Room", ["f_bavail", "f_frsize"])


@pytest.mark.parametrize(("ranks", "free", "refused"), [(1, 87_040, False), (1, 87_039, True), (2, 174_079, True)])
def test_shared_memory_that_the_workers_do_not_have_is_told_before(
    ranks: int, free: int, refused: bool, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers a rank, each two batches ahead, and one in use; twelve images of 3 x 16 x 16 bytes and two pages."""
    monkeypatch.setattr(folder.mmap, "PAGESIZE", 4096)
    assert (2 * 2 + 1) * (12 * 3 * 16 * 16 + 2 * 4096) == 87_040
    monkeypatch.setattr(folder, "_cores", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setattr(folder.os, "statvfs", lambda _: Room(free, 1))

    def read(workers: int) -> Any:
        config = DataConfig("imagefolder", str(images), batch_size=12, image_size=16, workers=workers)
        return load(config, torch.device("cpu"), False)

    assert read(0).num_classes == 3
    if not refused:
        read(2)
        return
    with pytest.raises(UserError) as error:
        read(2)
    for part in ("--data.workers 2", "/dev/shm", "--data.workers 0", "--shm-size"):
        assert part in str(error.value)
