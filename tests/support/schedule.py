"""Which tests stay in one process: those of a module with the mark `xdist_group`, with all others of that group.

pytest-xdist 3.8 writes the group into the id of a test, which pytest 9.2 no longer reads, so that `--dist loadgroup`
shares such tests out like all others. Here the group is read from the module.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parent.parent.parent


class ByGroup(LoadScopeScheduling):
    """A module with a group goes to the process that has the group; other tests go one by one."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid.partition("::")[0]) or nodeid


@cache
def group_of(module: str) -> str:
    """Return the group of a module of tests, from the root of the repository; "": it has none."""
    file = ROOT / module
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    named = re.search(r'^pytestmark = .*xdist_group\("(\w+)"\)', text, re.MULTILINE)
    return named[1] if named else "flare" * bool(re.search(r"^pytestmark = .*\bMARKS\b", text, re.MULTILINE))
