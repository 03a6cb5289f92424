"""The studies: their files are sweeps that `fit` takes, their rows are the runs', and their pages are the rows'."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from pathlib import Path

import matplotlib
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import studies
import study_forks
import study_index
import study_plots
import study_soups
import study_tables
from study_tables import Arm

from sparsekit.cli import main
from sparsekit.config import parser as options
from sparsekit.sweep import spec

EVERY = studies.committed()


@pytest.mark.parametrize("name", [*studies.DIGITS, *studies.FASHION, *studies.FULL])
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


def values(study: str, key: str = study_soups.ACCURACY, **wanted: object) -> dict[int, float]:
    """A value by seed."""
    found = study_tables.select(EVERY[study], **wanted)
    assert len(found) == 10
    return Arm("", found).values(key)


def span(gains: list[list[float]], digits: int = 1) -> str:
    """From the smallest mean to the largest, in points."""
    means = [100 * sum(gain) / len(gain) for gain in gains]
    return f"{min(means):.{digits}f} to {max(means):.{digits}f}"


def clear(gain: list[float]) -> bool:
    p = study_tables.p_value(gain)
    return p is not None and p < 0.05 and sum(gain) > 0


def test_the_readmes_words_are_the_rows_too() -> None:
    readme = (studies.ROOT / "README.md").read_text("utf-8")
    said = " ".join(readme.partition("## Does averaging help?")[2].partition("\n## ")[0].split())
    over: dict[str, dict[tuple[str, float, float], list[float]]] = {"one": {}, "candidate": {}, "longer": {}, "gmp": {}}
    for method, sparsity, start in itertools.product(("gmp", "bimp"), (0.95, 0.98), (0.0, 0.5, 0.7)):
        study, cell = f"digits-{method}", (method, sparsity, start)
        arm = {"part": "2-soups", "merge": "uniform", "replicas__count": 3, "replicas__start": start}
        soup = values(study, sparsity=sparsity, **arm)
        others = {
            "one": values(study, part="1-single", sparsity=sparsity),
            "candidate": values(study, study_soups.MEAN, sparsity=sparsity, **arm),
            "longer": values(study, part="3-longer", epochs=90, sparsity=sparsity),
            "gmp": values("digits-gmp", part="1-single", sparsity=sparsity),
        }
        for other, theirs in others.items():
            over[other][cell] = study_tables.differences(soup, theirs)

    def of(other: str, method: str, *starts: float) -> list[list[float]]:
        return [gain for (whose, _, start), gain in over[other].items() if whose == method and start in starts]

    for (method, soups, alone), sparsity in itertools.product(
        (("gmp", "2-soup", "1-single"), ("bimp", "4-bimp-soup", "3-bimp-single")), (0.95, 0.98)
    ):
        cell = (method, sparsity, 0.2)
        default = values("digits-robust", part=soups, sparsity=sparsity)
        for other, part in (("one", alone), ("gmp", "1-single")):
            single = values("digits-robust", part=part, epochs=30, sparsity=sparsity)
            over[other][cell] = study_tables.differences(default, single)
        own = values("digits-robust", study_soups.MEAN, part=soups, sparsity=sparsity)
        over["candidate"][cell] = study_tables.differences(default, own)
    every, words = (
        (0.0, 0.2, 0.5, 0.7),
        "one `bimp` model of the same length by {} points and its own mean candidate by {},",
    )
    assert words.format(span(of("one", "bimp", *every)), span(of("candidate", "bimp", *every))) in said
    unclear = [gain for gain in of("one", "bimp", *every) + of("candidate", "bimp", *every) if not clear(gain)]
    assert unclear == [over["one"]["bimp", 0.98, 0.2]]
    assert f"over one model: p {study_tables.p_value(unclear[0]):.3f})" in said
    assert not any(map(clear, of("gmp", "bimp", *every)))
    for key, more in (("test.corrupted_accuracy", 1), ("test.loss", -1), ("test.brier", -1)):
        arms = ({"part": "4-bimp-soup"}, {"part": "3-bimp-single", "epochs": 30})
        soup, single = (values("digits-robust", key, sparsity=0.95, **arm) for arm in arms)
        assert clear([more * gain for gain in study_tables.differences(soup, single)])
    at95, at98 = of("one", "gmp", 0.0)
    assert f"(by {span([at95])[:3]} and {span([at98])[:3]}), later ones, the default among them, are not told" in said
    assert clear(at95)
    assert clear(at98)
    assert not any(map(clear, of("one", "gmp", 0.2, 0.5, 0.7)))
    assert f"they gain {span(of('candidate', 'gmp', *every), 2)[-4:]} at most" in said
    behind = [[-value for value in gain] for gain in of("longer", "gmp", 0.0) + of("longer", "bimp", 0.0)]
    assert f"is {span(behind)} points better than a soup of three forked from the start" in said
    late = []
    for sparsity, axis, (epochs, longer) in itertools.product((0.95, 0.98), ("seed", "lr"), study_forks.LATE.items()):
        alone = values("digits-gmp", part="3-longer", sparsity=sparsity, epochs=longer)
        soup = values("digits-late", sparsity=sparsity, epochs=epochs, replicas__vary=axis)
        late.append(study_tables.differences(alone, soup))
    assert f"come within {span(late)}." in said
    pooled = (studies.RESULTS / "digits-methods.md").read_text("utf-8").partition("| all, a mean each |")[2].split("|")
    one, longer, batch = (pooled[column].strip().replace("\N{NO-BREAK SPACE}", " ") for column in (5, 6, 7))
    assert f"a soup of three is {one.strip('*+').split()[0]} points above one model" in said
    assert f"and {longer.strip('*−').split()[0]} below one trained three times as long" in said
    assert [cell[:3] for cell in (one, longer)] == ["**+", "**−"]  # p < 0.05 is bold
    assert "*" not in batch
    gains = [
        study_tables.differences(
            values("digits-robust", part="2-soup", sparsity=s), values("digits-apart", part="3-averaged", sparsity=s)
        )
        for s in (0.98, 0.95)
    ]
    assert f"by {span(gains[:1])[:3]} points at 98 %" in said
    assert f"not told apart ({span(gains[1:])[:3]}," in said
    assert clear(gains[0])
    assert not clear(gains[1])


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
