"""Whether CUDA gives what the CPU gives: the tests that need a device, and twelve short fits on both.

The CPU trains in fp32 and one replica after another, whatever the fit on the device does.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from _gpu import Part, failed, tell

ROOT = Path(__file__).parents[1]
FITS = (  # method, merge, precision, executor
    ("gmp", "uniform", "fp32", "sequential"),
    ("gmp", "greedy", "bf16", "vectorized"),
    ("imp", "fisher", "tf32", "vectorized"),
    ("bimp", "learned", "fp16", "sequential"),
    ("dpf", "uniform", "bf16", "sequential"),
    ("oneshot", "best", "fp32", "vectorized"),
    ("rigl", "model_stock", "bf16", "vectorized"),
    ("granet", "likelihood", "fp16", "vectorized"),
    ("swamp", "swa", "tf32", "sequential"),
    ("str", "ties", "bf16", "sequential"),
    ("dst", "dare", "fp16", "sequential"),
    ("lc", "none", "fp32", "sequential"),
)
EPOCHS, TOLERANCE = 10, 0.05
"""Of test accuracy: a thousand images, and another order of sums leads to other weights."""
Fit = tuple[str, str, str, str]
Outcome = dict[str, float] | str


def options_of(fit: Fit, device: str, quick: bool) -> list[str]:
    """The options of a fit on a device."""
    method, merge, precision, executor = fit
    if device == "cpu":
        precision, executor = "fp32", "sequential"
    chosen = ["--method", method, "--merge", merge, "--precision", precision, "--replicas.executor", executor]
    size = ["--epochs", str(6 if quick else EPOCHS), "--replicas.count", "2", *(["--data.image_size", "8"] * quick)]
    return [*chosen, *size, "--device", device, "--wandb.mode", "disabled", "--evaluation.report", "false"]


def outcome(job: tuple[Fit, str, bool]) -> tuple[Fit, str, Outcome]:
    """One fit in this process: its accuracy and sparsity, or why there is none."""
    import torch

    from sparsekit.cli.main import main

    torch.set_num_threads(1)
    fit, device, quick = job
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(said), redirect_stderr(said):
        out = Path(folder) / "run"
        try:
            code: object = main(["fit", *options_of(fit, device, quick), "--out", str(out)])
        except (Exception, SystemExit) as error:
            return fit, device, f"{device}: {type(error).__name__}: {error}"
        if code:
            lines = [line for line in said.getvalue().splitlines() if line.strip()]
            return fit, device, f"{device}: {lines[-1] if lines else f'exit code {code}'}"
        summary = json.loads((out / "summary.json").read_text())
        return fit, device, {"accuracy": summary["test.accuracy"], "sparsity": summary["sparsity"]}


def measure(part: Part) -> None:
    """A row for the tests, a row a fit, and a row that counts them."""
    tests = start_tests()
    fits = FITS[:2] if part.quick else FITS
    jobs = [(fit, device, part.quick) for fit in fits for device in ("cuda", "cpu")]
    pool = multiprocessing.get_context("spawn").Pool(max(1, min(8, len(os.sched_getaffinity(0)) // 2)))
    results = pool.imap_unordered(outcome, jobs)
    found: dict[Fit, dict[str, Outcome]] = {fit: {} for fit in fits}
    held = 0
    try:
        for _ in jobs:
            fit, device, result = results.next(max(0.0, part.left))
            found[fit][device] = result
            if len(found[fit]) == 2:
                held += compare(fit, **found[fit])
    except multiprocessing.TimeoutError:
        for fit, pair in found.items():
            if len(pair) < 2:
                tell(name_of(fit), "not measured: no time was left")
    tell("fits on CUDA that hold against the CPU", f"{held} of {len(fits)}", held=held, fits=len(fits))
    tell_tests(tests, part)
    if all(len(pair) == 2 for pair in found.values()):
        pool.terminate()  # else gpu.py does: a fit takes SIGTERM as a wish to go on later


def name_of(fit: Fit) -> str:
    """What a fit does, in a few words."""
    return f"fit, {', '.join(fit)}"


def compare(fit: Fit, cuda: Outcome, cpu: Outcome) -> bool:
    """Tell how a fit ended on both; whether it holds."""
    wrong = [each for each in (cuda, cpu) if isinstance(each, str)]
    if isinstance(cuda, str) or isinstance(cpu, str):
        tell(name_of(fit), failed(wrong[0]))
        return False
    near = abs(cuda["accuracy"] - cpu["accuracy"]) <= TOLERANCE
    same = cuda["sparsity"] == cpu["sparsity"]
    points = f"{'within' if near else 'NOT within'} {100 * TOLERANCE:.0f} points"
    ours, theirs = (f"{100 * each['accuracy']:.1f} % at {100 * each['sparsity']:.2f} %" for each in (cuda, cpu))
    verdict = f"{points}, sparsity {'equal' if same else 'NOT equal'}"
    tell(name_of(fit), ours, "CPU, fp32", theirs, verdict, 1, cuda=cuda, cpu=cpu)
    return near and same


def start_tests() -> subprocess.Popen[str]:
    """Pytest on the files that have tests which need a device."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text()]
    options = ["-m", "cuda", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *files]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *options],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def tell_tests(tests: subprocess.Popen[str], part: Part) -> None:
    """A row of what pytest said last, and one for each test that failed."""
    try:
        printed, _ = tests.communicate(timeout=max(1.0, part.left))
    except subprocess.TimeoutExpired:
        tests.kill()
        tell("pytest -m cuda", "not measured: no time was left")
        return
    lines = printed.strip().splitlines() or ["nothing was said"]
    tell("pytest -m cuda", lines[-1].strip("= ")[:160], code=tests.returncode)
    for line in lines:
        if line.startswith(("FAILED", "ERROR ")):
            tell("pytest -m cuda", line[:160])
