"""The folder of an evaluation: its settings, and a file of records for each task, which grows as items are done."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from weft.core.digests import digest_of
from weft.core.files import drop_unfinished_line, json_line, whole_lines, write_atomic
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.tasks.declaration import EvalTask, as_json
from weft.tasks.requests import Record

SETTINGS = "settings.json"
ITEMS = "items"
REPLIES = "replies.jsonl"
"""What an endpoint answered so far."""
FOLDER, END = "evaluation", "end"
"""Of a run's directory: its evaluations, and that of its end."""


class Store:
    """Records of one evaluation on disk."""

    def __init__(self, folder: Path, settings: JsonObject, *, overwrite: bool = False) -> None:
        """Open the folder of an evaluation, or make it.

        Args:
            folder: of the evaluation.
            settings: what its records depend on beside the task: the model, the prompts' form, the seed.
            overwrite: delete the records of another evaluation first.

        Raises:
            ConfigError: the folder holds records of another evaluation, or something else.
        """
        self.folder, self.settings = folder, settings
        self._check(folder, overwrite)
        try:
            (folder / ITEMS).mkdir(parents=True, exist_ok=True)
            write_atomic(folder / SETTINGS, (json.dumps(settings, indent=1, sort_keys=True) + "\n").encode())
        except OSError as error:
            raise ConfigError(
                f"The folder '{folder}' cannot be written ({error.strerror}): give another --output_dir."
            ) from None

    def _check(self, folder: Path, overwrite: bool) -> None:
        if not folder.exists():
            return
        if not folder.is_dir() or (any(folder.iterdir()) and not (folder / SETTINGS).exists()):
            raise ConfigError(f"'{folder}' holds something else than an evaluation: give another --output_dir.")
        if overwrite:
            for path in [*(folder / ITEMS).glob("*.jsonl"), folder / "results.json", folder / REPLIES]:
                path.unlink(missing_ok=True)
            return
        if (folder / SETTINGS).exists():
            former = _former(folder / SETTINGS)
            changes = [key for key in sorted({*former, *self.settings}) if former.get(key) != self.settings.get(key)]
            if changes:
                raise ConfigError(
                    f"'{folder}' holds results of another evaluation: {_differences(changes, former, self.settings)}. "
                    "Give another --output_dir, or --overwrite."
                )

    def records(self, task: EvalTask) -> dict[int, Record]:
        """Return the records of a task so far, by the items' numbers; a line that was not finished counts as none.

        Raises:
            ConfigError: they are of the task as it was before its file changed, or a line is broken; its number is
                given.
        """
        path = self._file(task)
        records = {}
        for number, line in enumerate(whole_lines(path), 1):
            try:
                data = json.loads(line)
                if number > 1:
                    record = Record.of(data)
                    records[record.number] = record
                    continue
                digest = data.get("task")
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ConfigError(
                    f"Line {number} of '{path}' is no record of an item: delete the file, and the task is put again."
                ) from None
            if digest != task_digest(as_json(task)):
                raise ConfigError(
                    f"'{path}' was written for the task '{task.name}' as it was before its file, or its settings, "
                    "changed: give another --output_dir, or --overwrite."
                )
        drop_unfinished_line(path)
        return records

    def add(self, task: EvalTask, records: Sequence[Record]) -> None:
        """Append records, durably."""
        path = self._file(task)
        head = b"" if path.exists() and path.stat().st_size else _line({"task": task_digest(as_json(task))})
        with open(path, "ab") as file:
            file.write(head + b"".join(_line(record.as_json()) for record in records))
            file.flush()
            os.fsync(file.fileno())

    def date(self, task: EvalTask) -> str:
        """Return the day (UTC, ISO 8601) on which the last record of a task was written."""
        return datetime.fromtimestamp(self._file(task).stat().st_mtime, UTC).date().isoformat()

    def _file(self, task: EvalTask) -> Path:
        return self.folder / ITEMS / f"{task.name}.jsonl"


def task_digest(declaration: JsonObject) -> str:
    """Return the digest of a task's declaration, as `as_json` and the results have it."""
    return digest_of([json.dumps(declaration, sort_keys=True)])


def _former(path: Path) -> JsonObject:
    try:
        former = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        former = None
    if not isinstance(former, dict):
        raise ConfigError(
            f"'{path}' does not say what the results beside it are of: give another --output_dir, or --overwrite."
        )
    return former


def _line(data: JsonObject) -> bytes:
    return (json_line(data) + "\n").encode()


def _differences(keys: Sequence[str], former: JsonObject, now: JsonObject) -> str:
    return ", ".join(f"{key} was {json.dumps(former.get(key))} and is {json.dumps(now.get(key))}" for key in keys)
