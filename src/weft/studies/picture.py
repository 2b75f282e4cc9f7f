"""The picture of a study: quality against bytes and against seconds, a point for each row of the table."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

from weft.studies.measures import Measure
from weft.studies.table import Row

COLORS = ("#2f7fd1", "#d9822b", "#3a9d5d", "#b5487a", "#7a5cc2", "#8f7a2a", "#2a9aa5", "#c94f3d", "#66717c", "#1d2329")
MARKERS = "osD^vPX*<>"
INK = "#010203"
"""No one's colour: it becomes that of the page's text, light or dark."""
COSTS = {"bytes": ("bytes sent, both ways", 1e6, "MB"), "seconds": ("time of training", 1.0, "s")}


def draw(rows: Sequence[Row], measure: Measure) -> str:
    """Return the picture of a metric as one SVG element; "": no row has a value of it."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    known = [row for row in rows if row.spread(measure.name) is not None]
    if not known:
        return ""
    colors = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    # Text stays text, ids are hashed with a fixed salt and no date is written: equal numbers give equal bytes.
    with (
        rc_context({**colors, "svg.fonttype": "none", "svg.hashsalt": "weft", "font.size": 10}),
        warnings.catch_warnings(),
    ):
        # matplotlib's font has no picture for every letter; that of the page has.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(9.5, 3.2 + 0.16 * len(known)), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(1, len(COSTS), sharey=True, squeeze=False)[0]
        for axes, (cost, (label, scale, unit)) in zip(panels, COSTS.items(), strict=True):
            points = _points(axes, known, measure, cost, scale)
            axes.set_xlabel(f"{label} ({unit})")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel(measure.name, parse_math=False)
        legend = figure.legend(
            points, [str(number) for number in range(len(known))], loc="outside lower center", ncols=2
        )
        legend.set_frame_on(False)
        for text, row in zip(legend.get_texts(), known, strict=True):
            text.set_parse_math(False)  # an arm may have any name
            text.set_text(row.label)
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Type", "Format"))
        )
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def _points(axes: Any, rows: Sequence[Row], measure: Measure, cost: str, scale: float) -> list[Any]:
    """Draw a point with the standard deviation over seeds for each row; return what the legend shows."""
    drawn = []
    for row, (marker, color) in zip(rows, looks(rows), strict=True):
        mean = row.spread(measure.name)
        assert mean is not None
        drawn.append(
            axes.errorbar(
                (row.cost(cost) or 0.0) / scale,
                mean.mean,
                yerr=mean.deviation,
                fmt=marker,
                color=color,
                markersize=6,
                capsize=3,
            )
        )
    return drawn


def looks(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the marker and the colour of each row: by point and arm, and arms of one colour have other markers."""
    places = list(dict.fromkeys(row.point for row in rows))
    arms = list(dict.fromkeys(row.arm for row in rows))
    laps = -(-len(arms) // len(COLORS))
    found = []
    for row in rows:
        lap, color = divmod(arms.index(row.arm), len(COLORS))
        found.append((MARKERS[(places.index(row.point) * laps + lap) % len(MARKERS)], COLORS[color]))
    return found
