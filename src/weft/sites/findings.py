"""What a check of a kit's machine finds: one line each, and an exit code for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from weft.core.texts import printable
from weft.errors import WeftError

OK, WARN, FAIL = "ok", "warn", "FAIL"
"""Outcomes of a check: as it should be; may become a problem; a server or site cannot work like this."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    outcome: str
    check: str
    """One word: what was looked at."""
    text: str
    remedy: str = ""
    """What to do; empty if nothing is to be done."""

    def line(self) -> str:
        """Return it as a line: `ok  ...`, `warn  ...: remedy`, `FAIL  ...: remedy`."""
        remedy = f": {self.remedy}" if self.remedy else ""
        return printable(f"{self.outcome:<4}  {self.check}: {self.text}{remedy}", 1000)


def examine(name: str, check: Callable[[], Finding | Iterable[Finding]]) -> list[Finding]:
    """Return what a check finds; an error in it is a failure of what it looks at, and ends no other check.

    Args:
        name: of the check, for an error.
        check: returns what it finds.
    """
    try:
        result = check()
        return [result] if isinstance(result, Finding) else list(result)
    except WeftError as error:
        reason, _, remedy = str(error).rstrip(".").rpartition(": ")
        return [Finding(FAIL, name, reason, remedy) if reason else Finding(FAIL, name, remedy)]
    except Exception as error:
        return [Finding(FAIL, name, f"it cannot be checked ({type(error).__name__}: {error})")]


def report(findings: Iterable[Finding], *, as_json: bool) -> int:
    """Print findings, each at once, or all as one JSON object; return 1 if there is a failure, else 0."""
    seen = []
    for finding in findings:
        seen.append(finding)
        if not as_json:
            print(finding.line(), flush=True)
    failed = any(finding.outcome == FAIL for finding in seen)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(finding) for finding in seen]}, indent=1))
    return int(failed)
