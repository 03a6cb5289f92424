"""A sweep file, W&B's own format: its cells, each a name, values, and the command that trains it."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsekit.config import yaml_file as configfile
from sparsekit.config.messages import GROUPED
from sparsekit.config.wandb_args import as_flags
from sparsekit.errors import UserError, nearest
from sparsekit.plugins.registry import GROUPS
from sparsekit.sweep.drawing import MAX_CELLS, Parameter

METHODS = ("grid", "random")
# the top level of W&B's schema, github.com/wandb/sweeps, with `launch` of `wandb launch-sweep` and an old `early_stop`
_KEYS = (
    *("method", "parameters", "metric", "metrics", "name", "description", "program", "command", "project", "entity"),
    *("early_terminate", "early_stop", "run_cap", "job", "image_uri", "controller", "scheduler", "launch"),
    *("apiVersion", "kind"),
)
_OURS = {"out", "resume", "config"}
_MACRO = re.compile(r"\$\{(\w+)\}")
_VALUES = {
    f"${{{name}}}" for name in ("args", "args_no_equals", "args_no_boolean_flags", "args_json", "args_json_file")
}
_FILLED = {"${env}": ["/usr/bin/env"], "${interpreter}": [sys.executable], "${program}": []}


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: A folder's name, which follows from the values that vary alone.
        values: Every parameter's value by dotted name.
    """

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Spec:
    """A sweep file.

    Attributes:
        path: Where it is.
        method: `grid` or `random`.
        parameters: In the file's order.
        command: W&B's `command:`, or an empty list.
        program: W&B's `program:`.
        cap: W&B's `run_cap:`, the most runs there are to be.
        environment: What the file says of W&B: project and entity.
        notes: What will not be done, for people.
    """

    path: Path
    method: str
    parameters: tuple[Parameter, ...]
    command: tuple[str, ...]
    program: str | None
    cap: int | None
    environment: Mapping[str, str]
    notes: tuple[str, ...]

    def cells(self, count: int | None) -> list[Cell]:
        """The first `count` cells, the same ones every time; all of a grid without it.

        Raises:
            UserError: there are too many of them, or nothing says how many a random search has.
        """
        limit = min([number for number in (count, self.cap) if number is not None], default=None)
        if self.method == "grid":
            values = [parameter.all() for parameter in self.parameters]
            rows = itertools.islice(itertools.product(*values), MAX_CELLS + 1 if limit is None else limit)
            cells = list({cell.name: cell for cell in map(self._cell, rows)}.values())  # a value may be given twice
        else:
            if limit is None:
                raise UserError("sweep: method: random has no end of its own; give --count N, or run_cap in the file")
            cells = self._drawn(min(limit, MAX_CELLS + 1))
        if len(cells) > MAX_CELLS:
            raise UserError(f"sweep: {self.path} has more than {MAX_CELLS:,} runs; give --count N, or fewer values")
        return cells

    def options(self, cell: Cell) -> list[str]:
        """What `fit` is given of a cell: its values where the command has a macro for them, and what stands there."""
        return self._filled(cell)[1]

    def arguments(self, cell: Cell, out: Path) -> list[str]:
        """The process that trains a cell into `out`, or goes on with it."""
        launcher, options = self._filled(cell)
        return [*launcher, *[part for part in options if part != "--resume"], "--out", str(out), "--resume"]

    def _filled(self, cell: Cell) -> tuple[list[str], list[str]]:
        """The command with its macros filled in, up to `fit`, and behind it."""
        own, flags = [sys.executable, "-m", "sparsekit"], as_flags(cell.values)
        if not self.command:
            return [*own, "fit"], flags
        made: list[str] = []
        for part in self.command:
            if part == "${args_json_file}" and made[-1:] == ["--config"]:
                made.pop()
            if part in _FILLED:
                made += _FILLED[part] or [self.program or "sparsekit"]
            else:
                made += flags if _MACRO.fullmatch(part) else [part]  # all that is left are ways to write the values
        place = made.index("fit") + 1
        launcher = made[:place]
        if [part for part in launcher if part != "/usr/bin/env"] == ["sparsekit", "fit"]:
            launcher = [*own, "fit"]  # this one, not whichever comes first in PATH
        return launcher, made[place:]

    def _drawn(self, count: int) -> list[Cell]:
        found: dict[str, Cell] = {}
        for index in range(20 * count):  # a few values may be all there are
            chances = [random.Random(f"{index}:{parameter.name}") for parameter in self.parameters]
            row = [parameter.draw(chance) for parameter, chance in zip(self.parameters, chances, strict=True)]
            cell = self._cell(tuple(row))
            found.setdefault(cell.name, cell)
            if len(found) == count:
                break
        return list(found.values())

    def _cell(self, row: tuple[Any, ...]) -> Cell:
        values = {parameter.name: value for parameter, value in zip(self.parameters, row, strict=True)}
        varying = {parameter.name: values[parameter.name] for parameter in self.parameters if parameter.varies}
        return Cell(name_of(varying or values), values)


