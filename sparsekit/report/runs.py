"""Read the files of a run directory, and check that they have the form in which a run writes them. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from sparsekit.config.options import flatten
from sparsekit.display.text import is_share
from sparsekit.errors import UserError, first_line
from sparsekit.files import expanded

Row = Mapping[str, Any]

# The form of each file, as far as a page needs it; `_check` explains the notation.
_NUMBER, _MAYBE = (int, float), (int, float, type(None))
_CONFIG = {"method": {"name": str}, "merge": {"name": str}, "data": {"name": str}, "seed": int}
_SEGMENT = {"segment": int, "start_epoch": _NUMBER, "epochs": _NUMBER, "sparsity": _NUMBER, "replicas": int}
_PLAN = {"segments": [{**_SEGMENT, "lr_points": [[_NUMBER, _NUMBER]]}], "score?": str}
_MEASURED = ("barrier", "distance.mean", "turn.mean", "barycentre.mean")
_EVENTS: dict[str, dict[str, Any]] = {
    "train": {"replica": int, "lr": _NUMBER},
    "segment": {"segment": int, "sparsity": _NUMBER, "layers": {...: _NUMBER}},
    "merge": {"segment": int, "ingredients": [int]} | dict.fromkeys(_MEASURED, _MAYBE),
    "evaluate": {"segment": int},
}
_COSTS = ("flops.dense", "flops.sparse", "bytes.dense", "bytes.compressed", "bytes.disk", "images.total",
          "images.critical", "latency.seconds", "parameters", "nonzero", "wall_seconds")  # fmt: skip
_SCORES = ("test.loss", "test.ece", "test.worst_class_accuracy", "model_sparsity", "candidates.count")
_NEWER = {"layers.empty?": [str], "merged?": bool, "prunable?": int, "prunable_share?": _NUMBER}
_SUMMARY = {"status": str, **_NEWER, **dict.fromkeys((*_COSTS, *_SCORES), _MAYBE)}
_VARIANT = {
    "test": {...: _MAYBE, "worst_class?": int},
    "class_accuracy?": [_MAYBE],
    "bins?": [{"count": int, "confidence": _NUMBER, "accuracy": _NUMBER}],
    "agreement?": _NUMBER,
}


@dataclass(frozen=True)
class Run:
    """One run, finished or not. Accuracies and sparsities are 0 to 1.

    Scores that are not finite, which JSON cannot hold, are -infinity in `rows` and None in `summary`.

    Attributes:
        path: Its directory.
        config: config.yaml, options by their dotted names.
        score: The name of the task's score.
        segments: The planned segments of plan.json.
        rows: metrics.jsonl by event: `train`, `segment`, `merge` and `evaluate`. Each row has its `epoch`; a merge's
            also the `mean` and the `best` of its candidates' scores.
        paced: Whether a row's `epoch` is in epochs: before the first merge it is in optimizer steps.
        summary: summary.json; empty while the run has not ended.
        evaluation: evaluation.json; empty where the run is not done.
        note: What was left out of metrics.jsonl; empty where nothing was.
    """

    path: Path
    config: Row
    score: str
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
    plan = _parsed(folder / "plan.json", _json(_PLAN))
    segments, score = plan["segments"], plan.get("score", "accuracy")
    # an accuracy is always finite
    reached = _NUMBER if is_share(score) else _MAYBE
    ended = (folder / "summary.json").exists()
    summary = _parsed(folder / "summary.json", _json(_SUMMARY)) if ended else {}
    done = summary.get("status") == "done"
    if done:
        several = (f"candidates.mean_{score}", f"candidates.best_{score}") if summary.get("candidates.count") else ()
        form = {"sparsity": _NUMBER, **dict.fromkeys((f"test.{score}", *several), reached)}
        gains = [f"gain.{name}{end}?" for name in (score, "loss") for end in ("", ".low", ".high")]
        form |= dict.fromkeys(gains, _NUMBER)
        _parsed(folder / "summary.json", _json(form))
    begun = ended or (folder / "metrics.jsonl").exists()
    rows, paced, note = (
        _parsed(folder / "metrics.jsonl", lambda data: _rows(data, segments, score, reached))
        if begun
        else _rows(b"", (), score, reached)
    )
    evaluation = _parsed(folder / "evaluation.json", _json(_evaluation(score, reached))) if done else {}
    return Run(folder, config, score, segments, rows, paced, summary, evaluation, note)


def _evaluation(score: str, reached: Any) -> dict[str, Any]:
    """The form of evaluation.json."""
    suite = {...: [{score: reached}] * 5}
    variant = _VARIANT | {"corruptions?": suite, "corruption_files?": suite}
    return {"data": {"name": str}, "dense?": str, "class_names?": [str], "variants": {...: variant}}


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


def _rows(
    data: bytes, segments: Sequence[Row], score: str, reached: Any
) -> tuple[Mapping[str, Sequence[Row]], bool, str]:
    """The rows by event, whether epochs are known, and a note on a last line that a killed run did not finish."""
    *lines, rest = data.split(b"\n")
    rows: dict[str, list[dict[str, Any]]] = {event: [] for event in _EVENTS}
    events = _EVENTS | {
        "merge": {**_EVENTS["merge"], "soup": reached, "candidates": [reached], f"ensemble.{score}": _MAYBE},
        "evaluate": {**_EVENTS["evaluate"], f"test.{score}": reached},
    }
    for number, line in enumerate(lines, 1):
        try:
            row = _check(json.loads(line), {"event": str, "step": int})
            if row["event"] in rows:
                rows[row["event"]].append(_check(row, events[row["event"]]))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    pace = 1.0
    for test in rows["evaluate"]:
        test[f"test.{score}"] = _known(test.get(f"test.{score}"))
    for merge in rows["merge"]:
        merge |= {"soup": _known(merge.get("soup")), "candidates": [_known(each) for each in merge["candidates"]]}
        planned = segments[merge["segment"]]
        pace = (planned["start_epoch"] + planned["epochs"]) / merge["step"]
        scores = merge["candidates"]
        merge |= {"mean": sum(scores) / len(scores), "best": max(scores)}
        if len(scores) > 1:
            _check(merge, {"soup.margin": _NUMBER, "soup.lost": bool}, f".merge of segment {merge['segment']}")
    for row in chain(*rows.values()):
        row["epoch"] = row["step"] * pace
    note = "metrics.jsonl: the last line is incomplete and left out" if rest else ""
    return rows, bool(rows["merge"]), note


def _known(score: float | None) -> float:
    return -math.inf if score is None else score


def _check(value: Any, form: Any, where: str = "") -> Any:
    """Return a value of a given form; raise ValueError, which names the place, for any other.

    Args:
        value: What was read.
        form: A type or several; `[form]` for a list, `[form, form]` for one of that length; `{key: form}` for an
            object, which may have more keys. A key `...` stands for every key that is not named; one that ends with
            `?` may be missing.
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
        others = set(value) - {key.removesuffix("?") for key in form if key is not ...}
        for key, inner in form.items():
            names = [key.removesuffix("?")] if key is not ... else [name for name in value if name in others]
            for name in names:
                if name in value or not key.endswith("?"):
                    _check(value.get(name), inner, f"{where}.{name}")
    return value
