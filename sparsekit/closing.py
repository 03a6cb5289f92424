"""What `fit` measures of the finished model beyond its test score, before it is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsekit import cost, rundir, suite
from sparsekit._types import Tensors
from sparsekit.display import Display
from sparsekit.evaluating import EvaluateConfig, header
from sparsekit.replicas import fork
from sparsekit.setup import Setup


def measure(setup: Setup, masks: Tensors, out: Path) -> dict[str, Any]:
    """Flat values for summary.json; writes evaluation.json.

    Args:
        setup: Its working model holds the finished weights.
        masks: The final masks.
        out: The run directory, with metrics.jsonl complete up to here.
    """
    config, data = setup.config, setup.data
    options = EvaluateConfig(config.data, config.evaluation.corruptions, seed=config.seed)
    bench = suite.Bench(setup.model, data.normalise, setup.autocast(), data.num_classes)
    found = suite.measured(bench, data, options)
    about = header("model", config.data, data.test_size, data.num_classes, config.seed)
    about["data"]["image_size"] = data.image_size
    rundir.write_json(out / "evaluation.json", about | {"variants": {"saved": found}})
    values = {f"test.{key}": value for key, value in found["test"].items()}
    if "corruptions" in found:
        rows = [cell["accuracy"] for cells in found["corruptions"].values() for cell in cells]
        values["test.corrupted_accuracy"] = sum(rows) / len(rows)
    images, _ = next(data.evaluation_batches("test"))
    flops = cost.flops(setup.model, images[:1], masks)
    lengths = [
        tuple(max(1, round(replica.length * steps)) for replica in fork(config, stage)) if steps else ()
        for stage, steps in zip(setup.stages, setup.steps, strict=True)
    ]
    return {
        **values,
        "flops.dense": flops.dense,
        "flops.sparse": flops.sparse,
        **cost.seen(lengths, data.batch_size),
        "latency.seconds": cost.latency(setup.model, images[:1], setup.autocast()),
        **merges(out),
    }


def merges(out: Path) -> dict[str, Any]:
    """How many merges of at least two candidates there were, and how many the soup lost, as metrics.jsonl has them."""
    with (out / "metrics.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if '"merge"' in line]
    judged = [row for row in rows if "soup.lost" in row]
    if not judged:
        return {}
    lost = sum(row["soup.lost"] for row in judged)
    return {"merges.count": len(judged), "merges.lost": lost, "merges.margin": judged[-1]["soup.margin"]}


def write_report(out: Path, display: Display) -> Path | None:
    """Make report.html. The run is done: whatever keeps its page from being made is worth a warning only."""
    from sparsekit.report import command  # only now: matplotlib takes a second

    path = out / "report.html"
    try:
        command.write([str(out)], path)
        display.note(f"report: {path}")
        return path
    except Exception as error:  # a plotting library may raise anything
        display.warn(f"{path} could not be made ({type(error).__name__}: {error}); the run itself is done")
        return None
