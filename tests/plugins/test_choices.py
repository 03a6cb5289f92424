"""Allocations, schedules and formats of other packages: chosen by name, given from Python, and checked when used."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fake_site import distribution, visible
from plugin_sources import run
from tiny import ARGUMENTS, KWARGS

import sparsekit
from sparsekit import Budget, Format, PruningMethod, RunError, Segment, UserError
from sparsekit.config import parser
from sparsekit.config.options import ExportConfig, FitConfig, MergeConfig
from sparsekit.exporting import sparse
from sparsekit.models.sparse_file import load
from sparsekit.planning.plan import make_budget, make_plan, make_stages, summarize
from sparsekit.plugins.objects import is_object, record_of
from sparsekit.pruning import allocation, masks
from sparsekit.schedules import cosine, linear

Capture = pytest.CaptureFixture[str]
SOURCE = '''
"""Plugins for tests."""


def first(shapes, sparsity, available, least):
    """The first layers keep all they can."""
    left = sum(a * b for a, b in ((1, int(__import__("math").prod(s))) for s in shapes.values()))
    left -= round(sparsity * left) + sum(least.values())
    kept = dict(least)
    for name in shapes:
        more = min(left, available[name] - kept[name])
        kept[name], left = kept[name] + more, left - more
    return kept


def square(done, low):
    """One minus a square."""
    return 1.0 - (1.0 - low) * done * done


def short(shapes, sparsity, available, least):
    """Keeps one weight too few."""
    kept = first(shapes, sparsity, available, least)
    name = max(kept, key=kept.get)
    return {**kept, name: kept[name] - 1}


def boom(shapes, sparsity, available, least):
    """Raises."""
    return least["nothing"]


def below(done, low):
    """Falls below 0."""
    return 1.0 - 2.0 * done


def narrow(done):
    """Takes one argument."""
    return 1.0


NUMBER = 3
'''
FORMATS = (
    "from sparsekit.exporting.sparse import FORMAT as SMALL\n\nMINE = SMALL\n'''Compressed once more.'''\nOTHER = 3\n"
)
ENTRIES = (
    "[sparsekit.allocations]\nfirst = made_up_rules:first\nshort = made_up_rules:short\nboom = made_up_rules:boom\n"
    "[sparsekit.schedules]\nsquare = made_up_rules:square\nbelow = made_up_rules:below\n"
    "narrow = made_up_rules:narrow\nnumber = made_up_rules:NUMBER\n"
    "[sparsekit.formats]\nmine = made_up_formats:MINE\nother = made_up_formats:OTHER\n"
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with visible(tmp_path / "site") as folder:
        distribution(folder, "sparsekit_rules", ENTRIES, {"made_up_rules": SOURCE, "made_up_formats": FORMATS})
        yield folder


def parsed(*argv: str, of: type = FitConfig) -> Any:
    return parser.parse_as(of, parser.build("test", "", of), argv)


def refused(*argv: str, of: type = FitConfig) -> str:
    try:
        config = parsed(*argv, of=of)
        made = make_budget(config) if of is FitConfig else config
    except UserError as error:
        return str(error)
    pytest.fail(f"{argv} gave {made}")


def by_hand(kept: dict[str, int], scores: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The highest scores of each layer alone, as torch's own sort has them."""
    found = {}
    for name, score in scores.items():
        order = score.flatten().argsort(descending=True)
        mask = torch.zeros(score.numel(), dtype=torch.bool)
        mask[order[: kept[name]]] = True
        found[name] = mask.reshape(score.shape)
    return found


# --- what they do ---------------------------------------------------------------------------------


def test_an_allocations_numbers_are_what_every_layer_keeps(site: Path) -> None:
    scores = {"a": torch.rand(4, 5), "b": torch.rand(3, 10)}
    found = masks.select(scores, masks.full(scores), 0.5, "first", floor=2.0)
    expected = by_hand({"a": 20, "b": 5}, scores)
    assert all(torch.equal(found[name], expected[name]) for name in scores)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: {"a": 11, "b": 14}, ["11 weights of a", "(available)"]),
        (lambda found: {"a": 1, "b": 24}, ["1 weights of a", "give 2 (least)"]),
        (lambda found: {"a": 4, "b": 4}, ["8 weights in all", "0.75", "give 10"]),
        (lambda found: {"a": 2.0, "b": 8}, ["2.0 weights of a", "whole number"]),
        (lambda found: {"a": True, "b": 9}, ["True weights of a", "whole number"]),
        (lambda found: {"a": 10}, ["leaves out b"]),
        (lambda found: {**found, "c": 0}, ["names c"]),
        (lambda found: [5, 5], ["returned list"]),
    ],
)
def test_an_allocations_numbers_are_checked_when_they_are_used(change: Any, words: list[str]) -> None:
    shapes = {"a": (2, 5), "b": (3, 10)}

    def mine(shapes: Any, sparsity: float, available: Any, least: Any) -> Any:
        return change(allocation.uniform(shapes, sparsity, available, least))

    from sparsekit.plugins.objects import brought

    with brought({"--masks.allocation here:mine": mine}), pytest.raises(RunError) as caught:
        allocation.counts("here:mine", shapes, 0.75, {"a": 10, "b": 30}, {"a": 2, "b": 2})
    assert str(caught.value).startswith("--masks.allocation here:mine: ")
    for word in words:
        assert word in str(caught.value)


