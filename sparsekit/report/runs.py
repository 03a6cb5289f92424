"""Read the files of a run directory, and check that they have the form in which a run writes them. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from sparsekit.config.options import flatten
from sparsekit.display.tables import NAMES
from sparsekit.errors import UserError, first_line
from sparsekit.files import expanded

Row = Mapping[str, Any]

# The form of each file, as far as a page needs it; `_check` explains the notation.
_NUMBER, _MAYBE = (int, float), (int, float, type(None))
_CONFIG = {"method": {"name": str}, "merge": {"name": str}, "data": {"name": str}, "seed": int}
_SEGMENT = {"segment": int, "start_epoch": _NUMBER, "epochs": _NUMBER, "sparsity": _NUMBER, "replicas": int}
_PLAN = {"segments": [{**_SEGMENT, "lr_points": [[_NUMBER, _NUMBER]]}]}
_MEASURED = ("barrier", "ensemble.accuracy", "distance.mean", "turn.mean", "barycentre.mean")
_EVENTS: dict[str, dict[str, Any]] = {
    "train": {"replica": int, "lr": _NUMBER},
    "segment": {"segment": int, "sparsity": _NUMBER, "layers": {...: _NUMBER}},
    "merge": {"segment": int, "soup": _NUMBER, "candidates": [_NUMBER], "ingredients": [int]}
    | dict.fromkeys(_MEASURED, _MAYBE),
    "evaluate": {"segment": int, "test.accuracy": _NUMBER},
}
_COSTS = ("flops.dense", "flops.sparse", "bytes.dense", "bytes.compressed", "bytes.disk", "images.total",
          "images.critical", "latency.seconds", "parameters", "nonzero", "wall_seconds")  # fmt: skip
_SCORES = ("test.loss", "test.ece", "test.worst_class_accuracy", "model_sparsity", "candidates.count")
_CANDIDATES = dict.fromkeys(("candidates.mean_accuracy", "candidates.best_accuracy"), _NUMBER)
_NEWER = {"layers.empty?": [str], "merged?": bool, "prunable?": int, "prunable_share?": _NUMBER}
_SUMMARY = {"status": str, **_NEWER, **dict.fromkeys((*_COSTS, *_SCORES), _MAYBE)}
_DONE = {"test.accuracy": _NUMBER, "sparsity": _NUMBER}
_SEVERITIES = {...: [{"accuracy": _NUMBER}] * 5}
_VARIANT = {
    "test": dict.fromkeys(NAMES, _MAYBE) | {"worst_class": int},
    "class_accuracy": [_MAYBE],
    "bins": [{"count": int, "confidence": _NUMBER, "accuracy": _NUMBER}],
    "agreement?": _NUMBER,
    "corruptions?": _SEVERITIES,
    "corruption_files?": _SEVERITIES,
}
_EVALUATION = {"data": {"name": str}, "dense?": str, "class_names?": [str], "variants": {...: _VARIANT}}


@dataclass(frozen=True)
class Run:
    """One run, finished or not. Accuracies and sparsities are 0 to 1.

    Attributes:
        path: Its directory.
        config: config.yaml, options by their dotted names.
        segments: The planned segments of plan.json.
        rows: metrics.jsonl by event: `train`, `segment`, `merge` and `evaluate`. Each row has its `epoch`; a merge's
            also the `mean` and the `best` of its candidates' accuracies.
        paced: Whether a row's `epoch` is in epochs: before the first merge it is in optimizer steps.
        summary: summary.json; empty while the run has not ended.
        evaluation: evaluation.json; empty where the run is not done.
        note: What was left out of metrics.jsonl; empty where nothing was.
    """

    path: Path
    config: Row
    segments: Sequence[Row]
    rows: Mapping[str, Sequence[Row]]
    paced: bool
    summary: Row
    evaluation: Row
    note: str

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name

    @property
    def status(self) -> str:
        """`done`, `stopped`, `failed` or `unfinished`."""
        return str(self.summary.get("status", "unfinished"))

    @property
    def done(self) -> bool:
        """Whether the run came to its end."""
        return self.status == "done"

    @property
    def unit(self) -> str:
        """The unit of a row's `epoch`."""
        return "epochs" if self.paced else "optimizer steps"

    @property
    def contests(self) -> list[Row]:
        """The rows of merges with two candidates or more."""
        return [row for row in self.rows["merge"] if len(row["candidates"]) > 1]


