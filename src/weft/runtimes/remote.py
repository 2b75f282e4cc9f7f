"""The runtime of real sites: a thread for each message polls the site until it has answered.

A transport, such as NVIDIA FLARE, carries bytes to a site and back. A message is sent once and then polled for; the
reply to a poll is the answer, or the site's progress. A message fails by silence: no contact, or no progress, for
`silence` seconds. Until then a broken connection is retried, and a lost answer is polled for again, not computed twice.
A site that only ever reports progress fails after `turn` seconds.
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
from weft.runtimes.mailbox import UNKNOWN_RUN, WAIT, Packed, PollResult, TransportBroken

LOAD_TIMEOUT = 600.0
"""Seconds without progress that a handshake allows: the site loads its model and its rows."""
MAX_RESTARTS = 3
"""Restarts of a site's process during one message before the message fails."""
RETRY_DELAY = 0.5
"""Seconds before a broken connection is tried again, and a message that a site did not accept is sent again."""
SHORTEST_POLL = 0.1
"""Least seconds from poll to poll: a site that replies at once is not asked without end."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds before a round is begun again: the first time, doubled each time, at most."""


class Transport(Protocol):
    """Carries bytes to sites and back."""

    def ask(self, client: str, ticket: str, raw: Packed | None, wait: float) -> PollResult:
        """Send a site a message, or poll for its answer.

        Args:
            client: name of the site.
            ticket: identifier of the message; a site does not repeat the work of a known ticket.
            raw: the message; None: the site has it already.
            wait: longest poll in seconds.

        Raises:
            TransportBroken: no reply; the caller may try again.
            RunError: the connection is closed for good.
            KeyError: the site does not know the ticket: its process was restarted.
        """
        ...


