"""ONNX export with unchanged weights: nothing is folded, so that zeros stay in place.

onnxruntime folds BatchNorm into convolutions when it loads the file; that scales weights, and zeros stay zeros.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sparsekit.errors import RunError, UserError
from sparsekit.exporting.formats import Format, Loaded
from sparsekit.exporting.model import ExportModel
from sparsekit.exporting.torch_program import traced


def check(export_model: ExportModel) -> None:
    """Raise UserError if a package that ONNX export needs is missing."""
    if lacking := missing():
        raise UserError(f"--format onnx needs {', '.join(lacking)}: pip install 'sparsekit-soups[export]'")


def missing() -> list[str]:
    """The packages that ONNX export needs and that are not installed."""
    return [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]


def write(export_model: ExportModel, out: Path) -> None:
    """Export without optimisation, so that the file's initialisers are the model's tensors under their names.

    Raises:
        RunError: torch cannot convert the model.
    """
    program = traced(export_model)
    with _quiet():
        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=None,
            )
            assert made is not None
            made.save(str(out))
        except Exception as error:  # the exporter may raise anything
            raise RunError(f"torch.onnx cannot convert {export_model.config.name}: {_reason(error)}") from error


def load(out: Path, export_model: ExportModel) -> Loaded:
    """Load the file with onnxruntime on the CPU, and read its initialisers."""
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: the warnings are about the exporter's output
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    stored = {i.name: numpy_helper.to_array(i) for i in onnx.load(str(out)).graph.initializer}
    names = [name for name in export_model.model.state_dict() if name in stored]
    return Loaded(predict, {name: torch.from_numpy(stored[name].copy()) for name in names})


def _reason(error: BaseException) -> str:
    """The first line of the original error, which the exporter wraps in a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's progress and warnings."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


FORMAT = Format(write, load, check=check)
