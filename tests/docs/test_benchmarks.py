"""How fast a pruning step is: ratios of what runs in turns, with room for a busy machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bench import FOLDER, load

pytestmark = pytest.mark.docs
pruning = load("pruning")
measure = load("_measure")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that share their cores with other processes wait for one another, long and at random."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_step_is_many_times_faster_than_torchs_and_needs_little_memory() -> None:
    problem = pruning.Problem()
    for index, other, least in ((0, problem.model, 15.0), (1, problem.zeros, 10.0)):
        runs = {
            "ours": measure.timed(partial(problem.ours, index)),
            "torch": partial(problem.torch_step, other, pruning.PLAN[index].sparsity),
        }
        times = measure.alternate(runs, 3)
        assert measure.ratio(times["torch"], times["ours"]).median >= least
    for index in (0, 1):
        times = measure.alternate(problem.selection(index), 15)
        assert measure.ratio(times["ours"], times["numpy"]).median <= 1.0
        # numpy's code for some CPUs orders gathered survivors before all scores could be compared with a threshold
        if measure.ratio(times["partition"], times["comparison"]).median >= 1.0:
            assert measure.ratio(times["ours"], times["partition"]).median <= 1.5
    for what in ("ours dense", "ours sparse"):
        assert measure.child("pruning.py", "--child", what)["extra"] < 4.0


def test_the_benchmarks_figures_are_medians_of_neighbours() -> None:
    found = measure.ratio([2.0, 6.0, 50.0], [1.0, 2.0, 5.0])  # 2, 3, 10
    assert (found.median, found.pairs) == (3.0, 3)
    assert 2.0 <= found.low <= 3.0 <= found.high <= 10.0
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    times = measure.alternate({name: partial(run, name) for name in "ab"}, 3)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]  # the first two warm up
    assert times == {"a": [4.0, 5.0, 8.0], "b": [3.0, 6.0, 7.0]}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_cuda_benchmark_says_in_one_line_that_there_is_no_device() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "gpu.py")],
        capture_output=True,
        text=True,
        env=measure.environment(),
        check=False,
    )
    assert done.returncode == load("run").NO_CUDA
    assert len(done.stderr.strip().splitlines()) == 1
    assert "no CUDA device" in done.stderr


PART = """
import json, os, sys, time
part = sys.argv[sys.argv.index("--part") + 1]
facts = len(json.load(open(os.environ["WRITTEN"]))["facts"]) if part == "last" else 0
print(json.dumps({"row": ["a figure"], "numbers": {"before": facts}}), flush=True)
if part == "fails":
    raise ValueError("no such unit")