@dataclass
class RemoteSites(Runtime):
    """Sends messages to all sites at once, each from a thread of its own."""

    transport: Transport
    run: str
    silence: float
    """Seconds without contact or progress after which a message fails."""
    largest: Callable[[], tuple[int, int]]
    """Returns upper bounds of a reply: bytes, and number of tensors."""
    turn: float = 86400.0
    """Seconds after which a message fails, whatever progress the site reports."""
    in_order: bool = True
    """Yield replies in the order of the messages, so that sums are reproducible; otherwise as they arrive."""
    note: Callable[[str], None] = print
    handshake: Callable[[str], Packed | None] = lambda _: None
    """Returns the handshake message of a site; None: there is none."""
    why_not: Callable[[str, Packed], str] = lambda *_: ""
    """Returns why a site's answer to a repeated handshake keeps it from the message at hand; "": it does not."""
    checked: Callable[[Reply], Reply] = lambda reply: reply
    """Returns a reply, or a failure in place of one that another than its site sent."""
    session: str = field(default_factory=lambda: secrets.token_hex(4))
    exchanges: int = 0
    pending_undos: dict[str, list[Undo]] = field(default_factory=dict)
    """Undo messages for unreachable sites by name, sent first when the site is reachable again."""

    def exchange(self, messages: Sequence[Message]) -> Iterator[Reply]:
        """Yield the replies; a site that does not answer in time yields a Failure."""
        self.exchanges += 1
        number, closed, packer = self.exchanges, threading.Event(), Packer(self.run)
        answers: queue.Queue[tuple[int, Reply | Exception]] = queue.Queue()

        def ask(place: int, message: Message) -> None:
            try:
                answers.put((place, self._answer(message, packer, f"{number}-{place}", closed)))
            except Exception as error:  # re-raised by the consumer: an exception in this thread would only be printed
                answers.put((place, error))

        def next_answer() -> tuple[int, Reply]:
            place, reply = answers.get()
            if isinstance(reply, Exception):
                raise reply
            return place, reply

        for place, message in enumerate(messages):
            threading.Thread(target=ask, args=(place, message), daemon=True, name=f"ask-{message.client}").start()
        early_replies: dict[int, Reply] = {}
        try:
            for place in range(len(messages)):
                if not self.in_order:
                    yield next_answer()[1]
                    continue
                while place not in early_replies:
                    position, reply = next_answer()
                    early_replies[position] = reply
                yield early_replies.pop(place)
        finally:
            closed.set()

    def ask_all(self, messages: Mapping[str, Packed], step: str = "hello") -> dict[str, Packed | str]:
        """Send every site its part of the handshake; return the answers by site, or (as str) why there is none."""
        closed = threading.Event()
        with ThreadPoolExecutor(max_workers=max(1, len(messages))) as pool:
            futures = {
                name: pool.submit(self._ask, name, raw, f"{self.session}/{step}/{name}", closed, LOAD_TIMEOUT)
                for name, raw in messages.items()
            }
            return {name: future.result() for name, future in futures.items()}

    def pause(self, attempts: int) -> None:
        """Wait with exponential back-off: sites that refuse at once would be asked hundreds of times a second."""
        time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (attempts - 1)))

    def _answer(self, message: Message, packer: Packer, number: str, closed: threading.Event) -> Reply:
        """Return a site's reply; a site that was unreachable first gets the Undo messages of the rounds it missed."""
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
            # The site may have trained and saved its memory although its answer did not arrive.
            self.pending_undos[client] = []
            return Failure(client, message.round, raw)
        max_bytes, max_tensors = self.largest()
        limits = {"max_bytes": max_bytes, "max_tensors": max_tensors}
        return self.checked(open_reply(raw, client, message.round, run=self.run, **limits))

    def _ask_until_done(self, message: Message, packer: Packer, number: str, closed: threading.Event) -> Packed | str:
        """Return a site's answer, or (as str) why there is none; a restarted site gets the handshake again."""
        ticket = f"{self.session}/{type(message).__name__}/{message.round}/{number}"
        packed = packer.pack(message)
        raw = self._ask(message.client, packed, ticket, closed)
        handshake = self.handshake(message.client)
        for restart in range(MAX_RESTARTS if handshake is not None else 0):
            if raw != UNKNOWN_RUN or handshake is None:
                return raw
            self.note(f"the site '{message.client}' was restarted; the handshake is repeated.")
            result = self._ask(message.client, handshake, f"{ticket}/hello/{restart}", closed, LOAD_TIMEOUT)
            if isinstance(result, str):
                return result
            if result != UNKNOWN_RUN:
                if why := self.why_not(message.client, result):
                    return why
                raw = self._ask(message.client, packed, f"{ticket}/again/{restart}", closed)
        return "its process ended while it worked" if raw == UNKNOWN_RUN else raw

    def _ask(
        self, client: str, packed: Packed, ticket: str, closed: threading.Event, silence: float = 0.0
    ) -> Packed | str:
        """Poll until a site answers; return the answer, or (as str) why there is none."""
        silence = max(silence, self.silence)
        raw: Packed | None = packed
        begin = last_progress = last_contact = time.monotonic()
        progress, restarts = -1, MAX_RESTARTS
        wait = min(WAIT, self.silence / 4)
        reason = ""
        while not closed.is_set():
            try:
                asked = time.monotonic()
                poll = self.transport.ask(client, ticket, raw, wait)
                last_contact = time.monotonic()
                # Once accepted, the message is not sent again: it may be hundreds of megabytes.
                raw = None if poll.accepted else packed
                if poll.answer is not None:
                    return poll.answer
                if poll.progress > progress:
                    last_progress, progress = time.monotonic(), poll.progress
                # An honest site holds its reply back, where it has no answer.
                pause = SHORTEST_POLL if poll.accepted else RETRY_DELAY
                closed.wait(max(0.0, asked + pause - last_contact))
            except KeyError:
                # The process was restarted and lost the message; its progress counter starts again too.
                raw, progress, restarts = packed, -1, restarts - 1
                if not restarts:
                    return f"was restarted {MAX_RESTARTS} times"
            except TransportBroken as error:
                reason = f" ({error})" if str(error) else ""
                closed.wait(RETRY_DELAY)
            if time.monotonic() - last_contact > self.silence:
                return f"could not be reached{reason} for {self.silence:g} s"
            if time.monotonic() - last_progress > silence:
                return f"made no progress for {silence:g} s"
            if time.monotonic() - begin > self.turn:
                return f"did not answer within {self.turn:g} s (turn_timeout), whatever progress it reported"
        return "did not answer before the exchange ended"
