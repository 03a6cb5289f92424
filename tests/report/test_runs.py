"""The reader of a run directory: what a run writes is read, at any moment of its life; anything else is one line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_files import write_run

from sparsekit.errors import UserError
from sparsekit.report import compare, evaluation_charts, page, plots, single
from sparsekit.report.runs import read

FILES = ("config.yaml", "plan.json", "metrics.jsonl", "summary.json", "evaluation.json")


def refusal(folder: Path) -> str:
    """What the reader says of a run that it refuses, without the folder."""
    with pytest.raises(UserError) as caught:
        read(str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value).replace(str(folder), "RUN")


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_files_of_a_run_are_read(tmp_path: Path) -> None:
    run = read(str(write_run(tmp_path / "first")))
    assert (run.name, run.status, run.done, run.note) == ("first", "done", True, "")
    assert run.config["method.start"] == 0.1
    assert [row["sparsity"] for row in run.segments] == pytest.approx([0.225, 0.45, 0.675, 0.9])
    assert {event: len(rows) for event, rows in run.rows.items()} == {
        "train": 48, "segment": 4, "merge": 4, "evaluate": 4,
    }  # fmt: skip
    merge = run.rows["merge"][1]
    assert (merge["epoch"], merge["mean"], merge["best"]) == pytest.approx((4.0, 0.66, 0.67))
    assert run.rows["train"][0]["epoch"] == pytest.approx(0.5)  # a quarter of a segment of two epochs
    assert run.contests == run.rows["merge"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["missing", "empty", "cut", "binary", "list", "folder"])
def test_a_missing_or_damaged_file_is_named_in_one_line(tmp_path: Path, name: str, how: str) -> None:
    folder = write_run(tmp_path / "first")
    path = folder / name
    data = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "missing":
        path.write_bytes(
            {"empty": b"", "cut": data[: len(data) // 2], "binary": b"\xff\xfe\x00\n", "list": b"[1, 2]\n"}[how]
        )
    if (name, how) in {("summary.json", "missing"), ("metrics.jsonl", "cut"), ("metrics.jsonl", "empty")}:
        assert read(str(folder)).name == "first"  # a run that was killed leaves these
    elif name == "config.yaml" and how in ("missing", "folder"):
        assert "RUN is no run directory (it has no config.yaml)" in refusal(folder)
    else:
        assert f"RUN/{name}: " in refusal(folder)


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("config.yaml", "seed: 0", "seed: none", "seed is 'none'"),
        ("plan.json", '"start_epoch"', '"begin_epoch"', "segments.1.start_epoch is missing"),
        ("plan.json", '"lr_points": [[0.0, 0.0]', '"lr_points": [[0.0]', "lr_points.1 has 1 entries, not 2"),
        ("metrics.jsonl", '"layer3.weight": 0.225', '"layer3.weight": "x"', "line 1: layers.layer3.weight is 'x'"),
        ("metrics.jsonl", '"soup.margin": 0.01, ', "", "merge of segment 0.soup.margin is missing"),
        ("metrics.jsonl", '"lr": 0.1', '"lr": null', "line 2: lr is missing"),
        ("summary.json", '"test.accuracy"', '"test.akkuracy"', "test.accuracy is missing"),
        ("summary.json", '"test.ece": 0.0321', '"test.ece": [0.0321]', "test.ece is [0.0321]"),
        ("evaluation.json", '"count": 10', '"count": 1.5', "variants.saved.bins.1.count is 1.5"),
        ("evaluation.json", '[{"accuracy": 0.9}, ', "[", "corruptions.fog has 4 entries, not 5"),
    ],
)
def test_a_value_that_no_run_writes_is_named(tmp_path: Path, name: str, old: str, new: str, words: str) -> None:
    folder = write_run(tmp_path / "first")
    change(folder / name, old, new)
    assert f"RUN/{name}: damaged: " in refusal(folder)
    assert words in refusal(folder)


def test_a_run_is_read_from_its_first_moment_on(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "first")
    data = (folder / "metrics.jsonl").read_bytes()
    for name in ("metrics.jsonl", "summary.json", "evaluation.json"):
        (folder / name).unlink()
    run = read(str(folder))  # config.yaml and plan.json come first
    assert (run.status, run.unit, run.note, run.rows["train"]) == ("unfinished", "optimizer steps", "", [])
    assert [row[3] for row in single.planned(run)] == ["not reached"] * 4
    lines = data.count(b"\n")
    for size in range(0, len(data), 499):
        (folder / "metrics.jsonl").write_bytes(data[:size])
        run = read(str(folder))
        assert bool(run.note) == (data[:size][-1:] not in (b"", b"\n"))
        assert sum(map(len, run.rows.values())) == data[:size].count(b"\n") < lines


def test_a_line_may_be_cut_within_a_character_and_hold_a_line_separator(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "first")
    change(folder / "metrics.jsonl", "layer3", "ä\u2028ü")
    run = read(str(folder))
    assert "ä\u2028ü.weight" in run.rows["segment"][0]["layers"]
    data = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(data[: data.rindex("ü".encode()) + 1])
    assert "incomplete" in read(str(folder)).note


def mangled(value: Any, chance: random.Random) -> Any:
    """The same JSON with other types here and there."""
    if chance.random() < 0.02:
        return chance.choice([None, "x", -1, [], {}, True, [None, "a", {}], {"name": 3}])
    if isinstance(value, dict):
        return {key: mangled(item, chance) for key, item in value.items() if chance.random() > 0.01}
    return [mangled(item, chance) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", FILES)
def test_mangled_files_are_read_whole_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for part in ("progress", "soup", "geometry", "rates", "layers"):  # drawing is slow
        monkeypatch.setattr(plots, part, lambda run: None)
    for part in ("calibration", "classes"):
        monkeypatch.setattr(evaluation_charts, part, lambda run: None)
    monkeypatch.setattr(evaluation_charts, "heat_maps", lambda run: [])
    folder, refused = write_run(tmp_path / "first", segments=2, rows=1), 0
    path, chance = folder / name, random.Random(0)
    data = path.read_text()
    values = [yaml.safe_load(line) for line in data.splitlines()] if name == "metrics.jsonl" else yaml.safe_load(data)
    for _ in range(60):
        made = mangled(values, chance)
        rows = made if name == "metrics.jsonl" and isinstance(made, list) else [made]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))  # JSON is YAML, too
        try:
            run = read(str(folder))
        except UserError:
            assert f"RUN/{name}: damaged: " in refusal(folder)
            refused += 1
            continue
        assert "first" in page.render([run])
        assert compare.row(run)[0] == "first"
        assert bool(compare.groups([run])) == run.done
    assert 10 < refused < 60
