"""The directory of a study: its runs, what each of them was to be, which failed and why.

    study.json  failures.jsonl  times.jsonl  runs/ARM/.../seed_N/   choice/ARM/.../setting_N/seed_N/
    table.csv  differences.csv  picture.svg  study.html

What is done is known by the run directories themselves. One process at a time works on a study: it holds a lock that
the kernel frees when the process ends.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from weft.config import VOLATILE
from weft.core.files import json_line, whole_lines, write_atomic
from weft.errors import ConfigError, RunInUse
from weft.json_types import JsonObject
from weft.launch.paths import absolute
from weft.launch.run import Run
from weft.runs.layout import RunDir
from weft.runs.start import STUDY
from weft.studies.cells import Cell

FAILURES, TIMES, LOCK = "failures.jsonl", "times.jsonl", ".study.lock"
MOST_CELLS = 5
"""Differing cells that a message names."""


class StudyDir:
    """The directory of a study, locked between `open` and `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def __enter__(self) -> StudyDir:
        """Make the directory and take its lock.

        Raises:
            ConfigError: it holds something else, cannot be written, or another process works there.
        """
        try:
            others = sorted(os.listdir(self.path)) if self.path.exists() else []
            if others and not {STUDY, LOCK} & set(others):
                raise ConfigError(
                    f"The directory '{self.path}' holds files that belong to no study ('{others[0]}'): give an empty "
                    "or a new --output_dir."
                )
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise RunInUse(
                f"Another process works on the study in '{self.path}': wait for it, stop it, or give another "
                "--output_dir."
            ) from None
        except OSError as error:
            self.close()
            raise ConfigError(
                f"The directory '{self.path}' cannot be written ({error.strerror}): give another --output_dir."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def record(self, cells: Sequence[Cell]) -> list[str]:
        """Write down what runs are to be, once nothing is refused; return the names of former ones that are not wanted.

        Raises:
            ConfigError: a run of that name was begun with other keys.
        """
        former = self._former()
        keys = {cell.name: _plain(cell) for cell in cells}
        changed = {name: _differences(former[name], keys[name]) for name in keys if name in former}
        changed = {name: keys for name, keys in changed.items() if keys and self._begun(former[name])}
        if changed:
            named = [f"'{name}' ({'; '.join(words)})" for name, words in list(changed.items())[:MOST_CELLS]]
            more = f" and {len(changed) - MOST_CELLS} more" if len(changed) > MOST_CELLS else ""
            raise ConfigError(
                f"The study in '{self.path}' was begun with other keys in {', '.join(named)}{more}: bring them back, "
                "or give another --output_dir."
            )
        merged = former | keys
        if merged != former:
            write_atomic(self.path / STUDY, (json.dumps(merged, indent=1) + "\n").encode())
        return [name for name in former if name not in keys]

    def _former(self) -> dict[str, JsonObject]:
        try:
            former: dict[str, JsonObject] = json.loads((self.path / STUDY).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            raise ConfigError(
                f"'{self.path / STUDY}' is damaged: bring it back, or give another --output_dir."
            ) from None
        return former

    def _begun(self, keys: JsonObject) -> bool:
        return RunDir(keys["output_dir"]).holds_run

    def failures(self) -> dict[str, str]:
        """Return why runs failed, by name: the newest reason of those that are not done."""
        lines = [json.loads(line) for line in whole_lines(self.path / FAILURES)]
        return {line["run"]: line["why"] for line in lines}

    def add_failure(self, cell: Cell, why: str, trace: str) -> None:
        """Keep why a run failed."""
        self._append(FAILURES, {"run": cell.name, "why": why, "trace": trace})

    def times(self) -> dict[str, float]:
        """Return how many seconds runs took as a whole, by name."""
        lines = [json.loads(line) for line in whole_lines(self.path / TIMES)]
        return {line["run"]: line["seconds"] for line in lines}

    def add_time(self, cell: Cell, seconds: float) -> None:
        """Keep how many seconds a run took, its start and its end included."""
        self._append(TIMES, {"run": cell.name, "seconds": seconds})

    def _append(self, name: str, record: JsonObject) -> None:
        with open(self.path / name, "a", encoding="utf-8") as file:
            file.write(json_line(record) + "\n")
            file.flush()
            os.fsync(file.fileno())


def is_done(cell: Cell) -> bool:
    """Say whether a run has come to its end."""
    return RunDir(cell.folder).holds_run and Run(cell.folder).finished


def _plain(cell: Cell) -> JsonObject:
    """Return the keys of a run as its own directory would keep them."""
    plain: JsonObject = json.loads(json.dumps(absolute(cell.config.model_dump(mode="json"))))
    return plain


def _differences(former: JsonObject, now: JsonObject) -> list[str]:
    return [
        f"{key} was {former.get(key)!r} and is now {now.get(key)!r}"
        for key in dict.fromkeys([*former, *now])
        if key not in VOLATILE and key in former and former.get(key) != now.get(key)
    ]
