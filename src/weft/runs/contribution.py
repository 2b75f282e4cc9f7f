"""What clients added to a run, as a section of the page and as a table."""

from __future__ import annotations

import json
from html import escape

from weft.json_types import JsonObject
from weft.runs.layout import RunDir
from weft.runs.start import CONTRIBUTION

VALUES = ["leave-one-out (nats)", "gradient (nats)"]
HEADS = {"clients": ["client", *VALUES, "rounds"], "groups": ["group", *VALUES, "round"]}


def cells(found: JsonObject) -> list[list[str]]:
    """Return the rows of a table: clients with the largest values first, or the groups of each round."""
    if "groups" in found:
        return [[", ".join(one["members"]), *_values(one), str(one["round"])] for one in found["groups"]]
    return [[name, *_values(one), str(one["rounds"])] for name, one in found["clients"].items()]


def _values(one: JsonObject) -> list[str]:
    return [f"{one['leave_one_out']:+.4g}", "" if one["gradient"] is None else f"{one['gradient']:+.4g}"]


def section(run: RunDir) -> str:
    """Return the table of contribution.json as HTML; empty where nothing was measured."""
    file = run.path / CONTRIBUTION
    if not file.exists():
        return ""
    found: JsonObject = json.loads(file.read_text(encoding="utf-8"))
    heads = "".join(f"<th>{escape(head)}</th>" for head in HEADS["groups" if "groups" in found else "clients"])
    rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in cells(found))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    note = f"By how much the loss on {found['rows']} held-out rows is lower with the client, summed over rounds."
    return f'<div class="table"><table><tr>{heads}</tr>{body}</table></div><p>{escape(note)}</p>'
