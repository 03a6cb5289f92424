"""The report: its numbers against the files, what it needs, and that nothing in a run directory can break it."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import yaml
from run_files import accuracy, write_run
from tiny import tiny_config

from sparsekit.cli import main as cli
from sparsekit.config.options import EvaluationConfig
from sparsekit.fit import fit
from sparsekit.report import compare, plots
from sparsekit.report.runs import read
from sparsekit.report.svg import INK, PALETTE, Plot, legend

VOID = {"meta", "use", "path", "br"}


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


# --- one run ----------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    page = report(write_run(tmp_path / "first"), out=tmp_path / "r.html")
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
    assert "10.00 points above its mean candidate" not in page.text  # 0.90 accuracy against 0.90
    assert "7.00 points below its best" in page.text


def test_every_section_and_plot_is_there_with_its_data(tmp_path: Path) -> None:
    page = report(write_run(tmp_path / "first"), out=tmp_path / "r.html")
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


def test_the_planned_rate_is_drawn_as_it_is_planned(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "first")
    drawn = report(folder, out=tmp_path / "r.html").text
    assert "and the plan: a band where it depends on the weights" in drawn
    plan = json.loads((folder / "plan.json").read_text())
    for row in plan["segments"]:
        del row["lr_points"]
    (folder / "plan.json").write_text(json.dumps(plan))
    older = report(folder, out=tmp_path / "o.html").text
    assert "what the first replica used." in older
    assert "and the plan:" not in older


def test_a_lost_merge_is_named(tmp_path: Path) -> None:
    page = report(write_run(tmp_path / "first"), out=tmp_path / "r.html")
    assert "1 of 4 merges lost more than 1 point against the best candidate, held out (after segment 2)" in page.text


def test_the_page_stands_alone(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"r{seed}", seed=seed) for seed in range(3)]
    page = report(*runs, out=tmp_path / "r.html")
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] in ("src", "srcset")]
    links = [value for _, key, value in page.attributes if key in ("href", "xlink:href")]
    assert all(value.startswith("#") for value in links)
    assert len(page.ids) == len(set(page.ids))
    assert {value[1:] for value in links} <= set(page.ids)
    html = (tmp_path / "r.html").read_text()
    assert not re.search(r"@import|url\((?!#)", html)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert 'name="viewport"' in html


def test_plots_take_their_colours_from_the_page(tmp_path: Path) -> None:
    report(write_run(tmp_path / "first"), out=tmp_path / "r.html")
    drawn = re.findall(r"<svg.*?</svg>", (tmp_path / "r.html").read_text(), re.S)
    for svg in drawn[:-1]:  # the heat map's cells have colours of their own, light and dark
        assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)) <= {
            "none", "currentColor", "var(--line)", *(f"var(--c{n})" for n in range(1, 7)),
        }  # fmt: skip
    assert "#ffffff" in drawn[-1]


def test_a_plot_says_what_it_was_given_and_only_coordinates_are_rounded() -> None:
    told = f"rate 0.0005 {INK} > {PALETTE[1]}"
    with Plot(3.0) as plot:
        (panel,) = plot.panels
        panel.plot([0.0, 1.0], [0.001, 0.0015], color=PALETTE[0], label=told)
        panel.set_yticks([0.001, 0.0015])
        legend(panel)
        svg = plot.svg("from 0.00125")
    page = Page(svg)
    assert page.text.split("\n").count(told) == 1
    assert {"0.0010", "0.0015"} <= set(page.text.split("\n"))
    assert ("svg", "aria-label", "from 0.00125") in page.attributes
    drawn = [value for tag, key, value in page.attributes if tag == "path" and key in ("d", "style")]
    assert drawn
    assert not re.search(r"\.\d{3}", " ".join(drawn))
    assert "var(--c1)" in " ".join(drawn)


def test_rows_are_read_once_however_many_points_are_drawn(tmp_path: Path) -> None:
    class Counting(tuple[Any, ...]):
        times = 0

        def __iter__(self) -> Iterator[Any]:
            Counting.times += 1
            return super().__iter__()

    found = read(str(write_run(tmp_path / "first", segments=12)))
    run = replace(found, rows=Counting(found.rows))
    for part in (plots.progress, plots.soup, plots.geometry, plots.rates, plots.layers):
        assert part(run)
    assert Counting.times == 1


def test_a_long_runs_learning_rates_are_thinned(tmp_path: Path) -> None:
    run = read(str(write_run(tmp_path / "first", segments=2, steps=2000, rows=2000)))
    drawn = str(plots.rates(run))
    assert 300 <= drawn.count("<use ") <= 600
    assert max(run.epochs(row["step"]) for row in run.events("train")) == pytest.approx(4.0)


def test_text_from_a_run_is_shown_and_never_run(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>&\"'"
    folder = write_run(tmp_path / "<script>alert(2)<", merge={"name": evil})
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": evil}))
    evaluation = json.loads((folder / "evaluation.json").read_text())
    saved = evaluation["variants"]["saved"]
    saved["corruptions"][evil] = saved["corruptions"]["fog"]
    saved["test"]["worst_class"] = evil
    saved["agreement"] = 0.5
    evaluation |= {"dense": evil, "data": {"name": evil}, "variants": {evil: saved}}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    text = (folder / "metrics.jsonl").read_text().replace("layer5.weight", evil.replace('"', '\\"'))
    (folder / "metrics.jsonl").write_text(text)
    for runs in ([folder], [folder, write_run(tmp_path / "other")]):
        page = report(*runs, out=tmp_path / "r.html")
        assert "script" not in page.tags
        assert page.text.count(evil) >= 4
        assert "<script>alert(2)<" in page.text


def test_dollar_signs_are_no_formula(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "first")
    text = (folder / "metrics.jsonl").read_text().replace("layer5.weight", r"a$\\frac{$b")
    (folder / "metrics.jsonl").write_text(text)
    assert r"a$\frac{$b" in report(folder, out=tmp_path / "r.html").text


# --- runs that are not what they should be --------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["config.yaml", "plan.json", "metrics.jsonl", "summary.json", "evaluation.json"])
@pytest.mark.parametrize("how", ["missing", "empty", "cut", "binary", "list", "folder"])
def test_a_file_that_is_missing_or_damaged_is_told(tmp_path: Path, missing: str, how: str) -> None:
    folder = write_run(tmp_path / "first")
    path = folder / missing
    data = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "missing":
        path.write_bytes(
            {"empty": b"", "cut": data[: len(data) // 2], "binary": b"\xff\xfe\x00", "list": b"[1, 2]\n"}[how]
        )
    page = report(folder, out=tmp_path / "r.html")
    told = missing in page.text.split("Configuration")[0]
    # no evaluation is nothing amiss, and half of a file of lines may be whole lines
    quiet = {("evaluation.json", "missing"), ("evaluation.json", "folder"), ("metrics.jsonl", "empty")}
    assert told or (missing, how) in quiet | {("config.yaml", "cut"), ("metrics.jsonl", "cut")}


@pytest.mark.parametrize("status", ["stopped", "failed", "unfinished"])
def test_a_run_that_is_not_done_says_so(tmp_path: Path, status: str) -> None:
    folder = write_run(tmp_path / "first")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    second = next(i for i, line in enumerate(lines) if '"merge"' in line and '"segment": 1' in line)
    (folder / "metrics.jsonl").write_text("".join(lines[: second + 1]) + lines[second + 2][:20])
    (folder / "evaluation.json").unlink()
    if status == "unfinished":
        (folder / "summary.json").unlink()
    else:
        (folder / "summary.json").write_text(json.dumps({"status": status, "wall_seconds": 3.0}))
    page = report(folder, out=tmp_path / "r.html")
    assert f"This run is {status}: 2 of 4 segments are finished." in page.text
    assert "metrics.jsonl: 1 line cannot be read" in page.text
    assert page.table("segment", "epochs")[3][3] == "not reached"
    other = write_run(tmp_path / "second", seed=1)
    both = report(folder, other, out=tmp_path / "r.html")
    assert "1 of them done." in both.text
    assert [row[1] for row in both.table("run", "status")] == [status, "done"]
    assert both.table("runs", "n")[0][:3] == ["all runs", "1", "90.00 %"]  # the other is left out


def mangled(value: Any, chance: random.Random) -> Any:
    """The same JSON with other types here and there, as another version might write it."""
    if chance.random() < 0.15:
        return chance.choice([None, "x", -1, [], {}, True, 1e308, [None, "a", {}], {"name": 3}])
    if isinstance(value, dict):
        return {key: mangled(item, chance) for key, item in value.items() if chance.random() > 0.05}
    return [mangled(item, chance) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 12))])
def test_files_of_another_version_never_break_it(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    folder = write_run(tmp_path / "first")
    for name in ("plan.json", "summary.json", "evaluation.json"):
        (folder / name).write_text(json.dumps(mangled(json.loads((folder / name).read_text()), chance)))
    (folder / "config.yaml").write_text(
        yaml.safe_dump(mangled(yaml.safe_load((folder / "config.yaml").read_text()), chance))
    )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(mangled(row, chance)) + "\n" for row in rows))
    report(folder, out=tmp_path / "r.html")
    page = report(
        folder, write_run(tmp_path / "second"), write_run(tmp_path / "third", seed=1), out=tmp_path / "r.html"
    )
    assert "second" in page.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "RUN must be given"),
        ("{tmp}/nowhere", "no run directory"),
        ("~nosuchuser/run", "~nosuchuser/run is no run directory"),
        ("{tmp}", "no run directory"),
        ("{run} -o {tmp}/a/\0", "--out"),
        ("{run} --outt {tmp}/a", "unknown option --outt; see sparsekit report --help"),
        ("{run} --out", "--out needs a value; see"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, words: str) -> None:
    run = write_run(tmp_path / "run")
    filled = [part.format(run=run, tmp=tmp_path).replace("\0", "b") for part in arguments.split()]
    if "-o" in filled:
        filled[-1] = str(run / "summary.json" / "r.html")
    assert cli.main(["report", *filled]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_out_is_taken_too_and_its_folder_is_made(tmp_path: Path) -> None:
    assert cli.main(["report", str(write_run(tmp_path / "run")), "--out", str(tmp_path / "a" / "b.html")]) == 0
    assert (tmp_path / "a" / "b.html").read_text().startswith("<!doctype html>")


# --- several runs ---------------------------------------------------------------------------------------------


def test_runs_are_grouped_by_what_differs_with_standard_errors_over_seeds(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{merge}-{sparsity}-{seed}", merge={"name": merge}, sparsity=sparsity, seed=seed)
        for merge in ("uniform", "greedy")
        for sparsity in (0.9, 0.95)
        for seed in range(3)
    ]
    page = report(*runs, out=tmp_path / "r.html")
    table = page.table("merge", "sparsity", "n")
    assert [row[:3] for row in table] == [
        ["uniform", "0.9", "3"], ["uniform", "0.95", "3"], ["greedy", "0.9", "3"], ["greedy", "0.95", "3"],
    ]  # fmt: skip
    values = [100 * accuracy(seed, 0.95) for seed in range(3)]
    assert table[1][4] == f"{mean(values):.2f} ± {stdev(values) / 3**0.5:.2f} %"
    curve = page.table("runs", "sparsity", "accuracy")
    assert curve[1] == ["merge uniform", "95.00 %", f"{mean(values):.2f} %", f"{stdev(values) / 3**0.5:.2f}", "3"]
    assert len(page.table("run", "status")) == 12
    assert "Accuracy against sparsity" in page.text


def test_one_seed_has_no_error_bars(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"{sparsity}", sparsity=sparsity) for sparsity in (0.9, 0.95)]
    text = report(*runs, out=tmp_path / "r.html").text
    assert text.count("One seed: no error bars") == 2
    assert "tandard error over" not in text


def test_options_that_a_version_does_not_know_make_no_group(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old")
    config = yaml.safe_load((old / "config.yaml").read_text())
    del config["replicas"]["start"]
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    found = compare.groups([read(str(old)), read(str(write_run(tmp_path / "new", seed=1)))])
    assert [len(group.runs) for group in found] == [2]


def test_curves_at_one_sparsity_stand_beside_one_another(tmp_path: Path) -> None:
    aside = compare._aside([[90.0, 95.0], [90.001, 95.0], [90.0]])
    assert aside == pytest.approx([-0.15, 0.0, 0.15])  # 3 % of the gap of five points
    assert compare._aside([[90.0], [95.0]]) == [0.0, 0.0]
    runs = [write_run(tmp_path / name, merge={"name": name}) for name in ("none", "uniform")]
    assert "Curves are moved sideways a little" in report(*runs, out=tmp_path / "r.html").text


@pytest.mark.filterwarnings("error:.*axes sizes collapsed")
def test_long_values_leave_room_for_the_curves(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"run-{n}", sparsity=0.5 + n / 100, model={"init": f"/{'long/' * 25}{n}/models/of/before"})
        for n in range(14)
    ]
    page = report(*runs, out=tmp_path / "r.html")
    assert "The legend names the first 12 of 14 curves." in page.text
    assert re.search(r"…[long/]{20}/3/models/of/before", page.text)
    assert f"/{'long/' * 25}3/models/of/before" in page.text  # whole in the tables


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
    summary = fit(tiny_config(out=tmp_path / "run", evaluation=EvaluationConfig()))
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert page.keyed["test.accuracy"] == f"{100 * summary['test.accuracy']:.2f} %"
    assert page.keyed["nonzero"] == f"{summary['nonzero']:,}"
    assert page.keyed["test.ece"] == f"{summary['test.ece']:.4f}"
    assert "could not be read" not in page.text
    last = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[0] for line in last] == ["model", "report"]
    assert last[1].split() == ["report", str(tmp_path / "run" / "report.html")]


def test_a_report_that_fails_leaves_the_run_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("sparsekit.cli.report.write", broken)
    summary = fit(tiny_config(out=tmp_path / "run", evaluation=EvaluationConfig()))
    assert summary["status"] == "done"
    assert "no fonts" in capsys.readouterr().err
