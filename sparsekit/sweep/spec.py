"""Read a sweep file in W&B's format: its runs, each with a name, values and the command that trains it."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsekit.config import yaml_file, yaml_values
from sparsekit.config.options import FitConfig, option_types
from sparsekit.config.wandb_args import as_flags
from sparsekit.errors import UserError, nearest
from sparsekit.sweep.parameters import MAX_RUNS, Parameter

METHODS = ("grid", "random")
# the top level of W&B's schema, github.com/wandb/sweeps, with `launch` of `wandb launch-sweep` and an old `early_stop`
_KEYS = (
    *("method", "parameters", "metric", "metrics", "name", "description", "program", "command", "project", "entity"),
    *("early_terminate", "early_stop", "run_cap", "job", "image_uri", "controller", "scheduler", "launch"),
    *("apiVersion", "kind"),
)
_OURS = ("out", "resume", "config")
_FIT = (sys.executable, "-m", "sparsekit", "fit")
_ARGS = "${args}"
_MACRO = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: Name of its directory; it follows from the values that vary alone.
        values: The value of every parameter by dotted name.
    """

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Spec:
    """A sweep file.

    Attributes:
        path: The file.
        method: `grid` or `random`.
        parameters: In the file's order.
        command: What trains a run, up to and including `fit`, then its options, with `${args}` in place of the values.
        cap: W&B's `run_cap`, the most runs.
        environment: W&B's variables for the file's project and entity.
        ignored: Keys of the file that only W&B acts on, and that change which runs end early.
    """

    path: Path
    method: str
    parameters: tuple[Parameter, ...]
    command: tuple[str, ...]
    cap: int | None
    environment: Mapping[str, str]
    ignored: tuple[str, ...]

    def cells(self, count: int | None) -> list[Cell]:
        """The first `count` runs, always the same ones; without a count all of a grid.

        Raises:
            UserError: there are too many, or nothing limits a random search.
        """
        limit = min([number for number in (count, self.cap) if number is not None], default=None)
        if self.method == "random" and limit is None:
            raise UserError("sweep: method: random has no end of its own; give --count N, or run_cap in the file")
        limit = MAX_RUNS + 1 if limit is None else min(limit, MAX_RUNS + 1)
        rows: Iterator[tuple[Any, ...]]
        if self.method == "grid":
            rows = itertools.islice(itertools.product(*(parameter.all() for parameter in self.parameters)), limit)
        else:  # more draws than runs, since values repeat; few values may be all there are
            rows = (tuple(p.draw(random.Random(f"{i}:{p.name}")) for p in self.parameters) for i in range(20 * limit))
        found: dict[str, Cell] = {}
        for row in rows:
            cell = self._cell(row)
            found.setdefault(cell.name, cell)
            if len(found) == limit:
                break
        if len(found) > MAX_RUNS:
            raise UserError(f"sweep: {self.path} has more than {MAX_RUNS:,} runs; give --count N, or fewer values")
        return list(found.values())

    def options(self, cell: Cell) -> list[str]:
        """The options of `fit` for a run, without `--out`."""
        parts = self.command[self.command.index("fit") + 1 :]
        return [word for part in parts for word in (as_flags(cell.values) if part == _ARGS else [part])]

    def arguments(self, cell: Cell, out: Path) -> list[str]:
        """The command that trains a run into `out`, or resumes it."""
        launcher = self.command[: self.command.index("fit") + 1]
        options = [part for part in self.options(cell) if part != "--resume"]
        return [*launcher, *options, "--out", str(out), "--resume"]

    def _cell(self, row: tuple[Any, ...]) -> Cell:
        values = {parameter.name: value for parameter, value in zip(self.parameters, row, strict=True)}
        varying = {parameter.name: values[parameter.name] for parameter in self.parameters if parameter.varies}
        return Cell(name_of(varying or values), values)


