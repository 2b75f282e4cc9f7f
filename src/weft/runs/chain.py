"""The record of a run: chain.jsonl, a line for what the run begins from, for every round, and for its results.

Each line has a hash over itself and all before it (weft.core.chain). A line is committed with its round, as those of
metrics.jsonl are, and holds nothing that depends on the time, so that the record of a resumed run is that of one that
was never stopped. Does not know how digests are taken.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from weft.core.chain import CHAIN, BrokenChain, read_lines, to_line
from weft.core.files import whole_lines
from weft.errors import ConfigError, RunError
from weft.json_types import JsonObject
from weft.runs.metrics import MetricsLog, plain

START = hashlib.sha256(b"weft run chain 1").hexdigest()
BEGIN, CHANGED, ROUND, REPEATED, END = "begin", "changed", "round", "repeated", "end"
DIGITS = 16
"""Hexadecimal digits of the digest of a single field: it names what was edited, the hash of the line protects it."""


class ChainLog(MetricsLog):
    """The record, which is appended to; lines are sure to last once they are committed."""

    def __init__(self, path: Path) -> None:
        """Open the record, or begin an empty one; what is there is read by `truncate`."""
        super().__init__(path)
        self.entries: list[JsonObject] = []
        self.head = START
        """The hash of the newest line."""
        self._cut: int | None = None

    def append(self, record: JsonObject) -> None:
        """Add one line."""
        if self._cut is not None:
            super().truncate(self._cut)
            self._cut = None
        entry = plain(record)
        self.head, line = to_line(self.head, entry)
        self._file.write(line)
        self.entries.append(entry)

    def size(self) -> int:
        """Return the length of what is kept in bytes, with what is not written yet."""
        return super().size() if self._cut is None else self._cut

    def truncate(self, offset: int) -> None:
        """Forget what was written after `offset` bytes, and read what was written before.

        The file is cut when the next line is added: a start that fails before its first round leaves it as it was.

        Raises:
            ConfigError: it was changed by hand.
            RunError: the file is shorter than that.
        """
        size = self.commit()
        if size < offset:
            raise RunError(f"'{self._path}' has {size} bytes where {offset} were committed: something else cut it.")
        try:
            self.entries, chains = read_lines(START, self._path.read_bytes()[:offset])
        except BrokenChain as broken:
            raise ConfigError(
                f"The record '{self._path}' was changed by hand ({broken}): put back the file as it was, or delete it "
                "to begin a new record here."
            ) from None
        self.head = chains[-1] if chains else START
        self._cut = offset if offset < size else None


def read_chain(path: Path) -> tuple[list[JsonObject], list[str]]:
    """Return the entries of a record and their hashes, nothing where there is none; raise BrokenChain."""
    return read_lines(START, path.read_bytes() if path.exists() else b"")


def head_of(path: Path) -> str | None:
    """Return the hash that the newest line of a record has, unchecked; None: there is none."""
    lines = whole_lines(path)
    try:
        return str(json.loads(lines[-1])[CHAIN]) if lines else None
    except (ValueError, KeyError, TypeError):
        return None


def field_digest(value: Any) -> str:
    """Return a short digest of a value of JSON."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()[:DIGITS]


def field_digests(record: JsonObject) -> dict[str, str]:
    """Return a short digest of every field of a record."""
    return {name: field_digest(value) for name, value in record.items()}


def beginning(entries: list[JsonObject]) -> JsonObject:
    """Return what a run is made from by now: the first line of its record, with all changes of later ones."""
    current: JsonObject = {}
    for entry in entries:
        if entry.get("event") in (BEGIN, CHANGED):
            for part, values in entry.items():
                if isinstance(values, dict):
                    current[part] = {**current.get(part, {}), **values}
    return current


def difference(former: JsonObject, current: JsonObject) -> JsonObject:
    """Return of what a run is made from what differs from before, part by part."""
    changed = {
        part: {name: value for name, value in values.items() if former.get(part, {}).get(name, ...) != value}
        for part, values in current.items()
    }
    return {part: values for part, values in changed.items() if values}
