"""How costs grow: the pruning step with the number of weights, a run with the number of pruning steps.

python benchmarks/growth.py [--quick]
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import timm
from _measure import Section, alternate, main, milliseconds, ratio, sparsekit, timed

from sparsekit.api import Budget, Segment, Stage
from sparsekit.config.options import MasksConfig
from sparsekit.methods.gmp import GMP
from sparsekit.models.state import State, cpu_state_dict
from sparsekit.pruning import masks
from sparsekit.pruning import prune as pruning


def parent(name: str) -> State:
    """A fresh model, dense."""
    model = timm.create_model(name)
    tensors = cpu_state_dict(model)
    return State(tensors, masks.full({n: tensors[n] for n in masks.prunable_names(model)}))


def prune(state: State) -> None:
    """To 90 %."""
    stage = Stage(Budget(1.0, 0.9), (Segment(0.9, 1.0),), 0)
    pruning.prune(GMP(), state, stage, MasksConfig(), 0)


def seconds(steps: int, epochs: int) -> float:
    """A run's wall time with so many pruning steps."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        ramp = ["--method.start", "0.1", "--method.end", "0.7", "--method.interval", str(0.6 / steps)]
        options = ["--epochs", str(epochs), *ramp, "--wandb.mode", "disabled", "--device", "cpu", "--out", str(out)]
        _, trouble = sparsekit("fit", *options, threads=1)
        if trouble:
            raise SystemExit(trouble)
        return float(json.loads((out / "summary.json").read_text())["wall_seconds"])


def measure(quick: bool = False) -> Section:
    """Time a weight, and time a pruning step."""
    section = Section("Growth", ["what", "time", "against", "ratio [95 % interval]", "rounds"])
    rounds = 3 if quick else 9
    parents = {name: parent(name) for name in ("resnet18", "resnet50", "vit_base_patch16_224")}
    sizes = {name: sum(m.numel() for m in state.masks.values()) for name, state in parents.items()}
    times = alternate({name: timed(partial(prune, state)) for name, state in parents.items()}, rounds)
    for name, found in times.items():
        more = sizes[name] / sizes["resnet18"]
        against = f"resnet18; {more:.2f} times its weights"
        cells = milliseconds(found), against, ratio(found, times["resnet18"]), rounds
        section.add(f"pruning step, {name}, {sizes[name] / 1e6:.1f} M weights", *cells)
    del parents
    rounds, epochs = (1, 24) if quick else (5, 60)
    counts = (3, 10) if quick else (3, 5, 10, 20)
    runs = alternate({str(n): partial(seconds, n, epochs) for n in counts}, rounds, warmup=0)
    for count in counts:
        found = runs[str(count)]
        share = ratio(found, runs[str(counts[0])])
        what = f"whole run of three replicas, ramp in {count} intervals"
        section.add(what, f"{median(found):.2f} s", f"{counts[0]} intervals", share, rounds)
    return section


if __name__ == "__main__":
    main(measure, __doc__)
