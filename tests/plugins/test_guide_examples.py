"""The small classes of the plugin guide do what it says of them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from documents import GUIDE, blocks
from tiny import tiny_setup

from sparsekit import Budget, PruningMethod
from sparsekit.config.options import ReplicasConfig
from sparsekit.methods import GMP
from sparsekit.models.state import effective
from sparsekit.plugins.registry import GROUPS, discover
from sparsekit.pruning import masks
from sparsekit.run import loop
from sparsekit.run.progress import RunProgress, first_progress
from sparsekit.testing.problem import job
from sparsekit.training import probes
from sparsekit.training.setup import Setup


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Gives a class of the guide by the name of its file."""
    folder = tmp_path_factory.mktemp("guide")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        for block in blocks(GUIDE):
            if block.language == "python" and "/" not in block.file:
                (folder / block.file).write_text(block.text)

        def find(module: str) -> type[PruningMethod]:
            found = getattr(importlib.import_module(module), module.capitalize())
            sys.modules.pop(module)
            return found  # type: ignore[no-any-return]

        yield find


def walked(setup: Setup, segments: int) -> list[tuple[RunProgress, RunProgress]]:
    """The progress after the pruning, and at the end, of the first segments."""
    found = []
    with job(setup) as running:
        at = first_progress(setup)
        for planned in setup.plan[:segments]:
            segment, pruned = loop.prune_parent(running, planned, at)
            at = pruned
            if segment.replicas:
                at = loop.merge_candidates(running, segment, loop.train_replicas(running, segment, pruned))
            at = loop.evaluate(running, segment, at)
            found.append((pruned, at))
    return found


ALONE = ReplicasConfig(1, start=0.0)


def test_straight_takes_equal_steps_at_gmps_times(examples: Any) -> None:
    straight = examples("straight")
    for sparsity, options in ((0.9, {}), (0.7, {"interval": 0.05, "start": 0.2}), (0.8, {"initial": 0.5})):
        budget = Budget(30.0, sparsity)
        plan, usual = straight(**options).plan(budget), GMP(**options).plan(budget)
        assert [segment.epochs for segment in plan] == [segment.epochs for segment in usual]
        assert plan[-1].sparsity == sparsity
        steps = [after.sparsity - before.sparsity for before, after in pairwise(plan)]
        assert steps == pytest.approx([sparsity / len(steps)] * len(steps))
        assert plan[0].sparsity == 0.0


def test_breath_takes_back_the_weights_with_the_largest_gradients(examples: Any) -> None:
    setup = tiny_setup(examples("breath")(), replicas=ALONE, epochs=3, sparsity=0.5)
    (_, first), (second, trained) = walked(setup, 2)
    before = torch.cat([mask.flatten() for mask in first.parent.masks.values()])
    after = torch.cat([mask.flatten() for mask in second.parent.masks.values()])
    assert bool(after[before].all())
    assert int((~after).sum()) == round(0.45 * len(after))
    gradients = probes.gradients(setup, first.parent, setup.plan[1].stage, 2)
    again = probes.gradients(setup, first.parent, setup.plan[1].stage, 2)
    assert all(torch.equal(gradients[name], again[name]) for name in gradients)
    sizes = torch.cat([gradients[name].abs().flatten() for name in first.parent.masks])
    grown = after & ~before
    assert float(sizes[grown].min()) >= float(sizes[~after].max()) > 0.0
    weights = torch.cat([weight.flatten() for weight in second.parent.weights.values()])
    assert not weights[grown].any()
    weights = torch.cat([weight.flatten() for weight in trained.parent.weights.values()])
    assert float((weights[grown] != 0).float().mean()) > 0.9


def test_a_scaled_layer_is_weight_times_mask_times_factor(examples: Any) -> None:
    setup = tiny_setup(examples("scaled")(), replicas=ALONE, epochs=3, sparsity=0.5)
    *_, (_, at) = walked(setup, len(setup.plan))
    state, finished = at.parent, effective(setup.method, at.parent)
    factors = torch.stack([state.extra[name] for name in state.masks])
    assert bool((factors != 1.0).all())
    for name, mask in state.masks.items():
        by_hand = state.weights[name] * mask * state.extra[name]
        assert torch.equal(finished.weights[name], by_hand)
    assert masks.sparsity(state.masks) == pytest.approx(0.5, abs=1e-4)
    named = set(state.named())
    assert {f"extra.{name}" for name in state.masks} <= named


def test_rounds_prune_four_times_before_they_train(examples: Any) -> None:
    setup = tiny_setup(examples("rounds")(), replicas=ALONE, epochs=1, sparsity=0.8)
    assert [len(segment.replicas) for segment in setup.plan] == [0, 0, 0, 1]
    setup = replace(setup, plan=setup.plan[:3])
    found = [at.parent for _, at in walked(setup, 3)]
    assert [masks.sparsity(state.masks) for state in found] == pytest.approx([0.2, 0.4, 0.6], abs=1e-4)
    for before, after in pairwise(found):
        for name, mask in after.masks.items():
            assert not (mask & ~before.masks[name]).any()
            assert torch.equal(after.weights[name], before.weights[name] * mask)  # nothing was trained


def test_built_in_classes_are_public_and_import_no_torch() -> None:
    done = subprocess.run(
        [
            sys.executable, "-c",
            "import sys\n"
            "from sparsekit.methods import BIMP, DPF, GMP, IMP, OneShot\n"
            "from sparsekit.merges import Best, Greedy, NoMerge, Uniform\n"
            "from sparsekit.tasks import Classification\n"
            "GMP(), IMP(), BIMP(), DPF(), OneShot(), Best(), Greedy(), NoMerge(), Uniform(), Classification()\n"
            "print({'torch', 'timm', 'numpy'} & set(sys.modules))",
        ],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "set()"


def test_every_built_in_plugin_is_public() -> None:
    for group in ("methods", "merges", "tasks"):
        package = importlib.import_module(f"sparsekit.{group}")
        for kind, group_name in GROUPS.items():
            for owners in discover().of(kind).values() if group_name == f"sparsekit.{group}" else ():
                for plugin in owners:
                    module, _, name = plugin.target.partition(":")
                    if module.startswith("sparsekit."):
                        assert getattr(package, name) is plugin.load()
                        assert name in package.__all__