def name_of(values: Mapping[str, Any]) -> str:
    """A directory's name for values, such as `method=gmp,sparsity=0.9`; with a hash where that is long or unsafe."""
    plain = ",".join(f"{key}={value}" for key, value in values.items())
    safe = re.sub(r"[^\w.,=+-]+", "_", plain, flags=re.ASCII)  # a directory's name may have 255 bytes
    if safe == plain and len(plain) <= 120 and not plain.startswith("."):
        return plain
    digest = hashlib.sha256(json.dumps(dict(values), sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{safe[:110].lstrip('.')}-{digest}"


def read(path: Path) -> Spec:
    """Read a sweep file.

    Raises:
        UserError: it cannot be read, or is no grid and no random search of `sparsekit fit`.
    """
    try:
        found, texts = yaml_file.read_both(str(path))
    except UserError as error:
        raise UserError(str(error).replace("--config", "sweep file", 1).partition(";")[0]) from error
    for key in found:
        if key not in _KEYS:
            raise UserError(f"sweep: {path} has an unknown key {key!r}.{nearest(key, _KEYS)}")
    method, cap, parameters = found.get("method", "grid"), found.get("run_cap"), found.get("parameters")
    if method not in METHODS:
        known = f"one of {', '.join(METHODS)}.{nearest(str(method), METHODS)}"
        raise UserError(f"sweep: method {method!r} is not supported here; use `wandb agent`, or {known}")
    if not isinstance(parameters, dict) or not parameters:
        raise UserError(f"sweep: {path} has no parameters; write them as parameters: {{seed: {{values: [0, 1]}}}}")
    if cap is not None and (not isinstance(cap, int) or cap < 1):
        raise UserError(f"sweep: run_cap is {cap!r}; give a number of runs")
    return Spec(
        path,
        method,
        tuple(map(_parameter, map(str, parameters), parameters.values(), texts["parameters"].values())),
        _command(found.get("command"), str(found.get("program") or "sparsekit")),
        cap,
        {f"WANDB_{key.upper()}": str(found[key]) for key in ("project", "entity") if found.get(key)},
        tuple(key for key in ("early_terminate", "early_stop") if key in found),
    )


def _parameter(name: str, spec: Any, text: Any) -> Parameter:
    """A parameter, given as YAML reads it and as the texts that stand in the file."""
    if not isinstance(spec, dict):
        raise UserError(f"sweep: parameter {name} is {spec!r}; write {name}: {{value: …}} or {{values: [a, b]}}")
    if name.partition(".")[0] in _OURS:
        raise UserError(f"sweep: parameter {name} is for the sweep to choose; leave it out")
    types = option_types(FitConfig)
    try:
        meant = {
            key: yaml_values.meant(types, name, spec[key], text[key]) for key in ("value", "values") if key in spec
        }
    except UserError as error:
        raise UserError(f"sweep: {error}") from error
    return Parameter(name, spec | meant)


def _command(command: Any, program: str) -> tuple[str, ...]:
    """The file's command with its macros filled in; without one this interpreter's `sparsekit fit`."""
    if command is None:
        if Path(program).stem != "sparsekit":
            raise UserError(f"sweep: program is {program!r}; here every run is a sparsekit fit, so leave it out")
        return (*_FIT, _ARGS)
    fixed = {"${env}": "/usr/bin/env", "${interpreter}": sys.executable, "${program}": program}
    ways = ("args", "args_no_equals", "args_no_boolean_flags", "args_json", "args_json_file")
    words: list[str] = []
    for part in [str(part) for part in command] if isinstance(command, list) else str(command).split():
        if (macro := _MACRO.fullmatch(part)) and macro[1] in ways:
            if macro[1] == "args_json_file" and words[-1:] == ["--config"]:
                words.pop()
            words.append(_ARGS)
        elif macro and part not in fixed:
            raise UserError(f"sweep: command has {part}; use ${{args}}")
        elif part.partition("=")[0] == "--out":
            raise UserError("sweep: command has --out, which is for the sweep to choose; leave it out")
        else:
            words.append(fixed.get(part, part))
    place = words.index("fit") if "fit" in words else 0
    if not place or Path(words[place - 1]).stem != "sparsekit":
        raise UserError(f"sweep: command is {' '.join(words)!r}; give one with sparsekit fit in it, or none")
    if _ARGS not in words[place:]:
        raise UserError("sweep: command has no ${args}, so that no run would get its values; add it")
    if words[:place] in (["sparsekit"], ["/usr/bin/env", "sparsekit"]):
        words[: place + 1] = _FIT  # not another one that comes first in PATH
    return tuple(words)
