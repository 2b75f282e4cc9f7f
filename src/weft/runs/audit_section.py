"""What `weft audit` found, as a section of the report."""

from __future__ import annotations

import json
from html import escape

from weft.json_types import JsonObject
from weft.runs.layout import RunDir
from weft.runs.start import AUDIT


def audit_section(run: RunDir) -> str:
    """Return the tables of audit.json as HTML; empty where the run was not audited."""
    file = run.path / AUDIT
    if not file.exists():
        return ""
    found: JsonObject = json.loads(file.read_text(encoding="utf-8"))
    parts = [_table(name, audit) for name, audit in found["audits"].items()]
    parts += [f"<p>{escape(name)} was left out. {escape(why)}</p>" for name, why in found["left_out"].items()]
    return "\n".join([f"<p>Of the model after round {found['round']}.</p>", *parts])


def _table(name: str, audit: JsonObject) -> str:
    heads = "".join(f"<th>{escape(head)}</th>" for head in audit["heads"])
    rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in audit["rows"])
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    words = " ".join([audit["means"], f"What changes it: {audit['defence']}", *audit["notes"]])
    return (
        f"<h3>{escape(audit['title'])} ({escape(name)})</h3>"
        f'<div class="table"><table><tr>{heads}</tr>{body}</table></div><p>{escape(words)}</p>'
    )
