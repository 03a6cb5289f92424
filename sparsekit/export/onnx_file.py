"""ONNX, with the weights as they are: nothing is folded at export, so that zeros stay where they were.

onnxruntime folds BatchNorm into convolutions when it loads the file, which scales weights and leaves zeros zeros.
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
from sparsekit.export.formats import Format, Loaded
from sparsekit.export.model import ExportModel
from sparsekit.export.torch_program import traced


def check(subject: ExportModel) -> None:
    """Raise UserError where a package is missing."""
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx needs {', '.join(missing)}: pip install 'sparsekit-soups[export]'")


def write(subject: ExportModel, out: Path) -> None:
    """Export without optimisation: initialisers are the model's tensors, under its names.

    Raises:
        RunError: torch cannot convert the model.
    """
    program = traced(subject)
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
        except Exception as error:  # it raises whatever the conversion meets
            raise RunError(f"torch.onnx cannot convert {subject.config.name}: {_reason(error)}") from error


def load(out: Path, subject: ExportModel) -> Loaded:
    """A session of onnxruntime on the CPU, and the file's initialisers."""
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; what it warns of is the exporter's doing
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    stored = {i.name: numpy_helper.to_array(i) for i in onnx.load(str(out)).graph.initializer}
    names = [name for name in subject.model.state_dict() if name in stored]
    return Loaded(predict, {name: torch.from_numpy(stored[name].copy()) for name in names})


def _reason(error: BaseException) -> str:
    """The first line of what it began with; the exporter's own text around it is a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither the exporter's progress nor its advice about itself."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


FORMAT = Format(write, load, check=check)
