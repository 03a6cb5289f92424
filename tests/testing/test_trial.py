"""The run for authors' own tests: it is a run as any other, and keeps what happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from plugin_classes import Mean, Thresholds, Twice
from torch import nn

import sparsekit
from sparsekit import Data, UserError
from sparsekit.testing import Trial, run
from sparsekit.testing.network import Network


@pytest.fixture(scope="module")
def trial() -> Trial:
    return run(Twice(), "uniform", sparsity=0.8, epochs=3, replicas={"count": 3})


def test_every_segment_is_kept(trial: Trial) -> None:
    assert [segment.stage.index for segment in trial.segments] == [0, 1, 2]
    assert [segment.sparsity for segment in trial.segments] == pytest.approx([0.0, 0.4, 0.8], abs=1e-3)
    first, second, third = trial.segments
    for before, after in ((first, second), (second, third)):
        assert after.before is before.soup
    for segment in trial.segments:
        assert (len(segment.candidates), len(segment.scores), segment.ingredients) == (3, 3, (0, 1, 2))
        for name, mask in segment.masks.items():
            kept = segment.before[name] * mask
            assert torch.equal(segment.pruned[name], kept)
            assert all(not bool(each[name][~mask].any()) for each in (*segment.candidates, segment.soup))
    weights = {name: third.before[name] for name in third.masks}
    removed = sum(float((w[~third.masks[name]] ** 2).sum()) for name, w in weights.items())
    # of all parameters; of BatchNorm's buffers nothing
    whole = sum(float((third.before[name] ** 2).sum()) for name, _ in trial.model.named_parameters())
    assert third.stage.relative_change**2 * whole == pytest.approx(removed)


def test_the_soup_is_that_of_the_candidates(trial: Trial) -> None:
    last = trial.segments[-1]
    mean = sum(candidate["fc.bias"].double() for candidate in last.candidates) / 3
    torch.testing.assert_close(last.soup["fc.bias"], mean.float())  # type: ignore[union-attr]
    assert last.coefficients == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_the_finished_model_is_there(trial: Trial) -> None:
    state = trial.model.state_dict()
    assert set(state) == set(trial.tensors)
    assert all(torch.equal(state[name], tensor) for name, tensor in trial.tensors.items())
    assert trial.masks is trial.segments[-1].masks
    assert [row["segment"] for row in trial.rows if row["event"] == "merge"] == [0, 1, 2]
    assert trial.rows[-1]["test.loss"] == trial.test.loss


def test_dense_weights_and_extra_tensors_are_as_they_are_stored() -> None:
    done = run(Thresholds(pull=1e-2), Mean, epochs=3, replicas={"count": 1})
    last = done.segments[-1]
    name, mask = "conv2.weight", last.masks["conv2.weight"]
    assert bool(last.soup[name][~mask].any())
    assert not bool(done.tensors[name][~mask].any())
    assert f"extra.threshold of {name}" in last.soup
    assert f"extra.threshold of {name}" not in done.tensors


def test_names_classes_instances_and_dotted_options_are_the_same() -> None:
    from sparsekit.merges.uniform import Uniform
    from sparsekit.methods.gmp import GMP

    before = torch.get_rng_state()
    options: dict[str, Any] = {"epochs": 3, "sparsity": 0.5}
    one = run("gmp", "uniform", **options, replicas={"count": 1})
    two = run(GMP, Uniform(), **options, **{"replicas.count": 1})
    assert all(torch.equal(tensor, two.tensors[name]) for name, tensor in one.tensors.items())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_it_is_the_run_that_fit_makes(tmp_path: Path) -> None:
    trial = run("gmp", "greedy", seed=3)
    fit = sparsekit.fit(
        method="gmp", merge="greedy", seed=3, epochs=6, model=Network, device="cpu", precision="fp32",
        data={"image_size": 8, "limit": 160, "batch_size": 20}, replicas={"count": 2, "start": 0.0},
        optimizer={"lr": 0.1}, wandb={"mode": "disabled"}, channels_last=False, out=tmp_path / "run",
    )  # fmt: skip
    state = fit.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in trial.tensors.items())
    assert trial.test.accuracy == fit.summary["test.accuracy"]
    assert trial.test.accuracy > 0.25  # chance is 0.1


def test_model_data_and_task_may_be_objects() -> None:
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    data = Data(train=(inputs, (inputs[:, 0] > 0).long()), test=(inputs, (inputs[:, 0] > 0).long()))
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    done = run(Twice, data=data, model=network, sparsity=0.5, optimizer={"name": "adamw", "lr": 0.01})
    assert set(done.masks) == {"0.weight", "2.weight"}
    assert done.model(torch.zeros(1, 4)).shape == (1, 2)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"out": "runs/x"}, ("out", "leave it out")),
        ({"replicas": {"cont": 2}}, ("replicas.cont", "replicas.count")),
        ({"sparsity": 2.0}, ("sparsity", "2")),
        ({"method": "gnp"}, ("gnp", "gmp")),
    ],
)
def test_wrong_keywords_are_named(options: dict[str, Any], parts: tuple[str, str]) -> None:
    with pytest.raises(UserError) as caught:
        run(**options)
    assert all(part in str(caught.value) for part in parts)
