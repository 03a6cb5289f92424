"""The fenced blocks of the project's pages: which there are, what they need, and the commands in them.

A block without a mark is run by `test_docs.py`. A comment on the line before it says what running it would need:

    <!-- needs: gpu -->       nodes, data (that cannot be shipped) and network, likewise

`test_recipes.py` runs blocks that need a library, `lightning` or `transformers`, where it is installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "writing-a-plugin.md"
"""`test_scaffold.py` runs it from its first block to its last."""
LANGUAGES = {"sh", "console", "python", "yaml", "toml", "text"}
NEEDS = {"gpu", "nodes", "data", "network", "lightning", "transformers"}
_MARK = re.compile(r"<!--\s*needs:\s*(.*?)\s*-->")


class BadPage(Exception):
    """A block that nothing could run, or a mark that means nothing."""


@dataclass(frozen=True)
class Block:
    """One fenced block; `needs` is empty where it is to be run."""

    page: Path
    line: int
    language: str
    text: str
    needs: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page}:{self.line}"

    @property
    def file(self) -> str:
        """The file that the first line names, as `# first.yaml`; empty where it names none."""
        found = re.match(r"# ([\w./-]+\.(?:py|yaml|toml))\n", self.text)
        return found[1] if found else ""

    @property
    def commands(self) -> list[str]:
        """The commands of a `sh` or `console` block, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [line for line in lines if line.strip() and not line.startswith("#")] if self.language == "sh" else []


def pages() -> list[Path]:
    """Every page whose blocks are held to the rules."""
    above = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    return [*above, *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("plugins/*/README.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order.

    Raises:
        BadPage: a block without a language or of one that is not known, an unknown mark, a mark without a block.
    """
    language, start, needs, inside = "", 0, "", []
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if language:
            if line.strip() == "```":
                yield Block(page, start, language, "".join(f"{text}\n" for text in inside), needs)
                language, needs, inside = "", "", []
            else:
                inside.append(line)
        elif line.lstrip().startswith(("```", "~~~")):
            language, start = line.lstrip("`~ "), number
            if language not in LANGUAGES:
                raise BadPage(f"{page}:{number}: language {language!r}; give one of {', '.join(sorted(LANGUAGES))}")
        elif mark := _MARK.search(line):
            needs = mark[1]
            if needs not in NEEDS:
                raise BadPage(f"{page}:{number}: needs {needs!r}; give one of {', '.join(sorted(NEEDS))}")
        elif needs:
            raise BadPage(f"{page}:{number}: `needs: {needs}` is not on the line before a block")
    if language or needs:
        raise BadPage(f"{page}: the last block or mark has no end")
