"""The settings of a run, the machine that it ran on, and the command that repeats it."""

from __future__ import annotations

import shlex

from weft.pages.html import facts, folded, lines_of, paragraph
from weft.pages.record import RunRecord

LONGEST = 100_000
"""Letters of the configuration; that of 100,000 clients with a file each is longer."""
SITES = "It was a federation of sites: `weft submit` with this file repeats it at their server."


def settings_part(record: RunRecord) -> str:
    """Return the configuration of a run, versions and machine, and how to run it again."""
    file = record.run.config_file
    again = f"weft {record.verb} {shlex.quote(str(file))} --output_dir {shlex.quote(str(record.run.path) + '-again')}"
    sites = record.config.get("runtime") == "nvflare"
    repeat = paragraph(SITES) if sites else f"<pre>{lines_of(again, LONGEST)}</pre>"
    found = record.environment
    versions, machine = found.get("versions") or {}, found.get("machine") or {}
    shown = facts({**versions, **machine}) if found else ""
    return (
        repeat
        + shown
        + folded("every key of the run", f"<pre>{lines_of(file.read_text(encoding='utf-8'), LONGEST)}</pre>")
    )
