"""After a pruning that rewinds, the model is the one of an earlier time under the new masks, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import Rewinding, assert_equal, masked_are_zero, rows, tiny_config, tiny_setup
from torch import Tensor

from sparsekit.api import Budget, PruningMethod, Segment, Stage
from sparsekit.config.options import MasksConfig, ReplicasConfig
from sparsekit.errors import UserError
from sparsekit.launch import fit
from sparsekit.methods.dpf import DPF
from sparsekit.models.state import State
from sparsekit.planning.plan import make_stages
from sparsekit.pruning.prune import prune
from sparsekit.run import loop
from sparsekit.run.progress import RunProgress, first_progress
from sparsekit.testing import problem

TWO = ReplicasConfig(count=2, start=0.0)


class Dense(DPF):
    """DPF, dense weights behind its masks, rewound to the start."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        half = budget.epochs / 2
        return Segment(0.5 * budget.sparsity, half), Segment(budget.sparsity, half, rewind=0)


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("method", [Rewinding(), Dense()], ids=["masked", "dense"])
def test_the_model_is_what_it_was_under_the_new_masks(method: PruningMethod) -> None:
    setup = tiny_setup(method, replicas=TWO, epochs=4)
    beginnings: dict[int, dict[str, Tensor]] = {}
    checked = []
    with problem.job(setup) as context:
        at = first_progress(setup)
        for segment in setup.plan:
            index, rewind = segment.stage.index, segment.stage.segment.rewind
            before = beginnings[index] = {name: t.clone() for name, t in at.parent.tensors.items()}
            segment, at = loop.prune_parent(context, segment, at)
            if rewind is not None:
                masks, then = at.parent.masks, beginnings[rewind]
                for name, tensor in at.parent.tensors.items():  # parameters and BatchNorm's statistics and counts
                    kept = masks[name] if name in masks and isinstance(method, Rewinding) else slice(None)
                    assert torch.equal(
                        tensor[kept] if tensor.dim() else tensor, then[name][kept] if tensor.dim() else then[name]
                    )
                assert isinstance(method, Dense) or masked_are_zero(at.parent.tensors, masks)
                assert not at.parent.optimizer
                assert any(not torch.equal(before[name], then[name]) for name in then)
                # the masks are those of the weights as they were trained
                again, _ = prune(method, before_state(at, before, beginnings), segment.stage, MasksConfig(), 0)
                assert_equal(again.masks, masks)
                checked.append(index)
            at = loop.train_replicas(context, segment, at)
            at = loop.merge_candidates(context, segment, at)
            at = loop.evaluate(context, segment, at)
    assert checked == [s.stage.index for s in setup.plan if s.stage.segment.rewind is not None]


def before_state(at: RunProgress, tensors: dict[str, Tensor], beginnings: dict[int, dict[str, Tensor]]) -> State:
    """The parent before its pruning; the masks that it had do not matter, as they only grew."""
    masks = {name: torch.ones_like(mask) for name, mask in at.parent.masks.items()}
    return State(tensors, masks, target=at.parent.target)


@pytest.mark.slow
def test_files_are_as_large_as_without_rewinding() -> None:
    found = {}
    for name, chosen in (("plain", None), ("rewinding", 1)):

        class Both(Rewinding):
            """The same segments, rewound or not."""

            target = chosen

            def plan(self, budget: Budget) -> tuple[Segment, ...]:
                return tuple(
                    Segment(s.sparsity, s.epochs, rewind=self.target if s.rewind else None)
                    for s in super().plan(budget)
                )

        setup = tiny_setup(Both(), replicas=TWO, epochs=4)
        with problem.job(setup) as context:
            at = first_progress(setup)
            for segment in setup.plan:
                segment, at = loop.prune_parent(context, segment, at)
                at = loop.train_replicas(context, segment, at)
                context.checkpoints.wait()
                last = sizes(context.checkpoints.folder)
                at = loop.merge_candidates(context, segment, at)
                at = loop.evaluate(context, segment, at)
        found[name] = last
    extra = {name: size for name, size in found["rewinding"].items() if "beginning" in name}
    rest = {name.partition("-")[2]: size for name, size in found["rewinding"].items() if name not in extra}
    plain = {name.partition("-")[2]: size for name, size in found["plain"].items()}
    assert rest == {name: pytest.approx(size, abs=500) for name, size in plain.items()}  # they have other zeros
    assert len(extra) == 1
    assert all(size < 1.5 * max(rest.values()) for size in extra.values())  # it is dense


@pytest.mark.parametrize("rewind", [1, 2, -1, "0", 0.5])
def test_only_an_earlier_segment_can_be_rewound_to(rewind: object) -> None:
    class Odd(PruningMethod):
        """Rewinds to where it cannot."""

        def plan(self, budget: Budget) -> tuple[Segment, ...]:
            half = budget.epochs / 2
            return Segment(0.0, half), Segment(budget.sparsity, half, rewind=rewind)  # type: ignore[arg-type]

    with pytest.raises(UserError, match=r"method Odd: plan\[1\]\.rewind is .*earlier segment"):
        make_stages(tiny_config(Odd()))


def test_a_segment_of_no_epochs_rewinds_too(tmp_path: Path) -> None:
    class Twice(PruningMethod):
        """Prunes twice in a row, and goes back to the start."""

        def plan(self, budget: Budget) -> tuple[Segment, ...]:
            return (
                Segment(0.0, budget.epochs / 2),
                Segment(budget.sparsity / 2, 0.0),
                Segment(budget.sparsity, budget.epochs / 2, rewind=0),
            )

    summary = fit(tiny_config(Twice(), out=tmp_path / "run", epochs=2))
    assert summary["sparsity"] == pytest.approx(0.9, abs=1e-4)
    assert len(rows(tmp_path / "run", "segment")) == 3


def test_the_last_merge_is_the_one_after_which_nothing_trains() -> None:
    budget = Budget(2.0, 0.5)
    plan = Segment(0.0, 1.0), Segment(0.5, 1.0), Segment(0.5, 0.0)
    assert [Stage(budget, plan, index).last for index in range(3)] == [False, True, True]
