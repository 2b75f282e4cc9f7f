"""Chains of hashes over lines of JSON: each line has a hash over itself and all before it.

A line that was changed, taken out or put in by hand no longer fits the hashes after it. The last hash, the head, stands
for the whole file: whoever kept it elsewhere notices a file that was written anew.
"""

from __future__ import annotations

import hashlib
import json

from weft.errors import WeftError
from weft.json_types import JsonObject

CHAIN = "chain"
"""The field of a line that holds its hash."""


class BrokenChain(WeftError):
    """A line does not fit those before it, or is none."""

    def __init__(self, line: int) -> None:
        super().__init__(f"line {line} does not fit the lines before it")
        self.line = line
        """Its number, from 1."""


def link(chain: str, entry: JsonObject) -> str:
    """Return the hash of a line, given that of the line before it and the line without its own."""
    return hashlib.sha256(f"{chain}\n{json.dumps(entry, sort_keys=True)}".encode()).hexdigest()


def to_line(chain: str, entry: JsonObject) -> tuple[str, bytes]:
    """Return the hash of a line, and the line with it, its end included."""
    chain = link(chain, entry)
    return chain, (json.dumps(entry | {CHAIN: chain}, sort_keys=True) + "\n").encode()


def read_lines(start: str, content: bytes) -> tuple[list[JsonObject], list[str]]:
    """Return the entries of all whole lines of a file, without their hashes, and their hashes.

    Args:
        start: the hash before the first line.
        content: of the file; what follows its last newline was cut short by a kill and is left out.

    Raises:
        BrokenChain: a line was changed.
    """
    entries: list[JsonObject] = []
    chains: list[str] = []
    chain = start
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line)
            claimed = entry.pop(CHAIN)
            chain, whole = to_line(chain, entry)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise BrokenChain(number) from None
        # Two texts of JSON may have one meaning: another spelling, or a field twice.
        if claimed != chain or line + b"\n" != whole:
            raise BrokenChain(number)
        entries.append(entry)
        chains.append(chain)
    return entries, chains
