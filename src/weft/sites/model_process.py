"""The process at a site that holds the model and the data, and its parent, a light process that the server calls.

They are separate so that a failure of training (memory, a driver) ends only the model process: the parent restarts it,
and the server repeats the handshake. They exchange bytes over a socket that no other process has.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import BinaryIO

from weft.runtimes.mailbox import UNKNOWN_RUN, Packed
from weft.sites.pipe import receive, send

PROGRESS = b"it goes on"
EVERY = 0.25
"""Seconds between two reports of progress."""


class ModelProcess:
    """Starts the process that holds the model when it is needed, and restarts it when it has ended."""

    def __init__(self, site: Path, folder: Path, name: str) -> None:
        self.site, self.folder, self.name = site, folder, name
        self.steps = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: Connection | None = None

    def progress(self) -> int:
        """Return how often the process has reported progress."""
        return self.steps

    def work(self, raw: Packed) -> Packed:
        """Return the process's answer to a message; `UNKNOWN_RUN`, which asks for a handshake, if it ends first."""
        transport = self._connect()
        try:
            send(transport, raw)
            while True:
                answer = receive(transport)
                if answer != PROGRESS:
                    return answer if isinstance(answer, bytes) else memoryview(answer).toreadonly()
                self.steps += 1
        except (EOFError, OSError):
            self.close()
            return UNKNOWN_RUN

    def start(self) -> None:
        """Start the process if it does not run; otherwise the first message does so."""
        self._connect()

    def close(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._transport is not None:
            self._transport.close()
        self._process = self._transport = None

    def _connect(self) -> Connection:
        """Return the connection to the process; start the process if it does not run."""
        if self._transport is not None and self._process is not None and self._process.poll() is None:
            return self._transport
        self.close()
        ours, theirs = Pipe()
        arguments = [str(theirs.fileno()), str(self.site), str(self.folder), self.name]
        with self._log() as log:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "weft.sites.model_process", *arguments],
                pass_fds=[theirs.fileno()],
                stdout=log,
                stderr=log,
            )
        theirs.close()  # else the end of the child would not be an end of file here
        self._transport = ours
        return ours

    def _log(self) -> BinaryIO:
        """Open the log of the process; on a full disk, nothing is logged, and the process says why it cannot work."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return open(self.folder / "site.log", "ab")
        except OSError:
            return open(os.devnull, "ab")


def main(argv: list[str]) -> int:
    """Answer messages until the transport is closed.

    Args:
        argv: the number of a file descriptor, the path of site.yaml, a folder, and the site's name.
    """
    from importlib.metadata import version

    from weft.sites.client import SiteClient
    from weft.sites.policy import read_policy
    from weft.sites.site_log import begin_log

    number, site, folder, name = argv
    begin_log()
    transport = Connection(int(number))
    kit = os.environ.get("WEFT_KIT")
    site_client = SiteClient(read_policy(site), Path(folder), name, version("weft"), Path(kit) if kit else None)
    sending = threading.Lock()  # progress and answers come from two threads, and messages must not mix

    def report_progress() -> None:
        """Report progress whenever there was some; exit when the parent process has ended."""
        last, parent = 0, os.getppid()
        while os.getppid() == parent:
            time.sleep(EVERY)
            if site_client.progress() != last:
                last = site_client.progress()
                with contextlib.suppress(OSError), sending:
                    send(transport, PROGRESS)
        os._exit(0)  # the main thread may be in the middle of a training

    threading.Thread(target=report_progress, daemon=True).start()
    while True:
        try:
            raw = receive(transport)
        except EOFError:
            return 0
        answer = site_client.work(raw)
        with sending:
            send(transport, answer)
        site_client.go_on()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
