"""The report in a real browser: headless Chromium lays it out at desktop and phone width, light and dark."""

from __future__ import annotations

import json
import re
import sys
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from run_files import write_run
from tiny import tiny_config

from sparsekit.cli import main as cli
from sparsekit.config.options import EvaluationConfig
from sparsekit.display.text import duration, percent
from sparsekit.launch import fit

DOCS = str(Path(__file__).parents[2] / "docs")
sys.path.insert(0, DOCS)  # its scripts are no package
from screenshots import CHROMIUM, chromium  # noqa: E402

sys.path.remove(DOCS)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; Debian's package is chromium"),
]

PROBE = """<script>
addEventListener("load", () => {
  const shown = e => { const b = e.getBoundingClientRect(); return b.width > 0 && b.height > 0 };
  const box = e => { const b = e.getBoundingClientRect(); return [b.left, b.right, b.height] };
  const found = {
    width: innerWidth,
    scroll: document.documentElement.scrollWidth,
    numbers: Object.fromEntries([...document.querySelectorAll("[data-key]")].filter(shown)
      .map(e => [e.dataset.key, e.innerText])),
    plots: [...document.querySelectorAll("svg")].map(box),
    letters: [...document.querySelectorAll("svg text")].map(e => box(e)[2] ? parseFloat(getComputedStyle(e).fontSize) *
      Math.hypot(e.getCTM().c, e.getCTM().d) : 0),
    ink: getComputedStyle(document.querySelector("svg text")).fill,
    paper: getComputedStyle(document.body).backgroundColor,
    tables: [...document.querySelectorAll("details table")].filter(e => e.checkVisibility()).length,
    fetched: performance.getEntriesByType("resource").length,
  };
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(found);
  parent.document.body.append(out);
});
</script>"""


def probed(tmp_path: Path, report: Path, width: int, dark: bool = False) -> dict[str, Any]:
    """What the browser made of a report, asked by a script that is put into a copy."""
    copy = report.read_text().replace("</body>", f"{PROBE}</body>")
    frame = tmp_path / "frame.html"  # Chromium's own window is never narrower than 500 pixels
    frame.write_text(
        '<!doctype html><meta name="color-scheme" content="light dark"><body>'
        f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{escape(copy)}"></iframe></body>'
    )
    dom = chromium(tmp_path, frame, 1400, 900, dark, "--virtual-time-budget=5000", "--dump-dom")
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.S)
    assert found, dom[-500:]
    return dict(json.loads(unescape(found[1])))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("browser") / "run"
    fit(tiny_config(out=out, evaluation=EvaluationConfig(corruptions=True)))
    return out


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_the_numbers_on_the_screen_are_those_of_the_summary(tmp_path: Path, run: Path, width: int, dark: bool) -> None:
    found = probed(tmp_path, run / "report.html", width, dark)
    summary = json.loads((run / "summary.json").read_text())
    shown = found["numbers"]
    for key in ("test.accuracy", "sparsity", "model_sparsity", "candidates.mean_accuracy", "test.worst_class_accuracy"):
        assert shown[key] == percent(summary[key], 2), key
    for key in ("test.loss", "test.ece"):
        assert shown[key] == f"{summary[key]:.4f}"
    for key in ("nonzero", "parameters", "flops.dense", "images.total", "images.critical"):
        assert shown[key] == f"{summary[key]:,}"
    assert shown["wall_seconds"] == duration(summary["wall_seconds"])
    assert shown["corrupted_accuracy"] == percent(summary["test.corrupted_accuracy"], 2)

    assert found["width"] == width
    assert found["scroll"] <= width  # nothing is wider than the screen; wide tables scroll by themselves
    assert len(found["plots"]) == 8
    assert all(0 <= left < right <= width and height > 50 for left, right, height in found["plots"])
    assert min(found["letters"]) > 6.5  # pixels
    assert found["tables"] == 0  # closed until they are asked for
    assert found["fetched"] == 0
    ink, paper = (sum(map(int, re.findall(r"\d+", found[key])[:3])) for key in ("ink", "paper"))
    assert (ink > 600 and paper < 120) if dark else (ink < 200 and paper > 700)


@pytest.mark.parametrize(("dark", "colour"), [(False, (255, 255, 255)), (True, (20, 23, 28))], ids=["light", "dark"])
def test_it_is_painted(tmp_path: Path, run: Path, dark: bool, colour: tuple[int, ...]) -> None:
    picture = tmp_path / "page.png"
    chromium(tmp_path, run / "report.html", 390, 2000, dark, f"--screenshot={picture}")
    image = Image.open(picture).convert("RGB")
    assert image.size == (390, 2000)
    assert image.getpixel((3, 3)) == colour
    assert len(image.getcolors(1 << 20) or []) > 200  # text and lines, not a blank page


@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_a_comparison_fits_the_screen(tmp_path: Path, width: int) -> None:
    runs = [
        write_run(tmp_path / f"a-run-with-a-rather-long-name-{merge}-{seed}", merge={"name": merge}, seed=seed)
        for merge in ("uniform", "greedy", "a_merge_of_somebody_else_with_a_long_name")
        for seed in range(3)
    ]
    assert cli.main(["report", *map(str, runs), "-o", str(tmp_path / "r.html")]) == 0
    found = probed(tmp_path, tmp_path / "r.html", width)
    assert found["scroll"] <= width
    assert len(found["plots"]) == 1
