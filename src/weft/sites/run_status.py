"""The state of runs in words, for `weft status`, `weft submit --wait` and `weft up`.

Names and reasons were written by other parties: all of it is made safe for a terminal.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterator

from weft.core.declarations import TRAIN_LOSS
from weft.core.texts import printable
from weft.errors import RunError
from weft.json_types import JsonObject

WIDTH = 40
"""Columns of a terminal that a name may take."""
ENDS = {
    "FINISHED:ABORTED": "it was stopped, or ended so that it could be resubmitted",
    "FINISHED:EXECUTION_EXCEPTION": "its process ended; its log at the server says more",
    "FINISHED:ABNORMAL": "its process ended; its log at the server says more",
    "FINISHED:ABANDONED": "the server ended while it ran",
    "FINISHED:CAN_NOT_SCHEDULE": "too few of its sites were connected",
    "FINISHED:FAILED_TO_RUN": "it could not be started, at the server or at too many of its sites",
}
"""Why a job ended, by its state in FLARE's words, where the run itself says nothing."""


def cell(text: str, width: int = WIDTH) -> str:
    """Return a text in exactly `width` columns of a terminal: control characters escaped, what is longer cut with `…`.

    A text that is written from right to left is isolated, so that it does not reorder the rest of the line.
    """
    from rich.cells import cell_len, set_cell_size

    text = printable(text, 4 * width)
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1).rstrip() + "…"
    padding = " " * max(0, width - cell_len(text))
    if any(unicodedata.bidirectional(letter) in ("R", "AL", "AN") for letter in text):
        text = f"\N{FIRST STRONG ISOLATE}{text}\N{POP DIRECTIONAL ISOLATE}"
    return text + padding


def lines_of(name: str, job: str, state: str, report: JsonObject | None, width: int = WIDTH) -> Iterator[str]:
    """Yield the lines of a run in `weft status`: job, state and newest round, then why it failed and who is missing.

    Args:
        name: of the run.
        job: id of its job.
        state: of the job, in FLARE's words.
        report: the last status that the run itself reported; None: it reported none.
        width: columns for the name.
    """
    report = report or {}
    yield f"{cell(name, width)}  {cell(job, 36).rstrip()}  {cell(state).rstrip()}  {_newest(report)}".rstrip()
    why = report.get("error") if report.get("state") == "failed" else None
    if why is None and report.get("state") not in ("done", "stopped"):
        why = ENDS.get(state)
    if why is not None:
        yield f"  why: {printable(str(why), 1000)}"
    for site, reason in _entries(report, "refused"):
        yield f"  {site} takes no part: {reason}"
    for site, reason in _entries(_newest_round(report), "failures"):
        yield f"  {site} sent no update in the newest round: {reason}"
    for site, reason in _entries(report, "undelivered"):
        yield f"  {site} did not get the result: {reason}"


def _entries(report: JsonObject, key: str) -> Iterator[tuple[str, str]]:
    """Yield sites and reasons of an entry of a report."""
    entries = report.get(key)
    for site, reason in (entries if isinstance(entries, dict) else {}).items():
        yield cell(str(site)).rstrip(), printable(str(reason))


def _newest_round(report: JsonObject) -> JsonObject:
    rounds = [entry["round"] for entry in report.get("rounds") or [] if "round" in entry]
    return dict(rounds[-1]) if rounds else {}


def _newest(report: JsonObject) -> str:
    """Return the newest round of a run's status on one line, or its state."""
    last = _newest_round(report)
    if not last:
        return printable(str(report.get("state", "")))
    loss = last.get(TRAIN_LOSS.name)
    return f"round {last['round']}" + ("" if loss is None else f", {TRAIN_LOSS.on_line(loss)}")


class RunPrinter:
    """Prints a run while it is waited for: each round once, as JSON, and on standard error what sites did not do."""

    def __init__(self) -> None:
        self._refused: dict[str, str] = {}
        self._seen: set[tuple[str, str, int]] = set()
        self._state = ""

    def __call__(self, status: JsonObject) -> None:
        """Print what is new in a run's status."""
        refused = dict(_entries(status, "refused"))
        for site, reason in refused.items():
            if self._refused.get(site) != reason:
                print(f"weft: the site '{site}' takes no part: {reason}.", file=sys.stderr)
        self._refused = refused or self._refused
        state, new = str(status.get("state")), False
        for entry in status.get("rounds") or []:
            kind, values = next(iter(entry.items()))
            key = (str(status.get("job")), kind, int(values.get("round", 0)))
            if key in self._seen:
                continue
            self._seen.add(key)
            new = True
            for site, reason in _entries(values, "failures"):
                text = f"round {values.get('round')}: the update of '{site}' was dropped: {reason}"
                print(f"weft: {text}.", file=sys.stderr)
            print(json.dumps({"state": state} | entry, default=str), flush=True)
        if not new and state != self._state:
            print(json.dumps({"state": state}), flush=True)
        self._state = state


def require_result(name: str, status: JsonObject) -> None:
    """Raise RunError unless a run is done and every site of it has its result.

    Args:
        name: of the run.
        status: its last.
    """
    if status.get("state") == "stopped":
        raise RunError(f"The run '{name}' was stopped: `weft submit` with the same name resumes it.")
    if status.get("state") != "done":
        why = printable(str(status.get("error", "its log at the server says more")), 1000)
        raise RunError(f"The run '{name}' failed: {why}")
    missing = [f"{site}: {reason}" for site, reason in _entries(status, "undelivered")]
    if missing:
        raise RunError(
            f"The run '{name}' is done, and its result did not reach every site ({'; '.join(missing)}): submit it "
            "again with the same name once they are connected."
        )
