"""The table of a study as people read it: the cells of its rows."""

from __future__ import annotations

from collections.abc import Sequence

from weft.runs.text import human_bytes, human_duration, human_number
from weft.studies.measures import Measure
from weft.studies.table import Row, shows

HEADS = ["arm", "seeds", "mean", "less the baseline (95 % interval)", "shows", "setting"]
COST_HEADS = ["arm", "mean rank", "sent", "time", "tokens", "memory"]


def title_of(measure: Measure) -> str:
    """Return a metric and its direction."""
    return measure.name if measure.better is None else f"{measure.name} ({measure.better} is better)"


def cells_of_row(row: Row, measure: Measure) -> list[str]:
    """Return the cells of a row for a metric."""
    mean, found = row.spread(measure.name), row.differences.get(measure.name)
    text = "-" if mean is None else _number(mean.mean)
    if mean is not None and mean.deviation is not None:
        text += f" ± {_number(mean.deviation)}"
    apart = ""
    if found is not None:
        apart = _number(found.value, "+")
        if found.interval is not None:
            apart += f" ({' to '.join(_number(end, '+') for end in found.interval)})"
    seeds = str(len(row.values.get(measure.name, {}))) + (f" ({len(row.failed)} failed)" if row.failed else "")
    return [row.label, seeds, text, apart, shows(row, measure) or row.whys.get(measure.name, ""), row.setting]


def heads_and_cells(rows: Sequence[Row], measure: Measure) -> tuple[list[str], list[list[str]]]:
    """Return the table of a metric, without the column of settings where nothing was chosen."""
    cells = [cells_of_row(row, measure) for row in rows]
    if any(row.setting for row in rows):
        return HEADS, cells
    return HEADS[:-1], [line[:-1] for line in cells]


def costs_of_row(row: Row) -> list[str]:
    """Return the cells of the mean of a row's places over the metrics, and of what its runs took."""
    shown = {
        "bytes": human_bytes,
        "seconds": human_duration,
        "tokens": human_number,
        "peak_memory_bytes": human_bytes,
    }
    rank = "-" if row.mean_rank is None else f"{row.mean_rank:.2f}"
    return [row.label, rank, *("-" if (cost := row.cost(name)) is None else show(cost) for name, show in shown.items())]


def _number(value: float, sign: str = "") -> str:
    """Return a number with four places, or with two digits where that would show 0 for what is not."""
    return f"{value:{sign}.1e}" if 0 < abs(value) < 5e-5 else f"{value:{sign}.4f}"
