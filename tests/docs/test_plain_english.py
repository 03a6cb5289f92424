"""Prose that is read easily: no sentence of more than 35 words and no paragraph of more than 90.

Tables, headings, code, comments, formulas and the targets of links do not count; code within a line counts as one word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from documents import ROOT

pytestmark = pytest.mark.docs
SENTENCE, PARAGRAPH = 35, 90
NOT_YET = ("docs/results/", "docs/benchmarks.md")
"""Pages, or folders of pages, that are not rewritten yet; results and benchmarks are written by scripts."""


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs and list items of a page, each as one line."""
    aside = [r"<!--.*?-->", r"^( *)```.*?^ *```", r"^\$\$.*?\$\$", r"^ *[|#!:].*?$"]
    for pattern in aside:
        text = re.sub(pattern, "\n", text, flags=re.S | re.M)
    text = re.sub(r"`[^`]+`|\$[^$\n]+\$", "X", text)
    text = re.sub(r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", text)
    for block in re.split(r"\n\s*\n", text):
        for item in re.split(r"\n(?=\s*(?:[-*]|\d+\.)\s)", block):
            if words := re.sub(r"^\s*(?:[-*]|\d+\.)\s", "", item).split():
                yield " ".join(words)


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph."""
    return re.split(r"(?<=[.!?])[)\"”*]*\s+(?=[\"“(*]*[A-Z0-9])", paragraph)


def too_long(text: str) -> list[str]:
    """What is too long on a page: its number of words, and its beginning."""
    parts = [(part, SENTENCE) for paragraph in paragraphs(text) for part in sentences(paragraph)]
    parts += [(paragraph, PARAGRAPH) for paragraph in paragraphs(text)]
    return [f"{len(part.split())} words: {part[:90]}…" for part, most in parts if len(part.split()) > most]


def pages() -> list[str]:
    """The pages that are held to the rule."""
    written = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [name for path in written if not (name := str(path.relative_to(ROOT))).startswith(NOT_YET)]


@pytest.mark.parametrize("page", pages())
def test_no_sentence_and_no_paragraph_is_too_long(page: str) -> None:
    assert too_long((ROOT / page).read_text("utf-8")) == []


def test_what_is_not_rewritten_yet_is_there() -> None:
    assert all((ROOT / name).exists() for name in NOT_YET)


LONG = " ".join(["Word", *["word"] * (SENTENCE - 1)])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{LONG}.", 0),
        (f"{LONG} more.", 1),
        (f"{LONG}. `X` is it. {LONG}.\n", 0),
        (f"{LONG}.\n\n{LONG}. {LONG}.\n", 0),
        (f"{LONG}. {LONG}. {LONG}.\n", 1),
        (f"- {LONG}. {LONG}.\n- {LONG}.\n", 0),
        (f"- {LONG}. {LONG}.\n  {LONG}.\n", 1),
        (f"| {LONG} | {LONG} |\n# {LONG} {LONG}\n", 0),
        (f"```sh\n{LONG} {LONG}\n\n{LONG}\n```\nEnd.\n", 0),
        (f"$$\n{LONG} {LONG}\n$$\n", 0),
        (f"<!-- {LONG} {LONG} -->\n", 0),
        (f"[{LONG}](a page) `{LONG}`", 1),
    ],
)
def test_words_are_counted(text: str, found: int) -> None:
    assert len(too_long(text)) == found
