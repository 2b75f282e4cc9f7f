"""The curves of a run alone, for a notebook."""

from __future__ import annotations

from collections.abc import Sequence

from weft.errors import ConfigError
from weft.pages.curves import curves_of
from weft.pages.html import page, paragraph
from weft.pages.record import RunRecord
from weft.pages.view import View

ROW_HEIGHT = 360
"""Of a row of up to three pictures in a notebook, in pixels."""


def plot(record: RunRecord, titles: Sequence[str] = ()) -> View:
    """Return the pictures of a run.

    Args:
        record: the run.
        titles: of the pictures that are shown, such as "loss"; empty: all.

    Raises:
        ConfigError: there is no such picture.
    """
    charts = {chart.title: chart for chart in curves_of(record)}
    if unknown := [title for title in titles if title not in charts]:
        have = ", ".join(charts) if charts else "none yet"
        raise ConfigError(f"The run has no picture '{unknown[0]}': write one of what it has ({have}).")
    shown = [charts[title] for title in titles] if titles else list(charts.values())
    figures = "".join(chart.html() for chart in shown)
    body = f'<div class="charts">{figures}</div>' if figures else paragraph("The run has no finished round yet.")
    return View(
        f"curves of {record.name}", page(f"{record.name} - curves", [body]), ROW_HEIGHT * max(1, -(-len(shown) // 3))
    )
