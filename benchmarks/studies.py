"""The studies of configs/studies/: trained as `sparsekit sweep` does, told in docs/results/ as rows, tables and plots.

    make studies-digits                       # or: python benchmarks/studies.py NAME …  (without a name: all of digits)
    python benchmarks/studies.py --tell       # only the pages again, from the committed rows

Every run that ends becomes a line of docs/results/NAME.jsonl, and those lines become docs/results/NAME.md and the table
in README.md; tests hold them against each other. Nothing of these is written by hand. A study goes on where it was cut
off, in another checkout too: what has a line is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import study_index
import study_readme
import study_when
from study_tables import Row, select

from sparsekit.cli import main as cli
from sparsekit.run import directory
from sparsekit.sweep import runner, spec

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
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
    "digits-saturated",
    "digits-saturated-bimp",
    "digits-saturated-apart",
    "digits-saturated-vary",
    "digits-saturated-swa",
    "digits-recipes",
)
FASHION = ("fashion", "fashion-bimp", "fashion-saturated")
CHANNELS = ("digits-channels", "fashion-channels")
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
    "candidates.mean_loss",
    "candidates.ensemble_loss",
    "images.total",
    "images.critical",
    "sparsity",
    "removed.flops",
    "latency.seconds",
    "latency.slim_seconds",
    "merges.count",
    "merges.lost",
)
IDLE = ("wandb.mode", "evaluation.report", "evaluation.corruptions", "data.root")
"""Options that a study sets, and that say nothing of what it asks."""


@dataclass(frozen=True)
class Part:
    """A sweep file of a study.

    Attributes:
        file: The sweep file.
        out: Where its runs lie.
        label: What its rows say of where they are from.
    """

    file: Path
    out: Path
    label: Row

    def row(self, cell: spec.Cell) -> Row:
        """What a run's row says of what was asked."""
        return self.label | {key: value for key, value in cell.values.items() if key not in IDLE}


def parts(folder: Path, sweeps: Sequence[Path]) -> list[Part]:
    """One sweep file's runs lie in `folder`, those of several in `folder/NAME` each."""
    if len(sweeps) == 1:
        return [Part(sweeps[0], folder, {})]
    return [Part(file, folder / file.stem, {"part": file.stem}) for file in sweeps]


def train(name: str, jobs: int) -> int:
    """Train what has no row yet, in the order of the files' names; 1 where a run failed, 128 + N after a signal."""
    os.chdir(ROOT)  # a study's files name runs of another by their path in the project
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # weights are the same bits at equal thread counts only
    before, code = rows_of(name), 0
    of_study = parts(RUNS / name, files(name))
    sweeps = [(part, runner.Sweep(spec.read(part.file), None, part.out)) for part in of_study]
    parents: set[Path] = set()
    for part, sweep in reversed(sweeps):  # what others begin with is in an earlier file
        sweep.cells = [
            cell for cell in sweep.cells if part.out / cell.name in parents or not matching(before, part.row(cell))
        ]
        parents |= {ROOT / cell.values["model.init"] for cell in sweep.cells if "model.init" in cell.values}
    for part, sweep in sweeps:
        print(f"{name}, {part.file.stem}: {len(sweep.cells)} runs without a row", flush=True)
        for child in sweep.run(jobs):
            print(f"  {child.name}: {sweep.failed.get(child.name, 'done')}, {child.seconds:.0f} s", flush=True)
            save(name)
        if sweep.signum:
            return 128 + sweep.signum
        code |= bool(sweep.failed)
    return code


def save(name: str, again: bool = False) -> int:
    """Write the rows of the study, as `collect` finds them; returns their number."""
    before = rows_of(name)
    rows = collect(RUNS / name, files(name), before, again)
    if name.endswith("apart"):
        rows += average_apart(RUNS / name, STUDIES / name / "2-apart.yaml", before)
    if rows:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (RESULTS / f"{name}.jsonl").write_text(text, "utf-8")
    return len(rows)


