"""Rows of one file: JSON lines, JSON, CSV, TSV, parquet or plain text.

A broken line is left out and counted with its number. A file whose structure is broken, or more than `BROKEN_SHARE`
of its lines, raises a DataError.
"""

from __future__ import annotations

import csv
import io
import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from weft.data.rows import File, Omissions, PlacedRows, Row
from weft.data.sets import first_line
from weft.data.text_files import lines_of, text_of
from weft.errors import DataError
from weft.json_types import JsonObject

BROKEN_SHARE = 0.1
"""The largest share of broken lines; with more, the file is taken to be of another format than its suffix says."""
LISTS = ("data", "train", "rows", "examples", "instances")
"""Names under which a JSON object holds its rows."""


class Parsed(NamedTuple):
    """A line of JSON lines: its row, or the reason why it has none."""

    row: Row | None
    line: int
    chars_read: int
    """Characters of the file up to its end."""
    replaced: bool = False
    """Whether bytes that are not UTF-8 were replaced in it."""
    reason: str = ""
    refusal: DataError | None = None
    """The error to raise if too many lines are broken."""


def json_lines(path: Path, *, replace: bool = False) -> Iterator[Parsed]:
    """Yield the lines of a file of JSON lines; blank ones are passed over.

    Args:
        path: of the file.
        replace: replace bytes that are not UTF-8; else a line with such bytes is broken.
    """
    chars_read = 0
    for line in lines_of(path):
        chars_read += len(line.text)
        if not line.text.strip():
            continue
        replaced, where = line.bad_byte is not None, f"Line {line.number} of '{path}'"
        row, reason, refusal = None, "", None
        if replaced and not replace:
            reason, refusal = "line that is not UTF-8", line.refusal(path)
        else:
            try:
                row = json.loads(line.text)
            except (ValueError, RecursionError) as error:
                reason = "line that is not JSON"
                refusal = DataError(f"{where} is not JSON ({error}): mend or remove the line.")
            else:
                if not isinstance(row, dict):
                    row, reason = None, "line that is no object with columns"
                    refusal = DataError(f'{where} is no object with columns: write {{"column": value}}.')
        yield Parsed(row, line.number, chars_read, replaced, reason, refusal)


def rows_of(path: Path, kind: str) -> PlacedRows:
    """Return the rows of a file.

    Args:
        path: of the file.
        kind: the suffix that decides how the file is read.

    Raises:
        DataError: it cannot be read, or more than `BROKEN_SHARE` of its lines is broken.
    """
    if kind == ".parquet":
        return PlacedRows(parquet_rows(path), File(str(path)))
    if kind == ".jsonl":
        return _from_lines(path)
    text = text_of(path)
    if kind == ".json":
        return _from_json(path, text)
    if kind in (".csv", ".tsv"):
        return _from_cells(path, text, "\t" if kind == ".tsv" else None)
    return PlacedRows(
        [{"text": part.strip()} for part in text.split("\n\n") if part.strip()], File(str(path), "passage")
    )


def _from_lines(path: Path) -> PlacedRows:
    rows: list[Row] = []
    numbers, omissions, refusal = array("q"), Omissions(), None
    file = File(str(path), "line")
    for parsed in json_lines(path):
        if parsed.row is None:
            omissions.add(parsed.reason, file.place(parsed.line))
            refusal = refusal or parsed.refusal
        else:
            rows.append(parsed.row)
            numbers.append(parsed.line)
    return _with_omissions(PlacedRows(rows, file, numbers), omissions, refusal)


def _with_omissions(rows: PlacedRows, omissions: Omissions, refusal: DataError | None) -> PlacedRows:
    """Return the rows with what was left out; raise the first refusal if too much was."""
    if refusal is not None and too_many(sum(omissions.counts.values()), len(rows)):
        raise refusal
    rows.omissions = omissions
    return rows


def too_many(broken: int, whole: int) -> bool:
    """Return whether the share of broken lines is more than `BROKEN_SHARE`."""
    return broken > BROKEN_SHARE * (broken + whole)


def _from_json(path: Path, text: str) -> PlacedRows:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines in a file called .json
            return _from_lines(path)
        raise DataError(f"Line {error.lineno} of '{path}' is not JSON ({error.msg}): mend the file.") from None
    except RecursionError:
        raise DataError(f"'{path}' is nested too deeply to be rows: write [{{\"column\": value}}, ...].") from None
    notes = []
    if isinstance(content, dict):
        name, content = _inside(content)
        other_lists = [key for key in name[1] if key]
        if other_lists:
            notes.append(
                f"of '{path}' the rows under '{name[0]}' are read, and not what is under {_quoted_list(other_lists)}."
            )
    refusal = DataError(f"'{path}' is no list of objects: write [{{\"column\": value}}, ...].")
    if not isinstance(content, list):
        raise refusal
    file, omissions = File(str(path)), Omissions()
    for number, row in enumerate(content, start=1):
        if not isinstance(row, dict):
            omissions.add("row that is no object with columns", file.place(number))
    numbers = array("q", (number for number, row in enumerate(content, start=1) if isinstance(row, dict)))
    rows = _with_omissions(
        PlacedRows((row for row in content if isinstance(row, dict)), file, numbers),
        omissions,
        refusal if omissions else None,
    )
    rows.notes = notes
    return rows