time.sleep(60 if part == "endless" else 0)
"""


def test_no_part_of_the_cuda_benchmark_keeps_another_from_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, script, written = load("gpu"), tmp_path / "part.py", tmp_path / "gpu.json"
    script.write_text(PART)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("WRITTEN", str(written))
    began = time.monotonic()
    budgets = {"fails": 60.0, "endless": 1.0, "none": 0.0, "last": 0.1}
    gpu.measure(gpu.Section("CUDA", gpu.HEADER), budgets, Namespace(json=written, data="", quick=True))
    assert time.monotonic() - began < 30.0
    section = load("run").Section(**json.loads(written.read_text()))
    ends = {fact["part"]: fact["reason"] for fact in section.facts if "reason" in fact}
    assert ends["fails"] == "ended with 1: ValueError: no such unit"
    assert ends["endless"] == "its 1 s were over; the rest was not measured"
    assert ends["last"] == ""  # it got what the others left of their time
    figures = {fact["part"]: fact["before"] for fact in section.facts if fact.get("what") == "a figure"}
    assert figures == {"fails": 0, "endless": 0, "last": len(section.facts) - 2}  # all before it were in the file
    assert ["none", "all", "left out"] in [row[:3] for row in section.rows]
    assert section.markdown().count("| a figure |") == 3


def test_what_is_carried_to_a_gpu_is_what_torch_and_timm_do_not_bring(tmp_path: Path) -> None:
    needs = [
        "torch>=2.11",
        "PyYAML",
        "wandb>=0.31",
        "jsonargparse[signatures]<5,>=4.53",
        "xxhash",
        "onnx; extra == 'export'",
    ]
    with zipfile.ZipFile(tmp_path / "some-1.whl", "w") as wheel:
        wheel.writestr("some-1.dist-info/METADATA", "".join(f"Requires-Dist: {line}\n" for line in needs))
    carry = load("carry")
    assert carry.requirements(tmp_path / "some-1.whl") == ["jsonargparse[signatures]<5,>=4.53", "xxhash"]
    with pytest.raises(SystemExit, match="not made by this script"):
        carry.carry(tmp_path, "3.12", tmp_path)
    assert (tmp_path / "some-1.whl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_every_benchmark_finds_what_it_imports(name: str) -> None:
    load(name)


@pytest.mark.slow
def test_steps_are_timed_with_masks_and_without() -> None:
    step = load("step")
    runs = step.step_runs(step.DataConfig(), 2, time.perf_counter) | step.loop_runs(step.DataConfig(), 2)
    assert all(run() > 0.0 for run in runs.values())


@pytest.mark.slow
@pytest.mark.exhaustive
def test_ten_replicas_need_little_more_memory_than_two() -> None:
    peaks = [measure.child("memory.py", "--child", count, "resnet50")["peak"] for count in ("2", "10")]
    assert peaks[1] <= 1.15 * peaks[0]


def test_a_page_keeps_the_figures_of_what_was_not_run_again(tmp_path: Path) -> None:
    run, page = load("run"), tmp_path / "page.md"
    assert run.read(page) == {}
    run.write(page, {"step": "## Step\n\nfirst\n"})
    assert page.read_text().count(run.UNMEASURED) == len(run.ALL) - 1
    run.write(page, run.read(page) | {"memory": "## Memory\n\nsecond\n"})
    text = page.read_text()
    assert text.count(run.UNMEASURED) == len(run.ALL) - 2
    assert text.index("first") < text.index("second")
    assert text.count("# Benchmarks") == 1


def test_figures_of_a_cuda_device_stay_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, page = load("run"), tmp_path / "page.md"
    monkeypatch.setattr(run, "machine", lambda: "a machine")
    done = subprocess.CompletedProcess[str]([], run.NO_CUDA)
    monkeypatch.setattr(run, "subprocess", SimpleNamespace(run=lambda *_, **__: done))
    monkeypatch.setattr(sys, "argv", ["run.py", "--only", "gpu", "--page", str(page)])
    run.main()
    assert "CUDA is not measured yet" in page.read_text()
    measured = run.Section("CUDA", ["what", "ratio"], [["step", "0.98"]]).markdown()
    run.write(page, run.read(page) | {"gpu": measured})
    run.main()
    assert run.read(page)["gpu"].strip() == measured.strip()


def test_a_single_run_that_fails_is_told_in_the_replicas_table(monkeypatch: pytest.MonkeyPatch) -> None:
    replicas = load("replicas")
    monkeypatch.setattr(replicas, "seconds", lambda way, count, epochs: 2.0 if count > 1 else "no memory was left")
    section = replicas.measure(quick=True)
    assert [row[2] for row in section.rows[: len(replicas.WAYS)]] == ["did not run: no memory was left"] * 4


@pytest.mark.slow
def test_an_average_of_ten_needs_no_more_memory_than_one_of_two(tmp_path: Path) -> None:
    load("merging").candidates(tmp_path, 10)
    extra = [measure.child("merging.py", "--child", str(tmp_path), n, "streamed")["extra"] for n in ("2", "10")]
    assert extra[0] < 2.5  # the average itself is 1
    assert extra[1] <= 1.15 * extra[0]
