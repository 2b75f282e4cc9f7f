"""Who took part when, and whose updates were refused and why."""

from __future__ import annotations

from collections.abc import Mapping

from weft.json_types import JsonObject
from weft.pages.html import MOST_ROWS, Markup, paragraph, table
from weft.pages.record import RunRecord

BINS = 100
"""Columns of a strip at most; of more rounds, some share a column."""
LEVELS = 4
MOST_STRIPS = 100
HIDDEN = "A secret chooses who takes part in a round, so this page does not say who did."


def participation(record: RunRecord) -> str:
    """Return a line for each client: in how many rounds it took part, and a strip that shows when."""
    attended: dict[str, set[int]] = {name: set() for name in record.split.get("clients") or {}}
    refused: dict[str, set[int]] = {}
    for line in record.rounds:
        failures = line.get("failures") or {}
        for name in line.get("clients") or ():
            if name not in failures:
                attended.setdefault(name, set()).add(line["round"])
        for name in failures:
            refused.setdefault(name, set()).add(line["round"])
    if not record.rounds:
        return ""
    if not any(attended.values()) and not refused:
        return paragraph(HIDDEN) if any(line.get("tokens") for line in record.rounds) else ""
    names = list(attended) + sorted(refused.keys() - attended.keys())
    last = record.rounds[-1]["round"]
    rows = [
        [
            name,
            f"{len(attended.get(name, ()))} of {last}",
            len(refused.get(name, ())) or None,
            Markup(_strip(attended.get(name, set()), refused.get(name, set()), last)),
        ]
        for name in names[:MOST_STRIPS]
    ]
    share = "" if last <= BINS else f" A column is {-(-last // BINS)} rounds; a darker one has more of them."
    words = f"A strip runs from round 1 to round {last}. Blue: the update was used. Orange: it was refused.{share}"
    heads = ["client", "rounds", "refused", "when"]
    return paragraph(words) + table(heads, rows, more=len(names) - MOST_STRIPS, words=(0, 3))


def _strip(attended: set[int], refused: set[int], last: int) -> str:
    """Return rounds as coloured columns."""
    width = -(-last // BINS)
    bins = -(-last // width)
    parts = []
    counts = [0] * bins
    for number in attended:
        counts[(number - 1) // width] += 1
    for level in range(1, LEVELS + 1):
        if path := _columns([-(-count * LEVELS // width) == level for count in counts]):
            parts.append(f'<path d="{path}" fill="var(--c1)" opacity="{level / LEVELS:g}"/>')
    bad = {(number - 1) // width for number in refused}  # in full colour: one of many rounds must be seen
    if path := _columns([place in bad for place in range(bins)]):
        parts.append(f'<path d="{path}" fill="var(--c2)"/>')
    body = "".join(parts)
    return f'<svg class="strip" viewBox="0 0 {bins} 1" preserveAspectRatio="none" aria-hidden="true">{body}</svg>'


def _columns(filled: list[bool]) -> str:
    """Return the path of columns, neighbours as one."""
    path, start = [], None
    for place, is_filled in enumerate([*filled, False]):
        if is_filled and start is None:
            start = place
        elif not is_filled and start is not None:
            path.append(f"M{start} 0h{place - start}v1h{start - place}z")
            start = None
    return "".join(path)


def failures(rounds: list[JsonObject], total: Mapping[str, object]) -> str:
    """Return the table of clients whose updates were not used: how often, in which round last, and why.

    Args:
        rounds: lines of metrics.jsonl.
        total: of summary.json, for what the lines do not name.
    """
    rows: dict[str, tuple[object, int | None, object]] = {name: (count, None, None) for name, count in total.items()}
    by_client: dict[str, tuple[int, int | None, object]] = {}
    for record in rounds:
        for name, reason in (record.get("failures") or {}).items():
            by_client[name] = (by_client.get(name, (0,))[0] + 1, record["round"], reason)
    rows |= by_client
    lines = [(name, *values) for name, values in sorted(rows.items())]
    heads, more = ["client", "times", "last round", "reason"], len(lines) - MOST_ROWS
    return table(heads, lines[:MOST_ROWS], more=more, words=(0, 3)) if lines else ""
