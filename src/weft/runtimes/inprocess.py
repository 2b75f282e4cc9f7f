"""The embedded runtime: every client is answered in this process, one after the other, by one resident model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from weft.core.exchange import Runtime
from weft.core.types import Message, Reply
from weft.federation.client_host import ClientHost, silent
from weft.federation.clients import ClientData


@dataclass(frozen=True)
class InProcess(Runtime):
    """Answers at a station."""

    client_host: ClientHost
    announce: Callable[[Message, ClientData], None] = silent
    """Told every message before it is answered, and where."""

    def exchange(self, messages: Sequence[Message]) -> Iterator[Reply]:
        """Answer the messages, those to faster clients first."""
        for message in self.client_host.by_speed(messages):
            yield self.client_host.reply(message, self.announce)
