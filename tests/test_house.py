"""The house: which folder may import from which. Data and imports run one way, from the command line down."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsekit.plugins.registry import BUILT_IN, discover

STEMS = ("cifar", "torch/", "hfds/")
PACKAGE = Path(__file__).parents[1] / "sparsekit"
FLOORS = [
    "__main__",
    "cli",
    "testing",
    "python",
    "sweep",
    "launch",
    "executors",
    "run",
    "report exporting",
    "merging",
    "training",
    "pruning evaluation",
    "models",
    "data",
    "display",
    "planning",
    "methods merges",
    "config",
    "tasks",
    "plugins",
    "schedules __init__",
    "api",
    "files",
    "seeds errors _types _version",
]
"""From the top floor down. A room imports from rooms below it, and from files of its own folder."""
FLOOR = {room: number for number, rooms in enumerate(reversed(FLOORS)) for room in rooms.split()}


def imported(source: str) -> Iterator[str]:
    """The modules of sparsekit that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "sparsekit")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sparsekit":
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                path = PACKAGE.parent.joinpath(*module.split("."))
                yield module if path.is_dir() or path.with_suffix(".py").is_file() else node.module


def room(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def wrong_arrows(module: str, source: str) -> list[str]:
    """The imports of one file that run up, or between two rooms of one floor."""
    own = room(module)
    if own == "__init__":  # what it offers lazily is named for type checkers alone
        source = source.partition("if TYPE_CHECKING:")[0]
    return [
        f"{module} imports {other}"
        for other in imported(source)
        if room(other) != own and FLOOR[room(other)] >= FLOOR[own]
    ]


def files() -> dict[str, str]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts if parts[-1] != "__init__" or len(parts) == 2 else parts[:-1])] = path.read_text("utf-8")
    return found


def test_arrows_run_down() -> None:
    assert [arrow for module, source in files().items() for arrow in wrong_arrows(module, source)] == []


def test_an_arrow_that_is_turned_round_is_found() -> None:
    assert wrong_arrows("sparsekit.pruning.masks", "def f():\n    from sparsekit.run import loop")
    assert wrong_arrows("sparsekit.api", "from sparsekit.config.options import FitConfig")
    assert not wrong_arrows("sparsekit.run.loop", "from sparsekit.pruning import masks")


def test_no_file_imports_itself_in_a_circle() -> None:
    """Inside a folder, too."""
    sources = files()
    graph = {module: {other for other in imported(source) if other in sources} for module, source in sources.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            pytest.fail(" → ".join((*path[path.index(module) :], module)))
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_ten_files_stand_at_the_top() -> None:
    top = {path.name for path in PACKAGE.glob("*.py")}
    assert top == {f"{name}.py" for name in (
        "__init__", "__main__", "_types", "_version", "api", "errors", "files", "launch", "schedules", "seeds",
    )}  # fmt: skip


def test_a_built_in_plugin_imports_what_a_third_party_may() -> None:
    for module, source in files().items():
        if room(module) in ("methods", "merges"):
            assert {room(other) for other in imported(source)} <= {"api", "schedules", "_types", room(module)}, module


def swallowed(source: str) -> list[int]:
    """The lines of `try` that turn an error for people, raised inside, into another: it is a ValueError, too."""
    found: list[int] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Try):
            inside = [call for part in node.body for call in ast.walk(part) if isinstance(call, ast.Raise)]
            raised = {ast.unparse(call.exc).partition("(")[0] for call in inside if call.exc}
            first = next((ast.unparse(handler.type) for handler in node.handlers if handler.type), "")
            wide = any(name in first for name in ("ValueError", "RuntimeError", "Exception"))
            if raised & {"UserError", "RunError"} and wide:
                found.append(node.lineno)
    return found


def test_no_error_for_people_is_caught_where_it_is_raised() -> None:
    assert {module: lines for module, source in files().items() if (lines := swallowed(source))} == {}
    assert swallowed("try:\n    raise UserError('x')\nexcept (OSError, ValueError):\n    pass") == [1]
    assert not swallowed("try:\n    raise UserError('x')\nexcept UserError:\n    raise\nexcept ValueError:\n    pass")


def special_cases(source: str) -> list[int]:
    """The lines that compare with the name of a data set, task, method or merge, whose own entry should say it."""
    plugins = {plugin.name for plugin in discover().plugins if plugin.kind in ("dataset", "task", "method", "merge")}
    names = {*BUILT_IN["dataset"], *plugins} - {"str", "none"}  # words of Python and of options, too
    found: list[int] = []
    for node in ast.walk(ast.parse(source)):
        compared: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            compared = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            compared = node.args if node.func.attr in ("startswith", "endswith") else []
        elif isinstance(node, ast.MatchValue):
            compared = [node.value]
        values = {part.value for each in compared for part in ast.walk(each) if isinstance(part, ast.Constant)}
        if any(isinstance(value, str) and (value in names or value in STEMS) for value in values):
            found.append(node.lineno)
    return found


def test_no_module_makes_a_special_case_of_a_name() -> None:
    assert {module: lines for module, source in files().items() if (lines := special_cases(source))} == {}
    assert special_cases("if config.name == 'digits':\n    pass") == [1]
    assert special_cases("found = name in ('mnist', 'x')") == [1]
    assert special_cases("name.startswith('cifar')") == [1]
