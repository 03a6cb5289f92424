"""What a merge says of its candidates, computed again with numpy from whole models at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from tiny import dense_then_pruned, rows, tiny_config, tiny_setup, trained

from sparsekit.api import Candidate, MergeStep, Score, Soup
from sparsekit.config.options import EvaluationConfig, ReplicasConfig
from sparsekit.data import Split
from sparsekit.launch import fit
from sparsekit.merges.best import Best
from sparsekit.merges.none import NoMerge
from sparsekit.merges.uniform import Uniform
from sparsekit.merging import diagnostics
from sparsekit.merging.candidates import FileCandidate, read_tensors
from sparsekit.merging.merge import merge
from sparsekit.methods.dpf import DPF
from sparsekit.methods.oneshot import OneShot
from sparsekit.models.state import State
from sparsekit.training.setup import Setup


def cooked(folder: Path, count: int = 3, **changes: Any) -> tuple[Setup, State, State, list[FileCandidate], Score]:
    """Candidates of one segment and their uniform soup."""
    setup = tiny_setup(replicas=ReplicasConfig(count, start=0.0), **changes)
    parent, stage = dense_then_pruned(setup)
    candidates = []
    for index in range(count):
        state = trained(setup, parent, stage, index)
        score = setup.score(state, "held_out")
        candidates.append(FileCandidate.write(folder / f"{index}.safetensors", index, state, score))
    merged, _ = merge(setup, parent, candidates, stage)
    return setup, parent, merged, candidates, setup.score(merged, "held_out")


def vector(setup: Setup, tensors: Any) -> np.ndarray:
    return np.concatenate([tensors(name).double().numpy().ravel() for name, _ in setup.model.named_parameters()])


def angle(a: np.ndarray, b: np.ndarray) -> float:
    return math.degrees(math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))


def logits(setup: Setup, state: State, split: Split = "held_out") -> np.ndarray:
    setup.install(state)
    with torch.no_grad():
        parts = [setup.model.eval()(images).double() for images, _ in setup.data.evaluation_batches(split)]
    return torch.cat(parts).numpy()


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("method", [None, DPF()], ids=["masked", "dense weights behind"])
def test_every_number_agrees_with_whole_models_in_memory(tmp_path: Path, method: DPF | None) -> None:
    changes = {"method": method} if method else {}
    setup, parent, merged, candidates, soup = cooked(tmp_path, **changes)
    found = diagnostics.of_merge(setup, parent, merged, candidates, soup)

    vectors = [vector(setup, candidate.read) for candidate in candidates]
    start = vector(setup, parent.tensors.__getitem__)
    pairs = list(combinations(vectors, 2))
    expected = {
        "distance": [np.linalg.norm(a - b) for a, b in pairs],
        "angle": [angle(a, b) for a, b in pairs],
        "turn": [angle(a - start, b - start) for a, b in pairs],
    }
    for name, values in expected.items():
        for part, value in (("min", min(values)), ("mean", np.mean(values)), ("max", max(values))):
            assert found[f"{name}.{part}"] == pytest.approx(value, rel=1e-6), name
    centre = np.mean(vectors, axis=0)
    assert found["barycentre"] == pytest.approx([np.linalg.norm(v - centre) for v in vectors], rel=1e-6)
    assert found["barycentre.mean"] == pytest.approx(np.mean(found["barycentre"]))

    labels = torch.cat([labels for _, labels in setup.data.evaluation_batches("held_out")]).numpy()
    outputs = [softmax(logits(setup, merged.renamed(read_tensors(c)))) for c in candidates]
    losses = [log_loss(labels, p) for p in outputs]
    mean = np.mean(outputs, axis=0)
    assert found["ensemble.loss"] == pytest.approx(log_loss(labels, mean), abs=1e-6)
    assert found["ensemble.accuracy"] == accuracy_score(labels, mean.argmax(1))
    assert found["candidates.loss"] == pytest.approx(losses, abs=1e-6)
    assert found["candidates.mean_loss"] == pytest.approx(np.mean(losses), abs=1e-6)
    assert found["candidates.best_loss"] == pytest.approx(min(losses), abs=1e-6)
    assert found["candidates.best_accuracy"] == max(accuracy_score(labels, p.argmax(1)) for p in outputs)


def test_what_the_soup_brought_is_measured_where_its_candidates_are(tmp_path: Path) -> None:
    setup, parent, merged, candidates, soup = cooked(tmp_path)
    assert not any(key.startswith("gain.") for key in diagnostics.of_merge(setup, parent, merged, candidates, soup))
    for candidate in candidates:
        candidate.tested = candidate.score  # as at the last merge
    found = diagnostics.of_merge(setup, parent, merged, candidates, soup)
    labels = torch.cat([labels for _, labels in setup.data.evaluation_batches("test")]).numpy()

    def measures(state: State) -> tuple[float, float]:
        outputs = softmax(logits(setup, state, "test"))
        return accuracy_score(labels, outputs.argmax(1)), log_loss(labels, outputs)

    each = np.array([measures(merged.renamed(read_tensors(c))) for c in candidates])
    for name, value in zip(("accuracy", "loss"), measures(merged) - each.mean(0), strict=True):
        assert found[f"gain.{name}"] == pytest.approx(value, abs=1e-9)
        assert found[f"gain.{name}.low"] <= value <= found[f"gain.{name}.high"]


def test_the_barrier_is_the_soups_loss_less_the_candidates_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[float, float]] = []
    true = diagnostics.of_merge

    def spy(setup: Setup, parent: State, merged: State, candidates: Any, soup: Score) -> dict[str, Any]:
        labels = torch.cat([labels for _, labels in setup.data.evaluation_batches("held_out")]).numpy()
        losses = [log_loss(labels, softmax(logits(setup, merged.renamed(read_tensors(c))))) for c in candidates]
        kept.append((log_loss(labels, softmax(logits(setup, merged))), float(np.mean(losses))))
        return true(setup, parent, merged, candidates, soup)

    monkeypatch.setattr(diagnostics, "of_merge", spy)
    fit(tiny_config(OneShot(), out=tmp_path / "run", epochs=2))
    for row, (soup, mean) in zip(rows(tmp_path / "run", "merge"), kept, strict=True):
        assert row["barrier"] == pytest.approx(soup - mean, abs=1e-6)
        assert row["soup.loss"] == pytest.approx(soup, abs=1e-6)


@pytest.mark.parametrize(
    ("soup", "candidates", "margin", "lost"),
    [
        (0.80, [0.70, 0.82], 0.01, True),
        (0.81, [0.70, 0.82], 0.01, False),
        (0.82, [0.83, 0.70], 0.01, False),  # exactly the margin
        (0.90, [0.70, 0.82], 0.0, False),
        (0.819, [0.70, 0.82], 0.0, True),
    ],
)
def test_a_soup_has_lost_by_more_than_the_margin(
    soup: float, candidates: list[float], margin: float, lost: bool
) -> None:
    assert diagnostics.has_lost(soup, candidates, margin) is lost


def test_a_lost_merge_is_told_in_the_rows_the_summary_and_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Reversed(Uniform):
        """The mean, with its last layer the wrong way round: it cannot win."""

        def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
            soup = super().merge(candidates, step)
            return replace(soup, tensors={n: -t if n.startswith("fc.") else t for n, t in soup.tensors.items()})

    summary = fit(tiny_config(OneShot(), Reversed(), out=tmp_path / "run", epochs=3, sparsity=0.5))
    found = rows(tmp_path / "run", "merge")
    lost = [row for row in found if row["soup"] < max(row["candidates"]) - 0.01]
    assert [row["soup.lost"] for row in found] == [row in lost for row in found]
    assert summary["merges.count"] == len(found)
    assert summary["merges.lost"] == len(lost) > 0
    out = capsys.readouterr().out
    assert out.count("  lost ") == len(lost)
    assert f"{len(lost)} of {len(found)}" in out


def test_a_single_candidate_is_compared_with_nothing(tmp_path: Path) -> None:
    summary = fit(tiny_config(OneShot(), NoMerge(), out=tmp_path / "run", epochs=2))
    assert not any(key.startswith("merges.") for key in summary)
    assert all("soup.lost" not in row and "ensemble.loss" not in row for row in rows(tmp_path / "run", "merge"))


def test_diagnostics_change_no_weight_and_can_be_left_out(tmp_path: Path) -> None:
    quiet = EvaluationConfig(diagnostics=False, report=False)
    fit(tiny_config(OneShot(), Best(), out=tmp_path / "with", epochs=2))
    fit(tiny_config(OneShot(), Best(), out=tmp_path / "without", evaluation=quiet, epochs=2))
    left, right = (tmp_path / name / "model" / "model.safetensors" for name in ("with", "without"))
    assert left.read_bytes() == right.read_bytes()
    row = rows(tmp_path / "without", "merge")[-1]
    assert "soup.lost" in row
    assert "distance.mean" not in row
    assert "distance.mean" in rows(tmp_path / "with", "merge")[-1]


def test_pairs_among_many_candidates_stay_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup, parent, _, candidates, _ = cooked(tmp_path, 3)
    names = [name for name, _ in setup.model.named_parameters()]
    full = diagnostics.geometry(candidates, parent, names)
    monkeypatch.setattr(diagnostics, "MOST", 2)
    some = diagnostics.geometry(candidates, parent, names)
    assert some["distance.min"] == some["distance.max"]
    assert full["distance.min"] <= some["distance.mean"] <= full["distance.max"]
    assert some["barycentre"] == pytest.approx(full["barycentre"], rel=1e-9)  # of all, whatever the pairs


def test_a_large_tensor_is_read_some_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, parent, _, candidates, _ = cooked(tmp_path, 3)
    largest = 0

    class Watched(FileCandidate):
        def read_rows(self, name: str, rows: slice) -> torch.Tensor:
            nonlocal largest
            found = super().read_rows(name, rows)
            largest = max(largest, found.numel())
            return found

    watched = [Watched(c.path, c.index, c.score, c.mask_digest) for c in candidates]
    names = ["layer4.0.conv1.weight", "bn1.bias"]
    expected = diagnostics.geometry(candidates, parent, names)
    row = parent.tensors[names[0]][0].numel()
    monkeypatch.setattr(diagnostics, "SMALL", 4 * 2 * row)
    found = diagnostics.geometry(watched, parent, names)
    assert largest == 2 * row
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-9)


def test_candidates_that_are_one_have_no_distance(tmp_path: Path) -> None:
    setup, parent, _, candidates, _ = cooked(tmp_path, 2)
    twice = [candidates[0], FileCandidate(candidates[0].path, 1, candidates[0].score, candidates[0].mask_digest)]
    found = diagnostics.geometry(twice, parent, [name for name, _ in setup.model.named_parameters()])
    assert found["distance.max"] == found["barycentre.mean"] == 0.0
    assert found["angle.max"] == pytest.approx(0.0, abs=1e-4)
    still = replace(parent, tensors={name: candidates[0].read(name) for name in parent.tensors})
    assert diagnostics.geometry(twice, still, ["fc.weight"])["turn.max"] == 0.0  # no change has no direction
