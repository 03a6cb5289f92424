"""`sparsekit plugins check` with the options of the plugin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sparsekit.cli.main import main
from sparsekit.testing import command
from sparsekit.testing.rules import Outcome

Given = list[tuple[str, str, dict[str, Any]]]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Given:
    """What the rules were given, which are not tried; in this process."""
    found: Given = []

    def check_rules(kind: str, plugin: Any, **options: Any) -> Iterator[Outcome]:
        found.append((kind, plugin.__name__, options))
        return iter(())

    monkeypatch.setattr(command, "check_rules", check_rules)
    monkeypatch.setattr(command, "_check_in_a_process", lambda p, given: command.check_here(p.kind, p.name, given))
    return found


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("gmp --method.start 0.2 --method.end=0.7", ("method", "GMP", {"start": 0.2, "end": 0.7})),
        ("gmp", ("method", "GMP", {})),
        ("--method.start 0.2 gmp", ("method", "GMP", {"start": 0.2})),
        ("sparsekit.methods.imp:IMP --kind method --method.cycles 4", ("method", "IMP", {"cycles": 4})),
    ],
)
def test_options_are_parsed_as_those_of_fit(arguments: str, expected: Any, made: Given) -> None:
    assert main(["plugins", "check", *arguments.split()]) == 0
    assert made == [expected]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("gmp --method.strat 0.2", ("--method.strat", "Did you mean '--method.start'?")),
        ("gmp --method.start 2", ("--method.start is 2", "give a fraction")),
        ("gmp --method.start x", ("--method.start is 'x'", "give a number")),
        ("gmp --merge.size 2", ("--merge.size", "'gmp' is a method", "--method.NAME")),
        ("gmp --epochs.x 2", ("--epochs.x", "'gmp' is a method")),
    ],
)
def test_wrong_options_are_told_as_by_fit(
    arguments: str, parts: tuple[str, ...], made: Given, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugins", "check", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in parts), error
    assert error.count("\n") == 1
    assert not made


def test_other_commands_take_no_options_of_a_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "list", "--method.start", "2"]) == 2
    assert "--method.start" in capsys.readouterr().err
