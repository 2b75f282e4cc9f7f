"""The process at a site that has the model and the data, and the light one beside it that the server speaks to.

They are apart so that what may end a process of a training (memory, a driver) ends only that one: the other begins it
anew, and the server says hello again. Between them go bytes over a socket that no other process has.
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

from weft.runtimes.mailbox import UNKNOWN_RUN
from weft.sites.pipe import receive, send

PROGRESS = b"it goes on"
EVERY = 0.25
"""Seconds between two words of how far the work is."""


class ModelProcess:
    """The process with the model, begun when it is needed, and anew when it has ended."""

    def __init__(self, site: Path, folder: Path, name: str) -> None:
        self.site, self.folder, self.name = site, folder, name
        self.steps = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Connection | None = None

    def progress(self) -> int:
        """Return how far it was when it last said so."""
        return self.steps

    def work(self, raw: bytes) -> bytes:
        """Let it answer a message; where it ends meanwhile, it has to be said hello again."""
        line = self._there()
        try:
            send(line, raw)
            while True:
                said = receive(line)
                if said != PROGRESS:
                    return said[:]
                self.steps += 1
        except (EOFError, OSError):
            self.close()
            return UNKNOWN_RUN

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._line is not None:
            self._line.close()
        self._process = self._line = None

    def _there(self) -> Connection:
        if self._line is not None and self._process is not None and self._process.poll() is None:
            return self._line
        self.close()
        ours, theirs = Pipe()
        words = [str(theirs.fileno()), str(self.site), str(self.folder), self.name]
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "site.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "weft.sites.model_process", *words],
                pass_fds=[theirs.fileno()],
                stdout=log,
                stderr=log,
            )
        theirs.close()
        self._line = ours
        return ours


def main(words: list[str]) -> int:
    """Answer messages until the line is closed."""
    import logging
    from importlib.metadata import version

    from weft.sites.client import SiteClient
    from weft.sites.policy import read_policy

    number, site, folder, name = words
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    line = Connection(int(number))
    site_client = SiteClient(read_policy(site), Path(folder), name, version("weft"))
    sending = threading.Lock()

    def tell() -> None:
        """Say that there is progress, whenever there was; end with the process that began this one."""
        last, parent = 0, os.getppid()
        while os.getppid() == parent:
            time.sleep(EVERY)
            if site_client.progress() != last:
                last = site_client.progress()
                with contextlib.suppress(OSError), sending:
                    send(line, PROGRESS)
        os._exit(0)

    threading.Thread(target=tell, daemon=True).start()
    while True:
        try:
            raw = receive(line)
        except EOFError:
            return 0
        answer = site_client.work(raw)
        with sending:
            send(line, answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
