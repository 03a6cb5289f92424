"""What lies on the disk and in memory at a segment's end: nothing that nobody reads."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import optimizer, tiny_setup

from sparsekit.api import PruningMethod
from sparsekit.config.options import ReplicasConfig
from sparsekit.methods.gmp import GMP
from sparsekit.methods.imp import IMP
from sparsekit.models.stored import StoredTensors
from sparsekit.run import loop
from sparsekit.run.progress import first_progress
from sparsekit.testing import problem


@pytest.mark.parametrize(("method", "carries"), [(GMP(0.1, 0.6, 0.25), True), (IMP(cycles=2), False)])
def test_only_momenta_that_are_read_again_are_written(method: PruningMethod, carries: bool) -> None:
    options: dict[str, Any] = {"replicas": ReplicasConfig(2, start=0.0), "epochs": 4}
    setup = tiny_setup(method, optimizer=optimizer("adamw", lr=0.01), **options)
    with problem.job(setup) as context:
        at = first_progress(setup)
        for segment in setup.plan:
            segment, at = loop.prune_parent(context, segment, at)
            context.checkpoints.wait()
            names = {path.name for path in context.checkpoints.folder.iterdir()}
            assert not any("segment-" in name for name in names)  # the last segment's candidates
            again = carries and segment.stage.index > 0
            assert sum("optimizer" in name for name in names) == again
            assert isinstance(at.parent.optimizer, StoredTensors) == again  # not in memory
            at = loop.train_replicas(context, segment, at)
            context.checkpoints.wait()
            written = any(candidate.optimizer_names() for candidate in at.candidates)
            assert written == (carries and not segment.stage.last)
            assert not [path for path in context.checkpoints.folder.iterdir() if "optimizer" in path.name]
            at = loop.merge_candidates(context, segment, at)
            at = loop.evaluate(context, segment, at)
