"""Peak memory of a run with ten replicas of ResNet-50's size, one after another, against one with two.

    python benchmarks/memory.py [--quick]

Each is a whole fit in a fresh process: a segment of two optimizer steps a replica, candidates on disk, a uniform merge,
and the finished model.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from _measure import Section, child, main, peak_bytes

from sparsekit.api import Budget, PruningMethod, Segment
from sparsekit.config.options import DataConfig, FitConfig, ModelConfig, OptimizerConfig, ReplicasConfig, WandbConfig
from sparsekit.launch import fit
from sparsekit.merges.uniform import Uniform


class Once(PruningMethod):
    """Prune at the start, then train."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return (Segment(budget.sparsity, budget.epochs),)


def run(replicas: int, model: str) -> None:
    """One fit."""
    with tempfile.TemporaryDirectory() as folder:
        config = FitConfig(
            Once(),
            Uniform(),
            epochs=1,
            replicas=ReplicasConfig(replicas, start=0.0),
            model=ModelConfig(model),
            data=DataConfig(batch_size=200),
            optimizer=OptimizerConfig(lr=0.001),
            wandb=WandbConfig("disabled"),
            device="cpu",
            out=str(Path(folder) / "run"),
        )
        fit(config)


def measure(quick: bool = False, model: str = "resnet50") -> Section:
    """Peak of each run, and how it compares with two replicas."""
    section = Section(f"Peak memory by replicas ({model}, sequential)", ["replicas", "peak", "of that with two"])
    peaks: dict[int, float] = {}
    for replicas in (2, 10) if quick else (2, 3, 5, 10):
        peaks[replicas] = child("memory.py", "--child", str(replicas), model)["peak"]
        section.add(replicas, f"{peaks[replicas] / 1e9:.2f} GB", f"{peaks[replicas] / peaks[2]:.3f}")
    section.notes.append("The peak of a fresh process' resident memory over a whole fit, libraries included.")
    return section


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run(int(sys.argv[2]), sys.argv[3])
        print(json.dumps({"peak": peak_bytes()}))
    else:
        main(measure, __doc__)
