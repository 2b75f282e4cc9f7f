"""The page of a study: one HTML file that needs nothing from anywhere, and no script.

Names of arms and reasons of failures were written by others: all text is escaped, unprintable characters are written
out, and a policy in the page runs no script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import yaml

from weft.core.texts import printable
from weft.json_types import JsonObject
from weft.studies.measures import Measure
from weft.studies.study import Study
from weft.studies.table import Row
from weft.studies.words import COST_HEADS, costs_of_row, heads_and_cells, title_of

LONGEST = 2000
"""Letters of a cell: a reason may be long."""
STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5b6670; --line: #dde2e7; --page: #fff; --panel: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe5ea; --soft: #98a5b1; --line: #323a42; --page: #14181c; --panel: #1c2126; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
figure { margin: 1.5rem 0 0; overflow-x: auto; } svg { width: 100%; min-width: 44rem; height: auto; }
p { color: var(--soft); }
.table { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; min-width: 8rem; white-space: normal; }
pre { background: var(--panel); padding: 1rem; border-radius: 6px; font-size: .85rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def page_of(
    title: str,
    rows: Sequence[Row],
    measures: Sequence[Measure],
    pictures: Mapping[str, str],
    failures: Mapping[str, str],
    choice: Sequence[JsonObject],
    settings: JsonObject,
    command: str,
) -> str:
    """Return the page.

    Args:
        title: of the study.
        rows: of its table.
        measures: its metrics.
        pictures: SVG elements by metric.
        failures: why runs failed, by name.
        choice: what was chosen, as plain data.
        settings: what the study says of its runs.
        command: that repeats the study.
    """
    parts = []
    for measure in measures:
        parts.append(f"<h2>{escape(title_of(measure))}</h2>")
        parts.append(_table(*heads_and_cells(rows, measure)))
        if picture := pictures.get(measure.name):
            parts.append(
                f'<figure role="img" tabindex="0" aria-label="{escape(measure.name)} against cost">{picture}</figure>'
            )
    parts.append("<h2>Mean rank over the metrics, and what it took</h2>")
    parts.append(_table(COST_HEADS, [costs_of_row(row) for row in rows]))
    if choice:
        cells = [
            [
                ", ".join((one["arm"], *one["point"])),
                one["chosen"],
                "; ".join(f"{label}: {value:.4f}" for label, value in one["values"].items()),
            ]
            for one in choice
        ]
        parts += ["<h2>Settings</h2>", _table(["arm", "chosen", "on held-out rows of the tuning seed"], cells)]
    if failures:
        cells = [[name, why] for name, why in failures.items()]
        parts += ["<h2>Runs that failed</h2>", _table(["run", "why"], cells)]
    shown = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    parts.append(f"<h2>The study</h2><pre>{escape(shown)}</pre>")
    parts.append(f"<h2>Again</h2><pre>{escape(command)}</pre>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "base-uri 'none'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n"
        "<p>a ± b is the mean and the standard deviation (n - 1) over seeds. Differences are paired by seed; their "
        "95 % intervals are Student's. Of 20 intervals of equal arms, one leaves out 0 by chance.</p>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def as_written(study: Study) -> JsonObject:
    """Return what a study says of its runs, as plain data: what all have in common, its arms, and its grid."""
    arms: JsonObject = {}
    for arm in study.arms:
        said = dict(arm.keys)
        if len(arm.members) > 1:
            said["mean_over"] = [label for label, _ in arm.members]
        if arm.settings:
            said["try"] = [dict(setting) for setting in arm.settings]
        arms[arm.name] = said
    grid: JsonObject = {key: dict(values) for key, values in study.axes.items()} | {"seed": list(study.seeds)}
    return {"verb": study.verb, "base": study.base, "arms": arms, "grid": grid}


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(printable(text, LONGEST))}</td>" for text in row) + "</tr>" for row in rows
    )
    return f'<div class="table" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
