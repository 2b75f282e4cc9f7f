"""The embedded runtime: this process answers for every client in turn, with one resident model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from weft.core.exchange import Runtime
from weft.core.types import Message, Reply
from weft.federation.client_host import ClientHost, silent
from weft.federation.clients import ClientData


@dataclass(frozen=True)
class InProcess(Runtime):
    """Answers messages with a client host in this process."""

    client_host: ClientHost
    announce: Callable[[Message, ClientData], None] = silent
    """Called with every message and its client before the answer is computed."""

    def exchange(self, messages: Sequence[Message]) -> Iterator[Reply]:
        """Answer the messages, those to faster clients first."""
        for message in self.client_host.by_speed(messages):
            yield self.client_host.reply(message, self.announce)
