"""A picture of how rows are shared out: each client's rows by label, and the lengths of its rows."""

from __future__ import annotations

import io

import numpy as np

from weft.json_types import JsonObject

MOST = 60
"""Clients drawn at most; of more, evenly chosen ones from the largest to the smallest."""
INK = "#010203"
"""No one's colour; it becomes that of the text around, light or dark."""


def draw_split(found: JsonObject, *, inline: bool = False) -> str:
    """Return the split as SVG.

    Args:
        found: what `weft.data.skew.describe_split` returned.
        inline: for a page, in the colour of its text; otherwise dark on white.
    """
    from matplotlib import colormaps, rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    names, clients = list(found["clients"]), found["clients"]
    title = ""
    if len(names) > MOST:
        names.sort(key=lambda name: -clients[name]["rows"])
        title = f"{MOST} of {len(names)} clients, largest first"
        names = [names[int(place)] for place in np.linspace(0, len(names) - 1, MOST)]
    labels = found.get("labels") or ["rows"]
    counts = np.array([clients[name].get("labels") or [clients[name]["rows"]] for name in names])
    ink = INK if inline else "#1d2329"
    colors = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
    places = np.arange(len(names))
    with rc_context({**colors, "svg.fonttype": "none", "svg.hashsalt": "weft", "font.size": 10}):
        figure = Figure(figsize=(9, min(9.0, 1.4 + 0.3 * len(names))), layout="constrained")
        FigureCanvasSVG(figure)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        start = np.zeros(len(names))
        palette = colormaps["tab20" if len(labels) > 10 else "tab10"]
        for number, label in enumerate(labels):
            shown = label if len(label) <= 24 else label[:23] + "…"
            left.barh(places, counts[:, number], left=start, color=palette(number), label=shown, height=0.8)
            start += counts[:, number]
        tokens = np.array([clients[name]["tokens"] for name in names], dtype=float)
        right.hlines(places, tokens[:, 0], tokens[:, 2], color="#2f7fd1", linewidth=3, alpha=0.45)
        right.plot(tokens[:, 1], places, "o", color="#2f7fd1", markersize=4)
        left.set(xlabel="rows", title=title)
        right.set(xlabel="tokens a row (median, middle 80 %)", xlim=(0, None))
        few = len(names) <= 40
        left.set_yticks(places if few else [], [_short(name) for name in names] if few else [])
        left.invert_yaxis()
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="x", alpha=0.25)
        if len(labels) > 1:
            figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
        buffer = io.StringIO()
        metadata = {"Date": None, "Creator": None}
        figure.savefig(
            buffer, format="svg", transparent=inline, facecolor="none" if inline else "white", metadata=metadata
        )
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor") if inline else svg


def _short(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"
