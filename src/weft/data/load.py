"""Reading rows: local files of several kinds, folders of them, and data sets of the hub.

What cannot be read is refused in one sentence with the file and, where there is one, the line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from weft.data import known
from weft.data.rows import File, Row, Rows, joined
from weft.data.tables import first_line, rows_of
from weft.errors import DataError

__all__ = ["Row", "data_files", "hub_set", "kind_of", "read_rows", "resolve_source", "saved_set", "whole_rows"]

KINDS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt")
PACKED = (".gz", ".zst")
READ_AS = ", ".join([*KINDS, ".jsonl.gz", ".jsonl.zst"])


def resolve_source(name: str, local_data_dir: str | None) -> str:
    """Return where a data set is looked for: in `local_data_dir` (OpenFedLLM joins the texts), else by its name."""
    if local_data_dir is None:
        return name
    for candidate in (local_data_dir + name, str(Path(local_data_dir) / name)):
        if Path(candidate).expanduser().exists():
            return candidate
    return str(Path(local_data_dir) / name)


def read_rows(source: str, *, split: str | None = None, token: bool | None = None) -> Rows:
    """Return the rows of a file, of a folder of files in the order of their names, or of a hub data set.

    Raises:
        DataError: nothing there, a broken file (with its line), or a hub that cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _read_file(path)
    if source.startswith((".", "/", "~")) or kind_of(path) is not None:
        raise DataError(f"There is no file or folder '{source}': check the path.")
    return Rows((dict(row) for row in hub_set(source, split, token)), File(source))


def whole_rows(source: str, *, split: str | None = None) -> Rows:
    """Return the rows of a source that must be whole; raises as `read_rows`, and for a row that is left out."""
    rows = read_rows(source, split=split)
    if rows.left:
        raise DataError(f"'{source}' cannot be read whole ({rows.left.reasons()}): mend or remove these rows.")
    return rows


def kind_of(path: Path) -> str | None:
    """Return the ending that says how a file is read, or None."""
    suffixes = path.suffixes[-2:]
    if suffixes and suffixes[-1] in PACKED:
        suffixes = suffixes[:-1]
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else None


def data_files(folder: Path) -> list[Path]:
    """Return the data files of a folder by their names; DataError if there are none."""
    # What begins with a dot is hidden: a Mac's `._rows.jsonl` is no data.
    shown = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    files = sorted(path for path in shown if kind_of(path) is not None)
    if not files:
        raise DataError(f"The folder '{folder}' holds no data file: {READ_AS} are read.")
    return files


def saved_set(folder: Path) -> bool:
    """Say whether a folder is a data set that the `datasets` library saved."""
    return (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists()


def _read_folder(folder: Path) -> Rows:
    if saved_set(folder):
        return Rows((dict(row) for row in hub_set(str(folder), None, None)), File(str(folder)))
    return joined(_read_file(path) for path in data_files(folder))


def _read_file(path: Path) -> Rows:
    kind = kind_of(path)
    if kind is None:
        raise DataError(f"'{path}' is of no kind that is read: {READ_AS} are.")
    return rows_of(path, kind)


def hub_set(name: str, split: str | None, token: bool | None) -> Any:
    """Return a data set of the hub, or one that was saved to a folder, its rows still on disk."""
    if Path(name).is_dir():
        return _from_datasets(name, lambda datasets: datasets.load_from_disk(name))
    columns = known.find(name)
    config = columns.config if columns else None
    part = split or (columns.split if columns else "train")
    return _from_datasets(name, lambda datasets: datasets.load_dataset(name, config, split=part, token=token))


def _from_datasets(name: str, load: Callable[[Any], Any]) -> Any:
    import datasets

    try:
        found = load(datasets)
        return (found.get("train") or next(iter(found.values()))) if isinstance(found, dict) else found
    except Exception as error:  # every kind of network, hub and file error comes out of this library
        raise DataError(
            f"'{name}' is no local file or folder, and could not be loaded as a data set "
            f"({first_line(error)}): check the name, the path or the network."
        ) from None
