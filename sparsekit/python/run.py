"""A finished run or soup as an object: its model, masks, summary and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsekit._types import Tensors
from sparsekit.errors import UserError
from sparsekit.files import expanded
from sparsekit.plugins.objects import brought, needs_object, path_of
from sparsekit.python.torch_first import import_torch

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]
    from torch import nn


class Metrics(list[dict[str, Any]]):
    """The rows of metrics.jsonl."""

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a data frame, a column for each name; needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise UserError("to_pandas needs pandas: pip install pandas") from error
        return pandas.DataFrame(self)


@dataclass(frozen=True)
class Run:
    """A finished run, or a soup that `merge` made of some, which has neither metrics nor a report.

    Attributes:
        out: Its directory.
        objects: The model, the data and the task that its call brought, by the option and name that stand for them.
        notes: What the run said on its way.
    """

    out: Path
    objects: Mapping[str, Any] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json: flat, by dotted names such as `test.accuracy`; of a soup that of merge.json."""
        file = self.out / ("merge.json" if self._is_soup else "summary.json")
        return dict(json.loads(file.read_text("utf-8")))

    @cached_property
    def metrics(self) -> Metrics:
        """The rows of metrics.jsonl, in order.

        Raises:
            UserError: it is a soup, which was not trained.
        """
        self._check_trained()
        lines = (self.out / "metrics.jsonl").read_text("utf-8").splitlines()
        return Metrics(json.loads(line) for line in lines)

    @cached_property
    def masks(self) -> Tensors:
        """Bool masks of the prunable weights by parameter name, True keeps."""
        import_torch()
        from sparsekit.files import load_tensors

        return load_tensors(self.out / "masks.safetensors")

    @cached_property
    def model(self) -> nn.Module:
        """The finished model, on the CPU in evaluation mode.

        Raises:
            UserError: its class cannot be imported again, or is another now; give it to `sparsekit.load` as `model`.
        """
        import_torch()
        import torch

        from sparsekit.config.options import ArchitectureConfig
        from sparsekit.data.stream import random_states_kept
        from sparsekit.models.create import load_model
        from sparsekit.models.saved import architecture, open_saved_model, sizes
        from sparsekit.python.options import in_keywords

        cuda = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
        source = open_saved_model("run", self.out)
        again = f"sparsekit.load({str(self.out)!r}, model=…)"
        given = self.objects.get(f"--model.name {source.name}")
        if given is None and needs_object(source.name):
            raise UserError(f"model: {source.name} cannot be imported again; give it once more: {again}")
        try:
            with brought(self.objects), random_states_kept(cuda):
                channels, classes = sizes(source, ArchitectureConfig())
                return load_model(source, architecture(source, ArchitectureConfig()), classes, channels)
        except UserError as error:
            text = in_keywords(str(error)).removesuffix(" (see model.name and model.kwargs)")
            if given is not None:
                text = f"model: {path_of(given)} is not what was trained: {text}; give that: {again}"
            raise UserError(text) from error

    def report(self, out: str | Path | None = None) -> Path:
        """Write the run's page; returns its path, by default report.html in the run's directory.

        Raises:
            UserError: the run's files are damaged, the page cannot be written, or it is a soup.
        """
        self._check_trained()
        from sparsekit.report import page  # only now: it imports matplotlib

        path = expanded(str(out)) if out is not None else self.out / "report.html"
        page.write([str(self.out)], path)
        return path

    @property
    def _is_soup(self) -> bool:
        return not (self.out / "config.yaml").is_file() and (self.out / "merge.json").is_file()

    def _check_trained(self) -> None:
        if self._is_soup:
            raise UserError(
                f"{self.out} is a soup of finished models, which has no metrics; load the runs in its summary"
            )


def load(run: str | Path, model: Any = None, data: Any = None, task: Any = None) -> Run:
    """Open a finished run, or a soup that `merge` wrote.

    Args:
        run: Its directory.
        model: The module, class or function that its call was given, where it cannot be imported again.
        data: The data, or the function that returns it, likewise.
        task: The task, likewise.

    Raises:
        UserError: there is no finished run, or an object does not stand for something of it.
    """
    from sparsekit.models.saved import open_saved_model, run_options
    from sparsekit.plugins.objects import is_object
    from sparsekit.python.options import plugin_object

    source = open_saved_model("run", expanded(str(run)))
    if not source.is_run and not (source.path / "merge.json").is_file():
        raise UserError(f"run {run}: neither config.yaml nor merge.json is there; give what fit or merge wrote")
    recorded = run_options([source])
    for keyword, thing in (("model", model), ("data", data), ("task", task)):
        if isinstance(thing, str):
            raise UserError(f"{keyword} is {thing!r}; load takes objects alone, for what cannot be imported again")
    if model is not None and not is_object(source.name):
        raise UserError(f"model: {run} holds a {source.name}, which timm makes; leave model out")
    if data is not None and "data.name" not in recorded:
        raise UserError(f"data: {run} was merged without data, so that none stands for it; give it to evaluate")
    if task is not None and "task" not in recorded:
        raise UserError(f"task: {run} was merged without data, so that none stands for it; give it to evaluate")
    task = plugin_object("task", {"task": task}, recorded, {})
    given = {"--model.name": (source.name, model), "--data.name": (recorded.get("data.name"), data)}
    given["--task"] = (recorded.get("task"), task)
    objects = {f"{option} {name}": thing for option, (name, thing) in given.items() if thing is not None}
    return Run(source.path, objects)
