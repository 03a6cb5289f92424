"""The problem on which plugins are tried: a tiny ResNet on small digits, and the real scheduler watched at work."""

from __future__ import annotations

import io
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from sparsekit._types import Tensors
from sparsekit.api import MergeStrategy, PruningMethod, Stage
from sparsekit.config.options import DataConfig, FitConfig, ModelConfig, OptimizerConfig, ReplicasConfig, WandbConfig
from sparsekit.display.live import Display
from sparsekit.errors import RunError
from sparsekit.executors import choose_executor, sequential, torchrun
from sparsekit.merging.candidates import FileCandidate, read_tensors
from sparsekit.models.state import OPTIMIZER, State, effective
from sparsekit.pruning import masks
from sparsekit.run import loop, progress
from sparsekit.run.checkpoint import CheckpointStore
from sparsekit.run.context import RunContext
from sparsekit.run.metrics_log import Rows, Tracker
from sparsekit.run.progress import first_progress
from sparsekit.run.signals import Stopped, StopSignals
from sparsekit.testing.rules import describe
from sparsekit.training.prepare import prepare
from sparsekit.training.ranks import Ranks
from sparsekit.training.setup import Setup
from sparsekit.training.team import Team

EPOCHS = 6
MODEL = ModelConfig(kwargs={"layers": [1, 1, 0, 0], "channels": [4, 8, 8, 8]})


def config(method: PruningMethod, merge: MergeStrategy, **changes: Any) -> FitConfig:
    """Six epochs of two replicas from the start, 8 optimizer steps each, on digits of 8×8 pixels."""
    given = FitConfig(
        method,
        merge,
        epochs=EPOCHS,
        replicas=ReplicasConfig(count=2, start=0.0),
        model=MODEL,
        data=DataConfig(image_size=8),
        optimizer=OptimizerConfig(lr=0.1),
        wandb=WandbConfig("disabled"),
        channels_last=False,
        device="cpu",
        precision="fp32",
    )
    return replace(given, **changes)


@contextmanager
def job(setup: Setup) -> Iterator[RunContext]:
    """A run in a temporary directory that says nothing."""
    silent = Display(Console(file=io.StringIO()), Console(file=io.StringIO()))
    with (
        tempfile.TemporaryDirectory(prefix="sparsekit-check-") as folder,
        silent,
        Tracker(Path(folder), setup.config.wandb, {}, "check", warn=silent.warn) as tracker,
    ):
        yield RunContext(
            setup, tracker, silent, CheckpointStore(Path(folder) / "checkpoints"), choose_executor(setup)[0]
        )


@dataclass(frozen=True)
class Moment:
    """One state on the straight path.

    Attributes:
        where: For people, such as `pruning of segment 2`.
        segment: Its segment's number, from 0.
        mask: Digest of its masks at the time.
        state: The state itself.
    """

    where: str
    segment: int
    mask: str
    state: State


@dataclass(frozen=True)
class Run:
    """Every state of one run in order, and its end.

    Attributes:
        setup: What it worked with.
        moments: The states after each pruning, training and merge.
        final: The finished model.
        faults: How often a replica did not stay finite, and was tried again.
    """

    setup: Setup
    moments: tuple[Moment, ...]
    final: State
    faults: int


def watched_run(setup: Setup) -> Run:
    """`loop.run`, step by step, keeping each state."""
    moments: list[Moment] = []

    def keep(where: str, stage: Stage, state: State, mask: str = "") -> None:
        where = f"after {where} segment {stage.index + 1}"
        moments.append(Moment(where, stage.index, mask or masks.digest(state.masks), state))

    with job(setup) as running:
        at = first_progress(setup)
        for segment in setup.plan:
            segment, at = loop.prune_parent(running, segment, at)
            stage = segment.stage
            keep("the pruning of", stage, at.parent)
            if segment.replicas:
                at = loop.train_replicas(running, segment, at)
                if len(at.candidates) < len(segment.replicas):
                    raise RunError(f"segment {stage.index + 1}: a replica did not stay finite and was left out")
                for c in at.candidates:
                    keep(f"training replica {c.index + 1} in", stage, state_of(at.parent, c), c.mask_digest)
                at = loop.merge_candidates(running, segment, at)
                keep("the merge of", stage, at.parent)
            at = loop.evaluate(running, segment, at)
        rows = (running.checkpoints.folder.parent / "metrics.jsonl").read_text("utf-8")
    return Run(setup, tuple(moments), effective(setup.method, at.parent), rows.count('"event": "fault"'))


class _Cut(StopSignals):
    """Asks to stop at the n-th look, as a signal between two training steps would."""

    def __init__(self, looks: int) -> None:
        self._looks = looks
        super().__init__()

    @property
    def requested(self) -> int | None:
        """Counts down."""
        self._looks -= 1
        return signal.SIGTERM if self._looks < 0 else None

    @requested.setter
    def requested(self, value: int | None) -> None:
        """Nothing else may ask."""


