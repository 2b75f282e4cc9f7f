"""Charts as SVG in a page: curves with the spread around them, and points; exact values stand in a table below each.

The elements take their colours from the page, light or dark. A chart of 1,000 points costs some milliseconds and no
library: matplotlib needs 20 to 200 milliseconds for one, after an import that takes longer than a short run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from weft.pages.html import folded, plain_table, text
from weft.pages.scales import Scale, log_ticks, power_text, tick_text, ticks, whole_ticks

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 384, 8, 192
COLORS = 8
DASHES = ("", "6 3", "2 3", "8 3 2 3")
MOST_POINTS = 1000
"""Lines of a table under a chart; of more, evenly spaced ones."""
MOST_CELLS = 6000
"""Cells of such a table."""
MOST_DRAWN = 3000
"""Points of all curves of a chart."""
DENSE = 300
"""Points beyond which a curve is thin."""
SPARSE = 40
"""Points up to which each has a mark of its own."""

Point = tuple[float, float]
Value = TypeVar("Value")
Range = tuple[float, float, float]
"""x, the lowest and the highest y."""


class Series(NamedTuple):
    """A curve, or a point where it has one."""

    name: str
    points: list[Point]
    band: Sequence[Range] = ()
    """The spread around it."""
    band_name: str = "clients"
    """Of what the spread is."""


class Chart(NamedTuple):
    """A picture with its table."""

    title: str
    series: list[Series]
    x_label: str = "round"
    share: bool = False
    """All values lie between 0 and 1."""
    logarithmic: bool = False
    note: str = ""
    x_text: Callable[[float], str] | None = None
    """How a number of the horizontal axis is written; None: as a whole number, with which the table begins."""

    def html(self) -> str:
        """Return the figure."""
        shown = [one for one in self.series if one.points]
        if not shown:
            return ""
        legend = "".join(
            f'<span><svg viewBox="0 0 20 10" aria-hidden="true">{_key(place, bool(one.band))}</svg>{text(one.name, 60)}'
            "</span>"
            for place, one in enumerate(shown)
        )
        bands = dict.fromkeys(one.band_name for one in shown if one.band)
        legend += "".join(f"<span>(shaded: range of {text(name)})</span>" for name in bands)
        note = f'<p class="note">{text(self.note)}</p>' if self.note else ""
        reader = '<output aria-live="polite"></output>' if self.x_text is None else ""
        return (
            f'<figure class="chart"><figcaption>{text(self.title)}</figcaption><div class="legend">{legend}</div>'
            f"{self.svg()}{reader}{note}{folded('values', self._table(shown))}</figure>"
        )

    def svg(self) -> str:
        """Return the picture alone."""
        shown = [one for one in self.series if one.points]
        low_x, high_x, low, high = self._limits(shown)
        across = Scale(low_x, high_x, LEFT, RIGHT)
        up = Scale(low, high, BOTTOM, TOP, logarithmic=self.logarithmic)
        parts = [*self._axes(across, up, (low_x, high_x, low, high))]
        most = max(2, MOST_DRAWN // len(shown))
        for place, one in enumerate(shown):
            one = one._replace(points=evenly(one.points, most), band=evenly(one.band, most))
            parts += _drawn(one, place, across, up, self._value, self.x_text)
        if self.x_text is None:
            parts.append(f'<line class="cursor" y1="{TOP}" y2="{BOTTOM}" x1="0" x2="0" visibility="hidden"/>')
        data = f' data-x="{low_x:g} {high_x:g} {LEFT} {RIGHT} {WIDTH}"' if self.x_text is None else ""
        return (
            f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{text(self._words(shown))}"{data}>{"".join(parts)}</svg>'
        )

    def _limits(self, shown: list[Series]) -> tuple[float, float, float, float]:
        xs = [x for one in shown for x, _ in one.points]
        ys = [y for one in shown for _, y in one.points]
        ys += [y for one in shown for _, *ends in one.band for y in ends]
        low_x, high_x = (min(xs), max(xs)) if self.x_text is None else (0.0, max(xs) * 1.08)
        if high_x <= low_x:
            low_x, high_x = low_x - (self.x_text is None), high_x + 1
        low, high = min(ys), max(ys)
        if self.share:
            return low_x, high_x, 0.0, 1.0
        if self.logarithmic:
            return low_x, high_x, low / 1.3, high * 1.3
        room = (high - low or abs(high) or 1.0) * 0.06
        return low_x, high_x, low - room, high + room

    def _axes(self, across: Scale, up: Scale, limits: tuple[float, float, float, float]) -> list[str]:
        low_x, high_x, low, high = limits
        levels = log_ticks(low, high) if self.logarithmic else ticks(low, high, 5)
        step = levels[1] - levels[0] if len(levels) > 1 else 1.0
        parts = []
        for value in levels:
            y = f"{up(value):.1f}"
            label = f"{value:.0%}" if self.share else power_text(value) if self.logarithmic else tick_text(value, step)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y}" dy=".35em" text-anchor="end">{label}</text>')
        places = whole_ticks(low_x, high_x) if self.x_text is None else ticks(low_x, high_x, 4)
        for value in places:
            x = f"{across(value):.1f}"
            words = f"{value:.0f}" if self.x_text is None else self.x_text(value)
            parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{BOTTOM}" y2="{BOTTOM + 4}"/>')
            end = "end" if across(value) > RIGHT - 8 and len(words) > 3 else "middle"
            shift = ' dx="14"' if end == "end" else ""
            parts.append(f'<text x="{x}" y="{BOTTOM + 16}" text-anchor="{end}"{shift}>{text(words)}</text>')
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
        middle = (LEFT + RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{text(self.x_label)}</text>')
        return parts

    def _value(self, value: float) -> str:
        return f"{value:.6g}"

    def _words(self, shown: list[Series]) -> str:
        """Return what the picture shows, for those who do not see it."""
        ends = (f"{one.name} from {one.points[0][1]:.4g} to {one.points[-1][1]:.4g}" for one in shown[:4])
        return f"{self.title} by {self.x_label}: {'; '.join(ends)}. The values are in the table below."

    def _table(self, shown: list[Series]) -> str:
        heads = [self.x_label]
        columns: list[dict[float, str]] = []
        for one in shown:
            heads.append(one.name)
            columns.append({x: self._value(y) for x, y in one.points})
            if one.band:
                heads.append(f"{one.name}: {one.band_name}")
                columns.append({x: f"{self._value(low)} to {self._value(high)}" for x, low, high in one.band})
        places = sorted({x for column in columns for x in column})
        kept = evenly(places, min(MOST_POINTS, max(2, MOST_CELLS // len(heads))))
        write = self.x_text or (lambda x: f"{x:.0f}")
        rows = ([write(x), *(column.get(x) for column in columns)] for x in kept)
        if self.x_text is not None:
            rows = ([one.name, write(one.points[0][0]), self._value(one.points[0][1])] for one in shown)
            return plain_table(["", self.x_label, self.title], rows)
        left_out = f'<p class="note">{len(kept)} of {len(places)} rounds.</p>' if len(kept) < len(places) else ""
        return plain_table(heads, rows, words=()) + left_out


def evenly(values: Sequence[Value], most: int) -> list[Value]:
    """Return evenly spaced ones of a list, the first and the last among them, `most` at most."""
    if len(values) <= most:
        return list(values)
    return [values[round(number * (len(values) - 1) / (most - 1))] for number in range(most)]


def _drawn(
    one: Series,
    place: int,
    across: Scale,
    up: Scale,
    write: Callable[[float], str],
    x_text: Callable[[float], str] | None,
) -> list[str]:
    """Return the elements of a series."""
    color, parts = f"var(--c{place % COLORS + 1})", []
    if len(one.band) > 1:
        tops = [f"{across(x):.1f} {up(high):.1f}" for x, _, high in one.band]
        bottoms = [f"{across(x):.1f} {up(low):.1f}" for x, low, _ in reversed(one.band)]
        parts.append(f'<path d="M{"L".join(tops + bottoms)}Z" fill="{color}" opacity=".18"/>')
    elif one.band:
        x, low, high = one.band[0]
        ends = f'x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{up(low):.1f}" y2="{up(high):.1f}"'
        parts.append(f'<line {ends} stroke="{color}" stroke-width="6" opacity=".25"/>')
    if len(one.points) > 1:
        line = "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in one.points)
        dash = DASHES[place // COLORS % len(DASHES)]
        width = 2 if len(one.points) <= DENSE else 1
        style = f'stroke-width="{width}" stroke-linejoin="round"' + (f' stroke-dasharray="{dash}"' if dash else "")
        parts.append(f'<path d="M{line}" fill="none" stroke="{color}" {style}/>')
    if len(one.points) <= SPARSE:
        for x, y in one.points:
            where = x_text(x) if x_text is not None else f"{x:.0f}"
            title = f"<title>{text(one.name)}: {text(where)}, {write(y)}</title>"
            size = 3 if x_text is None else 5
            parts.append(f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="{size}" fill="{color}">{title}</circle>')
    return parts


def _key(place: int, banded: bool) -> str:
    """Return the mark of a series in the legend."""
    color, dash = f"var(--c{place % COLORS + 1})", DASHES[place // COLORS % len(DASHES)]
    style = f' stroke-dasharray="{dash}"' if dash else ""
    band = f'<rect width="20" height="10" fill="{color}" opacity=".18"/>' if banded else ""
    return f'{band}<line x1="0" x2="20" y1="5" y2="5" stroke="{color}" stroke-width="2.5"{style}/>'


def finite(value: object) -> bool:
    """Say whether a value is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
