"""Reading rows: local files of several kinds, folders of them, and data sets of the hub.

What cannot be read is refused in one sentence with the file and, where there is one, the line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from weft.data import known
from weft.errors import DataError

Row = dict[str, Any]

KINDS = (".json", ".jsonl", ".csv", ".parquet", ".txt")
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


def read_rows(source: str, *, split: str | None = None, token: bool | None = None) -> list[Row]:
    """Return the rows of a file, of a folder of files in the order of their names, or of a hub data set.

    Raises:
        DataError: nothing there, a broken file (with its line), or a hub that cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _read_file(path)
    if source.startswith((".", "/", "~")) or _kind(path) is not None:
        raise DataError(f"There is no file or folder '{source}': check the path.")
    return _read_hub(source, split, token)


def _kind(path: Path) -> str | None:
    suffixes = path.suffixes[-2:]
    if suffixes and suffixes[-1] in PACKED:
        suffixes = suffixes[:-1]
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else None


def data_files(folder: Path) -> list[Path]:
    """Return the data files of a folder by their names; DataError if there are none."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and _kind(path) is not None)
    if not files:
        raise DataError(f"The folder '{folder}' holds no data file: {READ_AS} are read.")
    return files


def _read_folder(folder: Path) -> list[Row]:
    if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
        return _from_datasets(str(folder), lambda datasets: datasets.load_from_disk(str(folder)))
    return [row for path in data_files(folder) for row in _read_file(path)]


def _read_file(path: Path) -> list[Row]:
    kind = _kind(path)
    if kind is None:
        raise DataError(f"'{path}' is of no kind that is read: {READ_AS} are.")
    if kind == ".parquet":
        return _read_parquet(path)
    if kind == ".jsonl":
        return list(_json_lines(path))
    text = _text(path)
    if kind == ".json":
        return _read_json(path, text)
    if kind == ".csv":
        return _read_csv(path, text)
    return [{"text": part.strip()} for part in text.split("\n\n") if part.strip()]


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        return io.BytesIO(_unpacked(path.read_bytes()))
    return open(path, "rb")


def _unpacked(content: bytes) -> bytes:
    """Decompress zstd frames; the library's own reader takes a file that was cut short for a whole one."""
    import zstandard

    parts: list[bytes] = []
    while content:
        frame = zstandard.ZstdDecompressor().decompressobj()
        parts.append(frame.decompress(content))
        if not frame.eof:
            raise zstandard.ZstdError("the last frame is not whole")
        content = frame.unused_data
    return b"".join(parts)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a text file, split at newlines only (JSON strings may hold U+2028)."""
    import zstandard

    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"Line {number} of '{path}' is not UTF-8 (byte {error.start}): save the file as UTF-8."
        ) from None
    except (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise DataError(f"'{path}' is cut short or broken after line {number} ({error}): copy it again.") from None
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be read ({error.strerror or error}): check the file and its rights."
        ) from None


def _text(path: Path) -> str:
    return "".join(line for _, line in _lines(path))


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"Line {number} of '{path}' is not JSON ({error}): mend or remove the line.") from None
        if not isinstance(row, dict):
            raise DataError(f"Line {number} of '{path}' is no object with columns: write {{\"column\": value}}.")
        yield row


def _read_json(path: Path, text: str) -> list[Row]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines under the name of JSON
            return list(_json_lines(path))
        raise DataError(f"Line {error.lineno} of '{path}' is not JSON ({error.msg}): mend the file.") from None
    if isinstance(rows, dict):
        rows = rows.get("data", [rows])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"'{path}' is no list of objects: write [{{\"column\": value}}, ...].")
    return rows


def _read_csv(path: Path, text: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        heads = next(reader, [])
        rows: list[Row] = []
        for cells in reader:
            if len(cells) != len(heads):
                if not cells:
                    continue
                raise DataError(
                    f"Line {reader.line_num} of '{path}' has {len(cells)} cells where the first line names "
                    f"{len(heads)}: mend the line."
                )
            rows.append(dict(zip(heads, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"Line {reader.line_num} of '{path}' is not CSV ({error}): mend the line.") from None
    return rows


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"'{path}' is no whole parquet file ({_first_line(error)}): copy it again.") from None
    return rows


def _read_hub(name: str, split: str | None, token: bool | None) -> list[Row]:
    columns = known.find(name)
    config = columns.config if columns else None
    part = split or (columns.split if columns else "train")
    return _from_datasets(name, lambda datasets: datasets.load_dataset(name, config, split=part, token=token))


def _from_datasets(name: str, load: Callable[[Any], Any]) -> list[Row]:
    import datasets

    try:
        found = load(datasets)
        if isinstance(found, dict):
            found = found.get("train") or next(iter(found.values()))
        return [dict(row) for row in found]
    except Exception as error:  # every kind of network, hub and file error comes out of this library
        raise DataError(
            f"'{name}' is no local file or folder, and could not be loaded as a data set "
            f"({_first_line(error)}): check the name, the path or the network."
        ) from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
