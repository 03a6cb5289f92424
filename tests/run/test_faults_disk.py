"""Full and read-only disks, as file systems of their own: one line, nothing lost, and a later resume is exact."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulting import start, wait_for_rows
from resuming import contents

pytestmark = [pytest.mark.slow, pytest.mark.faults]


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() != 0 or not mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)):
        pytest.skip("only root may mount a file system, and not in every container")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(disk: Path, spare: int) -> None:
    """Leave so many bytes free, or with less than none 64 MB."""
    stat = os.statvfs(disk)
    used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    assert mount("-o", f"remount,size={used + spare if spare >= 0 else 64 << 20}", str(disk))


def stopped(out: Path, *options: str) -> dict[str, bytes]:
    """Begin a run, stop it, and return its checkpoints."""
    process = start(out, *options)
    wait_for_rows(process, out, 8)
    process.terminate()
    assert process.wait() == 143
    return {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()}


def one_line(process: subprocess.Popen[str]) -> tuple[int, str]:
    """How a process ended, and the line that it said."""
    assert process.stderr is not None
    error = process.stderr.read()
    assert "Traceback" not in error, error
    assert len(error.strip().splitlines()) == 1, error
    return process.wait(), error


@pytest.mark.parametrize("spare", [0, 8_192, 120_000, 200_000])
def test_a_full_disk_is_one_line_and_keeps_what_is_there(spare: int, disk: Path, tmp_path: Path) -> None:
    """It fills up at once, at a row, at a checkpoint, or at a later one."""
    whole = tmp_path / "whole"
    assert start(whole).wait() == 0
    out = disk / "out"
    kept = stopped(out)
    resize(disk, spare)
    code, error = one_line(start(out, "--resume"))
    assert code == 1
    assert "No space left on device" in error
    manifests = sorted((out / "checkpoints").glob("*.json"))
    assert manifests
    if spare < 100_000:
        assert {name: (out / "checkpoints" / name).read_bytes() for name in kept} == kept
    resize(disk, -1)
    assert start(out, "--resume").wait() == 0
    assert contents(out) == contents(whole)


def test_a_run_that_begins_on_a_full_disk(disk: Path) -> None:
    resize(disk, 4096)
    code, error = one_line(start(disk / "out"))
    assert code == 1
    assert "No space left on device" in error


def test_a_read_only_directory_is_one_line_and_a_later_resume_is_exact(disk: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert start(whole).wait() == 0
    out = disk / "out"
    stopped(out)
    before = {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert mount("-o", "remount,ro", str(disk))
    for options in ((out, "--resume"), (disk / "new",)):
        code, error = one_line(start(options[0], *options[1:]))  # type: ignore[arg-type]
        assert code == 2
        assert f"--out {options[0]}: Read-only file system; give a directory that can be written" in error
    assert {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert mount("-o", "remount,rw", str(disk))
    assert start(out, "--resume").wait() == 0
    assert contents(out) == contents(whole)


def test_vanished_data_is_one_line_and_a_later_resume_is_exact(tmp_path: Path) -> None:
    source = Path("/usr/share/datasets/fashion-mnist")
    if not source.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    root, away, out, whole = (tmp_path / name for name in ("data", "away", "out", "whole"))
    shutil.copytree(source, root)
    data = ["--data.name", "fashion_mnist", "--data.root", str(root), "--data.batch_size", "2000", "--epochs", "6"]
    data += ["--data.image_size", "8", "--method", "oneshot", "--model.kwargs", "{channels: [4, 4, 4, 4]}"]
    assert start(whole, *data).wait() == 0
    kept = stopped(out, *data)
    root.rename(away)
    code, error = one_line(start(out, *data, "--resume"))
    assert code == 2
    assert f"--data.root: '{root}' does not exist" in error
    assert {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()} == kept
    away.rename(root)
    assert start(out, *data, "--resume").wait() == 0
    assert contents(out) == contents(whole)


def test_rows_that_were_taken_away_are_missed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    kept = stopped(out)
    rows = (out / "metrics.jsonl").read_bytes()
    (out / "metrics.jsonl").write_bytes(rows[:40])
    code, error = one_line(start(out, "--resume"))
    assert code == 1
    assert "metrics.jsonl lacks rows" in error
    assert {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()} == kept
    (out / "metrics.jsonl").write_bytes(rows)
    assert start(out, "--resume").wait() == 0
    assert json.loads((out / "summary.json").read_text())["status"] == "done"
