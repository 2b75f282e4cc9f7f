"""Sites in threads of one process, over a line that is a fake; nothing else is."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import weft
from weft.launch.attendant import Attendant
from weft.launch.law import Site
from weft.runtimes.desk import Desk, Heard, LineBroken

NAMES = ("hospital_a", "hospital_b", "hospital_c")


class FakeSites:
    """Sites in threads of this process, asked without a network; it can be told to lose, cut and kill."""

    def __init__(self, laws: dict[str, Site], folder: Path) -> None:
        self.laws, self.folder = laws, folder
        self.desks: dict[str, Desk] = {}
        self.attendants: dict[str, Attendant] = {}
        self.asked: list[tuple[str, bytes | None]] = []
        self.answered: list[bytes] = []
        self.cut: set[str] = set()
        self.deaf: set[str] = set()
        """Sites that hear, and are not heard."""
        self.lose = 0
        """Answers that are lost from now on."""
        self.slow: dict[str, float] = {}
        self.lock, self.one = threading.Lock(), threading.Lock()
        for name in laws:
            self.begin(name)

    def begin(self, name: str) -> None:
        """Let a site begin anew: whatever it had in memory is gone."""
        made = Attendant(self.laws[name], self.folder / name, name, "1")
        self.attendants[name] = made

        def work(raw: bytes) -> bytes:
            time.sleep(self.slow.get(name, 0.0) if raw[:1] != b"{" else 0.0)
            with self.one:  # a process has one model and one stream of random numbers
                return made.work(raw)

        self.desks[name] = Desk(work, made.progress)

    def ask(self, client: str, ticket: str, raw: bytes | None, wait: float) -> Heard:
        with self.lock:
            self.asked.append((client, raw))
        if client in self.cut:
            raise LineBroken("cut")
        said = self.desks[client].ask(ticket, raw, min(wait, 0.2))
        if client in self.deaf:
            raise LineBroken("lost")
        with self.lock:
            if said.answer is not None:
                if self.lose:
                    self.lose -= 1
                    raise LineBroken("lost")
                self.answered.append(said.answer)
        return said


def train_here(run: dict[str, object], sites: FakeSites, tmp_path: Path, **changes: object):
    """Run the same in one process, on the same files."""
    clients = [{"name": name, "data": sites.laws[name].data.path} for name in NAMES]
    own = {key: value for key, value in run.items() if key not in ("sites", "runtime")}
    return weft.train(own | {"clients": clients, "output_dir": str(tmp_path / "here")} | changes, quiet=True)
