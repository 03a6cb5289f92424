"""What averaging at every pruning step brings on digits: paired over seeds, soup against one model.

    python benchmarks/soup_gain.py [--method gmp] [--seeds 10] [--sparsity 0.95] [--starts 0.0 0.5] [--json FILE]

Each run is a real `sparsekit fit`, single-threaded, two at a time. Prints, for every `--replicas.start`, the mean
test accuracy of one model, of the soup and of the soup's own candidates, the paired gain with its 95 % interval
(Student's t), and what the soup cost in replica-epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t as student


def fit(folder: Path, *options: str) -> dict[str, float]:
    """Run one fit in a process of its own and return its summary, with the plan's cost."""
    out = folder / "-".join(option.strip("-") for option in options)
    command = [sys.executable, "-m", "sparsekit", "fit", *options, "--wandb.mode", "disabled", "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    plan = json.loads((out / "plan.json").read_text())
    return json.loads((out / "summary.json").read_text()) | {"total_epochs": plan["total_epochs"]}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of the 95 % interval."""
    half = student.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return mean(values), float(half)


def measure(
    method: str, seeds: int, sparsity: float, starts: list[float], options: Sequence[str] = ()
) -> list[dict[str, float]]:
    """One row a start: accuracies and gains in points, with half intervals."""
    common = ["--method", method, "--sparsity", str(sparsity), *options]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:

        def runs(*options: str) -> list[dict[str, float]]:
            jobs = [pool.submit(fit, Path(name), *common, *options, "--seed", str(seed)) for seed in range(seeds)]
            return [job.result() for job in jobs]

        single = runs("--merge", "none")
        rows = []
        for start in starts:
            soup = runs("--merge", "uniform", "--replicas.start", str(start))
            gain = [100 * (b["test.accuracy"] - a["test.accuracy"]) for a, b in zip(single, soup, strict=True)]
            inner = [100 * (b["test.accuracy"] - b["candidates.mean_accuracy"]) for b in soup]
            rows.append(
                {
                    "start": start,
                    "single": 100 * mean(a["test.accuracy"] for a in single),
                    "soup": 100 * mean(b["test.accuracy"] for b in soup),
                    "candidates": 100 * mean(b["candidates.mean_accuracy"] for b in soup),
                    "gain": interval(gain)[0],
                    "gain_half": interval(gain)[1],
                    "over_candidates": interval(inner)[0],
                    "over_candidates_half": interval(inner)[1],
                    "cost": soup[0]["total_epochs"] / single[0]["total_epochs"],
                }
            )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="gmp")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--starts", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = measure(options.method, options.seeds, options.sparsity, options.starts)
    print(f"digits, {options.method}, sparsity {options.sparsity}, seeds 0 to {options.seeds - 1}, test accuracy in %")
    print("fork from | single |  soup | candidates |    gain over single | gain over candidates | cost")
    for r in rows:
        print(
            f"{r['start']:9.2f} | {r['single']:6.2f} | {r['soup']:5.2f} | {r['candidates']:10.2f} | "
            f"{r['gain']:+8.2f} ± {r['gain_half']:.2f} pts | {r['over_candidates']:+8.2f} ± "
            f"{r['over_candidates_half']:.2f} pts | {r['cost']:.1f}x"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
