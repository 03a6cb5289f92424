"""The commands as functions: `fit`, `plan`, `evaluate`, `merge`, `export`."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sparsekit.api import Task
from sparsekit.config.options import EvaluateConfig, ExportConfig, FitConfig, MergeConfig
from sparsekit.errors import UserError
from sparsekit.files import expanded
from sparsekit.models.saved import SavedModel, open_saved_model, run_options
from sparsekit.planning.plan import PlanSummary, check_rates, make_plan, make_stages, summarize
from sparsekit.plugins.objects import brought, is_object, record_of
from sparsekit.python.options import in_keywords, keyword_names, read
from sparsekit.python.run import Run
from sparsekit.python.torch_first import import_torch
from sparsekit.run.directory import finished

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from sparsekit.api import MergeStrategy, PruningMethod
    from sparsekit.data.examples import Data
    from sparsekit.exporting.formats import Format

    Model: TypeAlias = str | nn.Module | Callable[..., nn.Module]
    Examples: TypeAlias = str | Data | Callable[[], Data]
    Saved: TypeAlias = str | Path | Run


OBJECTS = ("--model.name", "--data.name", "--task")
"""The options whose objects a finished run is worked with."""


def fit(
    *,
    method: str | PruningMethod = "gmp",
    merge: str | MergeStrategy = "uniform",
    task: str | Task = "classification",
    model: Model | dict[str, Any] | None = None,
    data: Examples | dict[str, Any] | None = None,
    display: bool = False,
    **options: Any,
) -> Run:
    """Train, prune and merge, as `sparsekit fit` does.

    Two calls with one seed give the same weights. The process' random states stay as they are.

    Args:
        method: Pruning method, by name or as an object.
        merge: Merge strategy, by name or as an object.
        task: What the model is trained for, by name or as an object.
        model: A module, which is copied; a function or class that makes one; a timm name; or options of `--model`.
        data: A `Data`; a function that returns one; a data set's name; or options of `--data`.
        display: Show the plan, the progress and the result; else warnings alone are given, as Python's.
        options: All other options of the command by name: `sparsity=0.95`, `replicas={"count": 3}`, or dotted ones
            with `**{"replicas.count": 3}`.

    Returns:
        The finished run.

    Raises:
        UserError: a keyword is wrong; the message names it, and nothing was written.
        RunError: the run failed; its checkpoints are kept.
        KeyboardInterrupt: Ctrl-C came; a checkpoint is kept, and the same call with `resume=True` goes on.
    """
    call = read(FitConfig, {"method": method, "merge": merge, "task": task, "model": model, "data": data, **options})
    import_torch()
    from sparsekit.python.around import as_it_was

    with as_it_was(), brought(call.objects), keyword_names():
        from sparsekit.display.live import Display, Silent  # here, as what these import draws random numbers
        from sparsekit.launch import fit as launch

        shown = Display() if display else Silent(_warn)
        summary = launch(call.config, shown)
    out = expanded(call.config.out) if call.config.out else Path(summary["out"])
    while "status" not in summary and not finished(out):  # torchrun's other ranks: the leader still tests the model
        time.sleep(0.1)
    return Run(out.absolute(), call.objects, tuple(shown.lines))


def plan(**options: Any) -> PlanSummary:
    """The plan of a run and its cost, as `sparsekit plan` prints it; imports no torch.

    Args:
        options: Those of `fit`.

    Raises:
        UserError: a keyword is wrong; the message names it.
    """
    call = read(FitConfig, options)
    with brought(call.objects), keyword_names():
        planned = make_plan(call.config, make_stages(call.config))
        check_rates(call.config, planned)
        return summarize(call.config, planned)


def evaluate(saved: Saved, /, **options: Any) -> dict[str, Any]:
    """Measure a finished model on its test examples, as `sparsekit evaluate` does.

    Args:
        saved: A run, a soup, a directory that timm saved, or a file of weights.
        options: Those of the command; `data` and `task` are by default those of the run. `model` gives again a module,
            class or function that cannot be imported.

    Returns:
        The content of evaluation.json.

    Raises:
        UserError: a keyword or the model is wrong.
    """
    (source,), own, options = _opened("model", [saved], options)
    call = read(EvaluateConfig, options, run_options([source]), own)
    from sparsekit.evaluation.evaluate import evaluate as measure
    from sparsekit.python.around import as_it_was

    with as_it_was(), brought({**own, **call.objects}), keyword_names():
        return measure(source, call.config)


def merge(models: Sequence[Saved], *, out: str | Path, **options: Any) -> dict[str, Any]:
    """Average finished models, as `sparsekit merge` does.

    Args:
        models: Runs, soups, directories that timm saved, or files of weights.
        out: Directory for the merged model, new or empty.
        options: Those of the command. `model` gives again a module, class or function that cannot be imported.

    Returns:
        The content of merge.json.

    Raises:
        UserError: a keyword or a model is wrong; nothing was written.
        RunError: the merge failed.
    """
    models = [models] if isinstance(models, (str, Path, Run)) else models
    if not models:
        raise UserError("models: give one at least")
    sources, own, options = _opened("models", models, options)
    call = read(MergeConfig, {"out": out, **options}, run_options(sources), own)
    from sparsekit.merging.finished import merge as average
    from sparsekit.python.around import as_it_was

    data = call.config.data if "data" in options or any(source.run.get("data") for source in sources) else None
    with as_it_was(), brought({**own, **call.objects}), keyword_names():
        average(sources, call.config, data)
    return dict(json.loads((Path(call.config.out or "") / "merge.json").read_text("utf-8")))


def export(saved: Saved, /, *, format: str | Format, out: str | Path, **options: Any) -> dict[str, str]:
    """Write a finished model in another format, read it back and compare, as `sparsekit export` does.

    Args:
        saved: A run, a soup, a directory that timm saved, or a file of weights.
        format: The format, by name or as an object.
        out: What to write, new.
        options: Those of the command. `model` gives again a module, class or function that cannot be imported.

    Returns:
        What the command prints, by the names of its rows.

    Raises:
        UserError: a keyword or the model is wrong; nothing was written.
        RunError: the export differs from the model, and was removed.
    """
    (source,), own, options = _opened("model", [saved], options)
    call = read(ExportConfig, {"format": format, "out": out, **options}, run_options([source]), own)
    from sparsekit.exporting.export import export as write
    from sparsekit.python.around import as_it_was

    data = call.config.data if "data" in options or source.run.get("data") else None
    with as_it_was(), brought({**own, **call.objects}), keyword_names():
        return {name: text for name, text in write(source, call.config, data) if name}


def _warn(text: str) -> None:
    """Give a warning of Python's that points at the line outside of sparsekit that called it."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("sparsekit", "contextlib"):
        level, frame = level + 1, frame.f_back
    warnings.warn(in_keywords(text), stacklevel=level)


