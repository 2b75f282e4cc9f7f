"""Numbers over time: one JSON object a line, committed with the round, cut back on resume.

metrics.jsonl and timing.jsonl are both such logs. What is deterministic goes to the first, so that a resumed run
writes the very same bytes as one that was never stopped; what is not goes to the second.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from weft.core.files import whole_lines
from weft.errors import DataError, RunError
from weft.json_types import JsonObject

if TYPE_CHECKING:
    import pandas


PARTS = ("groups", "left_out")
"""Parts of an evaluation's record that hold records."""


def plain(value: Any) -> Any:
    """Return the value as JSON can hold it: NaN and infinities become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def to_line(record: JsonObject) -> str:
    """Return a record as one line of JSON, without the line's end; floats are written so that they read back equal."""
    return json.dumps(plain(record), allow_nan=False)


class MetricsLog:
    """A log that is only appended to; lines are sure to last once they are committed."""

    def __init__(self, path: Path, hear: Callable[[JsonObject], None] = lambda _: None) -> None:
        """Open the log; `hear` is called with every line that is added."""
        self._path, self._hear = path, hear
        self._file = open(path, "ab")  # noqa: SIM115 - open for the life of the log

    def append(self, record: JsonObject) -> None:
        """Add one line."""
        self._file.write(to_line(record).encode() + b"\n")
        self._hear(record)

    def size(self) -> int:
        """Return the length of the log in bytes, with what is not written yet."""
        return self._file.tell()

    def flush(self) -> None:
        """Hand all lines to the system: a kill of this process loses none of them."""
        self._file.flush()

    def sync(self) -> None:
        """Make the lines that were flushed durable; another thread may append meanwhile."""
        os.fsync(self._file.fileno())

    def commit(self) -> int:
        """Make all lines durable and return the length of the file, in bytes."""
        self.flush()
        self.sync()
        return self._file.seek(0, os.SEEK_END)

    def truncate(self, offset: int) -> None:
        """Forget what was written after `offset` bytes, which `commit` returned.

        Raises:
            RunError: the file is shorter than that.
        """
        size = self.commit()
        if size < offset:
            raise RunError(f"'{self._path}' has {size} bytes where {offset} were committed: something else cut it.")
        self._file.truncate(offset)
        self.commit()

    def close(self) -> None:
        """Commit and close."""
        if not self._file.closed:
            try:
                self.commit()
            finally:
                with suppress(OSError):  # commit says it
                    self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> list[JsonObject]:
    """Return the records of a log; a missing file has none, and a last line that was cut short is left out.

    Raises:
        DataError: a line is no JSON object; its number is given.
    """
    records = []
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise DataError(f"Line {number} of '{path}' is no JSON object: delete the line, or restore the file.")
        records.append(record)
    return records


def flat(evaluation: JsonObject, separator: str) -> JsonObject:
    """Return the numbers of an evaluation's record by one name each, without those of single clients.

    What is of clients that were left out begins with "left_out"; what says how unlike clients are ends with its name.
    """
    others = ("event", "round", "clients", "members", *PARTS)
    numbers = {key: value for key, value in evaluation.items() if key not in others}
    for metric, spread in (evaluation.get("groups") or {}).items():
        numbers |= {f"{metric}{separator}{name}": value for name, value in spread.items() if name != "worst_client"}
    if apart := evaluation.get("left_out"):
        numbers |= {f"left_out{separator}{name}": value for name, value in flat(apart, separator).items()}
    return numbers


def to_frame(records: list[JsonObject]) -> pandas.DataFrame:
    """Return one row a round (the index), what was logged of it side by side; columns of evaluations begin "eval_".

    Takes lines of metrics.jsonl, or these and those of timing.jsonl. The values of single clients are left out.
    """
    import pandas

    rows: dict[int, JsonObject] = {}
    for record in records:
        row = rows.setdefault(record["round"], {})
        evaluation = record.get("event") in ("eval", "tasks")
        if evaluation:
            row.update({f"eval_{key}": value for key, value in flat(record, "_").items()})
        else:
            row.update({key: value for key, value in record.items() if key not in ("event", "round")})
    index = pandas.Index(sorted(rows), name="round", dtype="int64")
    return pandas.DataFrame([rows[round] for round in index], index=index)
