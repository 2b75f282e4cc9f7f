"""The guarantee of a run in words: what was protected, against whom, and what it cost."""

from __future__ import annotations

from html import escape

from weft.json_types import JsonObject

LABELS = {
    "unit": "protected unit",
    "neighbours": "neighbouring data",
    "epsilon": "epsilon spent",
    "delta": "delta",
    "target_epsilon": "target of epsilon",
    "mechanism": "mechanism",
    "protects_against": "protects against",
    "sampling": "sampling that was assumed",
    "releases": "releases that were counted",
    "accountant": "accountant",
    "not_covered": "not covered",
}


def privacy_lines(statement: JsonObject) -> dict[str, str]:
    """Return the lines of a guarantee (`weft.privacy.guarantee.Guarantee.statement`) by their labels."""
    lines = {label: _text(key, statement.get(key)) for key, label in LABELS.items()}
    return {label: text for label, text in lines.items() if text}


def privacy_section(statement: JsonObject | None) -> str:
    """Return the guarantee as HTML; empty where a run has none."""
    if not statement:
        return ""
    rows = privacy_lines(statement).items()
    cells = "".join(f'<tr><td>{escape(label)}</td><td class="text">{escape(text)}</td></tr>' for label, text in rows)
    return f'<div class="table"><table>{cells}</table></div>'


def short_guarantee(statement: JsonObject | None) -> str | None:
    """Return the guarantee in one line; None where a run has none."""
    if not statement:
        return None
    return f"epsilon {_text('epsilon', statement['epsilon'])} at delta {statement['delta']:g} for a {_unit(statement)}"


def _unit(statement: JsonObject) -> str:
    unit = statement["unit"]
    return str(unit) if unit in ("client", "row") else f"value of '{unit}'"


def _text(key: str, value: object) -> str:
    if key == "epsilon":
        return "no bound (there is no noise)" if value is None else f"{value:.4g}"
    if isinstance(value, list):
        return "; ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)
