"""The curves of a run over its rounds, as one SVG element: which picture a metric is drawn in, it declares itself."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

from weft.core.declarations import TRAIN_LOSS, scores, training
from weft.json_types import JsonObject

COLORS = ("#2f7fd1", "#d9822b")
TASK_COLORS = (*COLORS, "#3a9d5d", "#b5487a", "#7a5cc2", "#8f7a2a", "#2a9aa5", "#c94f3d")


class Curve(NamedTuple):
    """A curve over the rounds."""

    name: str
    points: list[tuple[int, float]]
    color: str


class Panel(NamedTuple):
    """A picture of curves beside each other."""

    label: str
    curves: list[Curve]
    share: bool = False
    """All lie between 0 and 1."""
    logarithmic: bool = False


def draw_curves(rounds: list[JsonObject], evaluations: list[JsonObject], tasks: list[JsonObject]) -> str:
    """Return the curves over the rounds as one SVG element, or nothing if there are none."""
    panels = [panel for panel in (*_panels(rounds, evaluations), _tasks_panel(tasks)) if panel.curves]
    return draw_panels(panels) if panels else ""


def draw_panels(panels: list[Panel]) -> str:
    """Return pictures beside each other, each of one curve at least, as one SVG element."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    ink = "#010203"  # no one's colour; it becomes that of the page's text, light or dark
    colors = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
    # Text stays text, ids are hashed with a fixed salt and no date is written: equal numbers give equal bytes.
    with (
        rc_context({**colors, "svg.fonttype": "none", "svg.hashsalt": "weft", "font.size": 10}),
        warnings.catch_warnings(),
    ):
        # matplotlib's font has no picture for every letter; that of the page has.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(9, 3.4) if len(panels) > 1 else (9, 3.8), layout="constrained")
        FigureCanvasSVG(figure)
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            lines = []
            for curve in panel.curves:
                is_sparse = len(curve.points) <= 60 and curve.name != TRAIN_LOSS.look.curve
                marker = "o" if is_sparse or len(curve.points) == 1 else ""
                lines += axes.plot(*zip(*curve.points, strict=True), color=curve.color, marker=marker, markersize=4)
            axes.set_xlabel("round")
            axes.set_ylabel(panel.label, parse_math=False)  # a metric of somebody's own may have any name
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlim(0, max(1, *(round for curve in panel.curves for round, _ in curve.points)) * 1.05)
            if panel.logarithmic:
                axes.set_yscale("log")
            if panel.share:
                axes.set_ylim(0, 1.02)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            legend = axes.legend(lines, [str(number) for number in range(len(lines))], frameon=False)
            for text, curve in zip(legend.get_texts(), panel.curves, strict=True):
                text.set_parse_math(False)
                text.set_text(curve.name)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return f"<figure>{svg[svg.index('<svg') :].replace(ink, 'currentColor')}</figure>"


def _panels(rounds: list[JsonObject], evaluations: list[JsonObject]) -> list[Panel]:
    """Return the pictures, with the curves of what was measured: those of training before those of evaluation."""
    # An exact average has an error of 0, for which a logarithmic axis has no place.
    errors = [(number, max(error, 1e-9)) for number, error in _points(rounds, "product_error")]
    labels = dict.fromkeys(metric.look.panel for metric in (TRAIN_LOSS, *scores(), *training()) if metric.look.panel)
    panels = []
    for label in labels:
        sources = [(rounds, metric) for metric in training() if metric.look.panel == label]
        sources += [(evaluations, metric) for metric in scores() if metric.look.panel == label]
        curves = [
            Curve(metric.look.curve or metric.label, _points(records, metric.name), COLORS[place % len(COLORS)])
            for place, (records, metric) in enumerate(sources)
        ]
        share = all(metric.share for _, metric in sources)
        panels.append(Panel(label, [curve for curve in curves if curve.points], share))
    product_panel = Panel("product error", [Curve("product error", errors, COLORS[0])], logarithmic=True)
    return [*panels[:1], *([product_panel] if errors else []), *panels[1:]]


def main_scores(record: JsonObject) -> dict[str, str]:
    """Return by evaluation task the key of its main score, which stands first among its keys."""
    keys: dict[str, str] = {}
    for key in record:
        task, slash, _ = key.partition("/")
        if slash:
            keys.setdefault(task, key)
    return keys


def _tasks_panel(tasks: list[JsonObject]) -> Panel:
    """Return the picture of the main scores of evaluation tasks."""
    keys = main_scores(tasks[0]) if tasks else {}
    curves = [
        Curve(task, _points(tasks, key), TASK_COLORS[place % len(TASK_COLORS)])
        for place, (task, key) in enumerate(keys.items())
    ]
    values = [value for curve in curves for _, value in curve.points]
    return Panel("evaluation tasks", curves, share=all(0 <= value <= 1 for value in values))


def _points(records: list[JsonObject], key: str) -> list[tuple[int, float]]:
    return [(record["round"], record[key]) for record in records if record.get(key) is not None]
