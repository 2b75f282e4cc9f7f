"""What is read of a finished run: its summary, its report, and the cards of its models."""

from __future__ import annotations

import json

from weft.core.files import write_atomic
from weft.json_types import JsonObject
from weft.pages.report import write_report
from weft.runs.card import write_card_of_round, write_cards
from weft.runs.layout import RunDir


def write_pages(run: RunDir, summary: JsonObject, *, report: bool, personal: bool) -> None:
    """Write the summary, and from it the report and the cards.

    Args:
        run: its weights are written.
        summary: its numbers.
        report: whether to write the report; without it, that of an earlier start of the run is deleted.
        personal: whether clients have models of their own.
    """
    write_atomic(run.summary_file, (json.dumps(summary, indent=1) + "\n").encode())
    if report:
        write_report(run.path)
    else:
        run.report_file.unlink(missing_ok=True)
    write_cards(run, personal=personal)
    if "best" in summary and summary["best"]["folder"] is not None:
        write_card_of_round(run, run.path / summary["best"]["folder"], summary["best"]["round"])
