"""Draws what the README's command prints, as the picture of a terminal: `python docs/terminal.py`.

The command is run for real, with one thread, so that its figures are those of the README and of docs/start.md.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

FILE = Path(__file__).parent / "pictures" / "terminal.svg"
COMMAND = "sparsekit fit --method gmp --merge uniform --out runs/first"
COLUMNS = 96


def trained(folder: Path) -> str:
    """Run the command in a folder, without W&B's record; returns what it prints, with its colours."""
    command = [sys.executable, "-m", *COMMAND.split(), "--wandb.mode", "disabled"]
    here = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    shown = {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    done = subprocess.run(command, cwd=folder, env=os.environ | shown, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def screen(printed: str) -> list[Text]:
    """The lines that are left on the screen at the end: a bar that moved was drawn over itself, and then erased."""
    last = [line.rstrip("\r").split("\r")[-1] for line in printed.rstrip().split("\n")]
    lines = [Text.from_ansi(re.sub(r"\x1b\[(\?25[lh]|\d*[ABCDJK])", "", line)) for line in last]
    return [line for line in lines if not set("━╸") & set(line.plain)]


def svg(lines: list[Text]) -> str:
    """A picture that needs no network: rich's own names fonts on a server, which are left out."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "bold green"), (COMMAND, "bold")))
    for line in lines:
        console.print(line)
    drawn = console.export_svg(title="sparsekit", theme=DIMMED_MONOKAI, unique_id="terminal")
    drawn = re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.S)
    label = f'role="img" aria-label="The output of {COMMAND}"'
    return drawn.replace("<svg ", f"<svg {label} ", 1)


def draw(printed: str) -> None:
    """Write the picture."""
    FILE.write_text(svg(screen(printed)), "utf-8")
    print(FILE)


def main() -> None:
    """Train, and draw."""
    with tempfile.TemporaryDirectory() as folder:
        draw(trained(Path(folder)))


if __name__ == "__main__":
    main()
