"""Ranks that train one replica together: what they try before they train, and that each has a GPU of its own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from tiny import tiny_config

from sparsekit.config.options import ReplicasConfig
from sparsekit.data import ImageData
from sparsekit.errors import UserError
from sparsekit.merges.uniform import Uniform
from sparsekit.methods.gmp import GMP
from sparsekit.training import team
from sparsekit.training.prepare import prepare
from sparsekit.training.ranks import Ranks


@pytest.mark.parametrize(
    ("rank", "size", "part"), [(0, 1, (0, 1)), (1, 2, (0, 1)), (0, 4, (0, 2)), (3, 4, (1, 2)), (9, 10, (4, 5))]
)
def test_the_trial_step_takes_the_ranks_part_of_the_batch(
    rank: int, size: int, part: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two replicas: a whole batch may not fit where the part of one rank does."""
    taken: list[tuple[int, int]] = []
    sizes: list[int] = []
    read = ImageData.train_batches

    def watched(self: ImageData, *arguments: Any, **options: Any) -> Any:
        taken.append(options.get("part", (0, 1)))
        for images, labels in read(self, *arguments, **options):
            sizes.append(len(images))
            yield images, labels

    monkeypatch.setattr(ImageData, "train_batches", watched)
    config = tiny_config(GMP(), Uniform(), tmp_path / "run", replicas=ReplicasConfig(2))
    setup = prepare(config, ranks=Ranks(rank, size))
    assert taken == [part]
    assert sizes == [config.data.batch_size // part[1]]
    assert (setup.team.member, setup.team.size) == part


@pytest.mark.parametrize(
    ("devices", "shared"),
    [(["a 0", "a 1", "a 2", "a 3"], False), (["a 0", "b 0", "a 1", "b 1"], False),
     (["a 0", "a 1", "a 0", "a 1"], False),
     (["a 0", "a 0", "a 1", "a 2"], True), (["a 0", "a 1", "a 2", "a 2"], True)],
)  # fmt: skip
def test_two_ranks_of_a_team_on_one_gpu_are_refused_with_what_works(devices: list[str], shared: bool) -> None:
    """Two teams of two ranks. Ranks of different teams may share a GPU: they have no collectives."""
    store, found = dist.HashStore(), dict[int, str]()  # type: ignore[attr-defined]

    def check(rank: int) -> None:
        index, member = divmod(rank, 2)
        try:
            team._check_devices(team.Team(index, 2, member, 2), Ranks(rank, 4, store), devices[rank])
        except UserError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=check, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert bool(found) == shared
    for error in found.values():
        for part in ("--device", "NCCL", "2 ranks", "--nproc-per-node"):
            assert part in error
