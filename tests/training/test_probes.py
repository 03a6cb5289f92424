"""What steps tell about the network: a copy that leaves no trace, images that are never test images, and the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny import OnePrune, dense_then_pruned, rows, tiny_config, tiny_setup

from sparsekit.api import Candidate, MergeStep, MergeStrategy, PruningStep, Score, Soup, Stage, Tensors
from sparsekit.errors import RunError, UserError
from sparsekit.evaluation.scores import score_model
from sparsekit.launch import fit
from sparsekit.training import probes


def test_the_network_is_a_copy_with_the_effective_weights() -> None:
    setup = tiny_setup(OnePrune())
    parent, _ = dense_then_pruned(setup)
    seen = probes.probe(setup, parent, lambda name, value: None)
    model = seen.model()
    assert not model.training
    assert seen.buffers == {name for name, _ in setup.model.named_buffers()}
    found = score_model(model, setup.data.evaluation_batches("held_out"), setup.autocast(), setup.task)
    assert found == setup.score(parent, "held_out")
    calls: list[object] = []
    model.conv1.register_forward_hook(lambda *args: calls.append(args))
    with torch.no_grad():
        model.conv1.weight.zero_()
    assert setup.score(parent, "held_out") == found
    assert not calls
    inputs, targets = next(iter(seen.images("held_out", 20)))
    expected = torch.nn.functional.cross_entropy(seen.model()(inputs), targets)
    assert torch.allclose(seen.criterion(seen.model()(inputs), targets), expected)
    other = seen.model({"conv1.weight": torch.ones_like(parent.tensors["conv1.weight"])})
    mask = parent.masks["conv1.weight"]
    assert torch.equal(other.conv1.weight.detach(), mask.float())  # masked, as in a run
    assert torch.equal(other.fc.weight.detach(), parent.tensors["fc.weight"])


def test_images_are_those_of_the_split_the_same_at_each_call() -> None:
    setup = tiny_setup(OnePrune())
    seen = probes.probe(setup, dense_then_pruned(setup)[0], lambda name, value: None)
    first, again = (list(seen.images("train", 120)) for _ in range(2))
    assert sum(len(targets) for _, targets in first) == 120
    assert all(torch.equal(a, b) for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True))
    assert sum(len(targets) for _, targets in seen.images("held_out")) == setup.data.held_out_size
    for split in ("test", "all", ""):
        with pytest.raises(ValueError, match=f"images.*{split}.*train.*held_out"):
            seen.images(split)


class Tells(OnePrune):
    """Logs at each pruning."""

    def scores(self, step: PruningStep) -> Tensors:
        assert step.stage is step
        step.log("mean", torch.tensor(0.5))
        step.log("rule", f"{step.allocation} {step.pattern} {step.floor:g}")
        return super().scores(step)


class Looks(MergeStrategy):
    """Logs at each merge, and looks into the network."""

    stages: ClassVar[list[Stage | None]] = []

    def merge(self, candidates: Any, step: MergeStep) -> Soup:
        first: Candidate = candidates[0]
        tensors = {name: first.read(name) for name in first.names()}
        model = step.model(tensors)
        assert all(not model.get_parameter(name)[~mask].any() for name, mask in step.masks.items())
        assert step.buffers < set(first.names())
        step.log("images", sum(len(targets) for _, targets in step.images("train", 10)))
        self.stages.append(step.stage)
        return Soup(tensors, None, (first.index,))


def test_what_plugins_log_is_in_the_rows(tmp_path: Path) -> None:
    Looks.stages = []
    fit(tiny_config(Tells(), Looks(), out=tmp_path / "run", epochs=2))
    for row in rows(tmp_path / "run", "segment"):
        assert (row["method.mean"], row["method.rule"]) == (0.5, "global None 0")
    assert [row["merge.images"] for row in rows(tmp_path / "run", "merge")] == [10, 10]
    assert [stage and stage.last for stage in Looks.stages] == [False, True]


@pytest.mark.parametrize("value", [float("nan"), [1], None, torch.ones(2)])
def test_only_numbers_and_texts_can_be_logged(value: Any) -> None:
    log = probes.notes("merge", Looks(), {})
    with pytest.raises(RunError, match=r"merge Looks: log\('x'\).*finite number or a text"):
        log("x", value)


def test_steps_made_by_hand_have_no_network() -> None:
    def nothing(*args: Any) -> Any:
        return Score(0.0, 0.0)

    step = MergeStep(nothing, nothing, nothing, nothing, {}, torch.Generator())
    assert step.stage is None
    for look in (step.model, lambda: step.images("train"), lambda: step.log("x", 1)):
        with pytest.raises((RunError, UserError), match="in a run"):
            look()
