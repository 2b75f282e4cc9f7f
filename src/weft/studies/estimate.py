"""`weft sweep --dry_run`: how many runs a study has, how long they take and how many bytes they send."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from weft.data.remembered import rows_are_shared
from weft.errors import ConfigError
from weft.launch.cost_estimate import Cost, cost_of
from weft.runs.text import human_bytes, human_duration, plural
from weft.studies.cells import Cell
from weft.studies.ledger import is_done


class Part(NamedTuple):
    """Runs that differ in their seed alone, of which one was estimated."""

    label: str
    runs: int
    left: int
    """Those that are not done."""
    failed: int
    """Those of them that failed before."""
    cost: Cost
    """Of one of them."""
    measured: bool
    """Its seconds are those of runs of it that are done."""


def parts_of(
    cells: Sequence[Cell],
    times: dict[str, float],
    failures: Collection[str] = (),
    note: Callable[[str], None] = lambda _: None,
) -> list[Part]:
    """Return the estimates of a study's runs; of each kind one is estimated, with all checks of a dry run.

    Args:
        cells: the runs.
        times: seconds of those that were done, by name.
        failures: the names of those that failed before.
        note: receives what is estimated next.

    Raises:
        ConfigError: whatever would stop a run before its first round.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.name.rpartition(", seed ")[0], []).append(cell)
    parts = []
    with rows_are_shared():
        for label, group in groups.items():
            note(f"estimating {label}")
            try:
                cost = cost_of(group[0].config)
            except ConfigError as error:
                raise ConfigError(f"The arm '{group[0].arm}' cannot be run. {error}") from None
            known = [times[cell.name] for cell in group if cell.name in times]
            if known:
                cost = cost._replace(seconds=sum(known) / len(known))
            left = [cell for cell in group if not is_done(cell)]
            failed = sum(cell.name in failures for cell in left)
            parts.append(Part(label, len(group), len(left), failed, cost, bool(known)))
    return parts


def cells_of_part(part: Part) -> list[str]:
    """Return the cells of an estimate in a table."""
    about = "" if part.measured else "about "
    return [
        part.label,
        str(part.runs),
        str(part.runs - part.left),
        str(part.failed),
        f"{about}{human_duration(part.cost.seconds)}",
        human_bytes(part.cost.bytes),
    ]


def sum_of(parts: Sequence[Part], processes: int) -> str:
    """Return the sums in words."""
    runs, left = sum(part.runs for part in parts), sum(part.left for part in parts)
    seconds = sum(part.left * part.cost.seconds for part in parts) / processes
    size = sum(part.runs * part.cost.bytes for part in parts)
    if not left:
        return f"{plural(runs, 'run')}, none of them left: {human_bytes(size)} were sent in all runs."
    beside = f", {processes} at a time" if processes > 1 else ""
    failed = sum(part.failed for part in parts)
    if failed:
        beside += f" ({failed} failed before, and only --retry tries them again)"
    return (
        f"{plural(runs, 'run')}, {left} of them left{beside}: about {human_duration(seconds)}, and {human_bytes(size)} "
        "sent in all runs. Seconds of arms that have a run done are measured; the others are estimated from this "
        "machine's matrix rate, and may be off by a factor of two or three."
    )
