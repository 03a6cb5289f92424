"""`sparsekit plugins`: what is installed, told from metadata and source alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_site import distribution, visible
from plugin_sources import MERGE, METHOD, run

from sparsekit.plugins.registry import Plugin
from sparsekit.plugins.signatures import fault_of, options_of, summary_of
from sparsekit.testing.merge_rules import MERGE_RULES

Capture = pytest.CaptureFixture[str]
HEAVY = ("torch", "torchvision", "timm", "numpy", "wandb", "jsonargparse")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with visible(tmp_path / "site") as folder:
        yield folder


def entry(name: str, target: str, kind: str = "method") -> str:
    return f"[sparsekit.{kind}s]\n{name} = {target}\n"


def rows(capsys: Capture, *arguments: str) -> tuple[list[dict[str, str]], list[str]]:
    code, out, err = run(capsys, "plugins", "list", "--json", *arguments)
    assert code == 0
    return json.loads(out), err


def test_an_option_without_a_type_is_malformed_as_fit_says(site: Path, capsys: Capture) -> None:
    source = METHOD.replace("share: float = 0.25", "share=0.25")
    assert source != METHOD
    distribution(site, "untyped", entry("untyped", "made_up_untyped:Thing"), {"made_up_untyped": source})
    out = run(capsys, "plugins", "list")[1]
    assert "untyped 1.2  [malformed]\n        Thing has an option 'share' without a type\n" in out
    assert "--method.share = 0.25" in out


def test_choices_under_another_name_are_shown(capsys: Capture) -> None:
    choices = "Literal['ft', 'lrw', 'slr', 'clr', 'llr', 'allr']"
    assert f"--method.retrain: {choices} = 'allr'" in run(capsys, "plugins", "list")[1]
    assert f"--method.retrain: {choices} = 'llr'" in run(capsys, "fit", "--method.help", "imp")[1]


def test_no_plugin_without_options_points_to_them(capsys: Capture) -> None:
    assert "--merge.help best" not in run(capsys, "plugins", "list")[1]


def test_json_rows_are_plain_and_whole(site: Path, capsys: Capture) -> None:
    name = "a_very_long_name_" * 8 + "indeed"
    distribution(site, "wide_load", entry(name, "made_up_thing:Thing"), {"made_up_thing": METHOD})
    found, err = rows(capsys)
    assert err == []
    assert all(list(row) == ["name", "kind", "distribution", "version", "summary", "state"] for row in found)
    assert {
        "name": name,
        "kind": "method",
        "distribution": "wide-load",
        "version": "1.2",
        "summary": "Prune once, after a share of the budget.",
        "state": "found",
    } in found
    assert {row["kind"] for row in rows(capsys, "--kind", "merge")[0]} == {"merge"}
    assert name in run(capsys, "plugins", "list")[1]


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("made_up_thing", "write module:Class"),
        ("not a target", "is malformed"),
        ("made_up_thing:Outer.Inner", "write module:Class"),
        ("made_up_nowhere:Thing", "there is no module 'made_up_nowhere'"),
        ("made_up_thing.below:Thing", "there is no module"),
        ("made_up_thing:Thingy", "made_up_thing has no class 'Thingy'"),
    ],
)
def test_a_malformed_entry_point_is_a_row_of_its_own(site: Path, capsys: Capture, target: str, fault: str) -> None:
    distribution(site, "faulty", entry("odd", target), {"made_up_thing": METHOD})
    found, _ = rows(capsys)
    states = {row["name"]: row["state"] for row in found}
    assert states.pop("odd") == "malformed"
    assert set(states.values()) == {"found"}
    code, out, _ = run(capsys, "plugins", "list")
    assert code == 0
    assert fault in out
    code, _, err = run(capsys, "plan", "--method", "odd")
    assert code == 2
    assert "faulty 1.2" in err[-1]
    assert run(capsys, "plan")[0] == 0


def test_a_name_that_no_option_can_take_is_malformed(site: Path, capsys: Capture) -> None:
    distribution(site, "faulty", entry("two words", "made_up_thing:Thing"), {"made_up_thing": METHOD})
    found, err = rows(capsys)
    assert [row["state"] for row in found if row["name"] == "two words"] == ["malformed"]
    assert len(err) == 1


def test_a_malformed_namesake_takes_no_name_away(site: Path, capsys: Capture) -> None:
    distribution(site, "faulty", entry("gmp", "made_up_thing"))
    found, _ = rows(capsys)
    assert sorted(row["state"] for row in found if row["name"] == "gmp") == ["found", "malformed"]
    assert run(capsys, "plan", "--method", "gmp")[0] == 0


def test_two_owners_are_duplicates(site: Path, capsys: Capture) -> None:
    for name in ("alpha", "beta"):
        distribution(site, name, entry("twice", "made_up_thing:Thing"), {"made_up_thing": METHOD})
    found, _ = rows(capsys)
    twice = [row for row in found if row["state"] == "duplicate"]
    assert [(row["name"], row["distribution"]) for row in twice] == [("twice", "alpha"), ("twice", "beta")]


@pytest.mark.parametrize(
    "content",
    [b"odd = made_up_thing:Thing\n", b"[sparsekit.methods]\nodd\n", b"[sparsekit.methods]\nodd = caf\xe9:Thing\n"],
    ids=["no section header", "a line without =", "bytes that are not UTF-8"],
)
def test_a_malformed_neighbour_costs_one_warning_everywhere(site: Path, capsys: Capture, content: bytes) -> None:
    distribution(site, "sound", entry("fine", "made_up_thing:Thing"), {"made_up_thing": METHOD})
    file = distribution(site, "faulty", content)
    for command in (
        ["plugins", "list"],
        ["plugins", "list", "--json"],
        ["plan", "--method", "fine"],
        ["fit", "--method.help", "fine"],
        ["plan", "--merge", "greedy"],
    ):
        code, _, err = run(capsys, *command)
        assert code == 0
        assert len(err) == 1
        assert err[0].startswith("sparsekit: warning: plugins of faulty are ignored: malformed ")
        assert str(file) in err[0]
    assert "fine" in run(capsys, "plugins", "list")[1]


def test_listing_two_hundred_distributions_imports_no_plugin_and_nothing_heavy(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for number in range(200):
        kind, source = ("merge", MERGE) if number % 2 else ("method", METHOD)
        module = f"made_up_{number}"
        text = f"import torch\nraise SystemExit('{module} was imported')\n{source}"
        distribution(site, f"many_{number}", entry(f"plugin_{number}", f"{module}:Thing", kind), {module: text})
    code = (
        "import sys; from sparsekit.cli.main import main; code = main(['plugins', 'list', '--json']);"
        f"print([m for m in sys.modules if m.split('.')[0] in {HEAVY} or m.startswith('made_up')], file=sys.stderr);"
        "sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=600)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    found = [row for row in json.loads(done.stdout) if row["name"].startswith("plugin_")]
    assert len(found) == 200
    assert {(row["kind"], row["summary"], row["state"]) for row in found} == {
        ("method", "Prune once, after a share of the budget.", "found"),
        ("merge", "The first candidate.", "found"),
    }


def test_classes_that_modules_pass_on_are_followed(site: Path, capsys: Capture) -> None:
    heir = "from ..impl import Thing as Base\nclass Heir(Base):\n    '''Another.'''\n"
    modules = {
        "made_up_package.__init__": "from .impl import Thing\nfrom made_up_package.sub import Heir as Later\n",
        "made_up_package.impl": METHOD,
        "made_up_package.sub.__init__": "from .deep import Heir\n",
        "made_up_package.sub.deep": heir,
    }
    text = "[sparsekit.methods]\nthing = made_up_package:Thing\nheir = made_up_package:Later\n"
    distribution(site, "passing", text, modules)
    thing, later = (Plugin("x", "method", f"made_up_package:{name}", "passing", "1") for name in ("Thing", "Later"))
    assert (summary_of(thing), summary_of(later)) == ("Prune once, after a share of the budget.", "Another.")
    assert list(options_of(thing)) == list(options_of(later)) == ["share"]
    assert "made_up_package" not in sys.modules
    code, out, _ = run(capsys, "plan", "--method", "thing", "--method.share", "0.5", "--print_config")
    assert code == 0
    assert "name: thing\n  share: 0.5\n" in out


@pytest.mark.parametrize(
    "source",
    ["from somewhere import *\n", "def __getattr__(name): ...\n", "Thing = make()\n", "class Thing(:\n"],
)
def test_what_the_source_does_not_tell_is_no_fault(site: Path, source: str) -> None:
    distribution(site, "unclear", "", {"made_up_unclear": source})
    assert fault_of(Plugin("x", "method", "made_up_unclear:Thing", "unclear", "1")) == ""


# --- plugins check -----------------------------------------------------------------------------------


def test_check_of_an_unknown_name_is_bad_input(capsys: Capture) -> None:
    code, _, err = run(capsys, "plugins", "check", "unifrom")
    assert code == 2
    assert "plugin 'unifrom' is not installed. Did you mean 'uniform'? Installed: " in err[0]
    code, _, err = run(capsys, "plugins", "check", "uniform", "--kind", "method")
    assert code == 2
    assert "greedy" not in err[0]


def test_check_of_a_name_that_two_provide_is_bad_input(site: Path, capsys: Capture) -> None:
    for name in ("alpha", "beta"):
        distribution(site, name, entry("twice", "made_up_thing:Thing"), {"made_up_thing": METHOD})
    code, _, err = run(capsys, "plugins", "check", "twice")
    assert code == 2
    assert "alpha 1.2 and beta 1.2" in err[0]


FAULTS = {
    "made_up_nothing": "there is no entry point target of that kind",
    "made_up_absent:Thing": "No module named 'made_up_absent'",
    "made_up_dies:Thing": "the process was ended by SIGKILL",
    "made_up_odd:Thing": "lacks the method plan()",
}


@pytest.mark.parametrize(
    "target", [pytest.param(t, marks=pytest.mark.slow if t == "made_up_odd:Thing" else []) for t in FAULTS]
)
def test_check_of_a_faulty_plugin_says_so_and_harms_nothing(
    site: Path, capfd: pytest.CaptureFixture[str], target: str
) -> None:
    modules = {
        "made_up_dies": f"import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n{METHOD}",
        "made_up_odd": METHOD.replace("def plan", "def plans"),
    }
    distribution(site, "faulty", entry("odd", target), modules)
    code, out, _ = run(capfd, "plugins", "check", "odd")
    assert code == 1
    assert out.startswith("method 'odd' of faulty 1.2\n  FAIL ")
    assert FAULTS[target] in out or target == "made_up_nothing"


@pytest.mark.slow
def test_where_one_exception_that_breaks_many_rules_comes_from_is_told_once(
    site: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raising = MERGE.replace("return [1.0]", "return [{}[0]]")
    distribution(site, "faulty", entry("odd", "made_up_thing:Thing", "merge"), {"made_up_thing": raising})
    code, out, _ = run(capfd, "plugins", "check", "odd")
    assert code == 1
    assert out.count("KeyError: 0") == 1, out
    assert "it fails, too; see soups_are_whole" in out
    assert out.count("raised through ") == 1, out
    assert "made_up_thing.py:9, coefficients()" in out


@pytest.mark.slow
def test_check_goes_through_every_rule(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    distribution(site, "sound", entry("fine", "made_up_thing:Thing", "merge"), {"made_up_thing": MERGE})
    code, out, err = run(capfd, "plugins", "check", "fine")
    assert (code, err) == (0, []), out
    first, *rules, last = out.splitlines()
    assert first == "merge 'fine' of sound 1.2"
    assert [line.split() for line in rules] == [["pass", rule.__name__] for rule in MERGE_RULES]
    assert last == f"  {len(rules)} of {len(rules)} rules pass"


# --- what is not found at first sight ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "meant"),
    [
        ("sparsekit.method", "sparsekit.methods"),
        ("sparsekit_methods", "sparsekit.methods"),
        ("sparsekit-merges", "sparsekit.merges"),
        ("Sparsekit.Methods", "sparsekit.methods"),
        ("sparskit.merges", "sparsekit.merges"),
        ("sparsekit.plugins", "sparsekit.methods, sparsekit.merges, "),
        ("sparsekit", "sparsekit.methods, sparsekit.merges, "),
    ],
)
def test_a_misspelt_group_is_told_with_its_distribution(site: Path, capsys: Capture, group: str, meant: str) -> None:
    distribution(site, "misspelt", f"[{group}]\nmine = made_up:Thing\n[console_scripts]\nx = made_up:main\n")
    code, out, err = run(capsys, "plugins", "list")
    assert code == 0
    assert "mine" not in out
    (line,) = err
    assert all(part in line for part in ("misspelt 1.2", repr(group), meant)), line


@pytest.mark.parametrize("group", ["pytest11", "methods", "sparse.methods", "mkdocs.plugins", "spark.methods"])
def test_the_groups_of_other_programs_are_none_of_our_business(site: Path, capsys: Capture, group: str) -> None:
    distribution(site, "other", f"[{group}]\nmine = made_up:Thing\n")
    assert run(capsys, "plugins", "list")[2] == []


HEIRS = {
    "entry point": """
