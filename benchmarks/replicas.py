"""What m replicas cost by executor, as whole runs of the command, in turns with one replica alone.

python benchmarks/replicas.py [--quick]
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from _measure import Section, main, ratio, sparsekit

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")


@dataclass(frozen=True)
class Way:
    """How replicas are run."""

    name: str
    executor: str | None
    threads: int
    launcher: tuple[str, ...] = ()


WAYS = (
    Way("sequential, one thread", "sequential", 1),
    Way("sequential, two threads", "sequential", 2),
    Way("vectorized, two threads", "vectorized", 2),
    Way("torchrun, two ranks of one thread", None, 1, TORCHRUN),
)


def seconds(way: Way, replicas: int, epochs: int) -> float | str:
    """The run's own wall time, or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        executor = ["--replicas.executor", way.executor] if way.executor else []
        options = ["--epochs", str(epochs), "--replicas.count", str(replicas), "--replicas.start", "0.0", *executor]
        common = ["--wandb.mode", "disabled", "--device", "cpu", "--out", str(out)]
        _, trouble = sparsekit("fit", *options, *common, threads=way.threads, launcher=way.launcher)
        if trouble:
            return trouble
        return float(json.loads((out / "summary.json").read_text())["wall_seconds"])


def measure(quick: bool = False) -> Section:
    """A row a way and number of replicas."""
    section = Section(
        "Replicas by executor (small ResNet on digits, whole runs)",
        ["executor", "replicas", "run", "one replica, same executor", "ratio [95 % interval]", "rounds"],
    )
    rounds, epochs = (1, 30) if quick else (3, 100)
    for way in WAYS:
        for replicas in (3,) if quick else (2, 3, 5, 10):
            many, one = [], []
            for _ in range(rounds):
                found = [seconds(way, count, epochs) for count in (replicas, 1)]
                if trouble := [each for each in found if isinstance(each, str)]:
                    section.add(way.name, replicas, f"did not run: {trouble[0][:120]}", "", "", "")
                    break
                many.append(float(found[0]))
                one.append(float(found[1]))
            if not many:
                break
            figures = f"{median(many):.1f} s", f"{median(one):.1f} s", ratio(many, one)
            section.add(way.name, replicas, *figures, len(many))
    rounds = max(3, rounds)
    # long enough that data, merges and the end, which ranks do not share, weigh little
    pairs = [(seconds(WAYS[1], 2, 100), seconds(WAYS[3], 2, 100)) for _ in range(rounds)]
    if all(isinstance(value, float) for pair in pairs for value in pair):
        faster = ratio([float(a) for a, _ in pairs], [float(b) for _, b in pairs])
        section.add(
            "two replicas, 100 epochs: one process of two threads over two ranks of one", 2, "", "", f"{faster}", rounds
        )
    section.notes.append("Wall time as the run's summary tells it: data, training, merges and checkpoints; no imports.")
    return section


if __name__ == "__main__":
    main(measure, __doc__)
