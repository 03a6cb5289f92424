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
import study_readme
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


def cells(table: str) -> list[list[str]]:
    """A table's rows, without its head."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()[2:]]


def test_the_readme_has_the_figures_of_the_rows() -> None:
    readme = studies.README.read_text("utf-8")
    assert study_readme.filled(readme, EVERY) == readme
    found = cells(study_readme.results(EVERY))
    names = [
        ("digits-gmp", "one model", "uniform soup of 3, forked from the start", "one model, 3 times as long"),
        ("digits-saturated", "one model", "soup of 3", "one model, retrained 3×"),
    ]
    for (study, *arms), (what, *figures) in zip(names, found, strict=True):
        assert f"(docs/results/{study}.md)" in what
        page = (studies.RESULTS / f"{study}.md").read_text("utf-8").partition("## 98 % sparse")[2]
        for arm, figure in zip(arms, figures, strict=True):
            row = re.search(rf"^\| {re.escape(arm)} \| [\d,]+ \| (\d+) \| (.*?) \|", page, re.M)
            assert figure.replace(study_tables.SPACE, " ") == (f"{row[2]} ({row[1]})" if row else "–")


def test_the_readmes_table_copes_with_what_has_no_rows_yet() -> None:
    assert [row[1:] for row in cells(study_readme.results({}))] == [["–"] * 3] * 2
    single = [row for row in EVERY["digits-gmp"] if row["part"].endswith("-single")]
    first, second = cells(study_readme.results({"digits-gmp": single}))
    assert (re.match(r"9\d\.\d\d\s±\s", first[1]) is not None, first[2:], second[1:]) == (True, ["–"] * 2, ["–"] * 3)


def test_a_readme_without_its_marks_is_refused() -> None:
    for text in ("", study_readme.OPENED, 2 * (study_readme.OPENED + study_readme.CLOSED)):
        with pytest.raises(ValueError, match="results"):
            study_readme.filled(text, EVERY)


def arm(name: str, measure: str, values: dict[int, float]) -> Arm:
    """An arm that reached these values, by seed."""
    return Arm(name, [{"seed": seed, study_tables.MEASURES[measure].key: value} for seed, value in values.items()])


def test_differences_are_paired_and_tested_as_scipy_does() -> None:
    ours = arm("ours", "accuracy", {1: 0.95, 2: 0.97, 3: 0.96, 9: 0.1})
    theirs = arm("theirs", "accuracy", {3: 0.94, 2: 0.96, 1: 0.91, 8: 0.9})
    each = study_tests.compared(ours, theirs, ["accuracy", "NLL"])["accuracy"]
    assert each.found == pytest.approx([4, 1, 2])  # points, of the seeds that both have
    assert each.p == pytest.approx(stats.ttest_rel([0.95, 0.97, 0.96], [0.91, 0.96, 0.94]).pvalue)
    # by hand: mean 7/3, standard deviation sqrt(7/3), over sqrt(3); times t(2, 0.975) = 4.3027
    assert each.text() == "+2.33 [−1.46, +6.13]"
    assert study_tests.compared(theirs, ours, ["accuracy"])["accuracy"].text() == "−2.33 [−6.13, +1.46]"
    # nothing to test: two seeds, or the same difference at all, which floating point makes 0.0999… and 0.1000… points
    two = arm("ours", "accuracy", {1: 0.95, 2: 0.97})
    assert not study_tests.compared(two, theirs, ["accuracy"])
    one_more = {1: 0.967, 2: 0.971, 3: 0.962}
    one_less = arm("less", "accuracy", {seed: round(value - 0.001, 3) for seed, value in one_more.items()})
    assert not study_tests.compared(arm("more", "accuracy", one_more), one_less, ["accuracy"])


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
    ours = Arm("ours", [{"seed": s, "test.accuracy": 0.9 + s / 1e3, "test.loss": 0.1 + s / 1e4} for s in range(5)])
    theirs = Arm("x", [{"seed": s, "test.accuracy": 0.9 + s / 2e3, "test.loss": 0.1} for s in range(5)])
    single, said = study_tests.comparisons([(ours, {"x": theirs})], ["NLL"])
    p = stats.ttest_rel([0, 1, 2, 3, 4], [0] * 5).pvalue
    assert f"p\N{NO-BREAK SPACE}{p:.3f}" in single  # 0.0474
    assert single.count("**") == 2
    assert said == ["ours: worse than x (NLL +0.0002 [+0.0000, +0.0004])."]
    # two measures of one comparison, or two comparisons by one measure: twice that
    for pairs, measures in (
        ([(ours, {"x": theirs})], ["accuracy", "NLL"]),
        ([(ours, {"x": theirs, "y": theirs})], ["NLL"]),
        ([(ours, {"x": theirs}), (Arm("again", ours.rows), {"x": theirs})], ["NLL"]),
    ):
        both, said = study_tests.comparisons(pairs, measures)
        assert both.count(f"p\N{NO-BREAK SPACE}{2 * p:.3f}") == 2
        assert "**" not in both
        assert all("not told apart" in line for line in said)


def test_only_a_difference_that_seeds_bear_out_is_called_one() -> None:
    noise = [0.0, 0.2, -0.1, 0.1, -0.2]
    base = Arm("base", [{"seed": s, "test.accuracy": 0.8, "test.loss": 0.5} for s in range(5)])
    clear = Arm("up", [{"seed": s, "test.accuracy": 0.9 + n / 1e3, "test.loss": 0.6} for s, n in enumerate(noise)])
    vague = Arm("vague", [{"seed": s, "test.accuracy": 0.8 + n, "test.loss": 0.5 + n} for s, n in enumerate(noise)])
    text, said = study_tests.comparisons(
        [(clear, {"base": base}), (base, {"up": clear}), (vague, {"base": base, "none": Arm("none", [])})]
    )
    assert said[0].startswith("up: better than base (+10.00 [")
    assert said[1].startswith("base: worse than up (−10.00 [")
    assert said[2].startswith("vague: not told apart from base (+0.00 [")
    assert len(said) == 3
    assert "none" not in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| accuracy")]
    assert rows[0][4].strip(" |") == ""  # what was not asked is left empty
    assert study_tests.comparisons([]) == ("", [])


def test_candidates_are_compared_by_what_their_runs_kept() -> None:
    rows = [
        {"seed": s, "test.accuracy": 0.9 + s / 1e3, "test.loss": 0.3 + s / 1e3, "candidates.mean_accuracy": 0.8}
        | ({"candidates.ensemble_accuracy": 0.9, "candidates.ensemble_loss": 0.2} if s else {})
        for s in range(4)
    ]
    soup = Arm("soup", rows)
    mean, ensemble = (soup.candidates(kind) for kind in ("mean", "ensemble"))
    assert [each.reached("NLL") for each in (*mean.values(), *ensemble.values())] == [{}, dict.fromkeys((1, 2, 3), 0.2)]
    text, _ = study_tests.comparisons([(soup, mean | ensemble)])
    accuracy, nll = (line.split(" | ") for line in text.splitlines() if line.startswith(("| accuracy", "| NLL")))
    assert accuracy[3].startswith("**+10.15 [")  # by hand: mean of 10, 10.1, 10.2, 10.3
    assert [accuracy[2], nll[2]] == ["3 to 4", "3"]
    assert nll[3] == "–"
    assert Arm("", [{"seed": 1, "a": None}, {"seed": 2, "a": 3}]).values("a") == {2: 3.0}


@pytest.mark.slow
def test_every_study_has_a_page_that_compares() -> None:
    """Studies that were not trained yet, too: rows of what their files ask for, with figures by chance."""
    chance, every = np.random.default_rng(0), dict[str, list[study_tables.Row]]()
    for name in (*studies.DIGITS, *studies.FASHION, *studies.FULL):
        every[name] = []
        for part in studies.parts(studies.RUNS / name, studies.files(name)):
            for cell in spec.read(part.file).cells(None):
                told = {key: chance.random() for key in studies.KEPT} | {"seed": 0, "sparsity": 0.95, "epochs": 30}
                told |= part.row(cell) | {"first.lr": [0.1, 0.2], "first.barrier": chance.random()}
                counts = {"images.total": told["epochs"], "candidates.count": told.get("replicas.count", 3)}
                every[name].append(told | counts)
    for name in ("digits-apart", "digits-saturated-apart"):
        every[name] += [
            {
                "part": "3-averaged",
                "seed": int(row["model.init"][-2:]),
                "sparsity": row["sparsity"],
                "test.accuracy": 0.5,
            }
            for row in study_tables.part(every[name], "apart")
        ]
    for name in every:
        page = study_index.page(name, every)
        sections = page.text.split("\n## ")[1:]
        assert sections
        for section in sections:
            assert section.count("\n| measure |") == 1
        assert page.found


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
    assert "| its soup of three | – | 5 | 83.20" in page.text
    assert page.text.count("| 4.00 |") == 4
    assert any("Width 0.5" in line and "+4.8" in line for line in page.found)
    assert not any("0.25" in line for line in page.found)
