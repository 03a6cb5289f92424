"""Takes a picture of a run's report in headless Chromium, light and dark: `python docs/screenshots.py`.

The run is that of docs/terminal.py, whose picture is made anew with it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import terminal
from PIL import Image

FOLDER = Path(__file__).parent / "pictures"
WIDTH, HEIGHT = 1200, 1010
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


def chromium(folder: Path, page: Path, width: int, height: int, dark: bool, *options: str) -> str:
    """Standard output of Chromium, with one page open; its profile goes to the folder."""
    assert CHROMIUM, "no Chromium here; Debian's package is chromium"
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--hide-scrollbars", "--no-first-run",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--host-resolver-rules=MAP * ~NOTFOUND", *options,
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def screenshot(folder: Path, page: Path, file: Path, dark: bool) -> None:
    """The top of a page as a PNG of 256 colours, which is a third of the size."""
    whole = folder / "whole.png"
    chromium(folder, page, WIDTH, HEIGHT, dark, f"--screenshot={whole}")
    Image.open(whole).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)


def main() -> None:
    """Train, and take the pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        terminal.draw(terminal.trained(folder))
        for file, dark in (("report.png", False), ("report-dark.png", True)):
            screenshot(folder, folder / "runs" / "first" / "report.html", FOLDER / file, dark)
            print(FOLDER / file)


if __name__ == "__main__":
    main()
