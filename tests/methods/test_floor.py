"""Every installed method keeps `--masks.floor` of every layer, whatever it prunes by."""

from __future__ import annotations

from functools import partial

import pytest
from tiny import tiny_setup, trained

from sparsekit.config.options import MasksConfig, ReplicasConfig
from sparsekit.merges.none import NoMerge
from sparsekit.plugins.registry import discover
from sparsekit.pruning import masks
from sparsekit.pruning.prune import prune
from sparsekit.run.progress import first_progress
from sparsekit.training import probes

METHODS = sorted(discover().of("method"))


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [None, "2:4"])
@pytest.mark.parametrize("name", METHODS)
def test_the_floor_holds_at_every_pruning_and_the_total_stays_exact(name: str, pattern: str | None) -> None:
    method = discover().of("method")[name][0].load()()
    config = MasksConfig(pattern=pattern, exclude=["^conv1"], floor=4.0)
    setup = tiny_setup(method, NoMerge(), sparsity=0.98, masks=config, replicas=ReplicasConfig(1), epochs=6)
    state = first_progress(setup).parent
    total = sum(mask.numel() for mask in state.masks.values())
    for segment in setup.plan:
        gradients = partial(probes.gradients, setup, state, segment.stage)
        probe = probes.probe(setup, state, lambda name, value: None)
        state, stage = prune(method, state, segment.stage, config, 0, gradients, probe)
        assert min(masks.kept({layer: mask}) for layer, mask in state.masks.items()) >= 4
        assert total - masks.kept(state.masks) == round(segment.stage.segment.sparsity * total)
        if segment.replicas:
            state = trained(setup, state, stage)
