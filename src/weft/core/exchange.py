"""What is done to updates on their way, and what carries them: base classes, as those of `weft.core.parts`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, NamedTuple

from weft.core.types import Message, Metrics, Reply, Streams, Tensors, Total, Update

Exchange = Callable[[Sequence[Message]], Iterable[Reply]]
"""Carry messages to the clients and yield what comes back, in any order, failures included."""


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
    """Every update is clipped to a stated norm, and weights and metrics must reveal nothing."""

    def on_client(self, update: Update) -> Update:
        """Clip, and add local noise."""
        return update

    def on_server(self, total: Total) -> Total:
        """Add central noise."""
        return total

    def spent(self, rounds: int) -> Budget | None:
        """Return the budget spent after a number of rounds, or None where nothing is promised."""
        return None


class Codec:
    """How an update is compressed. The defaults change nothing."""

    dense: ClassVar[bool] = True
    """Encoded updates can be added up as they are."""

    def encode(self, update: Update, memory: Streams) -> tuple[Update, Streams]:
        """Return the encoded update and what the client remembers for the next (error feedback)."""
        return update, memory

    def decode(self, update: Update) -> Update:
        """Undo `encode` up to its loss."""
        return update


class Protection:
    """How single updates are hidden from the server. The defaults hide nothing."""

    sum_only: ClassVar[bool] = False
    """The server sees sums of updates, never one."""

    def seal(self, update: Update) -> Update:
        """Mask or encrypt an update at the client."""
        return update

    def collect(self, exchange: Exchange, messages: Sequence[Message]) -> Iterable[Reply]:
        """Exchange the messages, in as many phases as the protection needs, and yield opened replies."""
        return exchange(messages)


class Runtime:
    """What carries messages to clients, wherever they are. It may call nothing on a client but `answer`."""

    def exchange(self, messages: Sequence[Message]) -> Iterable[Reply]:
        """Yield one reply a message, in any order; what did not come back is a Failure."""
        raise TypeError(f"{type(self).__name__} must define exchange")

    def close(self) -> None:
        """Let go of what the runtime holds."""