def _inside(content: JsonObject) -> tuple[tuple[str, list[str]], object]:
    """Return the rows of a JSON object (a list in `LISTS`, or a table by columns), with their key and other lists."""
    columns = content.get("columns")
    if isinstance(columns, list) and isinstance(content.get("data"), list):  # pandas: orient="split"
        return ("", []), [dict(zip(map(str, columns), row, strict=False)) for row in content["data"]]
    for name in LISTS:
        inside = content.get(name)
        if isinstance(inside, list) and any(isinstance(row, dict) for row in inside):
            return (name, [key for key, value in content.items() if key != name and isinstance(value, list)]), inside
    values = list(content.values())
    if len(values) > 1 and all(isinstance(value, dict) for value in values) and _alike([set(v) for v in values]):
        keys = list(values[0])  # pandas: orient="columns", its default
        return ("", []), [{name: column[key] for name, column in content.items()} for key in keys]
    cells = [cell for value in values if isinstance(value, list) for cell in value]
    lists = len(values) > 1 and all(isinstance(value, list) for value in values)
    if lists and not any(isinstance(cell, dict) for cell in cells) and _alike([len(v) for v in values]):
        return ("", []), [dict(zip(content, cells, strict=True)) for cells in zip(*values, strict=True)]
    return ("", []), [content]


def _alike(values: Sequence[object]) -> bool:
    return bool(values[0]) and all(value == values[0] for value in values)


def _from_cells(path: Path, text: str, mark: str | None) -> PlacedRows:
    """Return the rows of a table of cells; without a delimiter, the first line decides which one it is."""
    head, remainder = text.partition("\n")[::2]
    skipped_lines = 0
    if head.strip().lower() in ("sep=,", "sep=;", "sep=\t"):  # Excel's own line that declares the delimiter
        mark, text, skipped_lines = head.strip("\r\n")[4:5], remainder, 1
    mark = mark or _mark(text.partition("\n")[0])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    rows: list[Row] = []
    numbers, omissions, first_refusal = array("q"), Omissions(), None
    file = File(str(path), "line")
    with _long_cells():
        try:
            columns = _column_names(path, next(reader, []))
        except csv.Error as error:
            raise DataError(f"Line {1 + skipped_lines} of '{path}' is not CSV ({error}): mend the line.") from None
        for begin, lines, cells in _records(reader):
            line = begin + skipped_lines
            if isinstance(cells, csv.Error):
                refusal = DataError(f"Line {line} of '{path}' is not CSV ({cells}): mend the line.")
                if "unexpected end" in str(cells):  # an unclosed quote puts the rest of the file in one cell
                    raise refusal
                omissions.add("line that is not CSV", file.place(line), lines)
                first_refusal = first_refusal or refusal
            elif len(cells) == len(columns):
                rows.append(dict(zip(columns, cells, strict=True)))
                numbers.append(line)
            else:
                omissions.add("line with more or fewer cells than columns", file.place(line))
                first_refusal = first_refusal or DataError(
                    f"Line {line} of '{path}' has {len(cells)} cells where the first line names {len(columns)}: mend "
                    "the line."
                )
    table = _with_omissions(PlacedRows(rows, file, numbers), omissions, first_refusal)
    if mark != ",":
        table.notes = [f"the cells of '{path}' are separated by {'tabs' if mark == chr(9) else 'semicolons'}."]
    return table


class _CsvReader(Protocol):
    """What `csv.reader` returns."""

    @property
    def line_num(self) -> int: ...
    def __next__(self) -> list[str]: ...


def _records(reader: _CsvReader) -> Iterator[tuple[int, int, list[str] | csv.Error]]:
    """Yield of every record its first line, its number of lines, and its cells or the error in it."""
    while True:
        begin = reader.line_num + 1
        try:
            cells: list[str] | csv.Error = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells = error
        if not isinstance(cells, list) or cells:
            yield begin, reader.line_num + 1 - begin, cells


def _mark(head: str) -> str:
    """Return the delimiter of a first line: the most frequent sign outside quotes, in doubt the comma."""
    # Every second piece between quotes is outside of them.
    bare = "".join(head.split('"')[::2])
    return max(",;\t", key=lambda mark: (bare.count(mark), mark == ","))


def _column_names(path: Path, heads: list[str]) -> list[str]:
    """Return the names of the columns; a column without a name gets its number."""
    names = [head.strip() or f"column {number}" for number, head in enumerate(heads, start=1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"The first line of '{path}' names the column '{twice}' twice: rename one of them.")
    return names


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let cells be longer than the library's 131,072 characters."""
    before = csv.field_size_limit((1 << 31) - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def parquet_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a parquet file, a thousand in memory at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"'{path}' is damaged or not a parquet file ({first_line(error)}): copy it again.") from None


def _quoted_list(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
