"""The studies: their files are sweeps that `fit` takes, their rows are the runs', and their pages are the rows'."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import studies
import study_index
import study_plots
import study_soups
import study_tables
import study_tests
import study_when
from study_tables import Arm

from sparsekit.cli import main
from sparsekit.config import parser as options
from sparsekit.sweep import spec

pytestmark = pytest.mark.docs
EVERY = studies.committed()


@pytest.mark.parametrize("name", [*studies.DIGITS, *studies.FASHION, *studies.CHANNELS, *studies.FULL])
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
    page = study_index.page(name, EVERY)
    assert (studies.RESULTS / f"{name}.md").read_text("utf-8") == page.text
    assert set(re.findall(r"\(([\w.-]+\.svg)\)", page.text)) == page.plots.keys()
    for plot, drawn in page.plots.items():
        there = (studies.RESULTS / plot).read_text("utf-8")
        if f"Matplotlib v{matplotlib.__version__}" in there:  # another release draws the same otherwise
            assert unnamed(there) == unnamed(drawn)


@pytest.mark.parametrize("name", EVERY)
def test_rows_are_of_the_runs_that_the_files_ask_for(name: str) -> None:
    for file in (files := studies.files(name)):
        asked = [
            {key: value for key, value in cell.values.items() if key not in studies.IDLE}
            for cell in spec.read(file).cells(None)
        ]
        rows = [row for row in EVERY[name] if len(files) == 1 or row["part"] == file.stem]
        told = [{key: row.get(key) for key in asked[0]} for row in rows]
        assert told == [each for each in asked if each in told]  # in order, each once; a study may be half done


def test_pages_say_where_bimp_was_held_at_its_lower_bound() -> None:
    held = {name for name in EVERY if "`--method.dense 0.3`" in study_index.page(name, EVERY).text}
    assert held == {"digits-bimp", "digits-fork", "digits-robust", "digits-vary", "fashion-bimp"}
    # 7/30 of the budget a cycle, 9/30 for the dense phase
    assert all(f"{7 / 9:.3f}" in study_index.page(name, EVERY).text for name in held)
    anew = [{key: value for key, value in row.items() if key != "method.dense"} for row in EVERY["digits-bimp"]]
    assert "method.dense" not in study_index.page("digits-bimp", {"digits-bimp": anew}).text


def unnamed(svg: str) -> str:
    """Without its own ids, which are hashes of places down to their last bit."""
    return re.sub(r"\b[mp][0-9a-f]{10}\b", "", svg)


@pytest.mark.parametrize("name", EVERY)
def test_a_study_that_is_not_finished_has_a_page_already(name: str) -> None:
    """Parts are run in their order; what is there may be collected at any time."""
    for last in {row.get("part", "") for row in EVERY[name]}:
        rows = [row for row in EVERY[name] if row.get("part", "") <= last]
        for other in (EVERY, {}):
            assert study_index.page(name, other | {name: rows}).text


def test_a_plot_is_the_same_whatever_the_users_own_style_is() -> None:
    plain = study_plots.bars([("a", [0.5, 0.6]), ("none", [])], "x")
    with matplotlib.rc_context({"figure.dpi": 150, "font.family": "serif", "lines.linewidth": 2}):
        assert study_plots.bars([("a", [0.5, 0.6])], "x") == plain


def test_the_page_that_leads_to_them_is_up_to_date() -> None:
    assert (studies.RESULTS / "index.md").read_text("utf-8") == study_index.index(EVERY)
    page, drawn = study_when.when(EVERY)
    assert (studies.RESULTS / "when.md").read_text("utf-8") == page
    there = (studies.RESULTS / "when.svg").read_text("utf-8")
    if f"Matplotlib v{matplotlib.__version__}" in there:
        assert unnamed(there) == unnamed(drawn)


def test_the_readme_quotes_the_rows() -> None:
    readme = (studies.ROOT / "README.md").read_text("utf-8")
    section = readme.partition("## Does averaging help?")[2].partition("\n## ")[0]
    table = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(table) == 7
    (default,) = [cells for what, *cells in table if "(default)" in what]
    table = [row for row in table if row[1:] != default]
    for what, *cells in table:
        arm = what.strip().replace("soup of", "uniform soup of").replace("the batch", "the batch, as many steps")
        for name, (images, at95, at98) in {"digits-gmp": cells[:3], "digits-bimp": cells[3:]}.items():
            page = (studies.RESULTS / f"{name}.md").read_text("utf-8").splitlines()
            rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in page if f"| {arm} |" in line]
            assert [row[3] for row in rows] == [at95.strip(), at98.strip()]
            assert {round(int(row[1].replace(",", "")) / 1000) for row in rows} == {int(images)}
    for part, (images, *accuracies) in (("2-soup", default[:3]), ("4-bimp-soup", default[3:])):
        for sparsity, accuracy in zip((0.95, 0.98), accuracies, strict=True):
            soup = Arm("", study_tables.select(EVERY["digits-robust"], part=part, sparsity=sparsity))
            assert study_tables.mean(list(soup.values(study_soups.ACCURACY).values())) == accuracy.strip()
            assert round(soup.rows[0]["images.total"] / 1000) == int(images)
    fashion = section.partition("On Fashion-MNIST")[2].partition("\n- ")[0]
    expected = []
    for name, what, columns in (
        ("fashion", "uniform soup of 3, forked at 0.2", (5, 7, 6)),
        ("fashion", "one model, 3 times the batch, as many steps", (5,)),
        ("fashion-bimp", "uniform soup of 3, forked in the last segment", (5, 7)),
        ("fashion-bimp", "one model, 3 times the batch, as many steps", (5,)),
    ):
        page = (studies.RESULTS / f"{name}.md").read_text("utf-8").splitlines()
        row = next(line.split("|") for line in page if line.startswith(f"| {what} |"))
        expected += [float(cell.split()[0].strip("*+−")) for cell in (row[column] for column in columns)]
    assert [float(value) for value in re.findall(r"\d\.\d\d", fashion)] == expected


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


def test_holms_correction_is_his() -> None:
    # Holm's own way: 0.01 · 4, then 0.02 · 3 = 0.06, 0.03 · 2 = 0.06, and the last is never less than those before
    assert study_tests.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert study_tests.holm([0.6, 0.7]) == [1.0, 1.0]


def test_intervals_and_power_are_students() -> None:
    found = [0.4, 0.1, 0.3, 0.2, 0.5, 0.3]
    each = study_tests.Difference(found, 1, 3)
    low, high = stats.ttest_1samp(found, 0.0).confidence_interval(0.95)
    assert each.text() == f"+0.300 [{low:+.3f}, {high:+.3f}]"
    error = np.std(found, ddof=1) / math.sqrt(6)
    # of many studies whose true difference is that, four of five tell it: the noncentral t beyond its critical value
    beyond = stats.nct.sf(stats.t.ppf(0.975, 5), 5, each.smallest / error)
    assert beyond == pytest.approx(0.8, abs=0.05)


def test_a_table_is_corrected_as_a_whole() -> None:
    ours = Arm("", [{"seed": s, "a": 0.9 + s / 1e3, "l": 0.1 + s / 1e4} for s in range(5)])
    theirs = Arm("", [{"seed": s, "a": 0.9 + s / 2e3, "l": 0.1} for s in range(5)])
    pairs = study_tests.compared(ours, theirs, {"accuracy": ("a", "a"), "NLL": ("l", "l")})
    assert pairs["accuracy"].p == pytest.approx(stats.ttest_rel([0, 1, 2, 3, 4], [0, 0.5, 1, 1.5, 2]).pvalue)
    alone, said = study_tests.comparisons({"x": pairs})
    assert alone.count("**") == 0  # 0.0474 each; twice that
    assert said == ["x: not told apart."]
    single, said = study_tests.comparisons({"x": {"NLL": pairs["NLL"]}})
    assert single.count("**") == 2
    assert said == ["x: worse in NLL (+0.0002)."]


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
    assert main.main(["sweep", str(sweep), "--out", str(tmp_path / "tiny")]) == 0
    rows = studies.collect(tmp_path / "tiny", [sweep])
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
        # the half cosine by hand, from 0.2 to a hundredth of it; forked at 0.2, after a warm-up of a twentieth
        lr = 0.002 + (0.2 - 0.002) * (1 + math.cos(math.pi * (0.2 - 0.05) / (1 - 0.05))) / 2
        assert row["first.lr"] == pytest.approx([lr, lr])
    (tmp_path / "tiny" / "seed=3" / "summary.json").unlink()  # as in a fresh checkout
    assert studies.collect(tmp_path / "tiny", [sweep]) == rows[1:]
    assert studies.collect(tmp_path / "tiny", [sweep], rows) == rows


@pytest.mark.slow
def test_models_pruned_apart_are_averaged_once(tmp_path: Path) -> None:
    common = {"merge": "none", "epochs": 3, "data.image_size": 8, "evaluation.report": False, "wandb.mode": "disabled"}

    def sweep(name: str, **values: list[object]) -> None:
        parameters = {key: {"value": value} for key, value in common.items()}
        for key, each in values.items():  # one value is no part of a cell's name
            parameters[key.replace("__", ".")] = {"values": each} if len(each) > 1 else {"value": each[0]}
        file = tmp_path / f"{name}.json"  # JSON is YAML
        file.write_text(json.dumps({"method": "grid", "parameters": parameters}))
        assert main.main(["sweep", str(file), "--out", str(tmp_path / name)]) == 0

    sweep("1-parents", seed=[3, 4], sparsity=[0.0], method=["oneshot"])
    parents = [str(tmp_path / "1-parents" / f"seed={seed}") for seed in (3, 4)]
    sweep("2-apart", model__init=parents, seed=[0, 1], sparsity=[0.8, 0.9])
    found = studies.average_apart(tmp_path, tmp_path / "2-apart.json")
    assert {row["part"] for row in found} == {"3-averaged"}
    assert sorted((row["seed"], row["sparsity"]) for row in found) == [(3, 0.8), (3, 0.9), (4, 0.8), (4, 0.9)]
    out = tmp_path / "3-averaged" / "seed=3,sparsity=0.9"
    weights, masks = load_file(out / "model.safetensors"), load_file(out / "masks.safetensors")
    kept, total = sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
    assert kept == total - round(0.9 * total)
    # A cell is found by its values: its folder's name has the parent's path in it, and is cut where that is long.
    cells = spec.read(tmp_path / "2-apart.json").cells(None)
    wanted = {"model.init": parents[0], "sparsity": 0.9}
    runs = [tmp_path / "2-apart" / cell.name for cell in cells if wanted.items() <= cell.values.items()]
    models = [load_file(run / "model" / "model.safetensors") for run in runs]
    assert len(models) == 2
    for name, mask in masks.items():
        mean = (models[0][name] + models[1][name]) / 2
        assert torch.allclose(weights[name], mean * mask)
    assert studies.average_apart(tmp_path, tmp_path / "2-apart.json") == found


def test_the_page_on_channels_compares_at_equal_width() -> None:
    """Of made-up rows: the narrow network is found by its channels, the others by their sparsity."""
    import study_channels

    rows: list[dict[str, object]] = []
    for part, accuracy in (("1-single", 0.80), ("2-soup", 0.83), ("3-narrow", 0.78), ("4-once", 0.79)):
        for seed in range(5):
            asked = {"sparsity": 0.75} if part != "3-narrow" else {"model.kwargs": {"channels": [8, 16, 30, 52]}}
            value = accuracy + 0.001 * seed * (1 if part == "2-soup" else 2)
            rows.append({"part": part, "seed": seed, **asked, "test.accuracy": value, "latency.seconds": 0.004})
    page = study_channels.channels("digits-channels", {"digits-channels": rows})
    assert "| 0.5 | its soup of three | 5 | 83.20" in page.text
    assert page.text.count("4.00") == 4
    assert any("Width 0.5" in line and "+4.8" in line for line in page.found)
    assert not any("0.25" in line for line in page.found)
