"""The page: its numbers against the files, what it needs, and how runs are compared."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml
from run_files import accuracy, write_run
from tiny import tiny_config

from sparsekit.cli import main as cli
from sparsekit.config.options import EvaluationConfig
from sparsekit.display.live import Display
from sparsekit.launch import fit
from sparsekit.methods.oneshot import OneShot
from sparsekit.report import compare, plots, single
from sparsekit.report.runs import Run, read
from sparsekit.report.svg import INK, PALETTE, Plot, legend
from sparsekit.run import finish

EVIL = "<script>alert(1)</script>&\"'"


class Page(HTMLParser):
    """The text of a page, its tables, the elements with a data-key, and whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text, self.keyed, self.ids = "", dict[str, str](), list[str]()
        self.tables: list[list[list[str]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self._open: list[str] = []
        self._key = ""
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in given.items()]
        if "id" in given:
            self.ids.append(given["id"])
        if tag not in ("meta", "link"):
            self._open.append(tag)
        if "data-key" in given:
            self._key = given["data-key"]
            self.keyed[self._key] = ""
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._key = ""

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if self._key:
            self.keyed[self._key] += data
        if "td" in self._open or "th" in self._open:
            self.tables[-1][-1][-1] += data

    def table(self, *head: str) -> list[list[str]]:
        """The rows of the first table whose head begins so."""
        return next(table[1:] for table in self.tables if table[0][: len(head)] == list(head))


def report(*runs: Path, out: Path) -> Page:
    assert cli.main(["report", *map(str, runs), "-o", str(out)]) == 0
    return Page(out.read_text("utf-8"))


def written(folder: Path, **changes: object) -> Run:
    return read(str(write_run(folder, **changes)))


# --- three pages, drawn once --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page about one finished run, in a folder that is made for it."""
    folder = tmp_path_factory.mktemp("one")
    assert cli.main(["report", str(write_run(folder / "first")), "--out", str(folder / "new" / "r.html")]) == 0
    return (folder / "new" / "r.html").read_text("utf-8")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page about a run whose files hold markup, and one that was killed in the middle of a line."""
    folder = tmp_path_factory.mktemp("two")
    evil = write_run(folder / "<script>alert(2)<", merge={"name": EVIL})
    evaluation = json.loads((evil / "evaluation.json").read_text())
    saved = evaluation["variants"]["saved"] | {"agreement": 0.5}
    saved["corruptions"][EVIL] = saved["corruptions"]["fog"]
    saved["test"] |= {"worst_class_accuracy": 0.7071}
    names = [f"class {label} of many words" for label in range(8)] + [EVIL, "nine"]
    evaluation |= {"dense": EVIL, "data": {"name": EVIL}, "variants": {"saved": saved}, "class_names": names}
    (evil / "evaluation.json").write_text(json.dumps(evaluation))
    text = (evil / "metrics.jsonl").read_text().replace("layer5.weight", EVIL.replace('"', '\\"'))
    (evil / "metrics.jsonl").write_text(text.replace("layer4.weight", r"a$\\frac{$b"))
    killed = write_run(folder / "killed", seed=1)
    kill(killed)
    assert cli.main(["report", str(evil), str(killed), "-o", str(folder / "r.html")]) == 0
    return (folder / "r.html").read_text("utf-8")


def kill(folder: Path) -> None:
    """Leave of a finished run what is there after a kill during its third segment."""
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    second = next(i for i, line in enumerate(lines) if '"merge"' in line and '"segment": 1' in line)
    (folder / "metrics.jsonl").write_text("".join(lines[: second + 1]) + lines[second + 2][:20])
    (folder / "evaluation.json").unlink()
    (folder / "summary.json").unlink()


def test_the_numbers_are_those_of_the_files(one: str) -> None:
    page = Page(one)
    assert page.keyed == {
        "test.accuracy": f"{100 * accuracy(0, 0.9):.2f} %",
        "sparsity": "90.00 %",
        "model_sparsity": "89.00 %",
        "candidates.mean_accuracy": "90.00 %",
        "candidates.best_accuracy": "97.00 %",
        "test.worst_class_accuracy": "70.71 %",
        "test.loss": "0.1234",
        "test.ece": "0.0321",
        "nonzero": "24,380",
        "wall_seconds": "1 min 15 s",
        "corrupted_accuracy": "70.00 %",
        "flops.dense": "1,000,000",
        "flops.sparse": "125,000 (12.5 % of dense)",
        "parameters": "243,810",
        "bytes.dense": "975.2 kB",
        "bytes.compressed": "132.9 kB",
        "bytes.disk": "987.9 kB",
        "images.total": "6,200",
        "images.critical": "2,400",
        "latency.seconds": "1.5 ms",
    }
    assert "unstructured zeros do not speed up dense kernels" in page.text
    verdict = " ".join(page.text.split("seed 0")[1].split("test accuracy")[0].split())
    for part in ("90.00 % at 90.00 % sparsity", "0.00 points above its mean", "7.00 points below its best"):
        assert part in verdict
    for part in ("NLL -0.0200, 95 % interval -0.0500 to -0.0100 over the test examples: told apart",):
        assert part in verdict
    for part in ("1 of 4 merges lost", "more than 1 point below the best", "after segment 2)"):
        assert part in verdict


def test_every_section_and_plot_is_there_with_its_data(one: str) -> None:
    page = Page(one)
    for title in ("What happened", "Plan against what happened", "On the test images", "Cost", "Configuration"):
        assert title in page.text
    assert page.tags.count("svg") == page.tags.count("figure") == 8
    assert page.text.count("Data") >= 8
    over_time = page.table("epoch", "soup")
    assert over_time[0] == ["2", "65.00 %", "61.00 %", "62.00 %", "3"]
    assert [row[0] for row in over_time] == ["2", "4", "6", "8"]
    assert page.table("segment", "soup − mean")[1] == ["2", "−4.00", "−5.00", "+0.00", "yes"]
    assert page.table("segment", "barrier, nats")[0] == ["1", "−0.125", "3", "60", "2"]
    assert page.table("layer")[5] == ["layer5", "90.00 %"]
    assert page.table("model", "images")[3] == ["as saved", "10", "23.00 %", "20.00 %"]
    assert page.table("class")[8] == ["8", "70.71 %"]
    assert page.table("kind")[1] == ["gaussian noise", "90.0 %", "80.0 %", "70.0 %", "60.0 %", "50.0 %", "70.0 %"]
    planned = page.table("segment", "epochs", "planned sparsity")
    assert planned[1] == [
        "2", "2 – 4", "45.00 %", "45.00 %", "3", "3 of 3", "62.00 %", "−5.00", "−0.125", "lost", "62.00 %",
    ]  # fmt: skip
    assert ["replicas.count", "3"] in [row for table in page.tables for row in table]


def test_the_page_stands_alone(two: str) -> None:
    page = Page(two)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] in ("src", "srcset")]
    links = [value for _, key, value in page.attributes if key in ("href", "xlink:href")]
    assert all(value.startswith("#") for value in links)
    assert len(page.ids) == len(set(page.ids))
    assert {value[1:] for value in links} <= set(page.ids)
    assert not re.search(r"@import|url\((?!#)", two)
    assert "prefers-color-scheme: dark" in two
    assert "@media print" in two
    assert 'name="viewport"' in two


def test_classes_have_their_names(two: str) -> None:
    page = Page(two)
    assert page.table("class")[7:10] == [["class 7 of many words", page.table("class")[7][1]], [EVIL, "70.71 %"],
                                         ["nine", page.table("class")[9][1]]]  # fmt: skip
    assert f"the worst is class {EVIL}." in page.text
    assert "class 7 of many wor…" in page.text
    assert ["worst class", f"70.71 % (class {EVIL})"] in page.table(f"test split of {EVIL}")


def test_plots_take_their_colours_from_the_page(one: str) -> None:
    drawn = re.findall(r"<svg.*?</svg>", one, re.S)
    for svg in drawn[:-1]:  # the heat map's cells have colours of their own, light and dark
        assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)) <= {
            "none", "currentColor", "var(--line)", *(f"var(--c{n})" for n in range(1, 7)),
        }  # fmt: skip
    assert "#ffffff" in drawn[-1]


def test_text_from_a_run_is_shown_and_never_run(two: str) -> None:
    page = Page(two)
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 8  # merge, option, data, dense model, corruption and layer, in tables and plots
    assert "<script>alert(2)<" in page.text
    assert r"a$\frac{$b" in page.text  # dollar signs are no formula


def test_a_run_that_was_killed_has_a_page(two: str) -> None:
    page = Page(two)
    assert "1 of them done." in page.text
    assert [row[1] for row in page.table("run", "status")] == ["done", "unfinished"]
    assert page.table("runs", "n")[0][:3] == ["all runs", "1", "90.00 %"]  # the other is left out
    assert "is unfinished: 2 of 4 segments" in page.text
    assert "metrics.jsonl: the last line is incomplete" in page.text


# --- what a page shows about one run ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["stopped", "failed", "unfinished"])
def test_a_run_that_is_not_done_shows_how_far_it_is(tmp_path: Path, status: str) -> None:
    folder = write_run(tmp_path / "run")
    kill(folder)
    if status != "unfinished":
        (folder / "summary.json").write_text(json.dumps({"status": status, "wall_seconds": 3.0}))
    run = read(str(folder))
    assert status in single.badge(run)
    planned = single.planned(run)
    assert [row[3] for row in planned] == ["22.50 %", "45.00 %", "not reached", "not reached"]
    assert [row[-1] for row in planned] == ["65.00 %", "–", "–", "–"]
    assert [key for key, _, _ in single.cards(run)] == ([] if status == "unfinished" else ["wall_seconds"])
    assert compare.row(run)[3:5] == ["–", "–"]
    assert compare.groups([run]) == []


def test_a_single_candidate_is_no_contest(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["event"] == "merge":
            row |= {"candidates": [row["soup"]], "ingredients": [0], "barrier": 0.0}
            del row["soup.lost"], row["soup.margin"], row["ensemble.accuracy"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = json.loads((folder / "summary.json").read_text()) | {"candidates.count": 1}
    (folder / "summary.json").write_text(json.dumps(summary))
    run = read(str(folder))
    assert plots.soup(run) is None
    assert plots.geometry(run) is None
    assert not [key for key, _, _ in single.cards(run) if key.startswith("candidates")]
    assert list(single.planned(run)[1][5:10]) == ["1 of 1", "62.00 %", "–", "–", ""]
    assert compare.row(run)[5:7] == ["–", "–"]


def test_each_variant_of_the_model_has_a_column(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    saved = evaluation["variants"]["saved"]
    other = saved | {"test": saved["test"] | {"accuracy": 0.96, "loss": None}, "agreement": 0.5}
    evaluation |= {"dense": "runs/dense", "variants": {"saved": saved | {"agreement": 0.25}, "recalibrated": other}}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    head, rows = single.scores(read(str(folder)))
    assert head == ["test split of digits", "as saved", "BatchNorm recalibrated"]
    assert rows[0] == ["accuracy", "95.00 %", "96.00 %"]
    assert ["NLL", "0.1234", "not finite"] in rows
    assert rows[-1] == ["agrees with runs/dense", "25.00 %", "50.00 %"]


def test_learning_rates_are_thinned_and_before_the_first_merge_they_are_over_steps(tmp_path: Path) -> None:
    run = written(tmp_path / "run", segments=2, steps=2000, rows=2000)
    chart = plots.rates(run)
    assert chart
    assert 300 <= chart.svg.count("<use ") <= 600
    assert max(row["epoch"] for row in run.rows["train"]) == pytest.approx(4.0)
    assert "Line: the plan, a band" in chart.note
    lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.path / "metrics.jsonl").write_text("".join(lines[:9]))
    (run.path / "summary.json").unlink()
    chart = plots.rates(read(str(run.path)))
    assert chart
    assert [row[0] for row in chart.rows] == [str(step) for step in range(1, 9)]
    assert "optimizer steps" in chart.svg
    assert "plan" not in chart.note


def test_a_plot_says_what_it_was_given_and_only_coordinates_are_rounded() -> None:
    told = f"rate 0.0005 {INK} > {PALETTE[1]}"
    with Plot(3.0) as plot:
        (panel,) = plot.panels
        panel.plot([0.0, 1.0], [0.001, 0.0015], color=PALETTE[0], label=told)
        panel.set_yticks([0.001, 0.0015])
        legend(panel)
        svg = str(plot.svg("from 0.00125"))
    page = Page(svg)
    assert page.text.split("\n").count(told) == 1
    assert {"0.0010", "0.0015"} <= set(page.text.split("\n"))
    assert ("svg", "aria-label", "from 0.00125") in page.attributes
    drawn = [value for tag, key, value in page.attributes if tag == "path" and key in ("d", "style")]
    assert drawn
    assert not re.search(r"\.\d{3}", " ".join(drawn))
    assert "var(--c1)" in " ".join(drawn)


# --- other tasks ------------------------------------------------------------------------------------------------


def test_a_run_of_another_task_shows_its_score_as_a_number(tmp_path: Path) -> None:
    run = written(tmp_path / "first", score="mAP")
    page = report(run.path, out=tmp_path / "r.html")
    assert {key: text for key, text in page.keyed.items() if key.startswith(("test.", "candidates."))} == {
        "test.mAP": f"{accuracy(0, 0.9):.4f}",
        "candidates.mean_mAP": "0.9000",
        "candidates.best_mAP": "0.9700",
        "test.loss": "0.1234",
    }
    words = " ".join(page.text.replace("\N{NO-BREAK SPACE}", " ").split())
    for part in (
        "Test mAP 0.9000 at 90.00 % sparsity", "0.0000 above its mean", "0.0700 below its best",
        "the soup’s held-out mAP was more than 0.01 below", "mAP and sparsity over time.", "mAP above best candidate",
        "Held-out mAP at every merge",
    ):  # fmt: skip
        assert part in words, part
    assert "accuracy, %" not in words
    assert "nats" not in words
    assert page.table("epoch", "soup")[0] == ["2", "0.6500", "0.6100", "0.6200", "3"]
    assert page.table("segment", "soup − mean")[1] == ["2", "−0.0400", "−0.0500", "+0.0000", "yes"]
    assert page.table("segment", "barrier", "L2 distance")[0] == ["1", "−0.125", "3", "60", "2"]
    assert page.table("segment", "epochs", "planned sparsity")[1][6:] == [
        "0.6200", "−0.0500", "−0.125", "lost", "0.6200",
    ]  # fmt: skip
    assert page.table("test split of digits") == [
        ["mAP", "0.9500"], ["loss", "0.1234"], ["F1", "0.8000"], ["subset_accuracy", "50.00 %"],
    ]  # fmt: skip


def test_runs_of_two_tasks_are_compared_with_a_column_and_a_curve_for_each_score(tmp_path: Path) -> None:
    runs = [
        written(tmp_path / f"{score}-{seed}", score=score, seed=seed, task={"name": task})
        for score, task in (("accuracy", "classification"), ("R2", "regression"))
        for seed in range(2)
    ]
    view = compare.view(runs)
    head, rows = view["means"]
    assert list(head) == [
        "task", "n", "reached sparsity", "test accuracy", "mean candidate, accuracy", "test R2",
        "mean candidate, R2", "loss", "ECE", "worst class",
    ]  # fmt: skip
    assert [row[5] for row in rows] == ["–", "0.8950 ± 0.0050"]
    assert [row[3] for row in rows] == ["89.50 ± 0.50 %", "–"]
    assert [curve.title for curve in view["curves"]] == ["Accuracy against sparsity.", "R2 against sparsity."]
    assert [list(curve.rows[0][2:4]) for curve in view["curves"]] == [["89.50 %", "0.50"], ["0.8950", "0.0050"]]
    assert [row[3] for row in view["runs"][1]] == [
        "90.00 % (accuracy)", "89.00 % (accuracy)", "0.9000 (R2)", "0.8900 (R2)",
    ]  # fmt: skip


def test_scores_that_are_not_finite_are_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "first", score="R2")
    for name in ("summary.json", "metrics.jsonl", "evaluation.json"):
        text = (folder / name).read_text()
        text = re.sub(r'"(test\.R2|R2|candidates\.\w+_R2|soup)": [-\d.e]+', r'"\1": null', text)
        (folder / name).write_text(text.replace('"candidates": [0.6,', '"candidates": [null,'))
    page = report(folder, out=tmp_path / "r.html")
    assert "Test R2 not" in page.text
    assert "test.R2" not in page.keyed
    assert page.table("test split of digits")[0] == ["R2", "not finite"]
    assert page.table("epoch", "soup")[0] == ["2", "not finite", "not finite", "0.6200", "3"]
    assert compare.view([read(str(folder)), written(tmp_path / "other", score="R2")])["curves"]


# --- the command ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "RUN must be given"),
        ("{tmp}/nowhere", "no run directory"),
        ("~nosuchuser/run", "~nosuchuser/run is no run directory"),
        ("{tmp}", "no run directory"),
        ("{run} --outt {tmp}/a", "unknown option --outt; see sparsekit report --help"),
        ("{run} --out", "--out needs a value; see"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, words: str) -> None:
    run = write_run(tmp_path / "run")
    assert cli.main(["report", *arguments.format(run=run, tmp=tmp_path).split()]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_a_page_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sparsekit.report.page.render", lambda runs: "")
    out = write_run(tmp_path / "run") / "summary.json" / "r.html"
    assert cli.main(["report", str(tmp_path / "run"), "-o", str(out)]) == 2
    err = capsys.readouterr().err
    assert f"--out {out}: " in err
    assert err.count("\n") == 1


# --- several runs -----------------------------------------------------------------------------------------------


def test_runs_are_grouped_by_what_differs_with_standard_errors_over_seeds(tmp_path: Path) -> None:
    runs = [
        written(tmp_path / f"{merge}-{sparsity}-{seed}", merge={"name": merge}, sparsity=sparsity, seed=seed)
        for merge in ("uniform", "greedy")
        for sparsity in (0.9, 0.95)
        for seed in range(3)
    ]
    head, rows = compare.means(compare.groups(runs))
    assert list(head[:3]) == ["merge", "sparsity", "n"]
    assert [list(row[:3]) for row in rows] == [
        ["uniform", "0.9", "3"], ["uniform", "0.95", "3"], ["greedy", "0.9", "3"], ["greedy", "0.95", "3"],
    ]  # fmt: skip
    values = [100 * accuracy(seed, 0.95) for seed in range(3)]
    assert rows[1][4] == f"{mean(values):.2f} ± {stdev(values) / 3**0.5:.2f} %"
    curve = compare.curves(compare.groups(runs))
    assert list(curve.rows[1]) == [
        "merge uniform", "95.00 %", f"{mean(values):.2f} %", f"{stdev(values) / 3**0.5:.2f}", "3",
    ]  # fmt: skip
    assert "standard errors over seeds" in curve.note


def test_one_seed_has_no_error_bars(tmp_path: Path) -> None:
    runs = [written(tmp_path / f"{sparsity}", sparsity=sparsity) for sparsity in (0.9, 0.95)]
    view = compare.view(runs)
    assert not view["several"]
    (curve,) = view["curves"]
    assert "no error bars" in curve.note
    assert [row[-2] for row in curve.rows] == ["–", "–"]


def test_an_option_that_a_run_does_not_have_makes_no_group(tmp_path: Path) -> None:
    other = write_run(tmp_path / "other")
    config = yaml.safe_load((other / "config.yaml").read_text())
    del config["replicas"]["start"]
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    found = compare.groups([read(str(other)), written(tmp_path / "new", seed=1)])
    assert [len(group.runs) for group in found] == [2]


def test_curves_at_one_sparsity_stand_beside_one_another(tmp_path: Path) -> None:
    aside = compare._aside([[90.0, 95.0], [90.001, 95.0], [90.0]])
    assert aside == pytest.approx([-0.15, 0.0, 0.15])  # 3 % of the gap of five points
    assert compare._aside([[90.0], [95.0]]) == [0.0, 0.0]
    runs = [written(tmp_path / name, merge={"name": name}) for name in ("none", "uniform")]
    assert "moved sideways" in compare.curves(compare.groups(runs)).note


@pytest.mark.filterwarnings("error:.*axes sizes collapsed")
def test_long_values_leave_room_for_the_curves(tmp_path: Path) -> None:
    runs = [
        written(tmp_path / f"run-{n}", sparsity=0.5 + n / 100, model={"init": f"/{'long/' * 25}{n}/models/of/before"})
        for n in range(14)
    ]
    chart = compare.curves(compare.groups(runs))
    assert "first 12 of 14 curves" in chart.note
    assert re.search(r"…[long/]{20}/3/models/of/before", chart.svg)
    assert f"/{'long/' * 25}3/models/of/before" in chart.rows[3][0]  # whole in the table


@pytest.mark.slow
def test_fifty_runs_make_a_page_of_less_than_3_mb_within_20_s(tmp_path: Path) -> None:
    runs = [
        write_run(
            tmp_path / f"run-{n:02}", segments=10, steps=80, rows=8, seed=n % 5, sparsity=0.5 + 0.05 * (n // 5 % 10)
        )
        for n in range(50)
    ]
    (runs[7] / "summary.json").unlink()
    began = time.perf_counter()
    page = report(*runs, out=tmp_path / "r.html")
    assert time.perf_counter() - began < 20.0
    assert (tmp_path / "r.html").stat().st_size < 3_000_000
    assert "49 of them done." in page.text
    assert len(page.table("run", "status")) == 50


# --- fit writes it ---------------------------------------------------------------------------------------------


def test_fit_writes_the_report_of_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = fit(tiny_config(OneShot(), out=tmp_path / "run", epochs=2, evaluation=EvaluationConfig()))
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert page.keyed["test.accuracy"] == f"{100 * summary['test.accuracy']:.2f} %"
    assert page.keyed["nonzero"] == f"{summary['nonzero']:,}"
    assert page.keyed["test.ece"] == f"{summary['test.ece']:.4f}"
    last = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[0] for line in last] == ["model", "report"]
    assert last[1].split() == ["report", str(tmp_path / "run" / "report.html")]


def test_a_report_that_fails_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "plan.json").write_text("{")
    with Display() as display:
        assert finish.write_report(folder, display) is None
    err = capsys.readouterr().err
    assert "plan.json" in err
    assert "the run itself is done" in err


def test_names_in_any_script_are_text_and_warn_of_no_font(recwarn: pytest.WarningsRecorder) -> None:
    with Plot(1.0) as plot:
        plot.panels[0].set_title("猫 кошка قطة")
        assert "猫 кошка قطة" in plot.svg("cats")
    assert not recwarn.list
