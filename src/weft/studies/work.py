"""The work on one run of a study, in this process or as the process of a pool.

As a process (`python -m weft.studies.work`) it reads one configuration a line from its standard input and answers each
with a line. It ends at once when its input ends, so that nothing trains on when the study was killed; what it had
committed is kept, and the run is resumed.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from weft.config import RunConfig, build
from weft.core.files import caused_by_full_disk, json_line
from weft.data.remembered import rows_are_shared
from weft.errors import RunError, RunInUse, WeftError
from weft.runs.layout import RunDir


class Result(NamedTuple):
    """What came of a run."""

    seconds: float
    why: str = ""
    """It failed, and this is why."""
    trace: str = ""
    stops: bool = False
    """The study cannot go on either: a full disk, or a run that another process holds."""


@contextmanager
def runs_share() -> Iterator[None]:
    """Let the runs that are made in the block share their tokenized rows and their base."""
    from weft.models.shared_base import base_is_shared

    with rows_are_shared(), base_is_shared():
        yield


def make_run(config: RunConfig, shared: Path) -> Result:
    """Begin a run, or resume it, and say what came of it.

    Args:
        config: of the run.
        shared: folder of what the runs of a study have in common.

    Raises:
        KeyboardInterrupt: it was interrupted; its finished rounds are kept.
    """
    from weft.launch.train import train

    began = time.perf_counter()
    try:
        train(config, resume=RunDir(config.output_dir).holds_run, shared=shared)
    except Exception as error:
        stops = caused_by_full_disk(error) or isinstance(error, RunInUse)
        words = (error.fault if isinstance(error, RunError) else str(error)).strip()
        why = words if isinstance(error, WeftError) else f"{type(error).__name__}: {words}".removesuffix(": ")
        return Result(time.perf_counter() - began, why, traceback.format_exc(), stops)
    return Result(time.perf_counter() - began)


def _lines(source: IO[str], lines: queue.Queue[str]) -> None:
    """Hand lines on; leave the process when they end."""
    for line in source:
        lines.put(line)
    os._exit(0)


def main() -> None:
    """Work on the runs that are read, until there are no more."""
    # Only answers go to the pipe: what libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_lines, args=(sys.stdin, lines), daemon=True).start()
    try:
        with runs_share():
            while True:
                job = json.loads(lines.get())
                result = make_run(build(job["config"]), Path(job["shared"]))
                answers.write(json_line(result._asdict()) + "\n")
                answers.flush()
    except KeyboardInterrupt:
        os._exit(130)


if __name__ == "__main__":
    main()