def rows_of(name: str) -> list[Row]:
    """The study's rows so far."""
    path = RESULTS / f"{name}.jsonl"
    return list(read_jsonl(path)) if path.exists() else []


def files(name: str) -> list[Path]:
    """One sweep file, or a folder of them."""
    single = STUDIES / f"{name}.yaml"
    return [single] if single.exists() else sorted((STUDIES / name).glob("*.yaml"))


def collect(folder: Path, sweeps: Sequence[Path], before: Sequence[Row] = (), again: bool = False) -> list[Row]:
    """A row for each run: the one it had before, or what its directory says; `again`: the latter first."""
    rows = []
    for part in parts(folder, sweeps):
        for cell in spec.read(part.file).cells(None):
            known = matching(before, part.row(cell))
            if (again or not known) and directory.finished(part.out / cell.name):
                asked = part.row(cell)  # of channels as many go as fit under the sparsity that is asked for
                known = [asked | measured(part.out / cell.name) | asked]
            rows += known
    return rows


def matching(rows: Sequence[Row], values: Row) -> list[Row]:
    """The row with these values, if there is one."""
    return [row for row in rows if values.items() <= row.items()][:1]


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


def average_apart(runs: Path, file: Path, before: Sequence[Row] = ()) -> list[Row]:
    """Soups of the models of a sweep file, pruned each by itself: masks united, averaged once, and pruned again."""
    found = select(before, part="3-averaged")
    groups: dict[tuple[str, float], list[str]] = {}
    for cell in spec.read(file).cells(None):
        if directory.finished(runs / file.stem / cell.name):
            groups.setdefault((cell.values["model.init"], cell.values["sparsity"]), []).append(cell.name)
    wanted = Counter((cell.values["model.init"], cell.values["sparsity"]) for cell in spec.read(file).cells(None))
    for (parent, sparsity), members in groups.items():
        values: Row = {"part": "3-averaged", "seed": int(Path(parent).name.removeprefix("seed=")), "sparsity": sparsity}
        if len(members) < wanted[parent, sparsity] or matching(found, values):
            continue
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
        found.append(values | {f"test.{key}": test[key] for key in ("accuracy", "loss", "ece", "brier")})
    return found


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Its lines."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def committed() -> dict[str, list[Row]]:
    """All studies' rows under docs/results/."""
    found = {name: RESULTS / f"{name}.jsonl" for name in (*DIGITS, *FASHION, *CHANNELS, *FULL)}
    return {name: list(read_jsonl(path)) for name, path in found.items() if path.exists()}


def tell() -> None:
    """Pages and plots from the rows, the page that leads to them, and the README's table."""
    every = committed()
    for name in every:
        page = study_index.page(name, every)
        (RESULTS / f"{name}.md").write_text(page.text, "utf-8")
        for plot, svg in page.plots.items():
            (RESULTS / plot).write_text(svg, "utf-8")
    text, svg = study_when.when(every)
    (RESULTS / "when.md").write_text(text, "utf-8")
    (RESULTS / "when.svg").write_text(svg, "utf-8")
    (RESULTS / "index.md").write_text(study_index.index(every), "utf-8")
    README.write_text(study_readme.filled(README.read_text("utf-8"), every), "utf-8")


def main() -> int:
    """Train, collect, tell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join((*DIGITS, *FASHION, *CHANNELS, *FULL))}; all of digits"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--collect", action="store_true", help="train nothing; read all runs that are here again")
    parser.add_argument("--tell", action="store_true", help="write the pages from the committed rows alone")
    given = parser.parse_args()
    names, failed = given.names or list(DIGITS), 0
    for name in [] if given.tell else names:
        code = 0 if given.collect else train(name, given.jobs)
        if code in (130, 143):  # stopped by hand; the same command goes on
            return code
        failed |= code
        print(f"{name}: {save(name, given.collect)} rows")
    tell()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
