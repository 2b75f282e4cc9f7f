"""Columns: which of them hold questions, answers, conversations or system prompts.

Rows of one source may have different columns. A row's columns are recognised by their names, whatever their case; if
several fit, the first in the lists here whose cell is not null is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from weft.data import hub_columns
from weft.data.rows import Account, PlacedRows, Row, printable
from weft.data.turns import Turn, Unusable, cell_text, is_missing
from weft.errors import DataError
from weft.registry import nearest

QUESTIONS = ("instruction", "prompt", "question", "query", "problem")
ANSWERS = ("output", "response", "completion", "answer", "solution", "target")
CONTEXTS = ("input", "context")
"""Texts that a question refers to; they are put after the question."""
SYSTEMS = ("system_prompt", "system", "system_message")
HISTORIES = ("history",)
DIALOGUES = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "data")
TEXTS = ("text", "content")


@dataclass(frozen=True)
class Shape:
    """The columns of a kind of row, by role, as the row spells their names."""

    question: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    system: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    dialogue: tuple[str, ...] = ()
    text: tuple[str, ...] = ()


def shape_of(names: Iterable[str]) -> Shape:
    """Return the role of each of these columns."""
    originals: dict[str, str] = {}
    for name in names:  # of two columns that differ in case only, the first counts
        originals.setdefault(normal(name), name)

    def present(candidates: Sequence[str]) -> tuple[str, ...]:
        return tuple(originals[name] for name in candidates if name in originals)

    questions, answers, contexts = present(QUESTIONS), present(ANSWERS), present(CONTEXTS)
    if not questions and not answers and "assistant" in originals:  # columns named after the speakers
        questions, answers = present(("user", "human"))[:1], (originals["assistant"],)
    if not questions and "input" in originals:  # input and output
        questions, contexts = (originals["input"],), tuple(name for name in contexts if normal(name) != "input")
    return Shape(questions, answers, contexts, present(SYSTEMS), present(HISTORIES), present(DIALOGUES), present(TEXTS))


def normal(name: str) -> str:
    """Return a column's name in the spelling of the lists here: lower case, underscores."""
    return str(name).strip().lower().replace(" ", "_").replace("-", "_")


class Cells:
    """Reads cells of rows, and remembers which columns were read and which were not."""

    def __init__(self, rows: PlacedRows, source: str) -> None:
        """Take the rows, and their name for errors."""
        self.rows, self.source = rows, source
        self.read_columns: dict[str, None] = {}
        self._shapes: dict[tuple[str, ...], Shape] = {}
        self._whole: dict[str, bool] = {}
        self.roles: dict[str, dict[str, None]] = {}
        self.unread_keys: set[str] = set()
        """Keys of messages that were not read."""

    def shape(self, row: Row) -> Shape:
        """Return the roles of a row's columns."""
        key = tuple(row)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = shape_of(key)
        return shape

    @cached_property
    def names(self) -> list[str]:
        """All columns of the rows."""
        kinds = {tuple(row): None for row in self.rows}
        return list(dict.fromkeys(name for kind in kinds for name in kind))

    def cell(self, row: Row, column: str) -> object:
        """Return a cell's value; where pandas turned integers to floats because of gaps, the integers are restored."""
        value = row.get(column)
        if isinstance(value, float):
            if is_missing(value):
                return None
            if value.is_integer() and self._was_whole(column):
                return int(value)
        return value

    def _was_whole(self, column: str) -> bool:
        if column not in self._whole:
            values = [row.get(column) for row in self.rows]
            gaps = any(is_missing(value) for value in values)
            self._whole[column] = gaps and all(
                is_missing(value) or (isinstance(value, float) and value.is_integer()) for value in values
            )
        return self._whole[column]

    def first(self, row: Row, columns: Sequence[str], role: str) -> object:
        """Return the first cell of these columns that is not null, and record the column; None if all are null."""
        for column in columns:
            value = self.cell(row, column)
            if value is not None:
                self.note(role, column)
                return value
        return None

    def note(self, role: str, column: str) -> None:
        """Record that a column was read in a role."""
        self.read_columns[column] = None
        self.roles.setdefault(role, {})[column] = None

    def system(self, row: Row, shape: Shape) -> list[Turn]:
        """Return the system turn of a row's own column, if it has one that is not empty."""
        value = self.first(row, shape.system, "system prompts")
        if value is None or (isinstance(value, str) and not value.strip()):
            return []
        return [Turn("system", cell_text(value, "system prompt"))]

    def join_text(self, row: Row, columns: Sequence[str], role: str, name: str) -> str:
        """Return the texts of several cells, separated by blank lines; Unusable if all are empty."""
        texts = []
        for column in columns:
            value = self.cell(row, column)
            if column in row:
                self.note(role, column)
            if value is not None and str(value).strip():
                texts.append(cell_text(value, name))
        if not texts:
            raise Unusable(f"empty {name}")
        return "\n\n".join(texts)

    def columns_of_key(self, spec: str | None, flag: str = "") -> tuple[str, ...] | None:
        """Return the columns that a key names, separated by commas; None if the key is not set.

        Raises:
            DataError: a column that no row has.
        """
        if spec is None:
            return None
        columns = self._named(spec)
        for column in columns or (spec,):
            if column not in self.names:
                raise no_column(self.source, column, self.names, flag)
        return columns

    def has_columns(self, spec: str) -> bool:
        """Say whether some row has each of the columns that a key names, separated by commas."""
        columns = self._named(spec)
        return bool(columns) and all(column in self.names for column in columns)

    def _named(self, spec: str) -> tuple[str, ...]:
        if spec in self.names:
            return (spec,)
        return tuple(part.strip() for part in spec.split(",") if part.strip())

    def unused_columns(self) -> list[str]:
        """Return the columns, and keys of messages, that were not read in any row."""
        hub = hub_columns.find(self.source)
        # The column by which repeated rows are left out is read without a note.
        exempt = {hub.instruction} if hub is not None and hub.distinct else set()
        columns = [name for name in self.names if name not in self.read_columns and name not in exempt]
        return columns + [f"messages.{key}" for key in sorted(self.unread_keys)]

    def report_to(self, account: Account) -> None:
        """Add which columns were read, and which were not, to an account."""
        for role, columns in self.roles.items():
            account.note_columns(role, columns)
        account.unread_columns.update(dict.fromkeys(self.unused_columns()))


def no_column(source: str, column: str, columns: Iterable[str], purpose: str = "") -> DataError:
    """Return the error for a column that does not exist, with the nearest name that does."""
    names = list(columns)
    guess = nearest(column, names)
    hint = f" Did you mean '{guess}'?" if guess else ""
    return DataError(f"'{source}' has no column '{column}'{purpose}, but {columns_of(names)}.{hint}")


def columns_of(row: Iterable[str]) -> str:
    """Name the columns of a row, for a message."""
    return "the columns " + ", ".join(f"'{printable(name)}'" for name in row)
