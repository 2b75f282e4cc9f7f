"""A process that has imported everything and is forked for every run, so that a life takes no time to begin.

Run as a program it reads a JSON list of words a line and runs `weft` with them in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path


class ForkServer:
    """Starts `weft` processes."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._ended: dict[int, int] = {}
        self._begun: list[int] = []
        self._news = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def start(self, words: list[str], log: Path, env: dict[str, str] | None = None) -> int:
        """Begin a process whose words go to a file, with these variables too; return its number."""
        assert self._server.stdin is not None
        with self._news:
            self._server.stdin.write(json.dumps([str(log), env or {}, *words]) + "\n")
            self._server.stdin.flush()
            self._news.wait_for(lambda: self._begun, timeout=300)
            return self._begun.pop()

    def code(self, pid: int, *, wait: bool) -> int | None:
        """Return a process's exit code; None while it runs, where nobody waits."""
        with self._news:
            if wait:
                self._news.wait_for(lambda: pid in self._ended, timeout=300)
            return self._ended.get(pid)

    def close(self) -> None:
        """End."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._listener.join()
        self._server.stdout.close()

    def _listen(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            with self._news:
                word, number, *code = line.split()
                if word == "begun":
                    self._begun.append(int(number))
                else:
                    self._ended[int(number)] = int(code[0])
                self._news.notify_all()


def child(log: str, env: dict[str, str], words: list[str]) -> None:
    """Be `weft`, and end as it does."""
    os.environ.update(env)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from weft.cli import main

    code = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Fork for every line, and tell when a child ends."""
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import weft.launch.train  # noqa: F401

    torch.set_num_threads(1)
    telling = threading.Lock()

    def tell(*words: object) -> None:
        with telling:
            print(*words, flush=True)

    def reap(pid: int) -> None:
        _, status = os.waitpid(pid, 0)
        tell("ended", pid, os.waitstatus_to_exitcode(status))

    for line in sys.stdin:
        log, env, *words = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(log, env, words)
        tell("begun", pid)
        threading.Thread(target=reap, args=(pid,), daemon=True).start()


if __name__ == "__main__":
    serve()
