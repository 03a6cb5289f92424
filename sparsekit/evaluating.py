"""`sparsekit evaluate`: its options, and everything that is measured of a saved model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sparsekit import options, subjects
from sparsekit._version import __version__
from sparsekit.config import DEVICE, DataConfig
from sparsekit.errors import UserError

if TYPE_CHECKING:
    from sparsekit.display import Display

USAGE = "sparsekit evaluate RUN|MODEL_DIR [options]"


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a finished model on its test images.

    Args:
        data: The data set; by default the run's own.
        corruptions: Also test on images corrupted in sixteen ways at five severities each.
        corruption_files: Also test on the files of this folder, laid out as CIFAR-10-C and CIFAR-100-C are published.
        batchnorm: BatchNorm statistics as saved, measured again on training images, or one beside the other.
        dense: Run or model to compare with: the share of test images on which both predict the same class.
        seed: Seed of the corruptions.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto` is bf16 on CUDA devices that have it, else fp32.
        channels_last: Keep images and convolutions in channels-last memory order.
    """

    data: DataConfig = field(default_factory=DataConfig)
    corruptions: bool = False
    corruption_files: str | None = None
    batchnorm: Literal["saved", "recalibrated", "both"] = "saved"
    dense: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True


def main(arguments: Sequence[str], display: Display) -> int:
    """Run the command."""
    from sparsekit import rundir, tables

    subject, config, output = parse(arguments)
    from sparsekit import suite  # only now: it imports torch

    found = suite.evaluate(subject, config, display.note if config.corruptions else None)
    for table in tables.evaluation(found):
        display.show(table)
    own = subject.is_run and found["data"]["name"] == subject.config.get("data", {}).get("name")
    path = Path(output) if output else subject.folder / "evaluation.json" if own else None
    if path:
        try:
            rundir.write_json(path, found)
        except OSError as error:
            raise UserError(f"--output {path}: {error.strerror}; give a file that can be written") from error
        display.note(f"written: {path}")
    return 0


def parse(arguments: Sequence[str]) -> tuple[subjects.Subject, EvaluateConfig, str | None]:
    """What to look at, how, and where the result goes; raises UserError."""
    if not arguments:
        raise UserError(f"evaluate needs a run or a model directory: {USAGE}")
    first = vars(_parser(arguments).parse_args(list(arguments)))
    subject = subjects.find(first["path"])
    defaults: dict[str, Any] = {f"data.{key}": value for key, value in subject.data().items()}
    defaults |= {key: subject.config[key] for key in ("precision", "channels_last") if key in subject.config}
    parser = _parser(arguments)
    parser.set_defaults(defaults)
    values = vars(parser.instantiate(parser.parse_args(list(arguments))))
    del values["path"]
    output = values.pop("output")
    config = EvaluateConfig(**values)
    if not re.fullmatch(DEVICE, config.device):
        raise UserError(f"--device is {config.device}; give auto, cpu, cuda or cuda:N")
    return subject, config, output


def _parser(arguments: Sequence[str]) -> options.OptionParser:
    parser = options.bare("sparsekit evaluate", "Measure a finished model: accuracy, calibration, robustness.")
    parser.usage = USAGE
    parser.add_argument("path", metavar="RUN|MODEL_DIR", help="A run, or a model that sparsekit or timm saved.")
    parser.add_class_arguments(EvaluateConfig, nested_key=None)
    parser.add_argument(
        "-o",
        "--output",
        type=str,
        metavar="FILE",
        help="JSON file of the result; a run's default: RUN/evaluation.json.",
    )
    options.inform(parser, arguments)
    return parser


def header(model: str, data: DataConfig, images: int, classes: int, seed: int) -> dict[str, Any]:
    """What an evaluation says of itself."""
    about = {"name": data.name, "images": images, "classes": classes, "image_size": data.image_size}
    return {"format": 1, "version": __version__, "model": model, "data": about, "seed": seed}
