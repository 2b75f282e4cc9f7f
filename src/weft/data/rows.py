"""Rows with their places in files, and accounts of the rows that are left out.

A row is a dict of columns. Its place (file and line) is stored beside the rows as one number each, so that a message
can name the first row that a reason applies to.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
NO_SIGN = re.compile("[\ud800-\udfff]")
"""Halves of characters, which no encoding has."""

REASONS = 12
"""The most reasons that a message lists."""


def printable(text: str, most: int = 60) -> str:
    """Return a text of the data in a form fit for messages: one line, at most `most` characters, printable."""
    plain = NO_SIGN.sub("\ufffd", " ".join(str(text).split()))
    return plain if len(plain) <= most else plain[: most - 1] + "…"


@dataclass(frozen=True)
class File:
    """Where rows are from: a name, and what is counted in it (line, row)."""

    name: str
    unit: str = "row"

    def place(self, number: int) -> str:
        """Return a place in words."""
        return f"{self.unit} {number} of '{self.name}'"


class Omissions(dict[str, tuple[int, str]]):
    """Rows that are left out: reason -> how many, and the place of the first ("" if unknown)."""

    def add(self, reason: str, place: str = "", count: int = 1) -> None:
        """Add rows under a reason; the place of the first stays."""
        before, earliest = self.get(reason, (0, ""))
        self[reason] = (before + count, earliest or place)

    def merge(self, other: Omissions) -> None:
        """Add all of another."""
        for reason, (count, place) in other.items():
            self.add(reason, place, count)

    @property
    def counts(self) -> dict[str, int]:
        """Reason -> how many."""
        return {reason: count for reason, (count, _) in self.items()}

    def lines(self) -> list[str]:
        """Return a sentence for each reason."""
        return [
            f"{count} {'row was' if count == 1 else 'rows were'} left out ({reason}){first(count, place)}."
            for reason, (count, place) in self._most().items()
        ]

    def reasons(self) -> str:
        """Return all reasons, for the middle of a sentence."""
        return "; ".join(f"{count} x {reason}{first(count, place)}" for reason, (count, place) in self._most().items())

    def _most(self) -> dict[str, tuple[int, str]]:
        """Return the most frequent reasons and a sum of the rest: a play has an unknown role for each person."""
        if len(self) <= REASONS:
            return dict(self)
        frequent = sorted(self, key=lambda reason: -self[reason][0])[: REASONS - 1]
        rest = [self[reason] for reason in self if reason not in frequent]
        summary = f"{len(rest)} other reasons"
        return {reason: self[reason] for reason in self if reason in frequent} | {
            summary: (sum(n for n, _ in rest), rest[0][1])
        }


def first(count: int, place: str) -> str:
    """Return where the first of some rows stands, for the end of a sentence; "" where that is not known."""
    return f", {'in' if count == 1 else 'the first in'} {place}" if place else ""


class ExampleOmissions(dict[str, tuple[int, int]]):
    """Examples that have no row: reason -> how many, and the number of the first example."""

    def add(self, reason: str, number: int) -> None:
        """Count an example."""
        count, earliest = self.get(reason, (0, number))
        self[reason] = (count + 1, earliest)


class PlacedRows(list[Row]):
    """Rows, where each stands, and what was left out when they were read."""

    def __init__(
        self, rows: Iterable[Row] = (), file: File | None = None, numbers: Iterable[int] | None = None
    ) -> None:
        """Take rows of one file; without numbers they are counted from 1."""
        super().__init__(rows)
        self.files = [file or File("the data")]
        self.numbers = array("q", range(1, len(self) + 1) if numbers is None else numbers)
        # Arrays of integers take 12 bytes a row, where a place as an object would take over 100.
        self.file_index = array("i", bytes(4 * len(self)))
        self.omissions = Omissions()
        self.notes: list[str] = []
        """Sentences for the user on how the files were read."""

    def place(self, row: int) -> str:
        """Return where a row stands, in words."""
        return self.files[self.file_index[row]].place(self.numbers[row])

    def pick(self, rows: Iterable[int]) -> PlacedRows:
        """Return some of the rows, with their places."""
        picked = PlacedRows()
        picked.files, picked.omissions, picked.notes = self.files, self.omissions, self.notes
        for row in rows:
            picked.append(self[row])
            picked.numbers.append(self.numbers[row])
            picked.file_index.append(self.file_index[row])
        return picked

    def num_read(self) -> int:
        """Return how many rows were read, those that were left out counted."""
        return len(self) + sum(count for count, _ in self.omissions.values())


def concatenate(parts: Iterable[PlacedRows]) -> PlacedRows:
    """Return the rows of several files in one list."""
    rows = PlacedRows()
    rows.files = []
    for part in parts:
        rows.extend(part)
        rows.numbers.extend(part.numbers)
        rows.file_index.extend(array("i", (len(rows.files) + file for file in part.file_index)))
        rows.files += part.files
        rows.omissions.merge(part.omissions)
        rows.notes += [note for note in part.notes if note not in rows.notes]
    rows.files = rows.files or [File("the data")]
    return rows


def as_rows(rows: Sequence[Row], source: str) -> PlacedRows:
    """Return rows with places: their numbers, where they have none yet."""
    return rows if isinstance(rows, PlacedRows) else PlacedRows(rows, File(source))


@dataclass
class Account:
    """What a run read, left out and did not use, for its first lines."""

    row_counts: dict[str, int] = field(default_factory=dict)
    """Source -> rows."""
    num_examples: int = 0
    """Rows that are trained on or evaluated."""
    roles: dict[str, dict[str, None]] = field(default_factory=dict)
    """What was read (question, answer, ...) -> its columns, in their order."""
    unread_columns: dict[str, None] = field(default_factory=dict)
    """Columns that were not read."""
    omissions: Omissions = field(default_factory=Omissions)
    notes: dict[str, None] = field(default_factory=dict)
    """Other sentences for the user; keys of an ordered set."""

    def note(self, text: str) -> None:
        """Add a sentence for the user, once."""
        self.notes[text] = None

    def note_columns(self, role: str, columns: Iterable[str]) -> None:
        """Add columns that were read in a role."""
        self.roles.setdefault(role, {}).update(dict.fromkeys(columns))

    def summary(self) -> str:
        """Return in one sentence what was read."""
        total, usable = sum(self.row_counts.values()), self.num_examples
        names = [f"'{name}'" for name in self.row_counts]
        where = ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} other sources"
        what = ", ".join(f"{role} from {_quoted_list(columns)}" for role, columns in self.roles.items())
        return f"read {total} rows of {where}{f' ({what})' if what else ''}; {usable} are used."

    def lines(self) -> Iterator[str]:
        """Yield what was left out, what is not used, and what was changed."""
        yield from self.omissions.lines()
        if self.unread_columns:
            one = len(self.unread_columns) == 1
            columns = _quoted_list(self.unread_columns)
            yield f"the column{'' if one else 's'} {columns} {'is' if one else 'are'} not read."
        yield from self.notes


def _quoted_list(names: Iterable[str], most: int = 12) -> str:
    quoted = [f"'{printable(name)}'" for name in names]
    if len(quoted) > most:
        return f"{', '.join(quoted[:most])} and {len(quoted) - most} more"
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else "".join(quoted)
