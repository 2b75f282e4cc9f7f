"""Plain text, document by document, from files that may be larger than memory.

A row of JSON lines, CSV, parquet or a hub data set is a document; a plain text file is cut at blank lines into
documents of at least `PASSAGE` characters. Bytes that are no UTF-8 are replaced, and the document is marked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from weft.data import load, parts, sets
from weft.data.formats import TEXTS, columns_of, no_column
from weft.data.parts import ANY, Wanted
from weft.errors import DataError

PASSAGE = 4096
LONGEST = 1 << 20
REPLACED = "\ufffd"


class Document(NamedTuple):
    """A text; None where the row holds none."""

    text: str | None
    broken: bool = False
    """It holds bytes that are no UTF-8."""
    value: str = ""
    """Of the column that was named."""
    at: int = 0
    """Bytes of the file that are read so far."""


@dataclass(frozen=True)
class TextSource:
    """A file, or a data set of the hub."""

    name: str
    wanted: Wanted = ANY
    """Of a data set: which part. A file is read whole."""
    token: bool | None = None
    column: str | None = None
    """Whose values are told with every document."""

    def fingerprint(self) -> str:
        """Return what tells this text from any other: of a file its place, size and time of change."""
        path = self.path
        if path.is_file():
            seen = path.stat()
            seen_as: list[Any] = [str(path.resolve()), seen.st_size, seen.st_mtime_ns]
        else:
            seen_as = [self.name, self.wanted.split, getattr(self._hub(), "_fingerprint", "")]
        return hashlib.sha256(json.dumps([*seen_as, self.column, PASSAGE]).encode()).hexdigest()

    @property
    def path(self) -> Path:
        """Where it lies, if it is a file."""
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
            yield from self._from_rows(load.json_lines(self.path, errors="replace"))
        elif kind == ".parquet":
            yield from self._from_rows(load.parquet_rows(self.path))
        elif kind is not None:
            yield from self._from_rows(iter(load.read_rows(self.name)))
        else:
            yield from self._from_rows(dict(row) for row in self._hub())

    def _hub(self) -> Any:
        return sets.hub_set(self.name, self.wanted, self.token)

    def _from_rows(self, rows: Iterator[dict[str, Any]]) -> Iterator[Document]:
        first = next(rows, None)
        if first is None:
            raise DataError(f"'{self.name}' is empty: give a file with at least one row.")
        names = [name for name in first if name not in (load.PLACE, load.BROKEN)]
        column = next((column for column in TEXTS if column in first), None)
        if column is None:
            raise DataError(
                f"'{self.name}' has {columns_of(names)}, but plain text is read from a column 'text': rename one."
            )
        if self.column is not None and self.column not in first:
            raise no_column(self.name, self.column, names, " to split by")
        yield self._document(first, column)
        for row in rows:
            yield self._document(row, column)

    def _document(self, row: dict[str, Any], column: str) -> Document:
        said, at = row.get(column), int(row.pop(load.PLACE, 0))
        value = "" if self.column is None else row.get(self.column)
        value = "(none)" if value is None or (value == "" and self.column) else str(value)
        text = said if isinstance(said, str) and said.strip() else None
        return Document(text, bool(row.pop(load.BROKEN, False)), value, at)


def text_sources(
    name: str, wanted: Wanted = ANY, *, token: bool | None = None, column: str | None = None
) -> list[TextSource]:
    """Return the sources of a name: a file, the files of a folder's part, or a data set of the hub.

    A slice of files is for the caller to take, once their documents are counted.

    Raises:
        DataError: nothing there, an empty folder, or no such part.
    """
    path = Path(name).expanduser()
    if path.is_dir() and not sets.saved_set(path):
        return [TextSource(str(file), ANY, token, column) for file in load.data_files(path, wanted)]
    if path.is_file():
        parts.whole(wanted, name)
        return [TextSource(name, ANY, token, column)]
    if not path.exists() and (name.startswith((".", "/", "~")) or load.kind_of(path) is not None):
        raise DataError(f"There is no file or folder '{name}': check the path.")
    return [TextSource(name, wanted, token, column)]


def _passages(path: Path) -> Iterator[Document]:
    """Yield a plain text file in passages that end at blank lines."""
    left, at = "", 0
    for raw, text in load.text_chunks(path):
        at += len(raw)
        broken = REPLACED in text and REPLACED.encode() not in raw
        left += text.replace("\r\n", "\n")
        while (cut := _cut(left)) > 0:
            yield Document(left[:cut].strip() or None, broken and REPLACED in left[:cut], at=at)
            left = left[cut:]
    if left.strip():
        yield Document(left.strip(), REPLACED in left, at=at)
    elif at == 0:
        raise DataError(f"'{path}' is empty: give a file with at least one row.")


def _cut(text: str) -> int:
    """Return where the first passage ends, 0 if that is not known yet."""
    blank = text.find("\n\n", PASSAGE)
    if 0 <= blank <= LONGEST:
        return blank + 2
    if len(text) < LONGEST:
        return 0
    line = text.rfind("\n", PASSAGE, LONGEST)
    return line + 1 if line > 0 else LONGEST
