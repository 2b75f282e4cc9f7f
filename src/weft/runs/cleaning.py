"""What cleaning did, as a table of the report."""

from __future__ import annotations

from html import escape

from weft.json_types import JsonObject


def cleaning_table(cleaning: JsonObject) -> str:
    """Return the counts of all clients by cleaner, as HTML; "" where nothing was cleaned."""
    total = cleaning.get("total") or {}
    if not total:
        return ""
    lines = [
        f"<tr><td>{escape(name)}</td><td>{step['left_out']}</td><td>{step['changed']}</td>"
        f'<td class="text">{escape(counts_text(step))}</td></tr>'
        for name, step in total.items()
    ]
    head = '<tr><th>cleaner</th><th>rows left out</th><th>rows rewritten</th><th class="text">counts</th></tr>'
    return f'<div class="table"><table>{head}{"".join(lines)}</table></div>'


def counts_text(step: JsonObject) -> str:
    """Return what a cleaner counted, for a line."""
    return ", ".join(f"{count} x {kind}" for kind, count in step["counts"].items() if count)
