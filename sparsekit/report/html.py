"""The parts of the page: text in, escaped HTML out. `Html` marks what is markup already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path


class Html(str):
    """Markup; any other text is escaped where it meets it."""

    __slots__ = ()


@dataclass(frozen=True)
class Table:
    """A table: its head, and rows of text or markup. All columns but the first are set to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def safe(text: object) -> Html:
    """Text as markup that shows it."""
    return text if isinstance(text, Html) else Html(escape(str(text)))


def element(tag: str, *content: object, **attributes: str) -> Html:
    """An element; `class_` and `data_key` are written class and data-key."""
    told = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(v)}"' for key, v in attributes.items() if v)
    return Html(f"<{tag}{told}>{''.join(safe(part) for part in content)}</{tag}>")


def join(parts: Iterable[object]) -> Html:
    """One after the other."""
    return Html("".join(safe(part) for part in parts))


def table(data: Table, class_: str = "") -> Html:
    """A table that scrolls by itself where the page is too narrow for it."""
    head = element("tr", *(element("th", cell, scope="col") for cell in data.head))
    body = [element("tr", *(element("td", cell) for cell in row)) for row in data.rows]
    inner = element("table", element("thead", head), element("tbody", *body), class_=class_)
    return element("div", inner, class_="scroll", tabindex="0")


def pairs(rows: Iterable[tuple[str, object]]) -> Html:
    """Names and values, two columns."""
    cells = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in rows]
    return element("div", element("table", element("tbody", *cells), class_="pairs"), class_="scroll", tabindex="0")


def figure(title: str, svg: str, data: Table, note: object = "") -> Html:
    """A plot with its title, what it says, and its data as a table."""
    caption = element("figcaption", element("strong", title), " " if note else "", note)
    numbers = element("details", element("summary", "Data"), table(data))
    return element("figure", caption, Html(svg), numbers)


def page(title: str, *body: object) -> str:
    """The whole document; its style is in it, and nothing is fetched."""
    style = Path(__file__).with_name("style.css").read_text("utf-8")
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            element("title", title),
            f"<style>\n{style}</style>\n</head>\n<body>\n<main>",
            join(body),
            "</main>\n</body>\n</html>\n",
        )
    )
