"""A segment's end without its data: from three trained replicas to the next segment's pruned parent, phase by phase.

python benchmarks/segment_end.py [--quick]

Replicas are random changes of one model, with the optimizer's state; images are left out. What is counted is processor
time, which the disk's speed does not change.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from _measure import Section, main

from sparsekit.api import Score, Stage
from sparsekit.config.options import FitConfig, ReplicasConfig
from sparsekit.merges.uniform import Uniform
from sparsekit.merging import diagnostics
from sparsekit.merging.candidates import FileCandidate
from sparsekit.merging.merge import merge
from sparsekit.methods.gmp import GMP
from sparsekit.models.state import State, cpu_state_dict, in_use
from sparsekit.planning.plan import make_stages
from sparsekit.pruning import masks
from sparsekit.pruning.prune import prune
from sparsekit.run import progress
from sparsekit.run.checkpoint import CheckpointStore
from sparsekit.training.setup import Setup

REPLICAS = 3
BEFORE = (
    "Commits c3c8f1b and d12be81 in turns, three rounds, medians of processor time on an AMD EPYC: "
    "ResNet-50 4.10 → 1.52 s, ViT-B with AdamW 19.6 → 8.8 s. By the clock training waited for 4.51 and 21.2 s, now for "
    "1.27 and 7.5; the next parent has the same bits. Most of what is left is the writing of 3 GB into the system's "
    "cache."
)
MODELS = {"resnet50": ("momentum_buffer",), "vit_base_patch16_224": ("exp_avg", "exp_avg_sq")}


def states(model: torch.nn.Module, buffers: tuple[str, ...]) -> tuple[State, list[State]]:
    """A parent that is pruned a little, and replicas of it."""
    torch.manual_seed(0)
    tensors, names = cpu_state_dict(model), masks.prunable_names(model)
    kept = masks.select({n: tensors[n].abs() for n in names}, masks.full({n: tensors[n] for n in names}), 0.2, "global")
    parent = State(tensors | {n: tensors[n] * kept[n] for n in names}, kept, target=0.9)
    replicas = []
    for _ in range(REPLICAS):
        moved = {n: t + 0.01 * torch.randn(t.shape) if t.is_floating_point() else t for n, t in parent.tensors.items()}
        moved |= {n: moved[n] * kept[n] for n in names}
        trained = dict(model.named_parameters())
        optimizer = {f"{n}/{buffer}": moved[n].clone() for n in trained for buffer in buffers}
        replicas.append(replace(parent, tensors=moved, optimizer=optimizer))
    return parent, replicas


def processor() -> float:
    """Processor seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Phases:
    """Seconds of named phases by a clock."""

    def __init__(self, clock: Callable[[], float] = processor) -> None:
        self.clock, self.seconds = clock, dict[str, float]()

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of some work, whose time is added to a phase."""
        before = self.clock()
        result = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - before
        return result


def end(
    setup: Setup, parent: State, replicas: list[State], stages: Sequence[Stage], folder: Path, phases: Phases
) -> State:
    """Each phase of the first segment's end; returns the next segment's parent.

    A run writes candidates and checkpoints beside its training, but for the last candidate.
    """
    store, score = CheckpointStore(folder), Score(0.9, 0.1)
    at, names = progress.RunProgress(0, 0, parent), [name for name, _ in setup.model.named_parameters()]
    progress.save(store, at, {})  # at the end of the segment before
    for index, state in enumerate(replicas):
        path = store.new(f"segment-000-{index}")
        candidate = phases.run(
            "candidates written", lambda p=path, i=index, s=state: FileCandidate.write(p, i, s, score)
        )
        at = replace(at, candidates=(*at.candidates, candidate))
        phases.run("checkpoints", partial(progress.save, store, at, {}))
    merged, _ = phases.run("merge", lambda: merge(setup, parent, at.candidates, stages[0]))
    phases.run("distances", lambda: diagnostics.geometry(at.candidates, parent, names, setup.device))
    phases.run("empty layers", lambda: masks.empty(in_use(setup.method, merged).weights))
    pruned, _ = phases.run(
        "pruning", lambda: prune(setup.method, merged, stages[-1], setup.config.masks, 0, lambda: {})
    )
    phases.run("mask digest", lambda: masks.digest(pruned.masks))
    at = replace(at, segment=1, parent=pruned, candidates=())
    phases.run("checkpoints", lambda: progress.save(store, at, {}))
    return pruned


def measure(quick: bool = False) -> Section:
    """A row a phase and model."""
    title = f"A segment's end ({REPLICAS} replicas, no data)"
    section = Section(title, ["model", "phase", "processor time"], notes=[BEFORE])
    for name, buffers in list(MODELS.items())[: 1 if quick else None]:
        model = timm.create_model(name)
        config = FitConfig(GMP(), Uniform(), replicas=ReplicasConfig(REPLICAS, batchnorm="average"))
        setup = Setup(config, (), None, model, tuple(masks.prunable_names(model)), torch.device("cpu"), torch.float32)  # type: ignore[arg-type]
        parent, replicas = states(model, buffers)
        rounds = []
        for _ in range(1 if quick else 3):
            with tempfile.TemporaryDirectory() as folder:
                phases = Phases()
                end(setup, parent, replicas, make_stages(config), Path(folder), phases)
                rounds.append(phases.seconds)
        for phase in rounds[0]:
            section.add(name, phase, f"{median(each[phase] for each in rounds):.2f} s")
        section.add(name, "all", f"{median(sum(each.values()) for each in rounds):.2f} s")
    return section


if __name__ == "__main__":
    main(measure, __doc__)