def test_whole_numbers_of_numpy_count(site: Path) -> None:
    from sparsekit.plugins.objects import brought

    def mine(shapes: Any, sparsity: float, available: Any, least: Any) -> Any:
        return {name: np.int64(prod(shape) // 2) for name, shape in shapes.items()}

    with brought({"--masks.allocation here:mine": mine}):
        found = allocation.counts("here:mine", {"a": (2, 5)}, 0.5, {"a": 10}, {"a": 0})
    assert (found, type(found["a"])) == ({"a": 5}, int)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("short", ["allocation 'short' of sparsekit-rules 1.2: it keeps "]),
        ("boom", ["allocation 'boom' of sparsekit-rules 1.2, segment ", "boom() raised KeyError"]),
    ],
)
def test_a_run_fails_with_the_plugins_name(
    site: Path, tmp_path: Path, capsys: Capture, name: str, words: list[str]
) -> None:
    code, _, err = run(
        capsys, "fit", "--masks.allocation", name, "--epochs", "2", *ARGUMENTS, "--out", str(tmp_path / "run")
    )
    assert (code, len(err)) == (1, 1)
    for word in words:
        assert word in err[0], err[0]


def test_a_schedule_is_the_plans_rate(site: Path, capsys: Capture) -> None:
    config = parsed("--optimizer.schedule", "square", "--optimizer.min_lr", "0.2", "--optimizer.warmup", "0.1")
    budget = make_budget(config)
    for done in (0.1, 0.4, 0.55, 1.0):
        assert budget.rate(done) == pytest.approx(1.0 - 0.8 * ((done - 0.1) / 0.9) ** 2)
    rows = summarize(config, make_plan(config, make_stages(config))).segments
    assert rows[-1].lr_last == pytest.approx((0.2 * config.optimizer.lr,) * 2)
    assert run(capsys, "plan", "--optimizer.schedule", "square")[0] == 0


def test_the_built_in_schedules_by_hand() -> None:
    assert cosine(0.5, 0.2) == pytest.approx(0.6)
    assert cosine(0.25, 0.0) == pytest.approx((1.0 + 0.5**0.5) / 2.0)
    assert linear(0.25, 0.2) == pytest.approx(0.8)


def test_a_plan_with_a_schedule_of_a_package_imports_no_torch(site: Path) -> None:
    code = (
        "import sys; from sparsekit.cli import main; code = main.main(['plan', '--optimizer.schedule', 'square', "
        "'--masks.allocation', 'first']); sys.exit(code or ('torch' in sys.modules))"
    )
    import os

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment).returncode == 0


