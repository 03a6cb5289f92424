"""Discovery of plugins: clashes, broken neighbours, and classes that cannot be had."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sparsekit.cli import main
from sparsekit.errors import UserError
from sparsekit.plugins import registry
from sparsekit.plugins.registry import Plugin, discover, find, name_of
from sparsekit.plugins.signatures import Option, options_of, summary_of

METHODS = {"gmp", "imp", "bimp", "dpf", "oneshot"}
MERGES = {"uniform", "greedy", "best", "none"}

SHARE = '''\
"""A plugin for tests."""
from sparsekit.api import Budget, PruningMethod, Segment


class Share(PruningMethod):
    """Prune once, after a share of the budget.

    Args:
        share: Fraction of the budget before the pruning.
    """

    def __init__(self, share: float = 0.25) -> None:
        self.share = share

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        dense = self.share * budget.epochs
        return (Segment(0.0, dense), Segment(budget.sparsity, budget.epochs - dense))
'''

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make a distribution, by its entry_points.txt, in a folder at the end of sys.path; returns that file."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    before = set(sys.modules)

    def make(name: str, entry_points: str | bytes, version: str = "1.2", **modules: str) -> Path:
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file = info / "entry_points.txt"
        file.write_bytes(entry_points.encode() if isinstance(entry_points, str) else entry_points)
        for module, source in modules.items():
            (site / f"{module}.py").write_text(source)
        discover.cache_clear()
        return file

    yield make
    discover.cache_clear()
    for module in set(sys.modules) - before:
        if str(site) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]


def entry(kind: str, name: str, target: str) -> str:
    return f"[sparsekit.{kind}s]\n{name} = {target}\n"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    code = main.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


# --- what is found --------------------------------------------------------------------------------


def test_the_built_ins_are_found_by_their_entry_points() -> None:
    found = discover()
    assert set(found.of("method")) >= METHODS
    assert set(found.of("merge")) >= MERGES
    gmp = find("method", "gmp")
    assert gmp.target == "sparsekit.methods.gmp:GMP"
    assert gmp.distribution == "sparsekit-soups"
    assert gmp.load().__name__ == "GMP"
    assert name_of("method", "sparsekit.methods.gmp.GMP") == "gmp"
    assert name_of("merge", "elsewhere.Odd") == "elsewhere.Odd"


def test_plugins_are_sorted_whatever_the_file_system_says(install: Install) -> None:
    install("zeta", entry("method", "aaa", "zeta:Thing"))
    install("alpha", entry("method", "zzz", "alpha:Thing") + entry("merge", "aaa", "alpha:Thing"))
    keys = [(p.kind, p.name, p.distribution) for p in discover().plugins]
    assert keys == sorted(keys)
    assert ("merge", "aaa", "alpha") in keys
    assert discover().warnings == ()


def test_a_third_party_plugin_works_everywhere(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("sparsekit_share", entry("method", "share", "made_up_share:Share"), made_up_share=SHARE)
    code, out, err = run(capsys, "plan", "--method", "share", "--method.share", "0.5", "--epochs", "10")
    assert (code, err) == (0, [])
    table = [line.split()[:3] for line in out.splitlines() if line.split()[:1] in (["1"], ["2"])]
    assert table == [["1", "0", "5"], ["2", "5", "5"]]
    code, out, err = run(capsys, "plan", "--method.help", "share")
    assert (code, err) == (0, [])
    assert "Prune once, after a share of the budget." in out
    assert "--method.share: float = 0.25" in out
    code, out, err = run(capsys, "plan", "--method", "share", "--method.shar", "0.5")
    assert (code, err) == (
        2,
        [
            "sparsekit: error: unknown option --method.shar. Did you mean '--method.share'? "
            "Method 'share' has --method.share."
        ],
    )


FIT = ("--epochs", "2", "--wandb.mode", "disabled", "--model.kwargs", "{channels: [4, 4, 8, 8]}")


@pytest.mark.parametrize(
    ("kind", "hook", "segment"),
    [
        ("method", "scores", "segment 1: scores()"),
        ("method", "learning_rate", ": learning_rate()"),
        ("method", "plan", "plan()"),
        ("merge", "merge", "segment 1: merge()"),
    ],
)
def test_a_plugin_that_raises_is_told_in_a_line(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, hook: str, segment: str
) -> None:
    base = (
        SHARE
        if kind == "method"
        else "from sparsekit.merges.uniform import Uniform\n\nclass Share(Uniform):\n    'x'\n"
    )
    source = f"{base}\ndef helper():\n    return [].nothing\n\ndef broken(self, *given):\n    return helper()\n"
    source += f"\nbroken.__code__ = broken.__code__.replace(co_name={hook!r})\nShare.{hook} = broken\n"
    install("sparsekit_boom", entry(kind, "boom", "made_up_boom:Share"), "0.1.0", made_up_boom=source)
    line = ("fit", f"--{kind}", "boom", *FIT, "--replicas.start", "0", "--out", str(tmp_path / "o"))
    code, _, err = run(capsys, *line)
    assert code == 1
    place = source.splitlines().index("    return [].nothing") + 1
    assert len(err) == 1
    assert err[0].startswith(f"sparsekit: error: {kind} 'boom' of sparsekit-boom 0.1.0")
    assert f"{segment} raised AttributeError: 'list' object has no attribute 'nothing' at " in err[0]
    assert err[0].endswith(f"made_up_boom.py:{place}; --debug shows all")
    with pytest.raises(AttributeError):
        main.main([*line[:-1], str(tmp_path / "p"), "--debug"])


def test_plugins_list_reads_the_source_and_imports_nothing(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    source = SHARE + "\nraise RuntimeError('imported')\n"
    install("sparsekit_share", entry("method", "share", "made_up_share:Share"), made_up_share=source)
    code, out, err = run(capsys, "plugins", "list", "--json")
    assert (code, err) == (0, [])
    rows = {row["name"]: row for row in json.loads(out) if row["kind"] == "method"}
    assert rows["share"] == {
        "name": "share",
        "kind": "method",
        "distribution": "sparsekit-share",
        "version": "1.2",
        "summary": "Prune once, after a share of the budget.",
        "state": "found",
    }
    code, out, err = run(capsys, "plugins", "list", "--kind", "method")
    assert (code, err) == (0, [])
    assert "--method.share: float = 0.25" in out
    assert "--merge." not in out
    assert "made_up_share" not in sys.modules


def test_a_distribution_in_two_places_is_no_clash(install: Install) -> None:
    install("alpha", entry("method", "twin", "alpha:Thing"), version="1.0")
    install("alpha", entry("method", "twin", "alpha:Thing"), version="2.0")
    assert len(discover().of("method")["twin"]) == 1


def test_entry_points_may_name_extras(install: Install) -> None:
    install("alpha", entry("merge", "extra", "alpha.module:Thing [gpu,more]"))
    assert find("merge", "extra").target == "alpha.module:Thing"


# --- clashes --------------------------------------------------------------------------------------


def test_a_name_that_two_distributions_claim_is_refused_naming_both(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("zeta", entry("method", "twin", "made_up_zeta:Share"), version="0.3", made_up_zeta=SHARE)
    install("alpha", entry("method", "twin", "made_up_alpha:Share"), made_up_alpha=SHARE)
    with pytest.raises(UserError, match=r"--method 'twin' is provided by alpha 1\.2 and zeta 0\.3; uninstall one"):
        find("method", "twin")
    code, out, _ = run(capsys, "plugins", "list", "--json")
    rows = [row for row in json.loads(out) if row["name"] == "twin"]
    assert code == 0
    assert [(row["distribution"], row["state"]) for row in rows] == [("alpha", "duplicate"), ("zeta", "duplicate")]
    assert "[duplicate]" in run(capsys, "plugins", "list")[1]
    code, _, err = run(capsys, "plan", "--method", "twin")
    assert code == 2
    assert len(err) == 1
    assert all(part in err[0] for part in ("twin", "alpha 1.2", "zeta 0.3"))
    assert run(capsys, "plan", "--method", "imp")[0] == 0


def test_nobody_takes_the_name_of_a_built_in(install: Install) -> None:
    install("alpha", entry("merge", "uniform", "alpha:Thing"))
    with pytest.raises(UserError, match=r"--merge 'uniform' is provided by alpha 1\.2 and sparsekit-soups"):
        find("merge", "uniform")


def test_a_method_and_a_merge_may_share_a_name(install: Install) -> None:
    install("alpha", entry("method", "uniform", "alpha:Thing"))
    assert find("merge", "uniform").distribution == "sparsekit-soups"
    assert find("method", "uniform").distribution == "alpha"


# --- broken neighbours ----------------------------------------------------------------------------

MALFORMED = {
    "no section header": b"gmp = alpha:Thing\n",
    "a line without =": b"[sparsekit.methods]\nnothing to see here\n",
    "not UTF-8": b"[sparsekit.methods]\ncaf\xe9 = alpha:Thing\n",
    "a name twice": b"[sparsekit.methods]\none = alpha:A\none = alpha:B\n",
    "an unrelated group": b"[console_scripts]\nnothing to see here\n",
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_costs_one_warning_and_nothing_else(
    install: Install, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    install("before", entry("method", "first", "before:Thing"))
    broken = install("neighbour", content, version="4.5")
    install("zafter", entry("merge", "second", "zafter:Thing"))
    found = discover()
    assert set(found.of("method")) >= METHODS | {"first"}
    assert set(found.of("merge")) >= MERGES | {"second"}
    assert len(found.warnings) == 1
    assert str(broken) in found.warnings[0]
    assert "plugins of neighbour are ignored" in found.warnings[0]
    assert "\n" not in found.warnings[0]

    warning = f"sparsekit: warning: {found.warnings[0]}"
    code, out, err = run(capsys, "plugins", "list", "--json")
    assert (code, err) == (0, [warning])
    assert {row["name"] for row in json.loads(out)} >= METHODS | MERGES | {"first", "second"}
    code, out, err = run(capsys, "plan", "--method", "imp")
    assert (code, err) == (0, [warning])
    assert "replica-epochs" in out
    code, out, err = run(capsys, "fit", "--method", "neighbours")
    assert code == 2
    assert err[0] == warning
    assert "'neighbours' is not installed" in err[1]
    assert len(err) == 2


def test_each_malformed_file_has_its_own_warning(install: Install) -> None:
    files = [install(f"broken{i}", content) for i, content in enumerate(MALFORMED.values())]
    assert len(discover().warnings) == len(files)
    for file in files:
        assert sum(str(file) in note for note in discover().warnings) == 1


def test_commands_that_use_no_plugins_do_not_warn(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("neighbour", MALFORMED["no section header"])
    assert run(capsys, "--version")[2] == []
    assert run(capsys, "--help")[2] == []


@pytest.mark.parametrize(
    "target", ["not a target", "alpha:Thing:More", "%(nowhere)s", "", "alpha-beta:Thing", "alpha", "alpha:Outer.Inner"]
)
def test_a_malformed_target_costs_that_entry_only(install: Install, target: str) -> None:
    install("alpha", f"[sparsekit.methods]\nbad = {target}\ngood = alpha:Thing\n")
    assert find("method", "good").target == "alpha:Thing"
    assert set(discover().of("method")) >= METHODS
    assert "bad" not in discover().of("method")
    (note,) = discover().warnings
    assert note.startswith(f"alpha 1.2: entry point 'bad' is malformed: {target!r}")
    assert "\n" not in note
    with pytest.raises(UserError, match=r"--method 'bad'.*alpha 1\.2"):
        find("method", "bad")


def test_per_cent_signs_elsewhere_do_no_harm(install: Install) -> None:
    text = "[loggers]\nformat = %(asctime)s %(message)s:x\n[sparsekit.methods]\ngood = alpha:Thing\n"
    install("alpha", text)
    assert find("method", "good").distribution == "alpha"
    assert discover().warnings == ()


# --- classes that cannot be had -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "source", "reason"),
    [
        ("made_up_missing:Thing", None, "ModuleNotFoundError: No module named 'made_up_missing'"),
        (
            "made_up_broken:Thing",
            "import a_package_that_is_not_there\n",
            "No module named 'a_package_that_is_not_there'",
        ),
        ("made_up_broken:Thing", "1 / 0\n", "ZeroDivisionError: division by zero"),
        ("made_up_broken:Thing", "class Thing(:\n", "SyntaxError"),
        ("made_up_broken:Thing", "class Other: ...\n", "AttributeError"),
        ("made_up_broken:Thing", "Thing = 3\n", "made_up_broken:Thing is int, not a class"),
    ],
)
def test_a_plugin_that_cannot_be_imported_names_its_distribution(
    install: Install, capsys: pytest.CaptureFixture[str], target: str, source: str | None, reason: str
) -> None:
    install("faulty", entry("method", "odd", target), **({"made_up_broken": source} if source else {}))
    with pytest.raises(UserError) as caught:
        find("method", "odd").load()
    assert str(caught.value).startswith("method 'odd' of faulty 1.2: ")
    assert reason in str(caught.value)
    for arguments in (["plan", "--method", "odd"], ["fit", "--method.help", "odd"]):
        code, _, err = run(capsys, *arguments)
        assert code == 2
        assert len(err) == 1
        assert err[0].startswith("sparsekit: error: ")
        assert "method 'odd' of faulty 1.2" in err[0]
    # it is listed all the same, and nothing else is hurt
    code, out, err = run(capsys, "plugins", "list")
    assert (code, err) == (0, [])
    assert "faulty 1.2" in out
    assert run(capsys, "plan", "--method", "imp")[0] == 0


def test_a_class_of_another_kind_is_bad_input(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("faulty", entry("method", "odd", "made_up_odd:Odd"), made_up_odd="class Odd: ...\n")
    code, _, err = run(capsys, "plan", "--method", "odd")
    assert code == 2
    assert len(err) == 1
    assert "method 'odd' of faulty 1.2" in err[0]
    assert "PruningMethod" in err[0]


def test_a_plugin_that_forgets_its_options_is_told_so(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    source = SHARE.replace("self.share = share", "self.kept = share").replace("self.share *", "self.kept *")
    install("faulty", entry("method", "odd", "made_up_odd:Share"), made_up_odd=source)
    from sparsekit.config import parser
    from sparsekit.config.options import describe

    config = parser.parse(parser.build("sparsekit fit", ""), ["--method", "odd"])
    with pytest.raises(UserError, match=r"method 'odd' breaks the contract: .* 'share' as self\.share"):
        describe(config)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("method", "oneshoot", "--method 'oneshoot' is not installed. Did you mean 'oneshot'? Installed: "),
        ("merge", "unifrom", "--merge 'unifrom' is not installed. Did you mean 'uniform'? Installed: "),
        ("merge", "gmp", "--merge 'gmp' is not installed."),
    ],
)
def test_an_unknown_name_gets_the_nearest_and_all_there_are(kind: registry.Kind, name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        find(kind, name)
    assert str(caught.value).startswith(message)
    for known in METHODS if kind == "method" else MERGES:
        assert known in str(caught.value)


# --- sources --------------------------------------------------------------------------------------


def made_up(target: str) -> Plugin:
    return Plugin("odd", "method", target, "faulty", "1.2")


def test_options_are_read_from_the_source(install: Install) -> None:
    source = '''\
class Thing:
    """One line.

    And more.
    """

    def __init__(self, first, second: int = 2, *, third: "list[int] | None" = None, fourth: str) -> None: ...


class Plain: ...
'''
    install("alpha", "", made_up_source=source)
    thing, plain = made_up("made_up_source:Thing"), made_up("made_up_source:Plain")
    assert summary_of(thing) == "One line."
    assert list(options_of(thing).values()) == [
        Option("first", "", ""),
        Option("second", "int", "2"),
        Option("third", "'list[int] | None'", "None"),
        Option("fourth", "str", ""),
    ]
    assert (summary_of(plain), options_of(plain)) == ("", {})
    assert "made_up_source" not in sys.modules


@pytest.mark.parametrize("target", ["made_up_nowhere:Thing", "made_up_text:Thing", "json:Nothing", "sys:Thing"])
def test_a_source_that_cannot_be_read_gives_nothing(install: Install, target: str) -> None:
    install("alpha", "", made_up_text="class Thing(:\n")
    assert summary_of(made_up(target)) == ""
    assert options_of(made_up(target)) == {}
