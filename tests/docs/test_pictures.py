"""The pictures of a terminal and of a report are those of a real run, and a page that shows them fetches nothing."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from documents import ROOT
from PIL import Image

DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))  # its scripts are no package
import screenshots  # noqa: E402
import terminal  # noqa: E402

sys.path.remove(str(DOCS))
pytestmark = pytest.mark.docs
PAPER = {"report.png": (255, 255, 255), "report-dark.png": (20, 23, 28)}


def words(svg: str) -> list[str]:
    """The lines of a terminal's picture, below its title."""
    lines: dict[float, str] = {}
    for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        if not text.get("class", "").endswith("-title"):
            place = float(text.attrib["y"])
            lines[place] = f"{lines.get(place, '')} {text.text or ''}"
    return [" ".join(line.split()) for _, line in sorted(lines.items()) if line.strip()]


def figureless(lines: list[str]) -> list[str]:
    """The lines without what differs between machines: figures, the time, and which merges lost."""
    kept = [line for line in lines if not line.startswith(("lost ", "merges lost", "time "))]
    return [re.sub(r"[-+]?\d[\d,.]*", "0", line.partition(" lost ")[0]) for line in kept]


def test_the_terminals_picture_fetches_nothing() -> None:
    drawn = terminal.FILE.read_text("utf-8")
    assert not re.search(r"@font-face|@import|url\(\s*['\"]?(?!#)|href=", drawn)


def test_the_terminal_shows_the_command_and_the_figures_of_the_pages() -> None:
    lines = words(terminal.FILE.read_text("utf-8"))
    assert lines[0] == f"$ {terminal.COMMAND}"
    assert terminal.COMMAND in (ROOT / "README.md").read_text("utf-8")
    (block,) = re.findall(r"```text\n(gmp \+ uniform +done\n.*?)```", (DOCS / "start.md").read_text("utf-8"), re.S)
    assert [line.strip() for line in block.splitlines() if " ".join(line.split()) not in lines] == []


def test_what_a_bar_left_behind_is_not_on_the_screen() -> None:
    printed = "a\n\x1b[?25l 1 ━╸ 50 %\r\x1b[2K\x1b[1;32m 1 soup\x1b[0m\n 1 ━━ 100 %\r\x1b[2K\nend\n"
    assert [line.plain for line in terminal.screen(printed)] == ["a", " 1 soup", "", "end"]


@pytest.mark.parametrize("name", PAPER)
def test_the_reports_picture_is_painted_and_small(name: str) -> None:
    file = screenshots.FOLDER / name
    assert file.stat().st_size < 250_000
    painted(file, PAPER[name])


def painted(file: Path, paper: tuple[int, int, int]) -> None:
    """The picture has a page's size and background, and much on it."""
    image = Image.open(file).convert("RGB")
    assert image.size == (screenshots.WIDTH, screenshots.HEIGHT)
    corner = image.getpixel((3, 3))
    assert isinstance(corner, tuple)
    assert max(abs(a - b) for a, b in zip(corner, paper, strict=True)) <= 3  # of 256 colours
    assert len(image.getcolors(1 << 20) or []) > 100


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the command ran, and what it printed."""
    folder = tmp_path_factory.mktemp("pictures")
    return folder, terminal.trained(folder)


@pytest.mark.slow
def test_a_run_prints_what_the_picture_shows(trained: tuple[Path, str]) -> None:
    shown = figureless(words(terminal.FILE.read_text("utf-8")))
    assert figureless(words(terminal.svg(terminal.screen(trained[1])))) == shown
    assert sum(line.startswith("segment 0/0") and "soup of 0" in line for line in shown) == 6


@pytest.mark.slow
@pytest.mark.skipif(screenshots.CHROMIUM is None, reason="no Chromium here; Debian's package is chromium")
@pytest.mark.parametrize("name", PAPER)
def test_a_picture_of_a_report_can_be_taken(tmp_path: Path, trained: tuple[Path, str], name: str) -> None:
    screenshots.screenshot(tmp_path, trained[0] / "runs/first/report.html", tmp_path / name, dark="dark" in name)
    painted(tmp_path / name, PAPER[name])