def _opened(
    keyword: str, models: Sequence[Saved], options: dict[str, Any]
) -> tuple[list[SavedModel], dict[str, Any], dict[str, Any]]:
    """Saved models, the objects that stand for names in them, and the options without those that were given again.

    Raises:
        UserError: a model cannot be opened, or the calls of runs brought different objects.
    """
    import_torch()
    sources = [open_saved_model(keyword, model.out if isinstance(model, Run) else model) for model in models]
    options, again = _model_again(sources, options)
    own = dict(again)
    for run in models:
        for name, thing in run.objects.items() if isinstance(run, Run) else ():
            option = name.partition(" ")[0]
            what = option.removeprefix("--").removesuffix(".name")
            if option not in OBJECTS or name in again:
                continue
            if not _same(own.setdefault(name, thing), thing) and what not in options:
                raise UserError(f"{what}: the runs were given different objects; say which holds: {what}=…")
    return sources, own, options


def _model_again(sources: Sequence[SavedModel], options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options without a `model` that is an object, and it under the names that saved models have for theirs.

    Raises:
        UserError: a saved model is one of timm's.
    """
    value = options.get("model")
    thing = value.get("name") if isinstance(value, Mapping) else value
    names = {source.name: source for source in sources if source.name}
    if thing is None or isinstance(thing, str) or not names:
        return options, {}
    for name, source in names.items():
        if not is_object(name):
            raise UserError(f"model: {source.path} is a {name}, which timm makes; leave model out")
    rest = {key: inner for key, inner in value.items() if key != "name"} if isinstance(value, Mapping) else {}
    left = {key: inner for key, inner in options.items() if key != "model"} | ({"model": rest} if rest else {})
    return left, {f"--model.name {name}": thing for name in names}


def _same(one: Any, other: Any) -> bool:
    """Whether two objects are one, or tasks that are made alike."""
    return one is other or (isinstance(one, Task) and isinstance(other, Task) and record_of(one) == record_of(other))
