"""The command line itself: commands, exit codes, --debug. What bad options say: test_bad_input.py."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from sparsekit.cli import main as cli
from sparsekit.errors import RunError, UserError

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("fitt", "unknown command|'fitt'|'fit'|plan"),
        ("--sparsity 0.5", "unknown option|'--sparsity'|fit"),
        ("plugins", "COMMAND"),
        ("plugins lst", "'lst'|list"),
        ("plugins list --kind methods", "--kind|'methods'|method"),
        ("plugins list --jsn", "--jsn"),
        ("plugins list x", "unexpected argument 'x'"),
        ("plugins list --kind", "--kind needs a value"),
        ("plugins list --json=3", "--json takes no value"),
        ("plugins check", "NAME must be given"),
        ("plugins new mine", "--kind must be given"),
        ("plugins new gmp --kind method", "'gmp'|installed already|another name"),
        ("help", "unknown command 'help'|'--help'"),
        ("version", "unknown command 'version'|'--version'"),
    ],
)
def test_unknown_commands_and_their_options(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sparsekit: error: ")
    assert len(err.splitlines()) == 1
    for word in words.split("|"):
        assert word in err
    assert not list(tmp_path.iterdir())


def test_no_command_is_bad_input_with_the_usage(capsys: Capture) -> None:
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert "usage: sparsekit COMMAND" in out + err


@pytest.mark.parametrize(
    "arguments", ["--debug plan --sparsity 2", "plan --debug --sparsity 2", "fit --sparsity 2 --debug"]
)
def test_debug_shows_where_an_error_comes_from(capsys: Capture, arguments: str) -> None:
    with pytest.raises(UserError, match="--sparsity is 2"):
        cli.main(arguments.split())
    assert capsys.readouterr() == ("", "")


def raising(error: BaseException) -> Callable[[object], NoReturn]:
    def command(_: object) -> NoReturn:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("--x is 3; give 4"), 2, "sparsekit: error: --x is 3; give 4\n"),
        (RunError("no replica stayed finite"), 1, "sparsekit: error: no replica stayed finite\n"),
        (KeyboardInterrupt(), 130, "sparsekit: interrupted\n"),
    ],
)
def test_how_a_command_ended_is_in_its_exit_code(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "plan", raising(error))
    assert cli.main(["plan"]) == code
    assert capsys.readouterr() == ("", said)
    with pytest.raises(type(error)):
        cli.main(["plan", "--debug"])
