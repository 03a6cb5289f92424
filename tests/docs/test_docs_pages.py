"""The documentation's own promises: tables as the code has them, pictures as the plans are, a site that builds."""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import ROOT

import sparsekit
from sparsekit import _version, api, testing
from sparsekit.cli import main
from sparsekit.config import parser
from sparsekit.planning import plan as planning
from sparsekit.plugins.registry import GROUPS, Kind, discover, find

pytestmark = pytest.mark.docs
DOCS = ROOT / "docs"
PLUGINS = sorted({(plugin.kind, plugin.name) for plugin in discover().plugins if plugin.kind in GROUPS})
DATA_SETS = sorted(discover().of("dataset"))
METHODS = [name for kind, name in PLUGINS if kind == "method"]
sys.path.insert(0, str(DOCS))  # its scripts are no package
import plot_merges  # noqa: E402
import plots  # noqa: E402

sys.path.remove(str(DOCS))


# --- methods.md, merges.md and tasks.md ---------------------------------------------------------------------------


def section(kind: Kind, name: str) -> str:
    """A plugin's part of its page."""
    page = (DOCS / f"{kind}s.md").read_text("utf-8")
    found = re.search(rf"^### `{name}`$(.*?)(?=^##|\Z)", page, re.M | re.S)
    assert found, f"docs/{kind}s.md has no section ### `{name}`"
    return found[1]


def documented(kind: Kind, name: str) -> dict[str, tuple[str, str]]:
    """Default and words of each option, as the page has them."""
    rows = re.findall(rf"^\| `--{kind}\.(\w+)` \| `(.*?)` \| (.*) \|$", section(kind, name), re.M)
    return {option: (default, words.replace("\\|", "|")) for option, default, words in rows}


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_a_pages_options_are_the_plugins(kind: Kind, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["fit", f"--{kind}.help", name]) == 0
    told = capsys.readouterr().out
    printed = {o: d.strip("'") for o, d in re.findall(rf"^--{kind}\.(\w+): .*? = (.*)$", told, re.M)}
    assert {option: default for option, (default, _) in documented(kind, name).items()} == printed
    written = inspect.getdoc(find(kind, name).load()) or ""
    for option, (_, words) in documented(kind, name).items():
        found = re.search(rf"^    {option}: (.*(?:\n        .*)*)", written, re.M)
        assert found
        assert words == " ".join(found[1].split()), f"docs/{kind}s.md, --{kind}.{option}"
    assert printed or "It has no options." in section(kind, name)


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_a_section_has_a_formula_and_the_sources_of_the_docstring(kind: Kind, name: str) -> None:
    words = section(kind, name)
    assert re.search(r"^\$\$\n(?:.+\n)+\$\$$", words, re.M)
    summary = (inspect.getdoc(find(kind, name).load()) or "").partition("\n\n")[0]
    for paper in re.findall(r"arXiv (\d{4}\.\d{5})", summary):
        assert f"[{paper}](https://arxiv.org/abs/{paper})" in words


def test_the_pages_have_no_plugin_that_is_not_there() -> None:
    for kind in GROUPS:
        named = re.findall(r"^### `(\w+)`$", (DOCS / f"{kind}s.md").read_text("utf-8"), re.M)
        assert sorted(named) == [name for of, name in PLUGINS if of == kind]


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_page_of_data_sets_names_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["fit", "--data.help", name]) == 0
    options = re.findall(r"^(--data\.\w+)", capsys.readouterr().out, re.M)
    page = (DOCS / "own-data.md").read_text("utf-8")
    assert options
    assert [option for option in options if option not in page] == []


# --- pictures -------------------------------------------------------------------------------------------


def kept(picture: Path) -> dict[str, Any]:
    """The figures that a picture was drawn from."""
    found = re.search(r"<metadata>(.*?)</metadata>", picture.read_text("utf-8"), re.S)
    assert found
    return json.loads(unescape(found[1]))  # type: ignore[no-any-return]


