"""Cases in worker processes side by side on one device; a result is a line of a file when it is there, and stays."""

from __future__ import annotations

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from queue import Empty
from typing import Any

Measure = Callable[..., dict[str, Any] | None]
"""Takes a case's words and returns its numbers, None where it was not begun."""


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
    measure: Measure,
    cases: Sequence[tuple[Any, ...]],
    out: Path,
    *,
    processes: int,
    deadline: float,
    grace: float = 0.0,
) -> None:
    """Run the cases that a file lacks, in order, and append each result.

    Args:
        measure: a function at the top of a module; what it raises is written down beside its case, and tried again
            by the next call.
        cases: words and numbers that JSON can hold.
        out: of JSON lines: {"case": [...], ...}.
        processes: at a time; they are begun anew, so that each has a device context of its own. 0: this one alone.
        deadline: seconds after which no case is begun.
        grace: seconds after that until processes at work are ended.
    """
    known = {json.dumps(one["case"]) for one in read(out) if "error" not in one}
    left = [case for case in cases if json.dumps(list(case)) not in known]
    end = time.monotonic() + deadline
    found = _in_processes(measure, left, processes, end, grace) if processes else _results(measure, left, end)
    with open(out, "a", encoding="utf-8") as file:
        for result in found:
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(_short(result), flush=True)


def _in_processes(
    measure: Measure, cases: Sequence[tuple[Any, ...]], processes: int, end: float, grace: float
) -> Iterator[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    asked, done = context.Queue(), context.Queue()
    for case in [*cases, *[None] * processes]:
        asked.put(case)
    workers = [
        context.Process(target=_work, args=(measure, asked, done, end), daemon=True)
        for _ in range(min(processes, len(cases)))
    ]
    for worker in workers:
        worker.start()
    try:
        while time.monotonic() < end + grace:
            alive = any(worker.is_alive() for worker in workers)
            yield from _ready(done)
            if not alive:
                break
    finally:
        for worker in workers:
            worker.kill()


def _ready(done: Any) -> Iterator[dict[str, Any]]:
    try:
        yield done.get(timeout=0.5)
        while True:
            yield done.get_nowait()
    except Empty:
        return


def _work(measure: Measure, asked: Any, done: Any, end: float) -> None:
    for result in _results(measure, iter(asked.get, None), end):
        done.put(result)


def _results(measure: Measure, cases: Iterable[tuple[Any, ...]], end: float) -> Iterator[dict[str, Any]]:
    for case in cases:
        if (began := time.monotonic()) >= end:
            return
        try:
            found = measure(*case)
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
        if found is not None:
            yield {"case": list(case), "seconds": round(time.monotonic() - began, 1)} | found


def _short(result: dict[str, Any]) -> str:
    shown = {key: value for key, value in result.items() if isinstance(value, (int, float, str)) and key != "case"}
    words = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()]
    return f"{' '.join(map(str, result['case']))}: {', '.join(words)}"[:400]