from importlib.metadata import entry_points
(Base,) = (e.load() for e in entry_points(group="sparsekit.methods") if e.name == "gmp")
class Heir(Base):
    '''An heir.'''
""",
    "module": """
import sparsekit.methods.gmp as its
class Heir(its.GMP):
    '''An heir.'''
""",
    "package": """
from sparsekit.methods import gmp
class Heir(gmp.GMP):
    '''An heir.'''
""",
    "mixin": """
from sparsekit.methods.gmp import GMP
class Mixin:
    '''No constructor.'''
class Heir(Mixin, GMP):
    '''An heir.'''
""",
}


@pytest.mark.parametrize("how", HEIRS)
def test_inherited_options_show_in_the_help_however_the_base_was_found(site: Path, capsys: Capture, how: str) -> None:
    distribution(site, "heir", entry("heir", "made_up_heir:Heir"), {"made_up_heir": HEIRS[how]})
    code, out, _ = run(capsys, "fit", "--method.help", "heir")
    assert code == 0
    assert all(f"--method.{name}: float = " in out for name in ("start", "end", "interval", "initial"))
    code, _, err = run(capsys, "plan", "--method", "heir", "--method.strat", "0.2")
    assert code == 2
    assert "--method.start" in err[0]
    assert run(capsys, "plan", "--method", "heir", "--method.start", "0.2")[0] == 0


def test_a_listing_says_where_to_find_options_that_the_source_does_not_tell(site: Path, capsys: Capture) -> None:
    distribution(site, "heir", entry("heir", "made_up_heir:Heir"), {"made_up_heir": HEIRS["entry point"]})
    assert "--method.help heir" in run(capsys, "plugins", "list")[1]
    assert "made_up_heir" not in sys.modules


def test_the_fields_of_inherited_dataclasses_are_options_too(site: Path) -> None:
    source = "from dataclasses import dataclass\n@dataclass\nclass Base:\n    one: int = 1\n"
    source += "@dataclass\nclass Heir(Base):\n    two: int = 2\n"
    distribution(site, "fields", "", {"made_up_fields": source})
    assert list(options_of(Plugin("x", "method", "made_up_fields:Heir", "fields", "1"))) == ["one", "two"]