def resumed_run(first: PruningMethod, second: PruningMethod, merge: MergeStrategy) -> State:
    """The finished model of a run that one instance began and another went on with after three fifths of its steps."""
    setup, again = prepare(config(first, merge)), prepare(config(second, merge))
    steps = sum(sum(segment.lengths) for segment in setup.plan)
    with job(setup) as running:
        with suppress(Stopped):
            loop.run(replace(running, signals=_Cut(3 * steps // 5)), first_progress(setup))
        checkpoints = CheckpointStore(running.checkpoints.folder)
        fresh = first_progress(again).parent
        read = partial(progress.restore, checkpoints, fresh, len(again.plan))
        at = checkpoints.restored(running.display.warn, read)
        if at is None:
            raise RunError("the run that was stopped kept no checkpoint")
        going_on = replace(
            running, setup=again, checkpoints=checkpoints, executor=choose_executor(again)[0], signals=StopSignals()
        )
        return loop.run(going_on, at).state


class _Baton(Ranks):
    """Two ranks as threads of which one runs at a time: they change places where one waits for the other."""

    def __init__(self, rank: int, store: dict[str, Any], turn: threading.Lock) -> None:
        super().__init__(rank, 2, store)
        self._turn = turn

    def tell(self, key: str, value: Any) -> None:
        self.store[key] = value

    def ask(self, key: str, sender: int = 0) -> Any:
        while key not in self.store:
            if "failed" in self.store:
                raise RunError(f"the other rank failed: {self.store['failed']}")
            self._turn.release()
            time.sleep(0.001)
            self._turn.acquire()
        return self.store[key]


def shared_run(first: PruningMethod, second: PruningMethod, merge: MergeStrategy) -> State:
    """The finished model of a run that two ranks shared, each with an instance of its own.

    Raises:
        RunError: the second rank failed; the text says of what.
    """
    store: dict[str, Any] = {}
    turn = threading.Lock()
    lead, other = (replace(prepare(config(method, merge)), team=Team(i, 2)) for i, method in enumerate((first, second)))

    def follow(folder: Path) -> None:
        with turn:
            rows, silent = Rows(1), Display(Console(file=io.StringIO()), Console(file=io.StringIO()))
            work = RunContext(
                other, rows, silent, CheckpointStore(folder, torchrun.prefix(1)), sequential.train_replicas,
                header=lambda: {"rows": rows.rows},
            )  # fmt: skip
            try:
                torchrun.follow(work, _Baton(1, store, turn))
            except Exception as error:
                store["failed"] = describe(error)

    with job(lead) as running, turn:
        ranks = _Baton(0, store, turn)
        leader = torchrun.Leader(ranks, sequential.train_replicas)
        thread = threading.Thread(target=follow, args=(running.checkpoints.folder,), daemon=True)
        thread.start()
        try:
            final = loop.run(replace(running, executor=leader), first_progress(lead)).state
        finally:
            leader.finish()
            turn.release()
            thread.join()
            turn.acquire()
    if "failed" in store:
        raise RunError(f"the other rank failed: {store['failed']}")
    return final


def state_of(parent: State, candidate: FileCandidate) -> State:
    """A candidate's file as a state."""
    stored = {name.removeprefix(OPTIMIZER): candidate.read(name) for name in candidate.optimizer_names()}
    return replace(parent.renamed(read_tensors(candidate)), optimizer=stored)


def run(method: PruningMethod, merge: MergeStrategy, **changes: Any) -> Run:
    """Prepare and run, watched."""
    return watched_run(prepare(config(method, merge, **changes)))


@contextmanager
def global_seeds(seed: int) -> Iterator[None]:
    """Other global random states than usual: a plugin draws from the generator that it is given."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


# --- comparing ---------------------------------------------------------------------------------------


def clones(tensors: Tensors) -> Tensors:
    """Copies."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def difference(left: Tensors, right: Tensors) -> str:
    """The first name under which two sets of tensors differ by a bit; empty where they are equal."""
    for name in [*left, *(set(right) - set(left))]:
        if name not in left or name not in right or not _same_bits(left[name], right[name]):
            return name
    return ""


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.dtype is not right.dtype or left.shape != right.shape:
        return False
    return torch.equal(left.nan_to_num(), right.nan_to_num())


def frozen(value: Any) -> Any:
    """A plain picture of an object and all that it holds, to see later whether it changed."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.detach().cpu().flatten().tolist())
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(key): frozen(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [frozen(item) for item in value]
    if hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        return (type(value).__name__, frozen(vars(value)))
    return repr(value)


def first_change(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The name of the first attribute that came, went or changed."""
    return next((name for name in [*before, *after] if before.get(name, ...) != after.get(name, ...)), "")


def unknown(names: Sequence[str], known: Sequence[str]) -> str:
    """The first name that is in one list only; empty where both hold the same."""
    return next((name for name in [*names, *known] if (name in names) != (name in known)), "")
