"""Memory and disk that a run takes at most: three segments of three replicas with AdamW, in multiples of its weights.

    python benchmarks/footprint.py [--quick]

Each is a whole fit in a fresh process, its images tiny (32 pixels, a batch of five), so that activations hide nothing:
the peak is what copies of the model take. Under it stands what a step of torch alone takes: model, gradients and
AdamW's two moments, libraries included. The run's directory is looked at all the time. With `snapshots` a checkpoint is
kept after each optimizer step, as in replicas that train for longer than --checkpoint.minutes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch
from _measure import Section, child, main, peak_bytes

from sparsekit.api import Budget, PruningMethod, Schedule, Segment, Stage

PLANS = {
    "gmp, its first three of three replicas": ((0.379, 0.633, 0.788), False),
    "gmp, its last three": ((0.867, 0.896, 0.9), False),
    "imp": ((0.536, 0.785, 0.9), True),
}
"""Sparsities of the segments, and whether each starts with a new optimizer."""
PIXELS, BATCH = 32, 5


class Planned(PruningMethod):
    """Magnitude pruning in three segments."""

    def __init__(self, sparsities: tuple[float, ...], restarts: bool) -> None:
        self.sparsities, self.restarts = sparsities, restarts

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return tuple(Segment(each, budget.epochs / len(self.sparsities)) for each in self.sparsities)

    def learning_rate(self, stage: Stage) -> Schedule:
        return Schedule(lambda done: 1.0, restarts=self.restarts)


class Images(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Random images of ten classes."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.randn(3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(index)), index % 10


def watch(folder: Path, over: threading.Event) -> list[int]:
    """The most bytes that a folder held, kept up to date until the event."""
    most = [0]

    def look() -> None:
        while not over.is_set():
            size = 0
            for path, _, names in os.walk(folder):
                for name in names:
                    with suppress(OSError):
                        size += os.stat(os.path.join(path, name)).st_size
            most[0] = max(most[0], size)
            time.sleep(0.002)

    threading.Thread(target=look, daemon=True).start()
    return most


def run(model: str, plan: str, minutes: float) -> dict[str, float]:
    """One fit."""
    import sparsekit

    sparsities, restarts = PLANS[plan]
    over = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        disk = watch(Path(folder), over)
        began = time.perf_counter()
        sparsekit.fit(
            method=Planned(sparsities, restarts),
            merge="uniform",
            sparsity=sparsities[-1],
            epochs=len(sparsities),
            replicas={"count": 3, "start": 0.0},
            model={"name": model, "kwargs": {"img_size": PIXELS}},
            data=sparsekit.Data(Images(20), Images(10), Images(10)),
            **{"data.batch_size": BATCH},
            **{"optimizer.name": "adamw", "optimizer.lr": 1e-4, "checkpoint.minutes": minutes},
            **{"wandb.mode": "disabled", "evaluation.report": False},
            device="cpu",
            out=str(Path(folder) / "run"),
        )
        seconds = time.perf_counter() - began
        over.set()
    return {"peak": peak_bytes(), "disk": disk[0], "seconds": seconds}


def bare(model: str) -> dict[str, float]:
    """Two steps of torch alone."""
    import timm

    network = timm.create_model(model, num_classes=10, img_size=PIXELS)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.randn(BATCH, 3, PIXELS, PIXELS)).sum().backward()
        optimizer.step()
    return {"peak": peak_bytes(), "weights": sum(4.0 * p.numel() for p in network.parameters())}


def measure(quick: bool = False) -> Section:
    """A row a plan, without and with checkpoints inside replicas."""
    model = "vit_small_patch16_224" if quick else "vit_base_patch16_224"
    alone = child("footprint.py", "--bare", model)
    weights = alone["weights"]

    def told(size: float) -> str:
        return f"{size / 1e9:.2f} GB, {size / weights:.1f}×"

    section = Section(f"Memory and disk of a run ({model}, AdamW)", ["run", "memory", "beyond torch's step", "disk"])
    section.add("torch's step alone", told(alone["peak"]), "–", "–")
    for plan in PLANS:
        for what, minutes in (("", 5.0), (", snapshots", 1e-6)):
            found = child("footprint.py", "--child", model, plan, str(minutes))
            beyond = found["peak"] - alone["peak"]
            section.add(plan + what, told(found["peak"]), told(beyond), told(found["disk"]))
            section.facts.append({"plan": plan, "minutes": minutes, **found, **alone})
    section.notes.append(f"Multiples are of the weights' {weights / 1e6:.0f} MB in float32.")
    return section


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(run(sys.argv[2], sys.argv[3], float(sys.argv[4]))))
    elif sys.argv[1:2] == ["--bare"]:
        print(json.dumps(bare(sys.argv[2])))
    else:
        main(measure, __doc__)
