"""Making the runs of a study: those that are not done, in turn or in several processes side by side."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress

from weft.errors import ConfigError, RunError
from weft.runs.text import human_duration, plural
from weft.studies.cells import Cell
from weft.studies.ledger import StudyDir, is_done
from weft.studies.work import Result, make_run, runs_share

Note = Callable[[str], None]
SHARED = "shared"
"""Folder of a study with what its runs have in common."""


def make_runs(
    cells: Sequence[Cell], study: StudyDir, *, processes: int, retry: bool, note: Note, command: str
) -> dict[str, str]:
    """Make the runs that are not done; return why runs failed, by name.

    Args:
        cells: the runs, in their order.
        study: their directory.
        processes: how many train at a time; 1: this process does.
        retry: also those that failed before.
        note: receives a sentence for each run that ends.
        command: how the study goes on after it was stopped.

    Raises:
        RunError: the disk is full; what is done is kept.
        ConfigError: another process works on one of the runs.
        KeyboardInterrupt: the runs under way keep their finished rounds.
    """
    former = study.failures()
    done = {cell.name for cell in cells if is_done(cell)}
    failures = {cell.name: former[cell.name] for cell in cells if cell.name in former and cell.name not in done}
    left = [cell for cell in cells if cell.name not in done and (retry or cell.name not in failures)]
    of = f"of {plural(len(cells), 'run')}"
    if done or len(left) < len(cells):
        kept = len(cells) - len(done) - len(left)
        failed = f", {_are(kept, 'failed before and')} not tried again without --retry" if kept else ""
        note(f"{_are(len(done), of)} done{failed}; {_are(len(left))} left.")
    (study.path / SHARED).mkdir(exist_ok=True)
    made, spent = 0, 0.0
    work = _in_turn(left, study) if processes == 1 else _side_by_side(left, study, min(processes, max(1, len(left))))
    with closing(work):
        for cell, result in work:
            made, spent = made + 1, spent + result.seconds
            if result.stops:
                ready = _are(len(done) + made - 1, of)
                kind = ConfigError if "in use by another" in result.why else RunError
                raise kind(f"{result.why} Of the study, {ready} done and kept; go on by `{command}`.")
            if result.why:
                failures[cell.name] = result.why
                study.add_failure(cell, result.why, result.trace)
                note(f"[{len(done) + made}/{len(cells)}] {cell.name}: failed. {result.why}")
                continue
            failures.pop(cell.name, None)
            study.add_time(cell, result.seconds)
            rest = (len(left) - made) * spent / made / processes
            about = f"; about {human_duration(rest)} left" if len(left) > made else ""
            note(f"[{len(done) + made}/{len(cells)}] {cell.name}: {human_duration(result.seconds)}{about}")
    return failures


def _are(count: int, words: str = "") -> str:
    """Return a number of runs and its verb: "1 is", "4 of 6 runs are"."""
    return " ".join(filter(None, [str(count), words, "is" if count == 1 else "are"]))


def _in_turn(cells: Sequence[Cell], study: StudyDir) -> Generator[tuple[Cell, Result], None, None]:
    if not cells:  # nothing heavy is imported then
        return
    with runs_share():
        for cell in cells:
            yield cell, make_run(cell.config, study.path / SHARED)


class _Worker:
    """A process that trains, and its end of the pipe."""

    def __init__(self, threads: int) -> None:
        # Processes that share cores must not have as many threads each as there are cores.
        env = {"OMP_NUM_THREADS": str(threads)} | os.environ
        self.process = subprocess.Popen(
            [sys.executable, "-m", "weft.studies.work"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=env,
        )
        self.name = ""
        """Of the run that is made."""
        self.teller = threading.Thread(target=self._tell, daemon=True)
        self.teller.start()

    def _tell(self) -> None:
        """Pass on what it says, each line with the name of its run: others speak at the same time."""
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                print(f"{self.name}: {line}", end="", file=sys.stderr, flush=True)

    def make(self, cell: Cell, study: StudyDir) -> Result:
        """Let it make a run; what ends the process is that run's failure."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.name = cell.name
        job = {"config": cell.config.model_dump(mode="json"), "shared": str(study.path / SHARED)}
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if line:
            return Result(**json.loads(line))
        code = self.process.wait()
        if code == 130:
            return Result(0.0, "The run was interrupted.", stops=True)
        end = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        hint = " (out of memory, perhaps: try fewer --processes)" if code == -signal.SIGKILL else ""
        return Result(0.0, f"Its process ended {end}{hint}.")

    def end(self) -> None:
        """Let it go: it leaves when its input ends."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        self.process.wait()
        self.teller.join()

    def close(self) -> None:
        """Close the pipe of one that has left, when nobody reads from it any more."""
        assert self.process.stdout is not None
        self.process.stdout.close()


def _side_by_side(cells: Sequence[Cell], study: StudyDir, processes: int) -> Generator[tuple[Cell, Result], None, None]:
    """Yield the runs as they end, each of them made by one of some processes."""
    waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[Cell, Result]] = queue.SimpleQueue()
    for cell in cells:
        waiting.put(cell)
    threads = max(1, (os.cpu_count() or 1) // processes)
    workers: list[_Worker] = []
    readers: list[threading.Thread] = []
    stopped = threading.Event()

    def work(place: int) -> None:
        with suppress(queue.Empty):
            while not stopped.is_set():
                cell = waiting.get_nowait()
                if workers[place].process.poll() is not None:
                    workers[place].end()
                    workers[place].close()
                    workers[place] = _Worker(threads)
                ended.put((cell, workers[place].make(cell, study)))

    try:
        for place in range(processes):
            workers.append(_Worker(threads))
            readers.append(threading.Thread(target=work, args=(place,), daemon=True))
            readers[place].start()
        for _ in cells:
            yield ended.get()
    finally:
        stopped.set()
        for worker in workers:
            worker.end()
        for reader, worker in zip(readers, workers, strict=False):
            reader.join()
            worker.close()
