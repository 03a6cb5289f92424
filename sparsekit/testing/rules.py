"""How rules are run and told: a rule is a function whose docstring says what the contract asks."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

Case = TypeVar("Case")
PACKAGE = Path(__file__).parents[1]
THROUGH = "raised through "


class ContractError(AssertionError):
    """A plugin breaks the contract; the message says, rule by rule, what it asks and what the class did."""


class Broken(AssertionError):
    """Raised by a rule: what the class did instead."""


class Unreached(Exception):
    """Raised by a rule that cannot look at anything, because of a fault that another rule tells."""


@dataclass(frozen=True)
class Outcome:
    """What became of one rule.

    Attributes:
        rule: Its name.
        asks: What the contract asks.
        state: Whether the class keeps it; `skipped` where a fault that another rule tells kept it from looking.
        did: What the class did instead; empty where it passes.
        cause: The exception behind it, where there was one.
    """

    rule: str
    asks: str
    state: Literal["pass", "FAIL", "skipped"]
    did: str = ""
    cause: BaseException | None = None


def outcomes(rules: Iterable[Callable[[Case], None]], case: Case) -> Iterator[Outcome]:
    """Hold a class against each rule in turn; whatever it raises is a broken rule, not the end of the check."""
    for rule in rules:
        name, asks = rule.__name__, " ".join((inspect.getdoc(rule) or "").split())
        try:
            rule(case)
        except Unreached as error:
            yield Outcome(name, asks, "skipped", str(error))
        except Broken as error:
            yield Outcome(name, asks, "FAIL", str(error), error.__cause__)
        except Exception as error:
            yield Outcome(name, asks, "FAIL", describe(error), error)
        else:
            yield Outcome(name, asks, "pass")


def raise_broken(subject: str, found: Iterable[Outcome]) -> None:
    """Raise ContractError where any rule is broken, telling all of them."""
    broken = [outcome for outcome in found if outcome.state == "FAIL"]
    if not broken:
        return
    count = "a rule" if len(broken) == 1 else f"{len(broken)} rules"
    lines = [f"{subject} breaks {count} of the contract"]
    for outcome in broken:
        lines += ["", f"{outcome.rule}: {outcome.asks}", *(f"    {line}" for line in outcome.did.splitlines())]
    raise ContractError("\n".join(lines)) from next((outcome.cause for outcome in broken if outcome.cause), None)


def describe(error: BaseException) -> str:
    """An exception, and the last place outside sparsekit's and torch's own code that it came through."""
    text = f"{type(error).__name__}: {error}"
    places = [f for f in traceback.extract_tb(error.__traceback__) if _is_authors(f.filename)]
    return f"{text}\n{THROUGH}{places[-1].filename}:{places[-1].lineno}, {places[-1].name}()" if places else text


def _is_authors(filename: str) -> bool:
    """Whether a file is a plugin's: neither this package's core nor an installed library's."""
    path = Path(filename)
    library = {"torch", "timm", "safetensors", "numpy"} & set(path.parts) or filename.startswith("<")
    core = PACKAGE in path.parents and not {"methods", "merges"} & set(path.relative_to(PACKAGE).parts[:1])
    return not library and not core


def need(holds: bool, did: str) -> None:
    """Raise Broken with what the class did unless a rule holds."""
    if not holds:
        raise Broken(did)
