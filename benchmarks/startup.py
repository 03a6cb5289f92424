"""Start-up of the commands, against Python with and without `import torch, torchvision, timm`.

python benchmarks/startup.py [--quick]
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from _measure import Section, alternate, environment, main, milliseconds, ratio, timed


def process(*arguments: str) -> Callable[[], float]:
    """A Python process from start to end."""
    return timed(
        lambda: subprocess.run([sys.executable, *arguments], capture_output=True, env=environment(), check=True)
    )


def measure(quick: bool = False) -> Section:
    """A row a command."""
    section = Section("Start-up", ["command", "time", "of importing torch, torchvision and timm [95 % interval]"])
    rounds = 2 if quick else 9
    runs = {"import torch, torchvision, timm": process("-c", "import torch, torchvision, timm")}
    runs["python -c pass"] = process("-c", "pass")
    for command in (["--help"], ["plan"], ["plugins", "list"], ["fit", "--help"]):
        runs["sparsekit " + " ".join(command)] = process("-m", "sparsekit", *command)
    times = alternate(runs, rounds)
    base = times["import torch, torchvision, timm"]
    for name, found in times.items():
        section.add(name, milliseconds(found), ratio(found, base))
    return section


if __name__ == "__main__":
    main(measure, __doc__)