def points(picture: Path, kind: str) -> list[tuple[float, float]]:
    """The corners of a picture's line."""
    found = re.search(rf'<path class="{kind}" d="M(.*?)"', picture.read_text("utf-8"))
    assert found
    return [(float(x), float(y)) for x, y in (corner.split() for corner in found[1].split("L"))]


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_picture_is_its_plan(name: str) -> None:
    file = DOCS / "pictures" / "methods" / f"{name}.svg"
    assert f"(pictures/methods/{name}.svg)" in section("method", name)
    config = parser.parse(parser.build("test", ""), ["--method", name])
    plan = planning.summarize(config, planning.make_plan(config, planning.make_stages(config))).segments
    figures = kept(file)
    drawn = [tuple(row) for row in figures["segments"]]
    expected = [(row.start_epoch, row.epochs, row.sparsity, row.replicas) for row in plan]
    again = f"docs/pictures/methods/{name}.svg is not the plan any more: python docs/plots.py {name}"
    assert [n for _, _, _, n in drawn] == [n for _, _, _, n in expected], again
    assert [x for row in drawn for x in row[:3]] == pytest.approx([x for row in expected for x in row[:3]]), again

    rates = figures["rates"]
    for row in (row for row in plan if row.epochs > 0):
        inside = [r for r in rates if row.start_epoch - 1e-6 <= r[0] <= row.start_epoch + row.epochs + 1e-6]
        assert max(high for _, _, high in inside) >= row.lr_first[1] - 1e-3 * config.optimizer.lr, again
        end = row.start_epoch + row.epochs
        at_end = [(low, high) for epoch, low, high in inside if math.isclose(epoch, end, abs_tol=1e-6)]
        assert any(pair == pytest.approx(row.lr_last, abs=1e-6) for pair in at_end), again

    # what is drawn, read off the picture
    total = sum(row.epochs for row in plan)
    top, bottom = plots.SPARSITY
    shown = [
        ((x - plots.LEFT) / (plots.RIGHT - plots.LEFT) * total, (bottom - y) / (bottom - top) * plan[-1].sparsity)
        for x, y in points(file, "a")
    ]
    steps = [(row.start_epoch + at, row.sparsity) for row in plan for at in (0.0, row.epochs)]
    assert [x for x, _ in shown] == pytest.approx([x for x, _ in steps], abs=0.001 * total)
    assert [y for _, y in shown] == pytest.approx([y for _, y in steps], abs=0.002)


def test_the_plan_on_a_time_axis_is_the_default_runs() -> None:
    config = parser.parse(parser.build("test", ""), [])
    plan = planning.summarize(config, planning.make_plan(config, planning.make_stages(config))).segments
    drawn = kept(DOCS / "pictures" / "plan.svg")["segments"]
    expected = [x for row in plan for x in (row.start_epoch, row.epochs, row.sparsity, row.replicas)]
    assert [x for row in drawn for x in row] == pytest.approx(expected)


@pytest.mark.parametrize("name", plot_merges.names())
def test_a_merges_picture_is_what_it_does(name: str) -> None:
    file = DOCS / "pictures" / "merges" / f"{name}.svg"
    assert f"(pictures/merges/{name}.svg)" in section("merge", name)
    soup = plot_merges.soup_of(find("merge", name).load()())
    assert kept(file)["soup"] == pytest.approx(list(soup), abs=2e-3), f"python docs/plot_merges.py; {name} has moved"
    if name == "uniform":  # by hand
        assert soup == pytest.approx(((1.9 + 1.1 + 2.75) / 3, (0.35 + 1.35 + 1.55) / 3), abs=1e-4)


