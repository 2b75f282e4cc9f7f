"""The beginning of a page: what came out, how sure that is, and what each client alone and the pooled data gave."""

from __future__ import annotations

import re
from collections.abc import Sequence

from weft.pages.differences import data_digests
from weft.pages.html import facts, paragraph, quantity, table, text, with_interval
from weft.pages.measured import (
    Measured,
    abroad,
    difference_text,
    leading,
    measured,
    metric_names,
    over_clients,
    paired,
    shows,
)
from weft.pages.record import RunRecord, short_names
from weft.runs.comparison import ABROAD
from weft.tasks.paired_seeds import other_rows
from weft.tasks.statistics import Difference

WORDS = {"local": "each client alone", "central": "the pooled data"}


def result_part(record: RunRecord, against: Sequence[RunRecord] = (), wanted: str | None = None) -> str:
    """Return the result of a run, with its interval, and beside other runs.

    Args:
        record: the run.
        against: what it is compared with, such as every client alone and the pooled data.
        wanted: the metric; None: `weft.pages.measured.leading` chooses.

    Raises:
        ConfigError: no run has that metric.
    """
    key = leading([record, *against], wanted)
    main = measured(record, key) if key is not None else None
    if main is None:
        lacks = f"The run has no {key}." if key is not None else "Nothing was measured on held-out rows."
        return paragraph(lacks)
    others = [one for name in metric_names(record) if name != key and (one := measured(record, name)) is not None]
    parts = [headline(main, record), facts({one.label: quantity(one.key, one.value) for one in others[:8]})]
    return "".join([*parts, *(_against(record, main, against) if against else ())])


def headline(main: Measured, record: RunRecord) -> str:
    """Return a metric in large letters, with what it is of and how sure it is."""
    rows = sum(int(one.get("rows") or 0) for one in record.clients.values())
    of = f"of {main.of}" + (f" (n = {rows})" if rows and not main.error else "")
    direction = f", {main.better} is better" if main.better else ""
    words = [f"{main.label} {of}{direction}."]
    if main.interval is not None:
        ends = f"{quantity(main.key, main.interval[0])} to {quantity(main.key, main.interval[1])}"
        if main.error is not None:
            words.append(f"95 % interval over its items: {ends}.")
        else:
            mean = quantity(main.key, main.mean)
            words.append(f"Mean over {len(main.clients)} clients {mean}, 95 % interval {ends}.")
    elif len(main.clients) == 1:
        words.append("One client has held-out rows, so there is no interval over clients.")
    elif main.clients:
        words.append(f"All {len(main.clients)} clients have the same, so there is no interval over clients.")
    if not record.finished:
        words.append("The run is not finished.")
    big = f'<p class="result">{text(quantity(main.key, main.value))} <small>{text(main.label)}</small></p>'
    return big + paragraph(" ".join(words))


def _against(record: RunRecord, main: Measured, against: Sequence[RunRecord]) -> list[str]:
    """Return the table of a metric beside other runs, with what can be said of the differences."""
    rows: list[list[object]] = [[f"this run ({record.algorithm})", _value(main), None, None, main.of]]
    notes = []
    digests = data_digests([str(one.run.path) for one in (record, *against)])
    names = short_names([str(one.run.path) for one in (record, *against)])
    for other in against:
        label = _called(other, names[str(other.run.path)])
        found = measured(other, main.key)
        if found is None:
            notes.append(f"{label} has no {main.label}.")
            continue
        why = other_rows(other.outcome, record.outcome, digests)
        if why:
            notes.append(f"No difference from {label}: it was not measured on the same rows ({why}).")
            rows.append([label, _value(found), None, None, found.of])
            continue
        rows.append([label, _value(found), *_cells(paired(found, main), main), found.of])
        rows += _abroad_row(label, other, main)
    heads = ["", main.label, "this run's difference (95 % interval over clients)", "shows", "measured on"]
    caution = "Differences are paired by client: every client counts as one."
    return [table(heads, rows, words=(0, 4)), *map(paragraph, [caution, *notes])]


def _abroad_row(label: str, other: RunRecord, main: Measured) -> list[list[object]]:
    """Return the line of clients' own models on everybody's rows, against which a shared model counts once."""
    values = abroad(other, main.key)
    if not values:
        return []
    mean = over_clients(list(values.values()))
    gain = over_clients([main.value - value for value in values.values()]) if len(values) > 1 else None
    return [[label, with_interval(main.key, mean.value, mean.interval), *_cells(gain, main), ABROAD]]


def _cells(found: Difference | None, main: Measured) -> list[object]:
    return [None, None] if found is None else [difference_text(main, found), shows(found, main.better)]


def _called(other: RunRecord, name: str) -> str:
    """Return how a run is called beside another one."""
    alone = re.fullmatch(r"local(\d+)", other.algorithm)
    names = list(other.split.get("clients") or other.clients)
    if alone and int(alone[1]) < len(names):
        return f"{names[int(alone[1])]} alone ({name})"
    return f"{WORDS.get(other.algorithm, other.algorithm)} ({name})"


def _value(one: Measured) -> str:
    return with_interval(one.key, one.value, one.interval if one.error is not None else None)
