"""What 90 % of zeros buy: anywhere, 2 of every 4, and in whole channels; accuracy, operations, bytes and time.

python benchmarks/zeros.py [--quick]

Trains the default network on digits densely and in three patterns, each with a soup of three replicas, and runs the
results side by side on one thread. Zeros of the first two patterns are multiplied like other numbers; a file can leave
them out.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _measure import Section, alternate, main, milliseconds, ratio, timed
from slim import in_onnxruntime

from sparsekit.cli.main import main as cli
from sparsekit.config.options import ArchitectureConfig
from sparsekit.evaluation import cost
from sparsekit.exporting import slim
from sparsekit.exporting.model import ExportModel, load_export_model
from sparsekit.models import sparse_file
from sparsekit.models.saved import open_saved_model
from sparsekit.models.state import cpu_state_dict

QUIET = ["--wandb.mode", "disabled", "--evaluation.report", "false"]
PATTERNS: dict[str, list[str]] = {
    "dense": ["--sparsity", "0", "--method", "oneshot"],
    "anywhere": [],
    "2:4": ["--masks.pattern", "2:4", "--masks.exclude", "['^conv1']"],
    "channels": ["--masks.pattern", "channels"],
}


def trained(name: str, folder: Path, sparsity: float, epochs: int) -> tuple[dict[str, Any], ExportModel]:
    """The summary of a run, and its finished model with test images."""
    out = folder / name.replace(":", "-")
    options = ["--sparsity", str(sparsity), "--epochs", str(epochs), *PATTERNS[name]]
    code = cli(["fit", *QUIET, *options, "--out", str(out)])
    if code:
        raise SystemExit(code)
    model = load_export_model(open_saved_model("RUN", out), ArchitectureConfig(), None)
    return json.loads((out / "summary.json").read_text()), model


def bytes_of(model: torch.nn.Module, folder: Path) -> int:
    """The size of a file that leaves zeros out."""
    path = folder / "model.safetensors"
    sparse_file.save(path, {n: t.masked_fill(t == 0, 0) for n, t in cpu_state_dict(model).items()})
    return path.stat().st_size


def measure(quick: bool = False) -> Section:
    """A row a pattern."""
    section = Section(
        "What 90 % of zeros buy",
        ["zeros", "test accuracy", "MFLOPs done", "file", "torch", "onnxruntime", "times as fast as dense"],
    )
    torch.set_num_threads(1)
    rounds, epochs = (3, 8) if quick else (40, 30)
    with tempfile.TemporaryDirectory() as name:
        folder, facts, models = Path(name), {}, {}
        for pattern in PATTERNS:
            facts[pattern], export_model = trained(pattern, folder, 0.9, epochs)
            image = export_model.images[:1]
            models[pattern] = slim.small(export_model) if pattern == "channels" else export_model.model
        with torch.inference_mode():
            times = alternate({key: timed(partial(model, image)) for key, model in models.items()}, rounds)
        sessions = {}
        for key, model in models.items():
            (folder / f"onnx-{key.replace(':', '-')}").mkdir()
            sessions[key] = in_onnxruntime(model, image, folder / f"onnx-{key.replace(':', '-')}")
        others = alternate({key: timed(partial(each.predict, image)) for key, each in sessions.items()}, rounds)
        for key, model in models.items():
            flops, size = cost.flops(model, image, {}).dense, bytes_of(model, folder)
            section.add(
                key, f"{100 * facts[key]['test.accuracy']:.1f} %", f"{flops / 1e6:.2f}", f"{size / 1e3:.0f} kB",
                milliseconds(times[key]), milliseconds(others[key]), ratio(others["dense"], others[key]),
            )  # fmt: skip
    section.notes.append(
        "The default network on digits, one run each, soups of three. Operations are what dense kernels do; the file "
        "leaves zeros out; times are of one image on one thread, their ratio in onnxruntime."
    )
    return section


if __name__ == "__main__":
    main(measure, __doc__)
