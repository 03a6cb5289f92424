"""The end of a run: measure and save the finished model, verify the saved file, and fill summary.json."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsekit._types import Tensors
from sparsekit.config.options import EvaluateConfig, describe
from sparsekit.display.live import Display
from sparsekit.display.text import score_text
from sparsekit.evaluation import cost, evaluate
from sparsekit.evaluation.scores import constant_score
from sparsekit.files import load_tensors, make_readable, save_tensors, write_json
from sparsekit.models import slim
from sparsekit.models.create import save_model
from sparsekit.models.device import release_freed_memory
from sparsekit.pruning import masks
from sparsekit.pruning.coverage import coverage
from sparsekit.run.loop import Result
from sparsekit.training.setup import Setup

NOT_REPRODUCIBLE = ("wall_seconds", "out", "latency.seconds", "latency.slim_seconds")
"""Keys of the summary that differ between two runs of the same configuration; metrics.jsonl leaves them out."""


def initial_summary(setup: Setup, out: Path) -> dict[str, Any]:
    """The entries of summary.json that are known before training, with the status `failed`."""
    plain, covered = describe(setup.config), coverage(setup.model, setup.prunable)
    return {
        "status": "failed",
        "method": plain["method"]["name"],
        "merge": plain["merge"]["name"],
        "task": plain["task"]["name"],
        "score": setup.task.score_name,
        "seed": setup.config.seed,
        "target_sparsity": setup.config.sparsity,
        "segments": len(setup.plan),
        "prunable": covered.prunable,
        "prunable_share": covered.share,
        "out": str(out),
    }


def finish(setup: Setup, result: Result, out: Path) -> dict[str, Any]:
    """Measure and save the finished model and its masks, and check the saved file.

    Returns:
        The result's entries of summary.json.

    Raises:
        RunError: the saved model has a masked weight that is not 0.
    """
    release_freed_memory()
    setup.model.load_state_dict(result.state.tensors)
    with torch.no_grad():
        for name, mask in result.state.all_masks.items():  # a negative weight times 0 is -0.0, whose bits are not 0
            setup.model.get_parameter(name).copy_(result.state.tensors[name].where(mask, 0.0))
    measured = measure(setup, result.state.masks, out)
    save_model(setup.model, setup.config.model, setup.data.inputs, out / "model", setup.data.class_names)
    save_tensors(out / "masks.safetensors", result.state.all_masks)
    file = out / "model" / "model.safetensors"
    make_readable(file)
    saved = load_tensors(file)
    masks.check(saved, result.state.all_masks, str(file))
    parameters = [saved[name] for name, _ in setup.model.named_parameters()]
    pruned = sum(int((~mask).sum()) for mask in result.state.masks.values())
    sizes = cost.sizes(parameters, result.state.masks, file)
    score = setup.task.score_name
    summary: dict[str, Any] = {
        "sparsity": masks.sparsity(result.state.masks),
        "model_sparsity": pruned / sizes["parameters"],
        "merged": "merges.count" in measured or setup.config.merge.average_from is not None,
        "layers.empty": masks.empty({name: saved[name] for name in result.state.masks}),
        **(setup.channels.summary(result.state.masks) if setup.channels else {}),
        **sizes,
        "model_bytes": sizes["bytes.disk"],
        "class_names": list(setup.data.class_names),
        f"test.{score}": _finite(result.test.value),
        "test.loss": _finite(result.test.loss),
    }
    if result.candidates:
        values = [candidate.value for candidate in result.candidates]
        summary["candidates.count"] = len(values)
        summary[f"candidates.mean_{score}"] = _finite(sum(values) / len(values))
        summary[f"candidates.best_{score}"] = _finite(max(values))
        summary["candidates.mean_loss"] = _finite(sum(c.loss for c in result.candidates) / len(values))
    return measured | summary


def warnings(setup: Setup, summary: dict[str, Any]) -> list[str]:
    """Lines about a result that is not as the user may think."""
    score = setup.task.score_name
    value, loss = summary[f"test.{score}"], summary["test.loss"]
    if value is None:
        return [f"test.{score} is not finite: {setup.data.first_not_finite('test') or 'look at what the model gives'}"]
    targets = setup.data.known_targets("test")
    constant = constant_score(setup.task, targets) if targets is not None else None
    if constant is None or value > constant.value:
        return []
    if loss is not None and loss < constant.loss - 0.01 * abs(constant.loss):
        return []  # it knows something, as where one class is most of the examples
    own, other = (score_text(score, each, 2) for each in (value, constant.value))
    return [
        f"the model learned nothing: {own} on the test split, and one answer for every example gives {other}; try "
        "another --optimizer.lr, more --epochs, or a model with normalisation"
    ]


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def measure(setup: Setup, final_masks: Tensors, out: Path) -> dict[str, Any]:
    """Evaluate the finished model, write evaluation.json, and return the measured entries of summary.json.

    Args:
        setup: Its working model holds the finished weights.
        final_masks: The masks of the finished model, True keeps.
        out: The run directory; metrics.jsonl holds the rows of all merges.
    """
    config, data = setup.config, setup.data
    options = EvaluateConfig(config.task, data=config.data, corruptions=config.evaluation.corruptions, seed=config.seed)
    evaluator = evaluate.Evaluator(setup.model, data.normalise, setup.autocast(), setup.task)
    found = evaluate.measure_variant(evaluator, data, options)
    about = evaluate.header("model", config.data.name, data, config.task, config.seed)
    write_json(out / "evaluation.json", about | {"variants": {"saved": found}})
    values = {f"test.{key}": value for key, value in found["test"].items()}
    if "corruptions" in found:
        rows = [cell[setup.task.score_name] for cells in found["corruptions"].values() for cell in cells]
        values[f"test.corrupted_{setup.task.score_name}"] = None if None in rows else sum(rows) / len(rows)
    images, _ = next(data.evaluation_batches("test"))
    flops = cost.flops(setup.model, images[:1], final_masks)
    return {
        **values,
        "flops.dense": flops.dense,
        "flops.sparse": flops.sparse,
        **cost.training_images([segment.lengths for segment in setup.plan], data.batch_size),
        "latency.seconds": cost.latency(setup.model, images[:1], setup.autocast()),
        **_without_channels(setup, final_masks, images[:1]),
        **merges(out, setup.task.score_name),
    }


def _without_channels(setup: Setup, final_masks: Tensors, image: Tensor) -> dict[str, float]:
    """The latency of the network without its removed channels; empty with other patterns."""
    if setup.channels is None:
        return {}
    small = slim.without(setup.model, setup.channels.axes(setup.channels.kept(final_masks)))
    return {"latency.slim_seconds": cost.latency(small, image, setup.autocast())}


def merges(out: Path, score: str) -> dict[str, Any]:
    """Count the merges of two or more candidates in metrics.jsonl, and those that regressed.

    Returns:
        `merges.count`, `merges.lost`, `merges.margin`, and `candidates.ensemble_accuracy` and `.ensemble_loss`, the
        test score and loss of the last candidates' ensemble, if it was measured, and the last merge's `gain.…`. Empty
        without such a merge.
    """
    with (out / "metrics.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if '"merge"' in line]
    judged = [row for row in rows if "soup.lost" in row]
    if not judged:
        return {}
    lost = sum(row["soup.lost"] for row in judged)
    values = {"merges.count": len(judged), "merges.lost": lost, "merges.margin": judged[-1]["soup.margin"]}
    measured = {key: judged[-1].get(f"ensemble.test_{key}") for key in (score, "loss")}
    values |= {key: value for key, value in judged[-1].items() if key.startswith("gain.")}
    return values | {f"candidates.ensemble_{key}": value for key, value in measured.items() if value is not None}


def page_of(out: Path) -> Path:
    """The path of the report that `write_report` writes."""
    return out / "report.html"


def write_report(out: Path, display: Display) -> Path | None:
    """Write report.html and return its path; None with a warning if that fails, since the run itself is done."""
    from sparsekit.report import page  # imports matplotlib, which is slow

    path = page_of(out)
    try:
        page.write([str(out)], path)
        return path
    except Exception as error:  # a plotting library may raise anything
        display.warn(f"{path} could not be made ({type(error).__name__}: {error}); the run itself is done")
        return None
