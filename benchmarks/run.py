"""Every benchmark, one after another, into docs/benchmarks.md.

    make bench [ARGS="--quick --only step memory"]

A benchmark that fails is told of in the page and makes this command fail at its end; the others' figures stay.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _measure import Section, environment, machine

ALL = ("pruning", "step", "replicas", "memory", "merging", "startup", "growth", "wandb_cost", "gpu")
NO_CUDA = 3  # how gpu.py ends where there is no device
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
INTRODUCTION = """# Benchmarks

Written by `make bench`{arguments}; do not edit. What is compared ran in turns; a ratio is the median of neighbours with
its 95 % bootstrap interval. Times of other machines will differ, ratios less so.

{machine}
"""


def run(name: str, quick: bool) -> tuple[str, bool]:
    """One benchmark in a process of its own: its part of the page, and whether it went well."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "section.json"
        script = str(Path(__file__).with_name(f"{name}.py"))
        command = [sys.executable, script, "--json", str(result), *(["--quick"] if quick else [])]
        print(f"\n=== {name}", flush=True)
        began = time.monotonic()
        code = subprocess.run(command, env=environment(), check=False).returncode
        took = f"`python benchmarks/{name}.py{' --quick' if quick else ''}`, {time.monotonic() - began:.0f} s."
        if name == "gpu" and code == NO_CUDA:
            note = (
                "Not measured yet: no CUDA device was at hand. `python benchmarks/gpu.py` measures it in one command."
            )
            return Section("CUDA", [], notes=[note]).markdown(), True
        if code:
            return Section(name, [], notes=[f"`benchmarks/{name}.py` ended with {code}."]).markdown(), False
        section = Section(**json.loads(result.read_text()))
        section.notes.append(took)
        return section.markdown().replace("\n\n\n", "\n\n"), True


def main() -> None:
    """Run them, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller problems; some minutes in all")
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(ALL), help="these alone, without writing a page")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write")
    options = parser.parse_args()
    parts = [run(name, options.quick) for name in options.only]
    if options.only == list(ALL):
        arguments = " with `ARGS=--quick`: few rounds, wide intervals" if options.quick else ""
        head = INTRODUCTION.format(arguments=arguments, machine=machine())
        options.page.write_text("\n".join([head, *(part for part, _ in parts)]).rstrip() + "\n")
        print(f"\nwrote {options.page}")
    if not all(well for _, well in parts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
