"""Pieces of a page: texts, tables, facts, and the whole file.

Client names, labels, reasons and answers were written by others. All text goes through `text`, which leaves nothing
that HTML or a reader's eye would take for something else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape

from weft.core.declarations import TRAIN_LOSS, scores
from weft.core.texts import printable
from weft.pages.style import SCRIPT, STYLE
from weft.runs.text import human_bytes, human_duration, human_number

LONGEST = 300
"""Letters of a text in a cell."""
MOST_ROWS = 200
"""Lines of a table of clients."""
OPEN = 20
"""Lines of a long table that are shown at once."""


def text(value: object, limit: int = LONGEST) -> str:
    """Return a value as HTML: escaped, unprintable characters written out, cut at a length; None is a dash."""
    if value is None:
        return "&ndash;"
    words = str(value)
    return escape(printable(words, limit)) + ("…" if len(words) > limit else "")


def lines_of(value: str, limit: int) -> str:
    """Return a text of several lines as HTML, cut at a length."""
    cut = value[:limit]
    return "\n".join(escape(printable(line, limit)) for line in cut.split("\n")) + ("…" if len(value) > limit else "")


def table(
    heads: Sequence[str], rows: Iterable[Iterable[object]], *, more: int = 0, words: Collection[int] = (0,)
) -> str:
    """Return a table; lines beyond the first `OPEN` are shown on demand, where there are more than twice as many.

    Args:
        heads: names of the columns; all empty: no line of names.
        rows: values of the cells; one that is `Markup` is HTML already.
        more: lines that were left out, which a sentence below says.
        words: columns that are set flush left.
    """
    every = list(rows)
    first = OPEN if len(every) > 2 * OPEN else len(every)
    rest = folded(f"{len(every) - first} more lines", plain_table(heads, every[first:], words)) if every[first:] else ""
    note = f'<p class="note">and {more} more</p>' if more > 0 else ""
    return plain_table(heads, every[:first], words) + rest + note


def plain_table(heads: Sequence[str], rows: Iterable[Iterable[object]], words: Collection[int] = (0,)) -> str:
    """Return a table with all its lines; arguments as for `table`."""
    kind = [' class="w"' if place in words else "" for place in range(len(heads))]
    head = "".join(f'<th scope="col"{kind[place]}>{text(name)}</th>' for place, name in enumerate(heads))
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind[place]}>{cell(value)}</td>" for place, value in enumerate(row)) + "</tr>"
        for row in rows
    )
    top = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f'<div class="table"><table>{top}<tbody>\n{body}\n</tbody></table></div>'


class Markup(str):
    """A text that is HTML already."""


def cell(value: object) -> str:
    """Return the HTML of a table's cell."""
    return str(value) if isinstance(value, Markup) else text(value)


def facts(values: Mapping[str, object]) -> str:
    """Return names with their values, those that are None left out."""
    items = (
        f"<div><dt>{text(name)}</dt><dd>{cell(value)}</dd></div>" for name, value in values.items() if value is not None
    )
    return f"<dl>{''.join(items)}</dl>"


def paragraph(words: str) -> str:
    """Return a sentence or two."""
    return f'<p class="note">{text(words, 2000)}</p>'


def section(heading: str, *content: str) -> str:
    """Return a section of a page, "" where it has no content."""
    body = "".join(content)
    return f"<section><h2>{heading}</h2>\n{body}</section>" if body else ""


def folded(summary: str, content: str) -> str:
    """Return what is shown on demand, without a script."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def page(title: str, body: Iterable[str]) -> bytes:
    """Return a whole file. It loads nothing, and runs no script but its own, whatever is in the body."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    whole = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, body))
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
    return whole.encode("utf-8", "replace")


def labels() -> dict[str, str]:
    """Return how metrics are called, by their key."""
    return {metric.name: metric.label for metric in scores()} | {"cluster": "cluster"}


def quantity(key: str, value: object) -> object:
    """Return a number as people read it; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    metric = next((metric for metric in (TRAIN_LOSS, *scores()) if metric.name == key), None)
    if metric is not None and (written := metric.in_report(value)) is not None:
        return written
    if metric is None and "bytes" in key:
        return human_bytes(value)
    if key == "seconds":
        return human_duration(value)
    if key == "flop_utilisation":
        return f"{value:.1%}"
    return human_number(value) if isinstance(value, float) else f"{value:,}"


def with_interval(key: str, value: float, interval: tuple[float, float] | None) -> str:
    """Return a number with its 95 % interval."""
    shown = str(quantity(key, value))
    return shown if interval is None else f"{shown} ({quantity(key, interval[0])} to {quantity(key, interval[1])})"