def name_of(values: Mapping[str, Any]) -> str:
    """A folder's name for values: `method=gmp,sparsity=0.9`, with a hash where that says too little or too much."""
    plain = ",".join(f"{key}={value}" for key, value in values.items())
    safe = re.sub(r"[^\w.,=+-]+", "_", plain, flags=re.ASCII)  # a folder's name may have 255 bytes
    if safe == plain and len(plain) <= 120 and not plain.startswith("."):
        return plain
    digest = hashlib.sha256(json.dumps(dict(values), sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{safe[:110].lstrip('.')}-{digest}"


def read(path: Path) -> Spec:
    """Read a sweep file.

    Raises:
        UserError: it cannot be read, or describes no grid and no random search of `sparsekit fit`.
    """
    try:
        found = configfile.read(str(path))
    except UserError as error:
        raise UserError(str(error).replace("--config", "sweep file", 1).partition(";")[0]) from error
    for key in found:
        if key not in _KEYS:
            raise UserError(f"sweep: {path} has an unknown key {key!r}.{nearest(key, _KEYS)}")
    method = found.get("method", "grid")
    if method == "bayes":
        raise UserError("sweep: method: bayes needs W&B (`wandb sweep`, `wandb agent`) or Optuna; here grid and random")
    if method not in METHODS:
        raise UserError(
            f"sweep: method is {method!r}; choose from {', '.join(METHODS)}.{nearest(str(method), METHODS)}"
        )
    parameters = found.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise UserError(f"sweep: {path} has no parameters; write them as parameters: {{seed: {{values: [0, 1]}}}}")
    command, program, cap = found.get("command"), found.get("program"), found.get("run_cap")
    notes = [
        f"{key} is left to W&B: every run goes to its end" for key in ("early_terminate", "early_stop") if key in found
    ]
    if cap is not None and (not isinstance(cap, int) or cap < 1):
        raise UserError(f"sweep: run_cap is {cap!r}; give a number of runs")
    return Spec(
        path,
        method,
        tuple(_parameters(parameters)),
        _command(command, program),
        program,
        cap,
        {f"WANDB_{key.upper()}": str(found[key]) for key in ("project", "entity") if found.get(key)},
        tuple(notes),
    )


def _parameters(found: Mapping[str, Any], prefix: str = "") -> list[Parameter]:
    """Parameters by dotted name; a nested `parameters:` puts its own name before theirs."""
    parameters: list[Parameter] = []
    for key, spec in found.items():
        name = f"{prefix}{key}"
        if not isinstance(spec, dict):
            raise UserError(f"sweep: parameter {name} is {spec!r}; write {name}: {{value: …}} or {{values: [a, b]}}")
        if name.partition(".")[0] in _OURS:
            raise UserError(f"sweep: parameter {name} is the sweep's own to choose; leave it out")
        if isinstance(spec.get("parameters"), dict):
            if name in (*GROUPS, *GROUPED):
                parameters += _parameters(spec["parameters"], f"{name}.")
                continue
            raise UserError(f"sweep: parameter {name} has parameters of its own; give its values as mappings")
        named = name.rpartition(".")[0] if name in (f"{kind}.name" for kind in GROUPS) else name
        parameters.append(Parameter(named, spec))
    return parameters


def _command(command: Any, program: Any) -> tuple[str, ...]:
    """The file's command, checked: it must end in sparsekit's own `fit`."""
    if command is None:
        if program is not None and Path(str(program)).stem != "sparsekit":
            raise UserError(f"sweep: program is {program!r}; here every run is a sparsekit fit, so leave it out")
        return ()
    parts = [str(part) for part in command] if isinstance(command, list) else str(command).split()
    words = [str(program) if part == "${program}" else part for part in parts]
    place = words.index("fit") if "fit" in words else 0
    if not place or Path(words[place - 1]).stem != "sparsekit":
        raise UserError(f"sweep: command is {' '.join(parts)!r}; give one with sparsekit fit in it, or none")
    for part in parts:
        if _MACRO.fullmatch(part) and part not in _VALUES | _FILLED.keys():
            raise UserError(f"sweep: command has {part}; use ${{args}}")
        if part.partition("=")[0] == "--out":
            raise UserError("sweep: command has --out, which is the sweep's own to choose; leave it out")
    if not _VALUES & set(parts):
        raise UserError("sweep: command has no ${args}, so that no run would get its values; add it")
    return tuple(parts)
