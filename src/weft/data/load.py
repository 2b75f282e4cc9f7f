"""Reading rows: local files of several kinds, folders of them, and data sets of the hub.

What cannot be read is refused in one sentence with the file and, where there is one, the line.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from weft.data import parts
from weft.data.parts import ANY, Wanted
from weft.data.sets import first_line, hub_set, saved_set
from weft.errors import DataError

Row = dict[str, Any]

KINDS = (".json", ".jsonl", ".csv", ".parquet", ".txt")
PACKED = (".gz", ".zst")
PLACE, BROKEN = "\x00place", "\x00broken"
"""Columns of our own."""
READ_AS = ", ".join([*KINDS, ".jsonl.gz", ".jsonl.zst"])


def resolve_source(name: str, local_data_dir: str | None) -> str:
    """Return where a data set is looked for: in `local_data_dir` (OpenFedLLM joins the texts), else by its name."""
    if local_data_dir is None:
        return name
    for candidate in (local_data_dir + name, str(Path(local_data_dir) / name)):
        if Path(candidate).expanduser().exists():
            return candidate
    return str(Path(local_data_dir) / name)


def read_rows(source: str, wanted: Wanted = ANY, *, token: bool | None = None) -> list[Row]:
    """Return the rows of a file, of a folder of files in the order of their names, or of a hub data set.

    Raises:
        DataError: nothing there, a broken file (with its line), no such part, or a hub that cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir() and not saved_set(path):
        rows = [row for file in data_files(path, wanted) for row in _read_file(file)]
    elif path.is_file():
        parts.whole(wanted, source)
        rows = _read_file(path)
    elif not path.is_dir() and (source.startswith((".", "/", "~")) or kind_of(path) is not None):
        raise DataError(f"There is no file or folder '{source}': check the path.")
    else:
        return [dict(row) for row in hub_set(source, wanted, token)]
    piece = wanted.asked.piece
    return rows if piece is None else [rows[row] for row in parts.span(len(rows), piece, source)]


def kind_of(path: Path) -> str | None:
    """Return the ending that says how a file is read, or None."""
    suffixes = path.suffixes[-2:]
    if suffixes and suffixes[-1] in PACKED:
        suffixes = suffixes[:-1]
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else None


def data_files(folder: Path, wanted: Wanted = ANY) -> list[Path]:
    """Return the data files of the part of a folder that is meant; DataError if there are none."""
    files = parts.files_of(folder, wanted, kind_of)
    if not files:
        raise DataError(f"The folder '{folder}' holds no data file: {READ_AS} are read.")
    return files


def _read_file(path: Path) -> list[Row]:
    kind = kind_of(path)
    if kind is None:
        raise DataError(f"'{path}' is of no kind that is read: {READ_AS} are.")
    if kind == ".parquet":
        return list(parquet_rows(path))
    if kind == ".jsonl":
        return list(json_lines(path))
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
        return io.BufferedReader(_Frames(open(path, "rb")), 1 << 20)
    return open(path, "rb")


class _Frames(io.RawIOBase):
    """The content of zstd frames; the library's own reader takes a file that was cut short for a whole one."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.left = file, b""
        self.frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self.left:
            packed = self.frame.unused_data if self.frame is not None and self.frame.eof else b""
            packed = packed or self.file.read(1 << 17)
            if not packed:
                if self.frame is not None and not self.frame.eof:
                    raise zstandard.ZstdError("the last frame is not whole")
                return 0
            if self.frame is None or self.frame.eof:
                self.frame = zstandard.ZstdDecompressor().decompressobj()
            self.left = self.frame.decompress(packed)
        given = self.left[: len(buffer)]
        buffer[: len(given)] = given
        self.left = self.left[len(given) :]
        return len(given)

    def close(self) -> None:
        self.file.close()
        super().close()


class _Line(NamedTuple):
    number: int
    text: str
    broken: bool
    """It holds bytes that are no UTF-8, which were replaced."""


def _lines(path: Path, errors: str = "strict") -> Iterator[_Line]:
    """Yield the numbered lines of a text file, split at newlines only (JSON strings may hold U+2028)."""
    number = 0
    with _broken_said(path, lambda: f"after line {number}"), _open(path) as file:
        for number, line in enumerate(file, start=1):
            kind = "utf-8-sig" if number == 1 else "utf-8"
            try:
                yield _Line(number, line.decode(kind), False)
            except UnicodeDecodeError as error:
                if errors == "strict":
                    raise DataError(
                        f"Line {number} of '{path}' is not UTF-8 (byte {error.start}): save the file as UTF-8."
                    ) from None
                yield _Line(number, line.decode(kind, errors), True)


@contextlib.contextmanager
def _broken_said(path: Path, where: Callable[[], str]) -> Iterator[None]:
    """Turn what reading a broken or forbidden file raises into one sentence."""
    import zstandard

    try:
        yield
    except (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise DataError(f"'{path}' is cut short or broken {where()} ({error}): copy it again.") from None
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be read ({error.strerror or error}): check the file and its rights."
        ) from None


def text_chunks(path: Path, size: int = 1 << 20) -> Iterator[tuple[bytes, str]]:
    """Yield a text file in chunks, as bytes and as text, with what is no UTF-8 replaced."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    done = 0
    with _broken_said(path, lambda: f"after byte {done}"), _open(path) as file:
        while raw := file.read(size):
            done += len(raw)
            yield raw, decoder.decode(raw)
        yield b"", decoder.decode(b"", final=True)


def _text(path: Path) -> str:
    return "".join(line.text for line in _lines(path))


def json_lines(path: Path, *, errors: str = "strict") -> Iterator[Row]:
    """Yield the objects of a file of JSON lines.

    With `errors="replace"`, bytes that are no UTF-8 are replaced, such a row has a true BROKEN, and every row has in
    PLACE how many characters were read with it.
    """
    read = 0
    for number, line, broken in _lines(path, errors):
        read += len(line)
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"Line {number} of '{path}' is not JSON ({error}): mend or remove the line.") from None
        if not isinstance(row, dict):
            raise DataError(f"Line {number} of '{path}' is no object with columns: write {{\"column\": value}}.")
        if errors == "replace":
            row[PLACE] = read
            if broken:
                row[BROKEN] = True
        yield row


def _read_json(path: Path, text: str) -> list[Row]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines under the name of JSON
            return list(json_lines(path))
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


def parquet_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a parquet file, a thousand in memory at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"'{path}' is no whole parquet file ({first_line(error)}): copy it again.") from None
