"""How rules run: a rule is a function that raises `Broken`, and whose docstring states what the contract requires."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

Case = TypeVar("Case")
Rule = TypeVar("Rule", bound=Callable[[Any], None])
PACKAGE = Path(__file__).parents[1]
THROUGH = "raised through "


class ContractError(AssertionError):
    """A plugin breaks the contract; the message has, rule by rule, the requirement and what the class did."""


class Broken(AssertionError):
    """Raised by a rule; the message states what the class did."""


class Skipped(Exception):
    """Raised by a rule that cannot be tried because of a fault that another rule reports."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one rule.

    Attributes:
        rule: The rule's name.
        requirement: What the contract requires.
        state: Whether the class keeps the rule; `skipped` where a fault that another rule reports is in the way.
        finding: What the class did, or why the rule was skipped; empty where it passes.
        error: The exception behind a broken rule, if there was one.
    """

    rule: str
    requirement: str
    state: Literal["pass", "FAIL", "skipped"]
    finding: str = ""
    error: BaseException | None = None


def after(*rules: str) -> Callable[[Rule], Rule]:
    """Mark a rule as one that fails, too, where one of these does: so that one cause is told once."""

    def mark(rule: Rule) -> Rule:
        rule.after = rules  # type: ignore[attr-defined]
        return rule

    return mark


def rules_of(module: dict[str, Any]) -> tuple[Callable[[Any], None], ...]:
    """The rules of a module, given as its `globals()`: every public function defined in it, in order."""
    found = (value for value in module.values() if inspect.isfunction(value) and not value.__name__.startswith("_"))
    return tuple(function for function in found if function.__module__ == module["__name__"])


def outcomes(rules: Iterable[Callable[[Case], None]], case: Case) -> Iterator[Outcome]:
    """Try each rule in turn. An exception of the plugin breaks the rule that it happens in, and ends no check.

    A rule that fails after one that it follows from (`after`) is skipped: its cause is told already.
    """
    from sparsekit.testing.compare import process_settings  # only now: it imports torch

    causes: dict[str, str] = {}
    rules = list(rules)
    follows: dict[str, tuple[str, ...]] = {rule.__name__: getattr(rule, "after", ()) for rule in rules}
    for rule in rules:
        name, requirement = rule.__name__, " ".join((inspect.getdoc(rule) or "").split())
        try:
            with process_settings():
                rule(case)
        except Skipped as error:
            yield Outcome(name, requirement, "skipped", str(error))
            continue
        except Broken as error:
            finding, cause = str(error), error.__cause__
        except Exception as error:
            finding, cause = describe(error), error
        else:
            yield Outcome(name, requirement, "pass")
            continue
        earlier = next((causes[each] for each in _before(name, follows) if each in causes), "")
        causes[name] = earlier or name
        if earlier:
            yield Outcome(name, requirement, "skipped", f"it fails, too; see {earlier}")
        else:
            yield Outcome(name, requirement, "FAIL", finding, cause)


def _before(rule: str, follows: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """The rules from whose failing this one's follows."""
    for each in follows.get(rule, ()):
        yield each
        yield from _before(each, follows)


def need(holds: bool, finding: str) -> None:
    """Raise Broken with the finding unless a condition holds."""
    if not holds:
        raise Broken(finding)


def describe(error: BaseException) -> str:
    """An exception, and the last place in its traceback that lies in a plugin's code."""
    text = f"{type(error).__name__}: {error}"
    places = [f for f in traceback.extract_tb(error.__traceback__) if _is_plugin(f.filename)]
    return f"{text}\n{THROUGH}{places[-1].filename}:{places[-1].lineno}, {places[-1].name}()" if places else text


def _is_plugin(filename: str) -> bool:
    path = Path(filename)
    library = {"torch", "timm", "safetensors", "numpy"} & set(path.parts) or filename.startswith("<")
    core = PACKAGE in path.parents and path.relative_to(PACKAGE).parts[0] not in ("methods", "merges", "tasks")
    return not library and not core
