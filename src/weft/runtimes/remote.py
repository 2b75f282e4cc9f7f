"""Messages to sites elsewhere: each is asked by a thread of its own, and is alive as long as it goes on.

A line carries bytes to a site and back; NVIDIA FLARE is one. A site is asked once and then listened to; it answers at
once when it is done, and says in between how far it is. Only silence ends its turn: no word, or no progress, for
`silence` seconds. A line that breaks is tried again until then, and an answer that was lost on its way is asked for
again, not worked out twice.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from weft.core.exchange import Runtime
from weft.core.types import Failure, Message, Reply, Undo
from weft.core.wire import Packer
from weft.federation.admission import opened
from weft.runtimes.mailbox import WAIT, WHO, Heard, TransportBroken

LOADING = 600.0
"""Seconds that a site has to load its model and its rows, before it says anything."""
LIVES = 3
"""How often a site may begin anew with a message."""
AGAIN = 0.5
"""Seconds before a line that broke is tried again."""


class Transport(Protocol):
    """Carries bytes to sites and back."""

    def ask(self, client: str, ticket: str, raw: bytes | None, wait: float) -> Heard:
        """Give a site a message, or (None) listen for its answer.

        Args:
            client: the site.
            ticket: of the message; a site that has seen it does not begin again.
            raw: the message, or None where the site has it.
            wait: seconds that the site may hold the answer back.

        Raises:
            LineBroken: nothing was heard.
            RunError: nothing will be heard any more.
            KeyError: the site does not know the ticket: it has begun anew.
        """
        ...


@dataclass
class RemoteSites(Runtime):
    """Asks all sites at a time."""

    transport: Transport
    run: str
    silence: float
    """Seconds without a word or progress after which a site's turn is over."""
    largest: Callable[[], tuple[int, int]]
    """Returns the bytes and the tensors that a reply may have."""
    in_order: bool = True
    """Replies count in the order of the messages, whoever is first; otherwise as they come."""
    note: Callable[[str], None] = print
    greet: Callable[[str], bytes | None] = lambda _: None
    """Returns the hello of a site."""
    known: Callable[[str, bytes], bool] = lambda *_: True
    """Says whether a site answers a second hello as it did the first."""
    session: str = field(default_factory=lambda: secrets.token_hex(4))
    begun: int = 0
    owed: dict[str, list[Undo]] = field(default_factory=dict)
    """What silent sites are to forget, before anything else once they are heard again; a site here is silent."""

    def exchange(self, messages: Sequence[Message]) -> Iterator[Reply]:
        """Yield the replies; a site that fell silent is a failure."""
        self.begun += 1
        number, over, packer = self.begun, threading.Event(), Packer(self.run)
        came: queue.Queue[tuple[int, Reply | Exception]] = queue.Queue()

        def ask(place: int, message: Message) -> None:
            try:
                came.put((place, self._answer(message, packer, f"{number}-{place}", over)))
            except Exception as error:  # whoever waits for this thread must hear of it
                came.put((place, error))

        def take() -> tuple[int, Reply]:
            place, reply = came.get()
            if isinstance(reply, Exception):
                raise reply
            return place, reply

        for place, message in enumerate(messages):
            threading.Thread(target=ask, args=(place, message), daemon=True, name=f"ask-{message.client}").start()
        early: dict[int, Reply] = {}
        try:
            for place in range(len(messages)):
                if not self.in_order:
                    yield take()[1]
                    continue
                while place not in early:
                    found, reply = take()
                    early[found] = reply
                yield early.pop(place)
        finally:
            over.set()

    def ask_all(self, words: Mapping[str, bytes]) -> dict[str, bytes | str]:
        """Ask every site what is written for it; return the answers, or in words why there is none."""
        over = threading.Event()
        with ThreadPoolExecutor(max_workers=max(1, len(words))) as pool:
            asked = {
                name: pool.submit(self._ask, name, raw, f"{self.session}/hello/{name}", over, LOADING)
                for name, raw in words.items()
            }
            return {name: one.result() for name, one in asked.items()}

    def _answer(self, message: Message, packer: Packer, number: str, over: threading.Event) -> Reply:
        """Return what a site answers; one that was silent is told first what it has to forget, when it is heard."""
        client, owed = message.client, self.owed.get(message.client)
        if owed is not None:
            if isinstance(message, Undo):
                owed.append(message)
                return Failure(client, message.round, "could not be reached before")
            while owed:
                if isinstance(said := self._said(owed[0], packer, f"{number}-{len(owed)}", over), str):
                    return Failure(client, message.round, said)
                owed.pop(0)
            del self.owed[client]
        raw = self._said(message, packer, number, over)
        if isinstance(raw, str):
            self.owed[client] = []
            return Failure(client, message.round, raw)
        most, tensors = self.largest()
        return opened(raw, client, message.round, run=self.run, most=most, tensors=tensors)

    def _said(self, message: Message, packer: Packer, number: str, over: threading.Event) -> bytes | str:
        """Ask until the site is done, or (a reason) silent, or nobody wants to know any more."""
        ticket = f"{self.session}/{type(message).__name__}/{message.round}/{number}"
        sent = packer.pack(message)
        raw = self._ask(message.client, sent, ticket, over)
        hello = self.greet(message.client)
        for life in range(LIVES if hello is not None else 0):
            if raw != WHO or hello is None:
                return raw
            self.note(f"the site '{message.client}' has begun anew and is said hello again.")
            said = self._ask(message.client, hello, f"{ticket}/hello/{life}", over, LOADING)
            if isinstance(said, str):
                return said
            if said != WHO:
                if not self.known(message.client, said):
                    return "came back with other rows, or refuses by now"
                raw = self._ask(message.client, sent, f"{ticket}/again/{life}", over)
        return "its process ended while it worked" if raw == WHO else raw

    def _ask(self, client: str, whole: bytes, ticket: str, over: threading.Event, silence: float = 0.0) -> bytes | str:
        """Return what a site answers, or why there is no answer; as long as it is heard it may do so for longer."""
        silence = max(silence, self.silence)
        raw: bytes | None = whole
        last = heard = time.monotonic()
        progress, lives = -1, LIVES
        wait = min(WAIT, self.silence / 4)
        reason = ""
        while not over.is_set():
            try:
                said = self.transport.ask(client, ticket, raw, wait)
                heard = time.monotonic()
                raw = None if said.taken else whole
                if said.answer is not None:
                    return said.answer
                if said.progress > progress:
                    last, progress = time.monotonic(), said.progress
            except KeyError:
                raw, progress, lives = whole, -1, lives - 1
                if not lives:
                    return f"began anew {LIVES} times"
            except TransportBroken as broken:
                reason = f" ({broken})" if str(broken) else ""
                over.wait(AGAIN)
            if time.monotonic() - heard > self.silence:
                return f"could not be reached{reason} for {self.silence:g} s"
            if time.monotonic() - last > silence:
                return f"made no progress for {silence:g} s"
        return "was not waited for"
