"""What is done to updates on their way, and what carries them: base classes, as those of `weft.core.parts`.

A part may remember something at the party where it works, and may draw from that party's secret: both come to it in a
`Party`, and what it returns as memory is kept with the checkpoint. It never draws from the run's seed what protects
somebody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from weft.core.secret import Secret
from weft.core.tensors import num_bytes
from weft.core.types import (
    Failure,
    Message,
    Metrics,
    ProtectionRequest,
    Reply,
    Streams,
    Task,
    Tensors,
    Total,
    Update,
)

Exchange = Callable[[Sequence[Message]], Iterable[Reply]]
"""Carry messages to the clients and yield what comes back, in any order, failures included."""


@dataclass(frozen=True)
class Party:
    """The server or a client, in one round, as a part of the exchange sees it."""

    name: str
    """Of the client; "" is the server."""
    round: int
    attempt: int = 0
    """How often rounds were begun in vain: what was drawn for an attempt is never used for another."""
    memory: Streams = field(default_factory=dict)
    """What the part remembers here."""
    open_secret: Callable[[], Secret] = Secret.random

    @property
    def secret(self) -> Secret:
        """The party's secret, which is drawn when it is first asked for."""
        return self.open_secret()


class Coding(NamedTuple):
    """What both ends of a coded message know."""

    client: str
    round: int
    version: int
    """The server's version of the parameters that the client begins from."""
    seed: int
    """Public, the same at both ends: of this client and round."""
    like: Streams
    """Tensors of the names, shapes and dtypes of what is coded; their values mean nothing."""


class Aggregator:
    """How the updates of a cohort become one."""

    additive: ClassVar[bool] = False
    """A weighted mean, which can be streamed and computed under a secure sum."""

    def combine(self, updates: Iterable[Update]) -> Total:
        """Combine the updates, each of positive weight, all of the same streams; no update gives an empty total."""
        raise TypeError(f"{type(self).__name__} must define combine")


class Weighting:
    """What a client's update weighs in the cohort's mean; this base class weighs by rows."""

    by_rows: ClassVar[bool] = True
    """A client says how many rows it has; otherwise it says 1."""
    single_updates: ClassVar[bool] = False
    """The server looks at each client's metrics, and remembers something of each."""

    def factor(self, client: str, metrics: Metrics, memory: Tensors) -> tuple[float, Tensors]:
        """Return by what the weight that the client gave is multiplied, above 0, and what is remembered anew."""
        return 1.0, {}


class Budget(NamedTuple):
    """What differential privacy has been spent: (epsilon, delta)."""

    epsilon: float
    delta: float


class Privacy:
    """What bounds and hides a client's part in the result. The defaults protect nothing."""

    bounded: ClassVar[bool] = False
    """Every update is clipped to a stated norm. The round then drops what would tell more of one client: its weight is
    1, its training metrics are not sent, and the product error is not computed."""

    draws_secrets: ClassVar[bool] = False
    """Clients draw from their secrets, not the server alone."""

    def on_client(self, update: Update, party: Party) -> tuple[Update, Streams]:
        """Clip, and add local noise; return the update and what the client remembers from now on."""
        return update, party.memory

    def on_server(self, total: Total, party: Party) -> tuple[Total, Streams]:
        """Add central noise; return the total and what the server remembers from now on."""
        return total, party.memory

    def spent(self, rounds: int) -> Budget | None:
        """Return the budget spent after a number of rounds, or None where nothing is promised."""
        return None


class Codec:
    """How updates, and tasks, are compressed. The defaults change nothing."""

    dense: ClassVar[bool] = True
    """Encoded updates can be added up as they are, and clients remember nothing for the next."""

    def encode(self, update: Update, coding: Coding, party: Party) -> tuple[Update, Streams]:
        """Return the encoded update and what the client remembers from now on (error feedback)."""
        return update, party.memory

    def decode(self, update: Update, coding: Coding, party: Party) -> Update:
        """Return the update with streams like `coding.like`, at the server.

        What no `encode` can have made may raise anything: it is a failure of that client.
        """
        return update

    def encode_task(self, task: Task, coding: Coding, party: Party) -> tuple[Task, Streams]:
        """Return the encoded task and what the server remembers from now on; `coding.like` holds the task's streams."""
        return task, party.memory

    def decode_task(self, task: Task, party: Party) -> tuple[Task, Streams]:
        """Return the task as the client is to take it, and what the client remembers from now on."""
        return task, party.memory

    def largest(self, like: Streams) -> tuple[int, int]:
        """Return the bytes and the number of tensors that an encoded update of such streams has at most."""
        return num_bytes(like), sum(len(values) for values in like.values())


class Protection:
    """How single updates are hidden from the server. The defaults hide nothing."""

    sum_only: ClassVar[bool] = False
    """The server sees sums of updates, never one. `collect` then yields such a sum as one update: the weighted mean of
    its `members`, their whole weight and the sums of their metrics."""

    draws_secrets: ClassVar[bool] = False
    """Clients draw from their secrets."""

    def seal(self, update: Update, task: Task, party: Party) -> Update:
        """Mask or encrypt an update at the client; what it needs of its peers came in `task.extra`."""
        return update

    def answer(self, request: ProtectionRequest, party: Party) -> Reply:
        """Answer a message of the protection's own at the client (its public keys, its part of an unmasking)."""
        return Failure(request.client, request.round, f"knows no message '{request.phase}'")

    def largest(self, most: tuple[int, int]) -> tuple[int, int]:
        """Return the bytes and tensors of any reply at most, given those of an update before it is sealed."""
        return most

    def collect(self, exchange: Exchange, tasks: Sequence[Task], like: Streams, party: Party) -> Iterable[Reply]:
        """Exchange the tasks, in as many phases as the protection needs, and yield opened replies.

        Args:
            exchange: carries tasks, and `ProtectionRequest`s, which clients answer by `answer`.
            tasks: of the cohort; the protection may send more in `extra`, under names of its own.
            like: what every client sends of a whole cohort's parameters, before it is sealed.
            party: the server.
        """
        return exchange(list(tasks))


class Runtime:
    """What carries messages to clients, wherever they are. It may call nothing on a client but `answer`."""

    def exchange(self, messages: Sequence[Message]) -> Iterable[Reply]:
        """Yield one reply a message, in any order; what did not come back is a Failure."""
        raise TypeError(f"{type(self).__name__} must define exchange")

    def close(self) -> None:
        """Let go of what the runtime holds."""
