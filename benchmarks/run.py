"""Every benchmark, one after another, into docs/benchmarks.md.

    make bench [ARGS="--quick --only step memory"]

A benchmark that fails is told of in the page and makes this command fail at its end; the others' figures stay.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _measure import NO_CUDA, Section, environment, machine

ALL = (
    "pruning",
    "step",
    "replicas",
    "memory",
    "merging",
    "segment_end",
    "startup",
    "growth",
    "evaluate_speed",
    "wandb_cost",
    "gpu",
)
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
UNMEASURED = "Not measured yet."
INTRODUCTION = """# Benchmarks

Written by `make bench`, section by section; do not edit. What is compared ran in turns; a ratio is the median of
neighbours with its 95 % bootstrap interval. Times of other machines will differ, ratios less so. `--quick` means few
rounds and wide intervals.
"""


def run(name: str, quick: bool, before: str = "") -> tuple[str, bool]:
    """One benchmark in a process of its own: its section of the page, and whether it went well.

    Figures of a CUDA device that the page had `before` stay where there is none to measure again on.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "section.json"
        script = str(Path(__file__).with_name(f"{name}.py"))
        command = [sys.executable, script, "--json", str(result), *(["--quick"] if quick else [])]
        print(f"\n=== {name}", flush=True)
        began = time.monotonic()
        code = subprocess.run(command, env=environment(), check=False).returncode
        seconds = f"{time.monotonic() - began:.0f} s"
        took = f"`python benchmarks/{name}.py{' --quick' if quick else ''}`: {seconds}. {machine()}."
        if name == "gpu" and code == NO_CUDA:
            if "| --- |" in before:
                return before, True
            note = (
                "CUDA is not measured yet: no device was at hand. `python benchmarks/gpu.py` does it within twelve "
                "minutes; `benchmarks/README.md` says what it measures, and what a machine without a network needs."
            )
            return Section("CUDA", [], notes=[note]).markdown(), True
        if code:
            return Section(name, [], notes=[f"`benchmarks/{name}.py` ended with {code}."]).markdown(), False
        section = Section(**json.loads(result.read_text()))
        section.notes.append("\n" + took)
        return section.markdown(), True


def read(page: Path) -> dict[str, str]:
    """The sections that a page has, by benchmark."""
    parts = re.split(r"^<!-- (\w+) -->\n", page.read_text(), flags=re.M) if page.exists() else [""]
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def write(page: Path, sections: dict[str, str]) -> None:
    """All sections in their order; what was never measured says so."""
    blank = {name: Section(name.capitalize(), [], notes=[UNMEASURED]).markdown() for name in ALL}
    parts = [f"<!-- {name} -->\n{(blank | sections)[name].strip()}\n" for name in ALL]
    page.write_text("\n".join([INTRODUCTION, *parts]))


def main() -> None:
    """Run them; the page is written after each, so that nothing measured is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller problems; some minutes in all")
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(ALL), help="these; the others' figures stay")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write")
    options = parser.parse_args()
    sections, failed = read(options.page), []
    for name in options.only:
        sections[name], well = run(name, options.quick, sections.get(name, ""))
        failed += [] if well else [name]
        write(options.page, sections)
    print(f"\nwrote {options.page}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
