"""Plain text, document by document, from files that may be larger than memory.

A row of JSON lines, CSV, parquet or a hub data set is a document; a plain text file is cut at blank lines into
documents of at least `PASSAGE` characters. Bytes that are not UTF-8, and halves of characters, are replaced, and the
document is flagged. A row without text becomes a document without text, with the reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from weft.data import load, parts, sets
from weft.data.columns import columns_of, no_column, shape_of
from weft.data.parts import DEFAULT_SELECTION, Selection
from weft.data.rows import NO_SIGN, File, Row
from weft.data.tables import json_lines, parquet_rows, too_many
from weft.data.text_files import text_chunks
from weft.data.turns import is_missing
from weft.errors import DataError

PASSAGE = 4096
LONGEST = 1 << 20
AHEAD = 100
"""How many first rows are searched for the columns that are needed."""
REPLACED = "\ufffd"
TO_SPLIT = " to split by"

T = TypeVar("T")


class Document(NamedTuple):
    """A text; None where the row holds none."""

    text: str | None
    broken: bool = False
    """Whether bytes that are not UTF-8, or half a character, were replaced."""
    value: str = ""
    """The row's value of split_column."""
    bytes_read: int = 0
    """Bytes of the file that were read up to the end of the document."""
    reason: str = "empty text"
    """Why there is no text; unused if there is."""
    place: int = 0
    """The line or row of the file."""


