"""The problem on which plugins are tried: a tiny network on digits of 8×8 pixels, in real runs of four epochs."""

from __future__ import annotations

import io
import json
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from sparsekit.api import MergeStrategy, PruningMethod, Score, Stage
from sparsekit.config.options import (
    DataConfig,
    EvaluationConfig,
    FitConfig,
    ModelConfig,
    OptimizerConfig,
    ReplicasConfig,
    WandbConfig,
)
from sparsekit.data.images import ImageData
from sparsekit.display.live import Display
from sparsekit.errors import RunError
from sparsekit.executors import choose_executor, sequential
from sparsekit.merging.candidates import FileCandidate, read_tensors
from sparsekit.models.state import OPTIMIZER, State, effective
from sparsekit.planning.replicas import Replica
from sparsekit.plugins.objects import brought
from sparsekit.pruning import masks
from sparsekit.run import loop, progress
from sparsekit.run.checkpoint import CheckpointStore
from sparsekit.run.context import RunContext
from sparsekit.run.metrics_log import Tracker
from sparsekit.run.progress import RunProgress, first_progress
from sparsekit.run.signals import Stopped, StopSignals
from sparsekit.testing.network import Network
from sparsekit.training import prepare as training
from sparsekit.training.setup import Setup

EPOCHS = 4
SCORED = 40
"""Images that a check's runs are scored on, held-out ones and test ones."""
NETWORK = "sparsekit.testing.network:Network"
OBJECTS: Mapping[str, Any] = {f"--model.name {NETWORK}": Network}
"""The network, as `plugins.objects.brought` takes it."""


def config(method: PruningMethod, merge: MergeStrategy, **changes: Any) -> FitConfig:
    """Four epochs of 8 optimizer steps, with two replicas in every segment."""
    given = FitConfig(
        method,
        merge,
        epochs=EPOCHS,
        replicas=ReplicasConfig(count=2, start=0.0),
        model=ModelConfig(NETWORK),
        data=DataConfig(image_size=8, limit=160, batch_size=20),
        optimizer=OptimizerConfig(lr=0.1),
        evaluation=EvaluationConfig(diagnostics=False),
        wandb=WandbConfig("disabled"),
        channels_last=False,
        device="cpu",
        precision="fp32",
    )
    return replace(given, **changes)


def prepare(config: FitConfig) -> Setup:
    """The setup of a run, which is scored on few images; the name of the network stands for it."""
    with brought(OBJECTS):
        setup = training.prepare(config)
    data = setup.data
    return replace(setup, data=data.shortened(SCORED)) if isinstance(data, ImageData) else setup


@contextmanager
def job(setup: Setup) -> Iterator[RunContext]:
    """The context of a run in a temporary directory, which displays nothing."""
    silent = Display(Console(file=io.StringIO()), Console(file=io.StringIO()))
    with (
        tempfile.TemporaryDirectory(prefix="sparsekit-check-") as folder,
        silent,
        Tracker(Path(folder), setup.config.wandb, {}, "check", warn=silent.warn) as tracker,
    ):
        checkpoints = CheckpointStore(Path(folder) / "checkpoints")
        try:
            yield RunContext(setup, tracker, silent, checkpoints, choose_executor(setup)[0])
        finally:
            checkpoints.wait()


