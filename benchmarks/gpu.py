"""CUDA within twelve minutes, one part after another, each in a process of its own and within its own time.

    python benchmarks/gpu.py --json gpu.json [--data DIR] [--quick] [--PART SECONDS ...]

Ends with 3 and one line where there is no CUDA device. A part that fails, or whose time is over, is told in one line,
and the next one begins; the JSON file is written after each figure, so that nothing measured is lost. The last part
gets what the others left.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from _measure import FASHION_MNIST, NO_CUDA, Section, environment, machine

BUDGETS = {  # seconds of each part, which is the file gpu_PART.py
    "right": 60,
    "step": 90,
    "replicas": 150,
    "segment": 60,
    "compile": 90,
    "fashion": 200,
}
HEADER = ["part", "what", "sparsekit", "against", "", "ratio [95 % interval]", "rounds"]
PATIENCE = 5.0
"""Seconds before its end in which a part is to come to one, and after it in which it can clear up."""
UNMEASURED = (
    "Not measured: several devices, NCCL, image folders, 2:4 units, memory. Steps, replicas and compiled steps train "
    "on random images that are on the device already."
)


def main() -> None:
    """The command line; with --part a part's own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny problems: does every part get through?")
    parser.add_argument("--json", type=Path, help="write the section and all numbers, after each figure")
    parser.add_argument("--data", default=FASHION_MNIST, help="folder of Fashion-MNIST")
    for name, seconds in BUDGETS.items():
        parser.add_argument(f"--{name}", type=float, default=seconds, metavar="SECONDS", help="0 leaves the part out")
    parser.add_argument("--part", choices=BUDGETS, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        from _gpu import Part

        importlib.import_module(f"gpu_{options.part}").measure(Part(options.until, options.quick, options.data))
        return
    import torch

    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: no CUDA device is to be had here; nothing was measured", file=sys.stderr)
        raise SystemExit(NO_CUDA)
    properties = torch.cuda.get_device_properties(0)
    device = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}."
    section = Section("CUDA", HEADER, notes=[device, UNMEASURED])
    print(f"{machine()}\n{device}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # not before a part's process is ended
    measure(section, {name: getattr(options, name) for name in BUDGETS}, options)
    print("\n" + section.markdown())


def measure(section: Section, budgets: dict[str, float], options: argparse.Namespace) -> None:
    """Every part in turn."""
    end = time.monotonic() + sum(budgets.values())
    for name, seconds in budgets.items():
        if not seconds:
            add(section, options.json, name, ["all", "left out"], {})
            continue
        began = time.monotonic()
        print(f"\n=== {name}", flush=True)
        last = name == list(budgets)[-1]
        reason = run(name, max(seconds, end - began) if last else seconds, section, options)
        if reason:
            add(section, options.json, name, ["all", reason], {})
        section.facts.append({"part": name, "seconds": time.monotonic() - began, "reason": reason})
        write(section, options.json)


def run(name: str, seconds: float, section: Section, options: argparse.Namespace) -> str:
    """Run a part in a process of its own and add what it tells; why it did not come to its end, or an empty text."""
    until = time.monotonic() + seconds
    command = [sys.executable, sys.argv[0], "--part", name, "--until", str(until - min(PATIENCE, 0.1 * seconds))]
    command += ["--data", options.data, *(["--quick"] if options.quick else [])]
    over = threading.Event()

    def stop() -> None:
        over.set()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # at which torchrun ends its ranks
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            os.killpg(process.pid, signal.SIGKILL)

    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment(), start_new_session=True
        )
        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"row"'):
                    fact = json.loads(line)
                    add(section, options.json, name, fact["row"], fact["numbers"])
            code = process.wait()
        finally:
            timer.cancel()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it left running
        errors.seek(0)
        said = [line.strip() for line in errors if line.strip()]
    if over.is_set():
        return f"its {seconds:.0f} s were over; the rest was not measured"
    return f"ended with {code}: {said[-1] if said else 'nothing was said'}"[:200] if code else ""


def add(section: Section, path: Path | None, part: str, row: list[str], numbers: dict[str, object]) -> None:
    """Add a row and its numbers, and write both."""
    cells = [part, *row]
    section.add(*cells, *[""] * (len(HEADER) - len(cells)))
    section.facts.append({"part": part, "what": row[0], "found": row[1:], **numbers})
    write(section, path)


def write(section: Section, path: Path | None) -> None:
    """Write the section, whole or not at all."""
    if path:
        beside = path.with_name(f".{path.name}")
        beside.write_text(json.dumps(asdict(section)))
        beside.replace(path)


if __name__ == "__main__":
    main()
