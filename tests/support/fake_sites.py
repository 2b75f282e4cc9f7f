"""Sites in threads of one process, over a line that is a fake; nothing else is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import weft
from weft.core.types import Message
from weft.core.wire import pack, unpack
from weft.runtimes.mailbox import Mailbox, PollResult, TransportBroken
from weft.sites.client import SiteClient
from weft.sites.policy import SitePolicy

NAMES = ("hospital_a", "hospital_b", "hospital_c")


class FakeSites:
    """Sites in threads of this process, asked without a network; it can be told to lose, cut and kill."""

    def __init__(self, policies: dict[str, SitePolicy], folder: Path) -> None:
        self.policies, self.folder = policies, folder
        self.mailboxes: dict[str, Mailbox] = {}
        self.site_clients: dict[str, SiteClient] = {}
        self.asked: list[tuple[str, bytes | None]] = []
        self.answered: list[bytes] = []
        self.cut: set[str] = set()
        self.deaf: set[str] = set()
        """Sites that hear, and are not heard."""
        self.lose = 0
        """Answers that are lost from now on."""
        self.slow: dict[str, float] = {}
        self.kits: dict[str, Path] = {}
        """Start-up kits by site; a site with one has to begin anew."""
        self.change: Callable[[Message], Message] | None = None
        """What a hostile server makes of a message before a site reads it."""
        self.goes_on = False
        """Sites begin the next round when they have answered, as their processes do."""
        self.lock, self.one = threading.Lock(), threading.Lock()
        for name in policies:
            self.begin(name)

    def begin(self, name: str) -> None:
        """Let a site begin anew: whatever it had in memory is gone."""
        made = SiteClient(self.policies[name], self.folder / name, name, "1", self.kits.get(name))
        self.site_clients[name] = made

        def work(raw: bytes) -> bytes:
            time.sleep(self.slow.get(name, 0.0) if raw[:1] != b"{" else 0.0)
            with self.one:  # a process has one model and one stream of random numbers
                answer = made.work(raw)
                if self.goes_on:
                    made.go_on()
                return answer

        self.mailboxes[name] = Mailbox(work, made.progress)

    def ask(self, client: str, ticket: str, raw: bytes | memoryview | None, wait: float) -> PollResult:
        raw = None if raw is None else bytes(raw)  # what goes over a network arrives as bytes
        if raw is not None and raw[:1] != b"{" and self.change is not None:
            run = self.site_clients[client].run
            raw = bytes(pack(self.change(cast("Message", unpack(raw, run=run))), run))
        with self.lock:
            self.asked.append((client, raw))
        if client in self.cut:
            raise TransportBroken("cut")
        said = self.mailboxes[client].ask(ticket, raw, min(wait, 0.2))
        if client in self.deaf:
            raise TransportBroken("lost")
        if said.answer is not None:
            said = said._replace(answer=bytes(said.answer))
        with self.lock:
            if said.answer is not None:
                if self.lose:
                    self.lose -= 1
                    raise TransportBroken("lost")
                self.answered.append(said.answer)
        return said


def train_here(run: dict[str, object], sites: FakeSites, tmp_path: Path, **changes: object):
    """Run the same in one process, on the same files."""
    clients = [{"name": name, "data": sites.policies[name].data.path} for name in NAMES]
    own = {key: value for key, value in run.items() if key not in ("sites", "runtime")}
    return weft.train(own | {"clients": clients, "output_dir": str(tmp_path / "here")} | changes, quiet=True)
