"""The studies of configs/studies/: trained by `sparsekit sweep`, then told in docs/results/ as rows, tables and plots.

    make studies-digits                       # or: python benchmarks/studies.py NAME …  (without a name: all of digits)
    python benchmarks/studies.py --tell       # only the pages again, from the committed rows

A study goes on where it was cut off. Its finished runs become one line each of docs/results/NAME.jsonl, and those lines
become docs/results/NAME.md; a test holds the two against each other. Nothing of a page is written by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import study_index
from study_tables import Row

from sparsekit.cli import main as cli
from sparsekit.run import directory
from sparsekit.sweep import spec

ROOT = Path(__file__).parents[1]
STUDIES, RESULTS = ROOT / "configs" / "studies", ROOT / "docs" / "results"
RUNS = ROOT / "runs" / "studies"
"""Under the project: a study's files name runs of another by it."""
DIGITS = (
    "digits-gmp",
    "digits-fork",
    "digits-late",
    "digits-vary",
    "digits-robust",
    "digits-apart",
    "digits-methods",
    "digits-bimp",
)
FASHION = ("fashion", "fashion-bimp")
FULL = ("fashion-full", "fashion-full-bimp")
"""For a CUDA device."""
KEPT = (
    "test.accuracy",
    "test.loss",
    "test.ece",
    "test.brier",
    "test.worst_class_accuracy",
    "test.corrupted_accuracy",
    "candidates.count",
    "candidates.mean_accuracy",
    "candidates.best_accuracy",
    "candidates.ensemble_accuracy",
    "images.total",
    "images.critical",
    "sparsity",
    "merges.count",
    "merges.lost",
)
IDLE = ("wandb.mode", "evaluation.report", "evaluation.corruptions", "data.root")
"""Options that a study sets, and that say nothing of what it asks."""


def train(name: str, jobs: int) -> int:
    """Run the study's sweep files in the order of their names."""
    command = [sys.executable, "-m", "sparsekit", "sweep", *map(str, files(name)), "--jobs", str(jobs)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}  # weights are the same bits at equal thread counts only
    return subprocess.run([*command, "--out", str(RUNS / name)], cwd=ROOT, env=environment, check=False).returncode


def files(name: str) -> list[Path]:
    """One sweep file, or a folder of them."""
    single = STUDIES / f"{name}.yaml"
    return [single] if single.exists() else sorted((STUDIES / name).glob("*.yaml"))


def collect(folder: Path, sweeps: Sequence[Path]) -> list[Row]:
    """A row for each finished run of these sweep files; they ran in `folder`, or several in `folder/NAME` each."""
    rows = []
    for file in sweeps:
        out, part = (folder, {}) if len(sweeps) == 1 else (folder / file.stem, {"part": file.stem})
        for cell in spec.read(file).cells(None):
            if directory.finished(out / cell.name):
                values = {key: value for key, value in cell.values.items() if key not in IDLE}
                rows.append(part | values | measured(out / cell.name))
    return rows


def measured(run: Path) -> Row:
    """What a study keeps of a run: its summary, and the first and last merge of several replicas."""
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    row = {key: summary[key] for key in KEPT if key in summary}
    events = list(read_jsonl(run / "metrics.jsonl"))
    merges = [event for event in events if event["event"] == "merge" and len(event["candidates"]) > 1]
    if merges:  # the least and the most that the plan lets replicas begin with
        planned = json.loads((run / "plan.json").read_text("utf-8"))["segments"]
        row["first.lr"] = planned[merges[0]["segment"]]["lr_first"]
    for when, merge in zip(("first", "last"), (merges[:1], merges[-1:]), strict=True):
        for each in merge:
            row[f"{when}.barrier"] = each["barrier"]
            row |= {f"{when}.{key}": each[key] for key in ("distance.mean", "turn.mean") if key in each}
    return row


def average_apart(runs: Path, file: Path) -> list[Row]:
    """Soups of the models of a sweep file, pruned each by itself: masks united, averaged once, and pruned again."""
    found = []
    groups: dict[tuple[str, float], list[str]] = {}
    for cell in spec.read(file).cells(None):
        if directory.finished(runs / file.stem / cell.name):
            groups.setdefault((cell.values["model.init"], cell.values["sparsity"]), []).append(cell.name)
    for (parent, sparsity), members in groups.items():
        out = runs / "3-averaged" / f"{Path(parent).name},sparsity={sparsity}"
        told = out / "evaluation.json"
        if not (out / "merge.json").exists():
            models = [str(runs / file.stem / cell) for cell in members]
            again = ["--masks", "union", "--prune-again", str(sparsity)] if sparsity else []
            if cli.main(["merge", *models, "--merge", "uniform", *again, "-o", str(out)]):
                raise SystemExit(f"{out} could not be averaged")
        if not told.exists() and cli.main(["evaluate", str(out), "--data.name", "digits", "--output", str(told)]):
            raise SystemExit(f"{out} could not be evaluated")
        test = next(iter(json.loads(told.read_text("utf-8"))["variants"].values()))["test"]
        values: Row = {"part": "3-averaged", "seed": int(Path(parent).name.removeprefix("seed=")), "sparsity": sparsity}
        found.append(values | {f"test.{key}": test[key] for key in ("accuracy", "loss", "ece", "brier")})
    return found


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Its lines."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def committed() -> dict[str, list[Row]]:
    """All studies' rows under docs/results/."""
    found = {name: RESULTS / f"{name}.jsonl" for name in (*DIGITS, *FASHION, *FULL)}
    return {name: list(read_jsonl(path)) for name, path in found.items() if path.exists()}


def tell() -> None:
    """Pages and plots from the rows, and the page that leads to them."""
    every = committed()
    for name in every:
        page = study_index.page(name, every)
        (RESULTS / f"{name}.md").write_text(page.text, "utf-8")
        for plot, svg in page.plots.items():
            (RESULTS / plot).write_text(svg, "utf-8")
    (RESULTS / "index.md").write_text(study_index.index(every), "utf-8")


def main() -> int:
    """Train, collect, tell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join((*DIGITS, *FASHION, *FULL))}; all of digits"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--collect", action="store_true", help="take the runs that are there; train nothing")
    parser.add_argument("--tell", action="store_true", help="write the pages from the committed rows alone")
    given = parser.parse_args()
    names, failed = given.names or list(DIGITS), 0
    for name in [] if given.tell else names:
        code = 0 if given.collect else train(name, given.jobs)
        if code in (130, 143):  # stopped by hand; the same command goes on
            return code
        failed |= code
        runs = RUNS / name
        rows = collect(runs, files(name))
        if name == "digits-apart":
            rows += average_apart(runs, STUDIES / name / "2-apart.yaml")
        if rows:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (RESULTS / f"{name}.jsonl").write_text(lines, "utf-8")
        print(f"{name}: {len(rows)} rows")
    tell()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