# --- how they are named -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "argv", "words"),
    [
        (FitConfig, ["--masks.allocation", "frist"], ["--masks.allocation is 'frist'; choose from global", "'first'?"]),
        (FitConfig, ["--optimizer.schedule", "cosin"], ["--optimizer.schedule is 'cosin'", "square", "'cosine'?"]),
        (FitConfig, ["--optimizer.schedule", "below"], ["schedule 'below' of sparsekit-rules 1.2", "is -0.002"]),
        (FitConfig, ["--optimizer.schedule", "narrow"], ["schedule 'narrow' of", "(done, low)"]),
        (FitConfig, ["--optimizer.schedule", "number"], ["made_up_rules:NUMBER is int, not a function"]),
        (FitConfig, ["--optimizer.schedule", "os:system"], ["--optimizer.schedule os:system", "Python's own"]),
        (FitConfig, ["--masks.allocation", "made_up_rules:nothing"], ["--masks.allocation made_up_rules:nothing"]),
        (MergeConfig, ["--allocation", "frist"], ["--allocation is 'frist'", "'first'?"]),
        (MergeConfig, ["--allocation", "os:system"], ["--allocation os:system"]),
        (MergeConfig, ["--allocation", "made_up_rules:nothing"], ["--allocation made_up_rules:nothing", "imported"]),
        (ExportConfig, ["--format", "mien"], ["--format is 'mien'; choose from timm", "module:FORMAT", "'mine'?"]),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(site: Path, of: type, argv: list[str], words: list[str]) -> None:
    message = refused(*argv, of=of)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_mistakes_of_a_file_are_told_with_the_file(site: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("masks: {allocation: frist}\n")
    message = refused("--config", str(file))
    assert "--masks.allocation is 'frist'" in message
    assert message.endswith(f"(in {file})")
    file.write_text("masks: {allocation: first}\noptimizer: {schedule: made_up_rules:square}\n")
    config = parsed("--config", str(file))
    assert (config.masks.allocation, config.optimizer.schedule) == ("first", "made_up_rules:square")


def test_lists_and_help_show_them(site: Path, capsys: Capture) -> None:
    rows = {(row["kind"], row["name"]): row for row in json.loads(run(capsys, "plugins", "list", "--json")[1])}
    assert rows["allocation", "first"]["summary"] == "The first layers keep all they can."
    assert rows["schedule", "square"]["summary"] == "One minus a square."
    assert rows["format", "mine"]["summary"] == "Compressed once more."
    assert rows["format", "2:4"] == rows["format", "timm"] | {
        "name": "2:4",
        "summary": "A directory for the semi-structured units of CUDA devices.",
    }
    assert rows["schedule", "cosine"]["distribution"] == "sparsekit-soups"
    assert {row["state"] for row in rows.values()} == {"found"}
    assert "made_up_rules" not in sys.modules
    assert "{global,uniform,erk,lamp,boom,first,short}" in run(capsys, "fit", "--help")[1]
    assert "{timm,onnx,torch,sparse,2:4,slim,mine,other}" in run(capsys, "export", "--help")[1]
    assert run(capsys, "plugins", "list", "--kind", "schedule")[1].count("sparsekit-rules") == 4


def test_what_is_missing_is_malformed(tmp_path: Path, capsys: Capture) -> None:
    text = (
        "[sparsekit.allocations]\nerk = made_up_rules:first\nnowhere = made_up_rules:none\n"
        "[sparsekit.formats]\ndotted = made_up_formats\n[sparsekit.schedule]\nx = made_up_rules:square\n"
    )
    with visible(tmp_path / "site") as folder:
        distribution(folder, "sparsekit_rules", text, {"made_up_rules": SOURCE})
        code, out, err = run(capsys, "plugins", "list")
        assert code == 0
        assert "made_up_rules has no function 'none'" in out
        assert any("'erk' is the name of a built-in allocation; choose another" in line for line in err)
        assert any("write module:FORMAT" in line for line in err)
        assert any("'sparsekit.schedule'" in line and "'sparsekit.schedules'" in line for line in err)
        assert parsed("--masks.allocation", "erk").masks.allocation == "erk"
        assert "the name of a data set" not in "".join(err)


class Firstly(PruningMethod):
    """Prune once, by another allocation."""

    allocation = "first"

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return (Segment(budget.sparsity, budget.epochs),)


def test_a_methods_own_allocation_is_a_plugins_name(site: Path) -> None:
    assert sparsekit.plan(method=Firstly()).segments
    broken = type("Broken", (Firstly,), {"__doc__": "Broken.", "allocation": "frist"})
    with pytest.raises(UserError, match=r"Broken\.allocation is 'frist'.*'first'\?"):
        sparsekit.plan(method=broken())


# --- from Python ------------------------------------------------------------------------------------


def halves(shapes: Any, sparsity: float, available: Any, least: Any) -> dict[str, int]:
    """As uniform."""
    CALLED.append(sparsity)
    return allocation.uniform(shapes, sparsity, available, least)


CALLED: list[float] = []
SMALL = {
    "epochs": 2,
    "model": {"kwargs": KWARGS},
    "data": {"image_size": 8},
    "evaluation": {"report": False},
    "wandb": {"mode": "disabled"},
    "replicas": {"count": 1},
}


@pytest.mark.slow
def test_objects_from_python_are_used_recorded_and_resumed(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        **SMALL,
        "masks": {"allocation": halves},
        "optimizer": {"schedule": lambda done, low: linear(done, low)},
    }
    CALLED.clear()
    found = sparsekit.fit(**given, out=tmp_path / "objects")
    named = sparsekit.fit(
        **SMALL, **{"masks.allocation": "uniform", "optimizer.schedule": "linear"}, out=tmp_path / "names"
    )
    assert CALLED
    assert all(
        torch.equal(one, other) for one, other in zip(found.model.parameters(), named.model.parameters(), strict=True)
    )
    written = yaml.safe_load((tmp_path / "objects" / "config.yaml").read_text())
    assert written["masks"]["allocation"].endswith(":halves")
    assert "<lambda>" in written["optimizer"]["schedule"]
    assert sparsekit.fit(**given, out=tmp_path / "objects", resume=True).summary["status"] == "done"
    with pytest.raises(UserError, match="given from Python"):
        sparsekit.fit(**SMALL, out=tmp_path / "x", **{"optimizer.schedule": written["optimizer"]["schedule"]})

    record = Format(sparse.write, sparse.load)
    sparsekit.export(found, format=record, out=tmp_path / "small")
    exported = load(tmp_path / "small")
    assert all(torch.equal(exported[name], tensor) for name, tensor in found.model.state_dict().items())
    with pytest.raises(UserError, match=r"not a sparsekit\.Format"):
        sparsekit.export(found, format=halves, out=tmp_path / "other")  # type: ignore[arg-type]
    sparsekit.merge([found, named], out=tmp_path / "merged", masks="union", prune_again=0.9, allocation=halves)


class Powered:
    """An allocation with a number."""

    def __init__(self, power: float) -> None:
        self.power = power

    def __call__(self, shapes: Any, sparsity: float, available: Any, least: Any) -> Any:
        return allocation.uniform(shapes, sparsity, available, least)


def test_a_record_tells_objects_apart_by_what_they_do() -> None:
    def falling(to: float) -> Any:
        return lambda done, low: 1.0 - (1.0 - to) * done

    assert record_of(halves) == f"{halves.__module__}:halves"
    assert record_of(Powered(1.0)) == record_of(Powered(1.0)) != record_of(Powered(2.0))
    assert record_of(falling(0.1)) == record_of(falling(0.1)) != record_of(falling(0.2))
    assert record_of(partial(falling, 0.1)) == record_of(partial(falling, 0.1)) != record_of(partial(falling, 0.2))
    assert is_object(record_of(falling(0.1)))


@pytest.mark.slow
def test_another_object_does_not_go_on_with_a_run(tmp_path: Path) -> None:
    sparsekit.fit(**SMALL, out=tmp_path / "run", masks={"allocation": Powered(1.0)})
    (tmp_path / "run" / "summary.json").unlink()  # as if it had not ended
    with pytest.raises(UserError, match=r"masks\.allocation"):
        sparsekit.fit(**SMALL, out=tmp_path / "run", masks={"allocation": Powered(2.0)}, resume=True)


def test_a_pruner_takes_functions() -> None:
    CALLED.clear()
    model = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.Linear(10, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = sparsekit.Pruner(
        model, optimizer, epochs=10, steps_per_epoch=2, sparsity=0.5, masks={"allocation": halves},
        schedule=lambda done, low: 1.0 - (1.0 - low) * done * done, warmup=0.0, min_lr=0.2,
    )  # fmt: skip
    for _ in range(20):
        pruner.prune_if_due()
        assert pruner.learning_rate == pytest.approx(1.0 - 0.8 * ((pruner.done + 0.5) / 20) ** 2)
        model(torch.ones(1, 10)).sum().backward()
        optimizer.step()
    assert len(CALLED) >= 1
    assert [int((layer.weight == 0).sum()) for layer in model] == [50, 20]  # type: ignore[operator]


# --- exports ----------------------------------------------------------------------------------------


def test_a_format_of_a_package(site: Path, tmp_path: Path, tiny_run: Path, capsys: Capture) -> None:
    code, out, err = run(capsys, "export", str(tiny_run), "--format", "mine", "-o", str(tmp_path / "out"))
    assert (code, err) == (0, [])
    assert "no prediction differs" in out
    code, _, err = run(capsys, "export", str(tiny_run), "--format", "other", "-o", str(tmp_path / "new"))
    assert (code, len(err)) == (2, 1)
    assert "format 'other' of sparsekit-rules 1.2: it is int, not a sparsekit.Format" in err[0]
    code, _, err = run(
        capsys, "export", str(tiny_run), "--format", "made_up_formats:MINE", "-o", str(tmp_path / "again")
    )
    assert (code, err) == (0, [])


def test_an_export_whose_logits_have_another_shape_is_removed(
    site: Path, tmp_path: Path, tiny_run: Path, capsys: Capture
) -> None:
    flat = (
        "from dataclasses import replace\nfrom sparsekit.exporting.sparse import FORMAT\n\n"
        "def load(out, model):\n    found = FORMAT.load(out, model)\n"
        "    return replace(found, predict=lambda images: found.predict(images)[:, :1])\n\n"
        "MINE = replace(FORMAT, load=load)\n"
    )
    (site / "made_up_flat.py").write_text(flat)
    code, _, err = run(capsys, "export", str(tiny_run), "--format", "made_up_flat:MINE", "-o", str(tmp_path / "out"))
    assert code == 1
    assert "logits have the shape (1, 1), not (1, 10)" in err[0]
    assert not (tmp_path / "out").exists()