@dataclass(frozen=True)
class TextSource:
    """A file, or a data set of the hub."""

    name: str
    selection: Selection = DEFAULT_SELECTION
    """The part of a data set; a file is read whole."""
    token: bool | None = None
    column: str | None = None
    """The column whose value is stored with every document."""
    purpose: str = field(default=TO_SPLIT, compare=False)
    """What the column is for, in words."""
    columns: dict[str, list[str]] = field(default_factory=dict, compare=False)
    """The columns that are `read`, and those that are `unused`, once the first rows are read."""

    def fingerprint(self) -> str:
        """Return a digest that identifies this text: of a file its path, size and time of change."""
        path = self.path
        if path.is_file():
            status = path.stat()
            identity: list[object] = [str(path.resolve()), status.st_size, status.st_mtime_ns]
        else:
            identity = [self.name, self.selection.split, getattr(self._hub(), "_fingerprint", "")]
        return hashlib.sha256(json.dumps([*identity, self.column, PASSAGE]).encode()).hexdigest()

    @property
    def path(self) -> Path:
        """The path, if it is a file."""
        return Path(self.name).expanduser()

    def size(self) -> int:
        """Return the bytes of the file; 0: not known."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def documents(self) -> Iterator[Document]:
        """Yield the documents in their order.

        Raises:
            DataError: the file is broken, is empty, or has no column of text.
        """
        kind = load.kind_of(self.path)
        if kind == ".txt":
            yield from _passages(self.path)
        elif kind == ".jsonl":
            yield from self._from_lines()
        elif kind == ".parquet":
            yield from self._from_rows(enumerate(parquet_rows(self.path), start=1))
        elif kind is not None:
            rows = load.read_rows(self.name)
            for reason, (count, _) in rows.omissions.items():
                yield from (Document(None, reason=reason) for _ in range(count))
            yield from self._from_rows(zip(rows.numbers, rows, strict=True))
        else:
            yield from self._from_rows(enumerate(map(dict, self._hub()), start=1))

    def file(self) -> File:
        """Return the file with the unit in which its documents are counted."""
        kind = load.kind_of(self.path)
        return File(
            self.name, {".txt": "passage", ".jsonl": "line", ".csv": "line", ".tsv": "line"}.get(kind or "", "row")
        )

    def _hub(self) -> parts.HubRows:
        return sets.hub_set(self.name, self.selection, self.token)

    def _from_lines(self) -> Iterator[Document]:
        """Yield the documents of JSON lines; DataError at the end if too many lines are broken."""
        whole = broken = 0
        first: DataError | None = None
        for parsed in self._require_columns(json_lines(self.path, replace=True), lambda line: line.row):
            if parsed.row is None:
                broken += 1
                first = first or parsed.refusal
                yield Document(None, bytes_read=parsed.chars_read, reason=parsed.reason, place=parsed.line)
            else:
                whole += 1
                yield self._document(parsed.row, parsed.line, bytes_read=parsed.chars_read, broken=parsed.replaced)
        if first is not None and too_many(broken, whole):
            raise first

    def _from_rows(self, rows: Iterable[tuple[int, Row]]) -> Iterator[Document]:
        for number, row in self._require_columns(rows, lambda numbered: numbered[1]):
            yield self._document(row, number)

    def _require_columns(self, items: Iterable[T], row_of: Callable[[T], Row | None]) -> Iterator[T]:
        """Return the items unchanged; DataError if none of the first rows has the columns that are needed."""
        remaining = iter(items)
        ahead = list(islice(remaining, AHEAD))
        rows = [row for item in ahead if (row := row_of(item)) is not None]
        names = list(dict.fromkeys(name for row in rows for name in row))
        if not ahead:
            raise DataError(f"'{self.name}' is empty: give a file with at least one row.")
        if rows and _text_column(dict.fromkeys(names)) is None:
            raise DataError(
                f"'{self.name}' has {columns_of(names)}, but plain text is read from a column 'text': rename one."
            )
        if rows and self.column is not None and self.column not in names:
            raise no_column(self.name, self.column, names, self.purpose)
        if rows:
            texts = list(dict.fromkeys(name for row in rows if (name := _text_column(row)) is not None))
            self.columns["read"] = texts
            self.columns["unused"] = [name for name in names if name not in (*texts, self.column)]
        return chain(ahead, remaining)

    def _document(self, row: Row, place: int, *, bytes_read: int = 0, broken: bool = False) -> Document:
        column = _text_column(row)
        cell = None if column is None else row[column]
        value = "" if self.column is None else row.get(self.column)
        value = "(none)" if value is None or (value == "" and self.column) else str(value)
        if isinstance(cell, str) and cell.strip():
            text = NO_SIGN.sub(REPLACED, cell) if not cell.isascii() else cell
            return Document(text, broken or text != cell, NO_SIGN.sub(REPLACED, value), bytes_read, place=place)
        empty = is_missing(cell) or isinstance(cell, str)
        reason = "no column of text" if column is None else "empty text" if empty else "text that is no text"
        return Document(None, broken, value, bytes_read, reason, place)


def _text_column(row: Row) -> str | None:
    """Return the column of the text, whatever the case of its name."""
    columns = shape_of(row).text
    return columns[0] if columns else None


def text_sources(
    name: str,
    selection: Selection = DEFAULT_SELECTION,
    *,
    token: bool | None = None,
    column: str | None = None,
    purpose: str = TO_SPLIT,
) -> list[TextSource]:
    """Return the sources of a name: a file, the files of a folder's part, or a data set of the hub.

    A slice of files is for the caller to take, once their documents are counted.

    Raises:
        DataError: nothing there, an empty folder, or no such part.
    """
    path = Path(name).expanduser()
    if path.is_dir() and not sets.saved_set(path):
        files = load.data_files(path, selection)
        return [TextSource(str(file), DEFAULT_SELECTION, token, column, purpose) for file in files]
    if path.is_file():
        parts.require_no_parts(selection, name)
        return [TextSource(name, DEFAULT_SELECTION, token, column, purpose)]
    if not path.exists() and (name.startswith((".", "/", "~")) or load.kind_of(path) is not None):
        raise DataError(f"There is no file or folder '{name}': check the path.")
    return [TextSource(name, selection, token, column, purpose)]


def _passages(path: Path) -> Iterator[Document]:
    """Yield a plain text file in passages that end at blank lines."""
    pending, bytes_read = "", 0
    for raw, text in text_chunks(path):
        bytes_read += len(raw)
        # U+FFFD may also stand in the file itself, in which case nothing was replaced.
        broken = REPLACED in text and REPLACED.encode() not in raw
        pending += text.replace("\r\n", "\n")
        while (end := _passage_end(pending)) > 0:
            yield Document(pending[:end].strip() or None, broken and REPLACED in pending[:end], bytes_read=bytes_read)
            pending = pending[end:]
    if pending.strip():
        yield Document(pending.strip(), REPLACED in pending, bytes_read=bytes_read)
    elif bytes_read == 0:
        raise DataError(f"'{path}' is empty: give a file with at least one row.")


def _passage_end(text: str) -> int:
    """Return where the first passage ends; 0 if more text must be read to know."""
    blank = text.find("\n\n", PASSAGE)
    if 0 <= blank <= LONGEST:
        return blank + 2
    if len(text) < LONGEST:
        return 0
    line = text.rfind("\n", PASSAGE, LONGEST)
    return line + 1 if line > 0 else LONGEST
