"""The studies: their files are sweeps that `fit` takes, their rows are the runs', and their pages are the rows'."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import studies
import study_pages
import study_soups
import study_tables
from study_tables import Arm

from sparsekit import cli, options
from sparsekit.sweep import spec

EVERY = studies.committed()


@pytest.mark.parametrize("name", [*studies.DIGITS, *studies.FASHION])
def test_every_cell_of_a_study_is_a_run_that_fit_takes(name: str) -> None:
    files = studies.files(name)
    assert files
    parser = options.build("sparsekit fit", "")
    for file in files:
        sweep = spec.read(file)
        cells = sweep.cells(None)
        assert f"{len(cells)} runs." in file.read_text()
        for cell in (cells[0], cells[-1]):
            options.parse(parser, sweep.options(cell))


@pytest.mark.parametrize("name", EVERY)
def test_the_committed_page_is_what_the_committed_rows_say(name: str) -> None:
    page, plots = study_pages.page(name, EVERY)
    assert (studies.RESULTS / f"{name}.md").read_text("utf-8") == page
    assert set(re.findall(r"\(([\w.-]+\.svg)\)", page)) == plots.keys()
    assert all((studies.RESULTS / plot).exists() for plot in plots)


def test_the_page_that_leads_to_them_is_up_to_date() -> None:
    assert (studies.RESULTS / "index.md").read_text("utf-8") == study_pages.index(EVERY)


def test_the_readme_quotes_the_rows() -> None:
    section = (
        (studies.ROOT / "README.md").read_text("utf-8").partition("## Does averaging help?")[2].partition("\n## ")[0]
    )
    page = (studies.RESULTS / "digits-gmp.md").read_text("utf-8")
    quoted = re.findall(r"\d+\.\d\d ± \d\.\d\d", section)
    assert len(quoted) == 10
    assert all(f"| {figure} |" in page for figure in quoted)


def test_differences_are_paired_and_tested_as_scipy_does() -> None:
    ours, theirs = {1: 0.95, 2: 0.97, 3: 0.96, 9: 0.1}, {3: 0.94, 2: 0.96, 1: 0.91, 8: 0.9}
    found = study_tables.differences(ours, theirs)
    assert found == pytest.approx([0.04, 0.01, 0.02])
    expected = stats.ttest_rel([0.95, 0.97, 0.96], [0.91, 0.96, 0.94]).pvalue
    assert study_tables.p_value(found) == pytest.approx(expected)
    # by hand: mean 7/300, standard deviation sqrt(7/30000), over sqrt(3)
    assert study_tables.against(ours, theirs).replace("\N{NO-BREAK SPACE}", " ").startswith("+2.33 ± 0.88 (p 0.1")
    assert study_tables.against(theirs, ours).startswith("−2.33")
    assert study_tables.p_value([0.5, 0.5, 0.5]) is None
    assert study_tables.p_value([0.5, 0.6]) is None


def test_only_a_difference_that_seeds_bear_out_is_called_one() -> None:
    clear, same = {s: 0.9 + s / 1e4 for s in range(5)}, dict.fromkeys(range(5), 0.8)
    assert study_soups.won("x", clear, same).startswith("better than x (+10.02, p")
    assert study_soups.won("x", same, clear).startswith("worse than x")
    assert study_soups.won("x", {0: 0.9, 1: 0.7, 2: 0.8}, same).startswith("not told apart from x")
    assert study_soups.won("x", {}, same) == "no runs to compare with x"
    assert study_tables.against(clear, same).startswith("**+10.02")
    assert Arm("", [{"seed": 1, "a": None}, {"seed": 2, "a": 3}]).values("a") == {2: 3.0}


@pytest.mark.slow
def test_rows_are_the_runs_own_figures(tmp_path: Path) -> None:
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(
        "method: grid\nparameters:\n  seed: {values: [3, 4]}\n  epochs: {value: 3}\n  wandb.mode: {value: disabled}\n"
    )
    assert cli.main(["sweep", str(sweep), "--out", str(tmp_path / "tiny")]) == 0
    rows = studies.collect(tmp_path / "tiny")
    assert [row["seed"] for row in rows] == [3, 4]
    assert "wandb.mode" not in rows[0]
    for row in rows:
        run = tmp_path / "tiny" / f"seed={row['seed']}"
        summary = json.loads((run / "summary.json").read_text())
        assert row["test.accuracy"] == summary["test.accuracy"]
        assert row["candidates.ensemble_accuracy"] == summary["candidates.ensemble_accuracy"]
        events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        merges = [event for event in events if event["event"] == "merge" and len(event["candidates"]) == 3]
        assert row["first.barrier"] == merges[0]["barrier"]
        assert row["last.barrier"] == merges[-1]["barrier"]
