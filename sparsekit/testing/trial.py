"""`sparsekit.testing.run`: a real run of the tiny problem with everything kept, for the tests of a plugin's author."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sparsekit._types import Tensors
from sparsekit.api import MergeStrategy, PruningMethod, Score, Stage
from sparsekit.config.options import FitConfig
from sparsekit.errors import UserError
from sparsekit.plugins.objects import brought
from sparsekit.python.options import keyword_names, read

if TYPE_CHECKING:
    from torch import nn

    from sparsekit.testing import problem

_EPOCHS = 6
_NO_FILES = ("out", "resume", "config")


@dataclass(frozen=True)
class TrialSegment:
    """One segment of a trial. Tensors are on the CPU, under the names that `Candidate.names` gives.

    They are parameters, buffers and, as `extra.NAME`, the method's own tensors, all as they are stored: of a method
    that defines `effective`, with the dense weights behind the masks.

    Attributes:
        stage: Where it stands in the plan, with `relative_change`.
        before: The parent before this segment's pruning.
        pruned: The parent after it, and after a rewind, as the replicas start from it.
        masks: Bool masks by parameter name, True keeps.
        candidates: Each trained replica; empty in a segment of 0 epochs.
        scores: Their held-out scores.
        soup: The merged model, before the next pruning; in a segment of 0 epochs the pruned parent.
        coefficients: Of each candidate; None where the merge gave none.
        ingredients: Indices of the candidates that were used.
    """

    stage: Stage
    before: Tensors = field(repr=False)
    pruned: Tensors = field(repr=False)
    masks: Tensors = field(repr=False)
    candidates: tuple[Tensors, ...] = field(repr=False)
    scores: tuple[Score, ...]
    soup: Tensors = field(repr=False)
    coefficients: tuple[float, ...] | None
    ingredients: tuple[int, ...]

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable weights that are masked, 0 to 1."""
        total = sum(mask.numel() for mask in self.masks.values())
        return 1.0 - sum(int(mask.sum()) for mask in self.masks.values()) / total


@dataclass(frozen=True)
class Trial:
    """What a run did.

    Attributes:
        segments: One for each segment of the plan.
        tensors: Parameters and buffers of the finished model, with its effective weights.
        masks: Its bool masks by parameter name, True keeps.
        test: Its test score.
        rows: The rows of metrics.jsonl, in order.
        model: The finished model, in evaluation mode.
    """

    segments: tuple[TrialSegment, ...]
    tensors: Tensors = field(repr=False)
    masks: Tensors = field(repr=False)
    test: Score
    rows: tuple[dict[str, Any], ...] = field(repr=False)
    model: nn.Module = field(repr=False)


def run(
    method: str | PruningMethod | type[PruningMethod] = "gmp",
    merge: str | MergeStrategy | type[MergeStrategy] = "uniform",
    **options: Any,
) -> Trial:
    """Run a method and a merge on a tiny problem, in about two seconds, and keep everything.

    The problem is a network of four layers (`conv1`, `conv2`, `conv3`, `fc`) on digits of 8×8 pixels; two replicas
    train for six epochs of eight steps, to a sparsity of 0.9, on the CPU. The same call gives the same bits.

    Args:
        method: Pruning method: an instance, a class, or a name.
        merge: Merge strategy, likewise.
        options: Any other of `sparsekit.fit`, as it takes them: `sparsity=0.5`, `epochs=12`, `replicas={"count": 3}`,
            `**{"replicas.count": 3}`, `optimizer={"name": "adamw", "lr": 0.01}`; `task`, `data` and `model`, as
            objects, too. With `data` of your own, `model` must take its examples.

    Raises:
        UserError: a keyword is wrong; the message names it.
        RunError: the run failed, or a replica did not stay finite.
    """
    from sparsekit.python.around import as_it_was  # only now: it imports torch
    from sparsekit.testing import problem
    from sparsekit.training.prepare import prepare

    for name in options:
        if name.partition(".")[0] in _NO_FILES:
            raise UserError(f"{name}: nothing is written here; leave it out, or call sparsekit.fit")
    given = dict(_defaults(options))
    call = read(FitConfig, {"method": method, "merge": merge, **options}, given, problem.OBJECTS)
    with as_it_was(), brought({**problem.OBJECTS, **call.objects}), keyword_names():
        done = problem.run_of(prepare(call.config))
    return _trial(done)


def _defaults(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The problem's options by dotted names, without those of a model and data that the call brings itself."""
    from sparsekit.merges.uniform import Uniform
    from sparsekit.methods.gmp import GMP
    from sparsekit.testing import problem

    config = problem.config(GMP(), Uniform())
    yield from (("epochs", _EPOCHS), ("device", config.device), ("precision", config.precision))
    yield from (("channels_last", config.channels_last), ("wandb.mode", config.wandb.mode))
    yield from (("replicas.count", config.replicas.count), ("replicas.start", config.replicas.start))
    yield from (("optimizer.lr", config.optimizer.lr), ("evaluation.diagnostics", config.evaluation.diagnostics))
    if not _chosen(options, "model"):
        yield "model.name", config.model.name
    yield "data.batch_size", config.data.batch_size
    if not _chosen(options, "data"):
        yield from (("data.image_size", config.data.image_size), ("data.limit", config.data.limit))


def _chosen(options: Mapping[str, Any], group: str) -> bool:
    """Whether a call says which model or which data."""
    value = options.get(group)
    return f"{group}.name" in options or ("name" in value if isinstance(value, Mapping) else value is not None)


def _trial(done: problem.Run) -> Trial:
    merges = {row["segment"]: row for row in done.rows if row["event"] == "merge"}
    segments: list[TrialSegment] = []
    for planned in done.setup.plan:
        index = planned.stage.index
        pruned, *rest = (moment for moment in done.moments if moment.stage.index == index)
        *trained, merged = rest or [pruned]
        row = merges.get(index, {})
        shares = row.get("coefficients")
        segments.append(
            TrialSegment(
                pruned.stage,
                segments[-1].soup if segments else done.first.named(),
                pruned.state.named(),
                pruned.state.masks,
                tuple(moment.state.named() for moment in trained),
                tuple(moment.score for moment in trained if moment.score is not None),
                merged.state.named(),
                None if shares is None else tuple(shares),
                tuple(row.get("ingredients", ())),
            )
        )
    model = deepcopy(done.setup.model).eval()
    model.load_state_dict(done.final.tensors)
    return Trial(tuple(segments), done.final.tensors, done.final.masks, done.test, done.rows, model)