def test_every_picture_is_shown_and_every_shown_one_is_there() -> None:
    shown = {
        (page.parent / target).resolve()
        for page in (ROOT / "README.md", *DOCS.rglob("*.md"))
        for pair in re.findall(r"!\[[^\]]+\]\(([^)]+)\)|src(?:set)?=\"([^\"]+)\"", page.read_text("utf-8"))
        for target in filter(None, pair)
    }
    there = {path for path in (DOCS / "pictures").rglob("*") if path.suffix in (".svg", ".png")}
    assert {path for path in shown if path.is_relative_to(DOCS / "pictures")} == there


# --- the API --------------------------------------------------------------------------------------------


def test_the_api_page_has_every_public_name() -> None:
    page = (DOCS / "api.md").read_text("utf-8")
    classes = {re.sub(r".*\.", "", path) for path in re.findall(r"^::: (sparsekit\.api\.\w+)$", page, re.M)}
    assert classes == set(api.__all__)
    assert classes <= set(sparsekit.__all__)
    (members,) = re.findall(r"^::: sparsekit\.testing\n    options:\n      members: \[(.*)\]$", page, re.M)
    assert set(members.split(", ")) == set(testing.__all__)


# --- the site -------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_names_every_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(readme.splitlines()) <= 150
    assert main.main(["plugins", "list"]) == 0
    listed = re.findall(r"^(\w+) +(\S+) +sparsekit-", capsys.readouterr().out, re.M)
    kinds = {
        "methods": "method",
        "merges": "merge",
        "tasks": "task",
        "data sets": "dataset",
        "allocations": "allocation",
        "export formats": "format",
    }
    for title, kind in kinds.items():
        (row,) = re.findall(rf"^\| \[{title}\].*$", readme, re.M)
        assert set(re.findall(r"`([^`]+)`", row)) == {name for of, name in listed if of == kind}, title


def test_readme_and_contributing_link_to_what_is_there() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("plugins/*/README.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_extra_that_builds_the_site_is_part_of_test() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    extras = dict(re.findall(r"^(test|docs) = \[(.*?[\"\n])\]$", project, re.M | re.S))
    names = re.findall(r'"(.*?)"', extras["docs"])
    assert "mkdocs-material" in names
    assert set(names) <= set(re.findall(r'"(.*?)"', extras["test"]))


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path / "site")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    built = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.html")}
    written = {str(path.relative_to(DOCS).with_suffix(".html")) for path in DOCS.rglob("*.md")}
    assert built - {"404.html"} == written
    fetches = re.compile(
        r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?(?:https?:|//)[^>]*>|<link[^>]*\shref=["']?(?:https?:|//)[^>]*>"""
    )
    for page in built:
        text = (tmp_path / "site" / page).read_text("utf-8")
        found = [match[0] for match in fetches.finditer(text) if 'rel="canonical"' not in match[0]]
        assert not found, f"{page}: {found}"
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"""(?:@import|url\()\s*["']?(?:https?:)?//""", sheet.read_text("utf-8")), sheet


# --- CITATION.cff ---------------------------------------------------------------------------------------

REQUIRED = {"cff-version", "message", "title", "authors"}
REFERENCE = {"type", "title", "authors"}
"""What the Citation File Format 1.2.0 requires of a file and of a reference."""


def test_the_citation_file_has_what_its_format_requires() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert found.keys() >= REQUIRED
    assert found["cff-version"] == "1.2.0"
    assert found["authors"] == [{"name": "The sparsekit contributors"}]
    assert found["version"] == _version.__version__
    assert f'license = "{found["license"]}"' in (ROOT / "pyproject.toml").read_text("utf-8")
    (paper,) = found["references"]
    assert paper.keys() >= REFERENCE
    assert "2306.16788" in paper["url"]
    assert all(author.keys() == {"family-names", "given-names"} for author in paper["authors"])
    assert all(item.keys() >= {"type", "value"} for item in paper["identifiers"])
    assert {item["type"] for item in paper["identifiers"]} <= {"doi", "url", "swh", "other"}
