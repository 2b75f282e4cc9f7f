"""Numbers and tables as people read them. Knows nothing of runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from weft.json_types import JsonObject


def human_bytes(count: float) -> str:
    """Return a number of bytes in decimal units: "512 B", "1.5 MB"."""
    return f"{count:.0f} B" if count < 1000 else _scaled(count, [" kB", " MB", " GB", " TB", " PB"])


def human_number(value: float) -> str:
    """Return a count, short: "950", "12.3k", "1.2M"."""
    return f"{value:.4g}" if abs(value) < 1000 else _scaled(value, ["k", "M", "G", "T"])


def human_duration(seconds: float) -> str:
    """Return a time in its two greatest units: "0.4 s", "42 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, smaller, smaller_name in [(86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")]:
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {smaller_name}"
    return f"{whole} s"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: "1 row", "2 rows"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def spreadsheet_text(value: object) -> object:
    """Return the value of a cell of a CSV file; a text that a spreadsheet would compute as a formula begins with '."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value


def columns(rows: Sequence[Sequence[str]], flush_left: Collection[int]) -> list[str]:
    """Return the lines of a table, the columns aligned: those of `flush_left` on the left, the others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number in flush_left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _scaled(value: float, units: list[str]) -> str:
    for unit in units:
        value /= 1000
        if abs(value) < 999.95 or unit == units[-1]:
            break
    return f"{value:.1f}{unit}"


def contamination_lines(found: Mapping[str, Mapping[str, JsonObject]], most: int = 8) -> list[str]:
    """Return a sentence for each task on its items among training rows.

    Args:
        found: by task and client `items`, `compared` and `found`, which is None for a few.
        most: clients that a sentence names, those with most items first.
    """
    lines = []
    for task, clients in found.items():
        if not clients:
            continue
        first = next(iter(clients.values()))
        counts = sorted(clients.items(), key=lambda pair: -(1 if pair[1]["found"] is None else pair[1]["found"]))
        named = [f"{name} {'a few' if one['found'] is None else one['found']}" for name, one in counts[:most]]
        rest = [f"{len(counts) - most} clients more"] if len(counts) > most else []
        lines.append(
            f"of the {first['items']} items of the task '{task}' ({first['compared']} are long enough to compare), so "
            f"many share a long n-gram with rows that are trained on: {', '.join([*named, *rest])}."
        )
    return lines
