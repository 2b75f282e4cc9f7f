"""How rows are shared out: each client's rows by label, the lengths of its rows, and how unlike the clients are."""

from __future__ import annotations

from weft.json_types import JsonObject
from weft.pages.html import Markup, paragraph, table, text
from weft.runs.progress import split_line
from weft.runs.text import contamination_lines

MOST = 60
"""Clients shown at most; of more, evenly chosen ones from the largest to the smallest."""
COLORS = 8


def rows_part(split: JsonObject, tested: JsonObject) -> str:
    """Return who has which rows, how skewed that is, and which test items are among training rows.

    Args:
        split: what `weft.data.skew.describe_split` returned; empty where it is not known.
        tested: items of evaluation tasks that share a long n-gram with training rows, by task and client.
    """
    lines = [*([split_line(split).replace("  ", "; ")] if split else []), *contamination_lines(tested)]
    return "".join(map(paragraph, lines)) + (_table(split) if split.get("clients") else "")


def _table(split: JsonObject) -> str:
    clients, names = split["clients"], list(split["clients"])
    note = ""
    if len(names) > MOST:
        names.sort(key=lambda name: -clients[name]["rows"])
        note = paragraph(f"{MOST} of {len(names)} clients, largest first.")
        names = [names[round(place * (len(names) - 1) / (MOST - 1))] for place in range(MOST)]
    labels = [str(label) for label in split.get("labels") or []]
    most = max([clients[name]["rows"] for name in clients] or [1]) or 1
    rows = []
    for name in names:
        one = clients[name]
        low, middle, high = one.get("tokens") or (None, None, None)
        counts = one.get("labels") or [one["rows"]]
        lengths = None if middle is None else f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"
        rows.append([name, f"{one['rows']:,}", Markup(_bar(counts, labels, most)), lengths])
    legend = "".join(
        f'<span><svg viewBox="0 0 20 10" aria-hidden="true"><rect width="20" height="10" fill="{_color(place)}"'
        f' opacity="{_opacity(place)}"/></svg>{text(label, 24)}</span>'
        for place, label in enumerate(labels)
    )
    heads = ["client", "rows", "rows by label" if labels else "share", "tokens per row (middle 80 %)"]
    return note + (f'<div class="legend">{legend}</div>' if legend else "") + table(heads, rows, words=(0, 2))


def _bar(counts: list[int], labels: list[str], most: int) -> str:
    """Return the rows of a client as a bar, a piece for each label."""
    pieces = "".join(
        f'<i style="width:{100 * count / most:.2f}%;background:{_color(place)};opacity:{_opacity(place)}"'
        f' title="{text(labels[place] if place < len(labels) else "rows", 24)}: {count:,}"></i>'
        for place, count in enumerate(counts)
        if count
    )
    return f'<span class="bar">{pieces}</span>'


def _color(place: int) -> str:
    return f"var(--c{place % COLORS + 1})"


def _opacity(place: int) -> str:
    return "1" if place < COLORS else ".5"
