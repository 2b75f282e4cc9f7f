"""report.html: one page about a run, from the files in its directory alone, also of one that is under way.

The result stands first. The file loads nothing from anywhere, and shows all it has where scripts are blocked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from weft.core.files import write_atomic
from weft.pages.answers import answers_part
from weft.pages.curves import curves_of
from weft.pages.html import page, paragraph, section, text
from weft.pages.people import failures, participation
from weft.pages.record import RunRecord
from weft.pages.result import result_part
from weft.pages.rows import rows_part
from weft.pages.settings import settings_part
from weft.pages.tables import clients_table, groups_table, left_out_of, models_table, tasks_table
from weft.pages.training import costs, header
from weft.runs import contribution
from weft.runs.audit_section import audit_section
from weft.runs.cleaning import cleaning_table
from weft.runs.privacy_words import privacy_section


def write_report(
    run_path: str | os.PathLike[str],
    *,
    against: Sequence[str | os.PathLike[str]] = (),
    metric: str | None = None,
) -> Path:
    """Write report.html into a run's directory, and return its path.

    Args:
        run_path: the run's directory.
        against: runs that the result is compared with, such as every client alone and the pooled data.
        metric: what the page begins with; None: `weft.pages.measured.leading` chooses.

    Raises:
        ConfigError: there is no run, or no run has the metric.
        DataError: a log is broken.
    """
    record = RunRecord.read(run_path)
    others = [RunRecord.read(path) for path in against]
    write_atomic(record.run.report_file, report(record, others, metric))
    return record.run.report_file


def report(record: RunRecord, against: Sequence[RunRecord] = (), metric: str | None = None) -> bytes:
    """Return the page about a run; arguments and errors as for `write_report`."""
    summary, split = record.summary, record.split
    curves = "".join(chart.html() for chart in curves_of(record))
    contamination = summary.get("contamination") or split.get("contamination") or {}
    body = [
        f"<h1>{text(record.name)}</h1>",
        _lost(record.lost),
        result_part(record, against, metric),
        section("What was trained", header(record)),
        section("Curves", f'<div class="charts">{curves}</div>' if curves else ""),
        section("Numbers", costs(record)),
        section("Privacy", privacy_section(summary.get("privacy"))),
        section("Who took part", participation(record)),
        section("Discarded updates", failures(record.events("round"), summary.get("failures") or {})),
        section("Audits", audit_section(record.run)),
        section("Contribution", contribution.section(record.run)),
        section("Evaluation tasks", tasks_table(record.tasks, (summary.get("best") or {}).get("round"))),
        section("Answers to the server's prompts", answers_part(summary.get("answers") or {})),
        section("Shared and own models", models_table(summary.get("models") or {})),
        section("Clients", clients_table(record.clients)),
        section("Differences between clients", groups_table(record)),
        section("Clients that took no part", clients_table(left_out_of(record).get("clients") or {})),
        section("Data", rows_part(split, contamination)),
        section("Cleaning", cleaning_table(split.get("cleaning") or {})),
        section("Settings", settings_part(record)),
        paragraph("Written by `weft report` from the files in the run's directory."),
    ]
    return page(f"{record.name} - Weft report", body)


def _lost(gaps: Sequence[tuple[int, int]]) -> str:
    """Return a sentence about rounds that the log has lost, "" where it has them all."""
    if not gaps:
        return ""
    few = ", ".join(str(one) if one == other else f"{one} to {other}" for one, other in gaps[:5])
    more = " and others" if len(gaps) > 5 else ""
    return paragraph(f"metrics.jsonl has no line of round {few}{more}: the log was changed. `weft verify` says more.")
