"""A picture of how rows are shared out: each client's rows by label, and the lengths of its rows.

Names and labels come from data and from other parties: they are drawn as they are, whatever is in them.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np

from weft.core.texts import printable
from weft.json_types import JsonObject

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

MOST = 60
"""Clients drawn at most; of more, evenly chosen ones from the largest to the smallest."""
INK = "#1d2329"


def draw_split(split: JsonObject) -> str:
    """Return the picture of a split as SVG, dark on white.

    Args:
        split: what `weft.data.skew.describe_split` returned.
    """
    svg = _drawn(split)
    inside = svg.index(">", svg.index("<svg")) + 1
    white = '\n <rect width="100%" height="100%" fill="white"/>'
    return svg[:inside] + white + svg[inside:]


def _drawn(split: JsonObject) -> str:
    """Return the picture on nothing."""
    from matplotlib import colormaps, rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    names, clients = list(split["clients"]), split["clients"]
    title = ""
    if len(names) > MOST:
        # Evenly spaced ranks, so that the picture shows the shape of the distribution of sizes.
        names.sort(key=lambda name: -clients[name]["rows"])
        title = f"{MOST} of {len(names)} clients, largest first"
        names = [names[int(place)] for place in np.linspace(0, len(names) - 1, MOST)]
    labels = split.get("labels") or ["rows"]
    counts = np.array([clients[name].get("labels") or [clients[name]["rows"]] for name in names])
    colors = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    places = np.arange(len(names))
    # A label may look like a formula, and have letters for which matplotlib's font has no picture: the page's has.
    plain = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "weft", "font.size": 10}
    with rc_context({**colors, **plain}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        texts = [_short(str(label), 24) for label in labels]
        columns = max(1, min(6, 100 // (max(map(len, texts)) + 6)))  # some 100 letters fit into the width
        lines = -(-len(texts) // columns)
        figure = Figure(figsize=(9, min(9.0, 1.2 + 0.2 * lines + 0.3 * len(names))), layout="constrained")
        FigureCanvasSVG(figure)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        start = np.zeros(len(names))
        palette = colormaps["tab20" if len(labels) > 10 else "tab10"]
        bars = []
        for number in range(len(labels)):
            bars.append(left.barh(places, counts[:, number], left=start, color=palette(number), height=0.8))
            start += counts[:, number]
        tokens = np.array([clients[name]["tokens"] for name in names], dtype=float)
        right.hlines(places, tokens[:, 0], tokens[:, 2], color="#2f7fd1", linewidth=3, alpha=0.45)
        right.plot(tokens[:, 1], places, "o", color="#2f7fd1", markersize=4)
        left.set(xlabel="rows", title=title)
        right.set(xlabel="tokens per row\n(median and middle 80 %)", xlim=(0, None))
        named_axis = len(names) <= 40
        left.set_yticks(places if named_axis else [], [_short(name, 28) for name in names] if named_axis else [])
        left.invert_yaxis()
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="x", alpha=0.25)
        if len(labels) > 1:
            _legend(figure, bars, texts, columns)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _legend(figure: Figure, bars: list[Artist], texts: list[str], columns: int) -> None:
    """Write the labels of the bars below the picture."""
    numbers = [str(number) for number in range(len(texts))]
    legend = figure.legend(bars, numbers, loc="outside lower center", ncols=columns, frameon=False)
    # matplotlib leaves a label that begins with _ out of a legend; a text that is set later, it does not.
    for shown, text in zip(legend.get_texts(), texts, strict=True):
        shown.set_text(text)


def _short(name: str, length: int) -> str:
    """Return a name with control characters escaped, cut to a length."""
    name = printable(name)
    return name if len(name) <= length else name[: length - 1] + "…"