def read(path: str) -> Run:
    """Read a run directory.

    Raises:
        UserError: there is no run, or one of its files is missing or not as a run writes it.
    """
    folder = expanded(path)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"report: {path} is no run directory (it has no config.yaml); give one that fit wrote")
    config = _parsed(folder / "config.yaml", lambda data: flatten(_check(yaml.safe_load(data), _CONFIG)))
    segments = _parsed(folder / "plan.json", _json(_PLAN))["segments"]
    ended = (folder / "summary.json").exists()
    summary = _parsed(folder / "summary.json", _json(_SUMMARY)) if ended else {}
    done = summary.get("status") == "done"
    if done:
        form = _DONE | (_CANDIDATES if summary.get("candidates.count") else {})
        _parsed(folder / "summary.json", _json(form))
    begun = ended or (folder / "metrics.jsonl").exists()
    rows, paced, note = (
        _parsed(folder / "metrics.jsonl", lambda data: _rows(data, segments)) if begun else _rows(b"", ())
    )
    evaluation = _parsed(folder / "evaluation.json", _json(_EVALUATION)) if done else {}
    return Run(folder, config, segments, rows, paced, summary, evaluation, note)


def _parsed(path: Path, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        reason = error.strerror
    except (ValueError, LookupError, ArithmeticError, yaml.YAMLError) as error:
        reason = f"damaged: {first_line(error)}"
    raise UserError(f"report: {path}: {reason}; restore the file, or leave this run out")


def _json(form: Any) -> Callable[[bytes], Any]:
    return lambda data: _check(json.loads(data), form)


def _rows(data: bytes, segments: Sequence[Row]) -> tuple[Mapping[str, Sequence[Row]], bool, str]:
    """The rows by event, whether epochs are known, and a note on a last line that a killed run did not finish."""
    *lines, rest = data.split(b"\n")
    rows: dict[str, list[dict[str, Any]]] = {event: [] for event in _EVENTS}
    for number, line in enumerate(lines, 1):
        try:
            row = _check(json.loads(line), {"event": str, "step": int})
            if row["event"] in rows:
                rows[row["event"]].append(_check(row, _EVENTS[row["event"]]))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    pace = 1.0
    for merge in rows["merge"]:
        planned = segments[merge["segment"]]
        pace = (planned["start_epoch"] + planned["epochs"]) / merge["step"]
        accuracies = merge["candidates"]
        merge |= {"mean": sum(accuracies) / len(accuracies), "best": max(accuracies)}
        if len(accuracies) > 1:
            _check(merge, {"soup.margin": _NUMBER, "soup.lost": bool}, f".merge of segment {merge['segment']}")
    for row in chain(*rows.values()):
        row["epoch"] = row["step"] * pace
    note = "metrics.jsonl: the last line is incomplete and left out" if rest else ""
    return rows, bool(rows["merge"]), note


def _check(value: Any, form: Any, where: str = "") -> Any:
    """Return a value of a given form; raise ValueError, which names the place, for any other.

    Args:
        value: What was read.
        form: A type or several; `[form]` for a list, `[form, form]` for one of that length; `{key: form}` for an
            object, which may have more keys. A key `...` stands for every key; one that ends with `?` may be missing.
        where: The name of the value.
    """
    kind: Any = type(form) if isinstance(form, (list, dict)) else form
    if not isinstance(value, kind):
        raise ValueError(f"{where[1:] or 'the content'} is {'missing' if value is None else repr(value)[:40]}")
    if kind is list:
        forms = form if len(form) > 1 else form * len(value)
        if len(value) != len(forms):
            raise ValueError(f"{where[1:]} has {len(value)} entries, not {len(forms)}")
        for number, (item, inner) in enumerate(zip(value, forms, strict=True), 1):
            _check(item, inner, f"{where}.{number}")
    if kind is dict:
        for key, inner in form.items():
            for name in value if key is ... else [key.removesuffix("?")]:
                if key is ... or name in value or not key.endswith("?"):
                    _check(value.get(name), inner, f"{where}.{name}")
    return value
