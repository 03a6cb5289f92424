"""The options of `sparsekit evaluate`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sparsekit.config import parser as options
from sparsekit.config.options import DEVICE, ArchitectureConfig, DataConfig
from sparsekit.errors import UserError
from sparsekit.models.saved import SavedModel, open_saved_model

USAGE = "sparsekit evaluate RUN|MODEL_DIR [options]"


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a finished model on its test images.

    Args:
        model: The architecture, where the model does not say it itself.
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

    model: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    data: DataConfig = field(default_factory=DataConfig)
    corruptions: bool = False
    corruption_files: str | None = None
    batchnorm: Literal["saved", "recalibrated", "both"] = "saved"
    dense: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True


def parse(arguments: Sequence[str]) -> tuple[SavedModel, EvaluateConfig, str | None]:
    """What to look at, how, and where the result goes; raises UserError."""
    if not arguments:
        raise UserError(f"evaluate needs a run or a model directory: {USAGE}")
    first = vars(_parser(arguments).parse_args(list(arguments)))
    source = open_saved_model("MODEL", first["path"])
    defaults: dict[str, Any] = {f"data.{key}": value for key, value in source.data_options.items()}
    defaults |= {key: source.run[key] for key in ("precision", "channels_last") if key in source.run}
    parser = _parser(arguments)
    parser.set_defaults(defaults)
    values = vars(parser.instantiate(parser.parse_args(list(arguments))))
    del values["path"]
    output = values.pop("output")
    config = EvaluateConfig(**values)
    if not re.fullmatch(DEVICE, config.device):
        raise UserError(f"--device is {config.device}; give auto, cpu, cuda or cuda:N")
    return source, config, output


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
