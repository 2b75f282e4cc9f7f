"""Reading rows: local files of several kinds, folders of them, and data sets of the hub.

Errors name the file and, where there is one, the line.
"""

from __future__ import annotations

from pathlib import Path

from weft.data import parts
from weft.data.parts import DEFAULT_SELECTION, Selection
from weft.data.rows import File, PlacedRows, Row, concatenate
from weft.data.sets import hub_set, saved_set
from weft.data.tables import rows_of
from weft.errors import DataError

__all__ = ["Row", "data_files", "hub_set", "kind_of", "read_rows", "resolve_source", "saved_set", "whole_rows"]

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt")
COMPRESSED_SUFFIXES = (".gz", ".zst")
READABLE = ", ".join([*SUFFIXES, ".jsonl.gz", ".jsonl.zst"])


def resolve_source(name: str, local_data_dir: str | None) -> str:
    """Return the path or name of a data set; OpenFedLLM joins the texts of `local_data_dir` and the name."""
    if local_data_dir is None:
        return name
    # A prefix such as `data_` is joined without a slash; a folder may lack its slash at the end.
    for candidate in (local_data_dir + name, str(Path(local_data_dir) / name)):
        if Path(candidate).expanduser().exists():
            return candidate
    return str(Path(local_data_dir) / name)


def read_rows(source: str, selection: Selection = DEFAULT_SELECTION, *, token: bool | None = None) -> PlacedRows:
    """Return the rows of a file, of a folder of files in the order of their names, or of a hub data set.

    Raises:
        DataError: no such file or part, a broken file (with its line), or a hub that cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir() and not saved_set(path):
        rows = concatenate(_read_file(file) for file in data_files(path, selection))
    elif path.is_file():
        parts.require_no_parts(selection, source)
        rows = _read_file(path)
    elif not path.is_dir() and (source.startswith((".", "/", "~")) or kind_of(path) is not None):
        raise DataError(f"There is no file or folder '{source}': check the path.")
    else:
        return PlacedRows((dict(row) for row in hub_set(source, selection, token)), File(source))
    piece = selection.request.piece
    return rows if piece is None else rows.pick(parts.span(len(rows), piece, source))


def whole_rows(source: str, selection: Selection = DEFAULT_SELECTION, *, token: bool | None = None) -> PlacedRows:
    """Return all rows of a source; raises as `read_rows`, and if a row would be left out."""
    rows = read_rows(source, selection, token=token)
    if rows.omissions:
        raise DataError(f"'{source}' cannot be read whole ({rows.omissions.reasons()}): mend or remove these rows.")
    return rows


def kind_of(path: Path) -> str | None:
    """Return the suffix that decides how a file is read, without that of compression; None if it is unknown."""
    suffixes = path.suffixes[-2:]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes = suffixes[:-1]
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def data_files(folder: Path, selection: Selection = DEFAULT_SELECTION) -> list[Path]:
    """Return the data files of the selected part of a folder; DataError if there are none."""
    files = parts.files_of(folder, selection, kind_of)
    if not files:
        raise DataError(f"The folder '{folder}' holds no data file: {READABLE} are read.")
    return files


def _read_file(path: Path) -> PlacedRows:
    kind = kind_of(path)
    if kind is None:
        raise DataError(f"'{path}' has no suffix of a data file: {READABLE} are read.")
    return rows_of(path, kind)
