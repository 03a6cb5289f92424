"""A faulty class is refused where it is chosen, with its fault, and harms nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_site import distribution, visible
from plugin_sources import MERGE, METHOD, run

from sparsekit.config.data_sets import SHARED
from sparsekit.errors import UserError
from sparsekit.plugins import contract
from sparsekit.plugins.registry import GROUPS, Kind, Plugin, discover

# what is changed in a sound plugin, and part of the message
FAULTY: dict[str, tuple[Kind, str, str, str]] = {
    "not importable": ("method", "import", "import a_package_that_is_not_there, ", "a_package_that_is_not_there"),
    "no such class": ("method", "class Thing", "class Other", "has no attribute 'Thing'"),
    "no class at all": ("method", "class Thing(PruningMethod)", "def Thing(x: object)", ""),
    "of no kind": ("method", "class Thing(PruningMethod)", "class Thing", "is no subclass of sparsekit.PruningMethod"),
    "no plan()": ("method", "def plan", "def plans", "lacks the method plan()"),
    "no coefficients()": ("merge", "def coefficients", "def shares", "lacks the method coefficients()"),
    "no docstring": ("method", '    """Prune once, after a share of the budget."""\n', "", "has no docstring"),
    "no annotation": ("method", "share: float = 0.25", "share=0.25", "'share' without a type"),
    "any options": ("method", "share: float = 0.25", "share: float = 0.25, **more: int", "takes **more;"),
    "any values": ("method", "share: float = 0.25", "*more: int, share: float = 0.25", "takes *more;"),
    "by position": ("method", "share: float = 0.25", "share: float = 0.25, /", "'share' by position only"),
    "reserved": ("method", "share: float = 0.25", "name: str = '', share: float = 0.25", "called 'name'"),
}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with visible(tmp_path / "site") as folder:
        yield folder


def install(site: Path, kind: Kind, source: str, name: str = "odd") -> None:
    distribution(site, "faulty", f"[sparsekit.{kind}s]\n{name} = made_up_thing:Thing\n", {"made_up_thing": source})


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_class_is_refused_when_it_is_chosen_and_hurts_nothing_else(
    site: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    kind, sound, changed, reason = FAULTY[fault]
    source = METHOD if kind == "method" else MERGE
    assert sound in source
    install(site, kind, source.replace(sound, changed))
    for command in (["plan"], ["fit", "--out", str(site / "out")]):
        code, _, err = run(capsys, *command, f"--{kind}", "odd")
        assert (code, len(err)) == (2, 1), err
        assert err[0].startswith(f"sparsekit: error: {kind} 'odd' of faulty 1.2: ")
        assert reason in err[0]
    assert not (site / "out").exists()
    code, out, err = run(capsys, "plugins", "list")
    assert (code, err) == (0, [])
    assert "faulty 1.2" in out
    assert run(capsys, "plan", "--method", "imp", "--merge", "greedy")[0] == 0


def test_a_config_file_that_names_a_faulty_class_is_refused_alike(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(site, "method", METHOD.replace("def plan", "def plans"))
    file = tmp_path / "run.yaml"
    for text in ("method: odd\n", "method: {name: odd, share: 0.5}\n"):
        file.write_text(text)
        code, _, err = run(capsys, "plan", "--config", str(file))
        assert code == 2
        assert "method 'odd' of faulty 1.2: made_up_thing:Thing lacks the method plan()" in err[-1]


@pytest.mark.parametrize("kind", ["method", "merge"])
def test_sound_classes_pass(site: Path, capsys: pytest.CaptureFixture[str], kind: Kind) -> None:
    install(site, kind, METHOD if kind == "method" else MERGE)
    assert run(capsys, "plan", f"--{kind}", "odd")[0] == 0


def test_every_installed_plugin_passes() -> None:
    for plugin in discover().plugins:
        if plugin.distribution == "sparsekit-soups" and plugin.kind in GROUPS:
            contract.load(plugin)
        elif plugin.distribution == "sparsekit-soups" and plugin.kind == "dataset":
            contract.load_function(plugin, SHARED)


def test_a_class_of_the_other_kind_is_refused_with_its_entry_point_group(site: Path) -> None:
    install(site, "merge", METHOD)
    with pytest.raises(UserError, match=r"it is a method: name it under sparsekit\.methods"):
        contract.load(Plugin("odd", "merge", "made_up_thing:Thing", "faulty", "1.2"))


def test_options_may_be_inherited_or_absent(site: Path) -> None:
    more = "\n\nclass Heir(Thing):\n    '''Inherits.'''\n"
    distribution(site, "heirs", "", {"made_up_heir": METHOD + more})
    contract.load(Plugin("heir", "method", "made_up_heir:Heir", "heirs", "1"))


DATACLASS = METHOD.replace("class Thing", "@dataclass\nclass Thing").replace(
    """    def __init__(self, share: float = 0.25) -> None:
        self.share = share
""",
    """    share: float = 0.25
    layers: list[str] = field(default_factory=list)
""",
)


def test_a_dataclass_is_a_class_like_others(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(site, "method", f"from dataclasses import dataclass, field\n{DATACLASS}")
    code, out, _ = run(capsys, "plan", "--method", "odd", "--method.layers", "[a]", "--print_config")
    assert code == 0
    assert "method:\n  name: odd\n  share: 0.25\n  layers:\n  - a\n" in out
    assert "--method.layers: list[str]" in run(capsys, "plugins", "list")[1]


def test_the_docstring_that_dataclass_generates_does_not_count(site: Path) -> None:
    source = DATACLASS.replace('    """Prune once, after a share of the budget."""\n', "")
    install(site, "method", f"from dataclasses import dataclass, field\n{source}")
    with pytest.raises(UserError, match="has no docstring"):
        contract.load(Plugin("odd", "method", "made_up_thing:Thing", "faulty", "1.2"))


def test_all_faults_are_found() -> None:
    class Odd:
        pass

    class Worse(contract.BASES["method"]):  # type: ignore[misc]
        def __init__(self, a, *, help: str = "") -> None:  # type: ignore[no-untyped-def]
            pass

    assert len(list(contract.faults(Odd, "method"))) == 1
    assert [fault.split()[:4] for fault in contract.faults(Worse, "method")] == [
        ["lacks", "the", "method", "plan()"],
        ["has", "no", "docstring;", "its"],
        ["has", "an", "option", "'a'"],
        ["has", "an", "option", "called"],
    ]
