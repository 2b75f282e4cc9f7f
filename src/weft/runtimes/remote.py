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
from weft.federation.admission import open_reply
from weft.runtimes.mailbox import UNKNOWN_RUN, WAIT, PollResult, TransportBroken

LOAD_TIMEOUT = 600.0
"""Seconds that a site has to load its model and its rows, before it says anything."""
MAX_RESTARTS = 3
"""How often a site may begin anew with a message."""
RETRY_DELAY = 0.5
"""Seconds before a line that broke is tried again."""


class Transport(Protocol):
    """Carries bytes to sites and back."""

    def ask(self, client: str, ticket: str, raw: bytes | None, wait: float) -> PollResult:
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
    handshake: Callable[[str], bytes | None] = lambda _: None
    """Returns the hello of a site."""
    is_same_site: Callable[[str, bytes], bool] = lambda *_: True
    """Says whether a site answers a second hello as it did the first."""
    session: str = field(default_factory=lambda: secrets.token_hex(4))
    exchanges: int = 0
    pending_undos: dict[str, list[Undo]] = field(default_factory=dict)
    """What silent sites are to forget, before anything else once they are heard again; a site here is silent."""

    def exchange(self, messages: Sequence[Message]) -> Iterator[Reply]:
        """Yield the replies; a site that fell silent is a failure."""
        self.exchanges += 1
        number, closed, packer = self.exchanges, threading.Event(), Packer(self.run)
        answers: queue.Queue[tuple[int, Reply | Exception]] = queue.Queue()

        def ask(place: int, message: Message) -> None:
            try:
                answers.put((place, self._answer(message, packer, f"{number}-{place}", closed)))
            except Exception as error:  # whoever waits for this thread must hear of it
                answers.put((place, error))

        def next_answer() -> tuple[int, Reply]:
            place, reply = answers.get()
            if isinstance(reply, Exception):
                raise reply
            return place, reply

        for place, message in enumerate(messages):
            threading.Thread(target=ask, args=(place, message), daemon=True, name=f"ask-{message.client}").start()
        early: dict[int, Reply] = {}
        try:
            for place in range(len(messages)):
                if not self.in_order:
                    yield next_answer()[1]
                    continue
                while place not in early:
                    position, reply = next_answer()
                    early[position] = reply
                yield early.pop(place)
        finally:
            closed.set()

    def ask_all(self, messages: Mapping[str, bytes]) -> dict[str, bytes | str]:
        """Ask every site what is written for it; return the answers, or in words why there is none."""
        closed = threading.Event()
        with ThreadPoolExecutor(max_workers=max(1, len(messages))) as pool:
            futures = {
                name: pool.submit(self._ask, name, raw, f"{self.session}/hello/{name}", closed, LOAD_TIMEOUT)
                for name, raw in messages.items()
            }
            return {name: future.result() for name, future in futures.items()}

    def _answer(self, message: Message, packer: Packer, number: str, closed: threading.Event) -> Reply:
        """Return what a site answers; one that was silent is told first what it has to forget, when it is heard."""
        client, undos = message.client, self.pending_undos.get(message.client)
        if undos is not None:
            if isinstance(message, Undo):
                undos.append(message)
                return Failure(client, message.round, "could not be reached before")
            while undos:
                if isinstance(result := self._ask_until_done(undos[0], packer, f"{number}-{len(undos)}", closed), str):
                    return Failure(client, message.round, result)
                undos.pop(0)
            del self.pending_undos[client]
        raw = self._ask_until_done(message, packer, number, closed)
        if isinstance(raw, str):
            self.pending_undos[client] = []
            return Failure(client, message.round, raw)
        max_bytes, max_tensors = self.largest()
        return open_reply(raw, client, message.round, run=self.run, max_bytes=max_bytes, max_tensors=max_tensors)

    def _ask_until_done(self, message: Message, packer: Packer, number: str, closed: threading.Event) -> bytes | str:
        """Ask until the site is done, or (a reason) silent, or nobody wants to know any more."""
        ticket = f"{self.session}/{type(message).__name__}/{message.round}/{number}"
        packed = packer.pack(message)
        raw = self._ask(message.client, packed, ticket, closed)
        handshake = self.handshake(message.client)
        for restart in range(MAX_RESTARTS if handshake is not None else 0):
            if raw != UNKNOWN_RUN or handshake is None:
                return raw
            self.note(f"the site '{message.client}' has begun anew and is said hello again.")
            result = self._ask(message.client, handshake, f"{ticket}/hello/{restart}", closed, LOAD_TIMEOUT)
            if isinstance(result, str):
                return result
            if result != UNKNOWN_RUN:
                if not self.is_same_site(message.client, result):
                    return "came back with other rows, or refuses by now"
                raw = self._ask(message.client, packed, f"{ticket}/again/{restart}", closed)
        return "its process ended while it worked" if raw == UNKNOWN_RUN else raw

    def _ask(
        self, client: str, packed: bytes, ticket: str, closed: threading.Event, silence: float = 0.0
    ) -> bytes | str:
        """Return what a site answers, or why there is no answer; as long as it is heard it may do so for longer."""
        silence = max(silence, self.silence)
        raw: bytes | None = packed
        last_progress = last_contact = time.monotonic()
        progress, restarts = -1, MAX_RESTARTS
        wait = min(WAIT, self.silence / 4)
        reason = ""
        while not closed.is_set():
            try:
                poll = self.transport.ask(client, ticket, raw, wait)
                last_contact = time.monotonic()
                raw = None if poll.accepted else packed
                if poll.answer is not None:
                    return poll.answer
                if poll.progress > progress:
                    last_progress, progress = time.monotonic(), poll.progress
            except KeyError:
                raw, progress, restarts = packed, -1, restarts - 1
                if not restarts:
                    return f"began anew {MAX_RESTARTS} times"
            except TransportBroken as error:
                reason = f" ({error})" if str(error) else ""
                closed.wait(RETRY_DELAY)
            if time.monotonic() - last_contact > self.silence:
                return f"could not be reached{reason} for {self.silence:g} s"
            if time.monotonic() - last_progress > silence:
                return f"made no progress for {silence:g} s"
        return "was not waited for"