@dataclass(frozen=True)
class Moment:
    """One state of a run.

    Attributes:
        where: Which, such as `after the pruning of segment 2`.
        stage: Its segment.
        mask: Digest of its masks at the time.
        state: The state itself.
        score: Its held-out score, where it is that of a replica.
    """

    where: str
    stage: Stage
    mask: str
    state: State
    score: Score | None = None


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        setup: What it worked with.
        first: The model before the first pruning.
        moments: The states after each pruning, training and merge, in order.
        final: The finished model, with its effective weights.
        test: Its test score.
        rows: The rows of metrics.jsonl.
    """

    setup: Setup
    first: State
    moments: tuple[Moment, ...]
    final: State
    test: Score
    rows: tuple[dict[str, Any], ...]

    @property
    def faults(self) -> int:
        """How many times a replica did not stay finite and was trained again."""
        return sum(row["event"] == "fault" for row in self.rows)


def run(method: PruningMethod, merge: MergeStrategy, **changes: Any) -> Run:
    """A run of the problem with every state kept.

    Raises:
        RunError: a replica did not stay finite and was left out, among others.
    """
    return run_of(prepare(config(method, merge, **changes)))


def run_of(setup: Setup) -> Run:
    """A run with every state kept: `loop.run`, step by step; raises RunError as `run` does."""
    moments: list[Moment] = []

    def keep(where: str, stage: Stage, state: State, mask: str = "", score: Score | None = None) -> None:
        where = f"after {where} segment {stage.index + 1}"
        state = replace(state, optimizer=dict(state.optimizer))  # the files that it lies in go
        moments.append(Moment(where, stage, mask or masks.digest(state.masks), state, score))

    with job(setup) as context:
        at = first_progress(setup)
        first = at.parent
        for segment in setup.plan:
            segment, at = loop.prune_parent(context, segment, at)
            stage = segment.stage
            keep("the pruning of", stage, at.parent)
            if segment.replicas:
                at = loop.train_replicas(context, segment, at)
                if len(at.candidates) < len(segment.replicas):
                    raise RunError(f"segment {stage.index + 1}: a replica did not stay finite and was left out")
                for c in at.candidates:
                    keep(f"training replica {c.index + 1} in", stage, state_of(at.parent, c), c.mask_digest, c.score)
                at = loop.merge_candidates(context, segment, at)
                keep("the merge of", stage, at.parent)
            at = loop.evaluate(context, segment, at)
        lines = (context.checkpoints.folder.parent / "metrics.jsonl").read_text("utf-8").splitlines()
    assert at.test is not None
    rows = tuple(json.loads(line) for line in lines)
    return Run(setup, first, tuple(moments), effective(setup.method, at.parent), at.test, rows)


def state_of(parent: State, candidate: FileCandidate) -> State:
    """The trained replica that a candidate's file holds."""
    optimizer = {name.removeprefix(OPTIMIZER): candidate.read(name) for name in candidate.optimizer_names()}
    return replace(parent.renamed(read_tensors(candidate)), optimizer=optimizer)


class _Cut(StopSignals):
    """A SIGTERM that comes after a number of training steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps
        super().__init__()

    @property
    def requested(self) -> int | None:
        """The signal, once it has been looked for after each of the steps."""
        self._left -= 1
        return signal.SIGTERM if self._left < 0 else None

    @requested.setter
    def requested(self, value: int | None) -> None:
        """Ignored: no other signal is due."""


def resumed_run(first: PruningMethod, second: PruningMethod, merge: MergeStrategy) -> State:
    """The finished model of a run that stops after three fifths of its steps and resumes with another instance."""
    setup, again = prepare(config(first, merge)), prepare(config(second, merge))
    steps = sum(sum(segment.lengths) for segment in setup.plan)
    with job(setup) as context:
        with suppress(Stopped):
            loop.run(replace(context, signals=_Cut(3 * steps // 5)), first_progress(setup))
        context.checkpoints.wait()  # what is still being written the next store would sweep away
        checkpoints = CheckpointStore(context.checkpoints.folder)
        read = partial(progress.restore, checkpoints, first_progress(again).parent, len(again.plan))
        at = checkpoints.restored(context.display.warn, read)
        if at is None:
            raise RunError("the run that was stopped kept no checkpoint")
        return loop.run(replace(context, setup=again, checkpoints=checkpoints), at).state


def shared_run(first: PruningMethod, second: PruningMethod, merge: MergeStrategy) -> State:
    """The finished model of a run in which two instances train every other replica, as two ranks of torchrun do."""
    setups = prepare(config(first, merge)), prepare(config(second, merge))

    def by_turns(context: RunContext, stage: Stage, replicas: Sequence[Replica], at: RunProgress) -> RunProgress:
        for replica in replicas:
            rank = replace(context, setup=setups[replica.index % 2])
            at = sequential.train_replicas(rank, stage, [replica], at)
        return at

    with job(setups[0]) as context:
        return loop.run(replace(context, executor=by_turns), first_progress(setups[0])).state
