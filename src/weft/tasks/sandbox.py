"""Running programs that a model wrote: by bubblewrap, by a user's container, or unsafe.

What contains programs is tried out before the first of them (`detect`), and what the trial could do is what the
isolation is said not to contain.

Inside, a program runs in an interpreter of its own with limits (`weft.tasks.harness`). It counts as passed when it ran
to its end, tests included, and the token of that run was reported. `os._exit(0)`, `sys.exit(0)` and prints pass
nothing. Tests and program share an interpreter, as in all scorers of these benchmarks; so what remains possible is a
program that is written against its tests: one that looks for the token in the frames of the interpreter, or returns
objects that equal everything.

The memory of one program is bounded by its number of processes times the memory of each. Where memory runs out before,
the system stops such programs first.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import selectors
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from weft.core.texts import printable
from weft.errors import RunError
from weft.tasks import harness

Reason = Literal["passed", "failed", "timeout", "memory"]
STARTING = 60.0
"""Seconds within which a sandbox must start; they do not count as the program's."""
GRACE = 5.0
"""Seconds after the program's own that it is stopped from outside."""
SHOWN = 4096
"""Bytes of a program's output that are kept, the last ones."""
FOREIGN_UIDS = (0x60000000, 61000)
"""Users without files or processes begin here: many, and such as a container with few users has; the program of a
root user runs as one of them, since the system limits the number of processes of every user but that one."""


@dataclass(frozen=True)
class Limits:
    """The most that one program may use."""

    seconds: int = 20
    """Of the clock, once it has started."""
    cpu_seconds: int = 10
    memory: int = 1 << 30
    """Bytes of addresses of each process."""
    file_bytes: int = 1 << 20
    """Bytes of each file that is written."""
    disk: int = 16 << 20
    """Bytes of all files together; only bubblewrap keeps to it."""
    open_files: int = 64
    processes: int = 16
    """Processes and threads at a time, two of which are the sandbox's own."""


class Isolation(NamedTuple):
    """What contains programs."""

    name: Literal["bubblewrap", "hook", "unsafe"]
    command: tuple[str, ...]
    """Reads a Python program from its standard input and runs it."""
    other_user: bool = False
    """Whether the program becomes a user without files or processes first."""
    keeps_environment: bool = False
    """Whether the command sees the environment of this process; a program within sees what the command lets through."""
    uncontained: tuple[str, ...] = ()
    """What a trial program could do; empty: it could do nothing of what was tried."""

    def words(self) -> str:
        """Return the isolation in one sentence, for people and for the results."""
        held = (
            f"not contained: {', '.join(self.uncontained)}" if self.uncontained else "all that was tried is contained"
        )
        return f"Programs run by {self.name} ({held})."


class Outcome(NamedTuple):
    """How one program ended."""

    passed: bool
    reason: Reason
    """timeout: of the clock or the processor; memory: none was left for it."""
    output: str
    """The end of what it printed, unprintable characters escaped line by line."""


def run(
    programs: Sequence[str], isolation: Isolation, limits: Limits | None = None, workers: int | None = None
) -> list[Outcome]:
    """Run programs, each in a sandbox of its own, and return how they ended, in order.

    Args:
        programs: sources of Python, each with its tests, in sequence (`weft.tasks.code`).
        isolation: what contains them, from `detect`.
        limits: of each program; None: the defaults.
        workers: programs at a time; None: one for each processor.

    Raises:
        RunError: a sandbox did not start, twice; that is no fault of the program, so it is no failure of it.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        results = [pool.submit(_run_one, text, isolation, limits or Limits(), stop) for text in programs]
        try:
            return [result.result() for result in results]
        except BaseException:
            stop.set()  # so that Ctrl-C does not wait for what is running
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_one(program: str, isolation: Isolation, limits: Limits, stop: threading.Event) -> Outcome:
    for _ in range(2):
        began, outcome = attempt(program, isolation, limits, stop)
        if began or stop.is_set():
            return outcome
    raise RunError(
        f"The sandbox ({isolation.name}) no longer starts ({outcome.output.strip()[-300:] or 'it prints nothing'}): "
        "mend that, then run the same command again."
    )


def attempt(
    program: str, isolation: Isolation, limits: Limits, stop: threading.Event | None = None
) -> tuple[bool, Outcome]:
    """Run one program once; return whether it began at all, and how it ended."""
    token = secrets.token_hex(16)
    first = secrets.randbelow(1 << 16)  # another user for each, as processes are counted by user
    uids = [FOREIGN_UIDS[0] + first, FOREIGN_UIDS[1] + first % 4000] if isolation.other_user else []
    payload = json.dumps({"program": program, "token": token, "uids": uids, "limits": asdict(limits)})
    source = Path(harness.__file__).read_text(encoding="utf-8") + f"\n\nmain({payload!r})\n"
    with tempfile.TemporaryDirectory(prefix="weft-program-") as folder, tempfile.TemporaryFile() as text:
        text.write(source.encode())
        text.seek(0)
        # Hashes of strings do not vary from run to run: a score must not either.
        own = {"PYTHONHASHSEED": "0", "HOME": folder if isolation.name == "unsafe" else "/tmp"}
        try:
            process = subprocess.Popen(
                isolation.command,
                stdin=text,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=None if isolation.keeps_environment else own,
                start_new_session=True,
            )
        except OSError as error:
            return False, Outcome(False, "failed", str(error))
        try:
            began, verdict, output = _follow(process, token, limits.seconds, stop or threading.Event())
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    return began, _outcome(verdict, output)


def _follow(
    process: subprocess.Popen[bytes], token: str, seconds: float, stop: threading.Event
) -> tuple[bool, str, bytes]:
    """Read what a sandbox prints until it reports an end, closes its output, or takes too long."""
    report = re.compile(rb"\n" + token.encode() + rb" ([a-z]+(?: \d+)?)\n")
    assert process.stdout is not None
    until, began, output, rest = time.monotonic() + STARTING, False, b"", b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < until and not stop.is_set():
            if not waiting.select(min(0.2, max(0.0, until - time.monotonic()))):
                continue
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            rest += chunk
            while found := report.search(rest):
                output, rest = (output + rest[: found.start()])[-SHOWN:], rest[found.end() :]
                if began:
                    return True, found[1].decode(), output
                began, until = True, time.monotonic() + seconds + GRACE
            if not chunk:
                return began, "failed 0", (output + rest)[-SHOWN:]
            if len(rest) > SHOWN:  # a report may be cut in two
                output, rest = (output + rest[:-128])[-SHOWN:], rest[-128:]
    return began, "timeout", (output + rest)[-SHOWN:]


def _outcome(verdict: str, output: bytes) -> Outcome:
    word, _, number = verdict.partition(" ")
    reason: Reason = "passed" if word == "passed" else "timeout" if word == "timeout" else "failed"
    reason = "memory" if word == "memory" else reason
    lines = output.decode(errors="replace").split("\n")
    if number not in ("", "0"):
        with contextlib.suppress(ValueError):
            lines.append(f"ended by {signal.Signals(int(number)).name}")
    return Outcome(reason == "passed", reason, "\n".join(printable(line) for line in lines).strip())


def split_command(hook: str) -> tuple[str, ...]:
    """Return the words of a command as a shell would read it; none where it cannot be read."""
    with contextlib.suppress(ValueError):
        return tuple(shlex.split(hook))
    return ()
