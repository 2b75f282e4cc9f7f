"""Cases in worker processes side by side on one device; a result is a line of a file when it is there, and stays."""

from __future__ import annotations

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from queue import Empty
from typing import Any

Measure = Callable[..., dict[str, Any]]
"""Takes a case's words and returns its numbers."""


def read(out: Path) -> list[dict[str, Any]]:
    """Return the results of a file; a line that a kill cut off is left out."""
    found = []
    for line in out.read_text(encoding="utf-8").splitlines() if out.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def side_by_side(
    measure: Measure, cases: Sequence[tuple[Any, ...]], out: Path, *, processes: int, deadline: float
) -> None:
    """Run the cases that a file lacks, in order, and append each result.

    Args:
        measure: a function at the top of a module; what it raises is written down beside its case, and tried again
            by the next call.
        cases: words and numbers that JSON can hold.
        out: of JSON lines: {"case": [...], ...}.
        processes: at a time; they are begun anew, so that each has a device context of its own.
        deadline: seconds after which no case is begun, and those at work are ended.
    """
    known = {json.dumps(one["case"]) for one in read(out) if "error" not in one}
    left = [case for case in cases if json.dumps(list(case)) not in known]
    end = time.monotonic() + deadline
    context = multiprocessing.get_context("spawn")
    asked, done = context.Queue(), context.Queue()
    for case in [*left, *[None] * processes]:
        asked.put(case)
    workers = [
        context.Process(target=_work, args=(measure, asked, done, end), daemon=True)
        for _ in range(min(processes, len(left)))
    ]
    for worker in workers:
        worker.start()
    with open(out, "a", encoding="utf-8") as file:
        while time.monotonic() < end:
            alive = any(worker.is_alive() for worker in workers)
            for result in _ready(done):
                file.write(json.dumps(result) + "\n")
                file.flush()
                print(_short(result), flush=True)
            if not alive:
                break
    for worker in workers:
        worker.kill()


def _ready(done: Any) -> Iterable[dict[str, Any]]:
    try:
        yield done.get(timeout=0.5)
        while True:
            yield done.get_nowait()
    except Empty:
        return


def _work(measure: Measure, asked: Any, done: Any, end: float) -> None:
    while time.monotonic() < end and (case := asked.get()) is not None:
        began = time.monotonic()
        try:
            found = measure(*case)
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
        done.put({"case": list(case), "seconds": round(time.monotonic() - began, 1)} | found)


def _short(result: dict[str, Any]) -> str:
    shown = {key: value for key, value in result.items() if isinstance(value, (int, float, str)) and key != "case"}
    words = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()]
    return f"{' '.join(map(str, result['case']))}: {', '.join(words)}"[:400]
