"""Run directories written by hand, with the files that a finished fit leaves and numbers that are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sparsekit.run.checkpoint import CheckpointStore, StoredFile

OPTIONS: dict[str, Any] = {
    "method": {"name": "gmp", "start": 0.1},
    "merge": {"name": "uniform"},
    "sparsity": 0.9,
    "epochs": 8,
    "replicas": {"count": 3, "start": 0.2},
    "data": {"name": "digits", "batch_size": 50},
    "seed": 0,
    "out": "runs/x",
}


def write_run(
    folder: Path, segments: int = 4, steps: int = 16, rows: int = 4, score: str = "accuracy", **changes: Any
) -> Path:
    """A finished run of `segments` merges of three candidates; `changes` are options such as `sparsity` and `seed`.

    `score` is the name of its task's score; that of a classification was not written into older runs.
    """
    folder.mkdir(parents=True)
    options = {**OPTIONS, **changes, "out": str(folder)}
    seed, sparsity = options["seed"], options["sparsity"]
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    each = 2.0
    plan = [
        {
            "segment": i, "start_epoch": i * each, "epochs": each, "sparsity": sparsity * (i + 1) / segments,
            "lr_first": [0.2, 0.2], "lr_last": [0.1, 0.1], "replicas": 3,
            "lr_points": [[0.0, 0.0], [0.1, 0.2], [0.1, 0.1]],
        }
        for i in range(segments)
    ]  # fmt: skip
    named = {"score": score} if score != "accuracy" else {}
    (folder / "plan.json").write_text(
        json.dumps({"segments": plan, "critical_epochs": 8.0, "total_epochs": 24.0} | named)
    )
    lines: list[dict[str, Any]] = []
    for i in range(segments):
        step = i * steps
        layers = {f"layer{n}.weight": plan[i]["sparsity"] for n in range(6)}
        lines.append(
            {"event": "segment", "step": step, "segment": i, "sparsity": plan[i]["sparsity"], "layers": layers}
        )
        for replica in range(3):
            for n in range(rows):
                at = step + (n + 1) * steps // rows
                lines.append({"event": "train", "step": at, "segment": i, "replica": replica, "loss": 1.0, "lr": 0.1})
        end = step + steps
        accuracies = [0.6 + 0.05 * i, 0.62 + 0.05 * i, 0.61 + 0.05 * i]
        soup = 0.65 + 0.05 * i if i != 1 else 0.62  # the second merge loses
        lines.append(
            {
                "event": "merge", "step": end, "segment": i, "candidates": accuracies, "ingredients": [0, 1, 2],
                "soup": soup, "soup.loss": 0.5, "barrier": -0.125, "soup.margin": 0.01,
                "soup.lost": soup < max(accuracies) - 0.01, f"ensemble.{score}": max(accuracies), "distance.mean": 3.0,
                "turn.mean": 60.0, "barycentre.mean": 2.0,
            }
        )  # fmt: skip
        lines.append(
            {"event": "evaluate", "step": end, "segment": i, f"test.{score}": soup, "sparsity": plan[i]["sparsity"]}
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        "status": "done", "method": "gmp", "merge": "uniform", "seed": seed, "out": str(folder), "sparsity": sparsity,
        "model_sparsity": sparsity - 0.01, "nonzero": 24_380, "parameters": 243_810,
        f"test.{score}": accuracy(seed, sparsity), "test.loss": 0.1234,
        "candidates.count": 3, f"candidates.mean_{score}": 0.9, f"candidates.best_{score}": 0.97, "wall_seconds": 75.0,
        "gain.loss": -0.02, "gain.loss.low": -0.05, "gain.loss.high": -0.01,
        "flops.dense": 1_000_000, "flops.sparse": 125_000.0, "bytes.dense": 975_240, "bytes.compressed": 132_900,
        "bytes.disk": 987_856, "images.total": 6200, "images.critical": 2400, "latency.seconds": 0.0015,
    }  # fmt: skip
    if score == "accuracy":
        summary |= {"test.ece": 0.0321, "test.worst_class_accuracy": 0.7071, "test.worst_class": 8}
    (folder / "summary.json").write_text(json.dumps(summary | named))
    bins = [{"count": 10, "confidence": n / 15 + 0.03, "accuracy": n / 15} for n in range(15)]
    variant = {
        "test": {"accuracy": 0.95, "loss": 0.1234, "ece": 0.0321, "worst_class": 8},
        "class_accuracy": [0.9] * 8 + [0.7071, 0.9],
        "bins": bins,
        "corruptions": {kind: [{"accuracy": 0.9 - 0.1 * s} for s in range(5)] for kind in ("fog", "gaussian_noise")},
    }
    if score != "accuracy":
        variant = {"test": {score: 0.95, "loss": 0.1234, "F1": 0.8, "subset_accuracy": 0.5}, "label_AP": [0.9, None]}
    about = {"name": "digits", "images": 1000}
    (folder / "evaluation.json").write_text(json.dumps({"data": about, "variants": {"saved": variant}}))
    return folder


def accuracy(seed: int, sparsity: float) -> float:
    """What write_run writes as the test accuracy."""
    return round(0.99 - 0.1 * sparsity - 0.01 * (seed % 3), 6)


def newest(store: CheckpointStore, warn: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, StoredFile]] | None:
    """A run's newest good checkpoint as it is."""
    return store.restored(warn, lambda body, files: (body, files))
