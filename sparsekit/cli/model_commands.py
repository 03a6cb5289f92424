"""The command lines of what works on finished models. Their options are parsed before torch is imported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparsekit.config import parser as options
from sparsekit.config.model_options import ExportConfig, MergeConfig
from sparsekit.config.options import DataConfig
from sparsekit.errors import UserError

if TYPE_CHECKING:
    from sparsekit.models.saved import SavedModel


def export_command(arguments: Sequence[str]) -> int:
    """`sparsekit export MODEL --format NAME -o OUT [--measure]`."""
    places, given = options.split(arguments)
    usage = "sparsekit export MODEL --format NAME -o OUT [--measure] [options]"
    description = (
        "Write a finished model in another format, read it back, and compare. MODEL is a run, a directory that timm "
        "saved, or a file of weights."
    )
    parser = options.build("sparsekit export", description, ExportConfig, usage)
    options.parse_as(ExportConfig, parser, given)  # first: what is wrong with the options, or --help
    if len(places) != 1:
        raise UserError(f"give one model to export, not {len(places)}: {usage}")
    from sparsekit.export.export import export
    from sparsekit.models.saved import open_saved_model

    source = open_saved_model("MODEL", places[0])
    config = options.parse_as(ExportConfig, parser, [*data_options([source]), *given])
    tell(export(source, config, data_of(config.data, [source], given)))
    return 0


def merge_command(arguments: Sequence[str]) -> int:
    """`sparsekit merge MODEL [MODEL ...] --merge NAME -o OUT`."""
    places, given = options.split(arguments)
    usage = "sparsekit merge MODEL [MODEL ...] --merge NAME [--merge.X ...] -o OUT [options]"
    description = (
        "Average finished models of one architecture, trained by sparsekit or not. A MODEL is a run, a directory that "
        "timm saved, or a file of weights; the same one may come twice."
    )
    parser = options.build("sparsekit merge", description, MergeConfig, usage)
    options.parse_as(MergeConfig, parser, given)  # first: what is wrong with the options, or --help
    if not places:
        raise UserError(f"give the models to merge: {usage}")
    from sparsekit.merging import finished as soups
    from sparsekit.models.saved import open_saved_model

    sources = [open_saved_model("MODEL", place) for place in places]
    config = options.parse_as(MergeConfig, parser, [*data_options(sources), *given])
    tell(soups.merge(sources, config, data_of(config.data, sources, given)))
    return 0


def data_options(sources: Sequence[SavedModel]) -> list[str]:
    """The data of the first sparsekit run among the sources, as options."""
    run: dict[str, Any] = next((source.run for source in sources if source.run), {})
    data = run.get("data") or {}
    return [
        f"--data.{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in data.items()
        if value is not None
    ]


def data_of(data: DataConfig, sources: Sequence[SavedModel], given: Sequence[str]) -> DataConfig | None:
    """The data, where it was given or a run names it."""
    asked = any(argument.startswith("--data.") for argument in given)
    return data if asked or any(source.run.get("data") for source in sources) else None


def tell(lines: Sequence[tuple[str, str]]) -> None:
    """Print names and lines as a table."""
    width = max(len(name) for name, _ in lines)
    for name, line in lines:
        print(f"{name:{width}}  {line}".rstrip())
