"""A sum on its way at the server, whatever hides its parts: who is asked, whose update is in it, and what comes out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from weft.core.party import Party
from weft.core.types import (
    Failure,
    Message,
    Probe,
    ProtectionReply,
    ProtectionRequest,
    Reply,
    Request,
    Streams,
    Tensors,
    Update,
)
from weft.errors import ClientFailed
from weft.protection.groups import Phases, Step
from weft.protection.members import model_of, names_of
from weft.protection.sums import Grid, Masked, to_update

WRONG_WEIGHTS = "its weights add up to what no clients have"
HEAVIEST = 2.0**20
"""The weight that counts 1 where the server does not know how many rows clients have."""
MOST_METRICS = 1 << 16
"""Largest list of the names of metrics, in bytes."""


@dataclass
class Opening(ABC):
    """One attempt of a round, to the sum."""

    tasks: Mapping[str, Request]
    """By client; those of one evaluation all ask for the scores of one model."""
    like: Streams
    party: Party
    bound: float
    least: int

    heaviest: float = field(init=False)
    grid: Grid = field(init=False)
    added: list[str] = field(default_factory=list, init=False)
    """Clients whose update is in the sum."""
    metrics: set[str] = field(default_factory=set, init=False)
    bound_before: int = field(default=0, init=False)
    """Clients that opened a sum in an earlier attempt of the round, and join no other."""

    stream: ClassVar[str]
    """What a task says of the sum."""
    sealed: ClassVar[str]
    """The one stream of an update in it; also what it is, in a sentence."""

    def __post_init__(self) -> None:
        self.heaviest = self.party.heaviest if math.isfinite(self.party.heaviest) else HEAVIEST

    @property
    def model(self) -> Tensors:
        """What is said of the model, where all clients are sent the same one."""
        return model_of(next(iter(self.tasks.values())), self.stream, self.party)

    @abstractmethod
    def run(self) -> Phases:
        """Yield the phases, the failures of clients, and the sum of the others' updates if it can be opened."""

    @abstractmethod
    def take(self, values: Tensors) -> None:
        """Add what a client has sealed; ClientFailed where it is nothing of the kind."""

    def close(self, why: str) -> Iterator[Failure]:
        """Yield the failures of a sum that stays closed although it could be opened."""
        return self.closed(self.added, why)

    def ask(
        self,
        phase: str,
        clients: Iterable[str],
        streams: Callable[[str], Streams],
        take: Callable[[ProtectionReply], None],
        opens: int = 0,
        *,
        quiet: bool = False,
    ) -> Phases:
        """Send a request to clients and take their replies; yield failures, also of replies that do not fit.

        Args:
            phase: of the request.
            clients: who is asked.
            streams: of the request to a client.
            take: takes a reply.
            opens: of the request by which the sum is opened: how many are in it.
            quiet: clients that fail stay in the sum. It is so where it is opened.
        """
        first = next(iter(self.tasks.values()))
        scored = isinstance(first, Probe)
        asked = [
            ProtectionRequest(name, first.round, phase, streams(name), first.attempt, scored)
            for name in sorted(clients)
        ]
        waiting = {message.client for message in asked}

        def hear(reply: Reply) -> Failure | None:
            if reply.client not in waiting:
                return None  # late, or a second one
            waiting.discard(reply.client)
            if isinstance(reply, Failure):
                return reply
            if not isinstance(reply, ProtectionReply) or (reply.phase, reply.round) != (phase, first.round):
                return _bad(reply, f"sent no answer to the request '{phase}'")
            try:
                take(reply)
            except (ClientFailed, ValueError, KeyError):
                return _bad(reply, f"sent an answer to the request '{phase}' that cannot be read")
            return None

        if opens or quiet:  # whoever fails now is in the sum already: the others stand for it
            yield Step(list(asked), lambda reply: hear(reply) and None, opens)
            return
        yield Step(list(asked), hear)
        for name in sorted(waiting):
            yield Failure(name, first.round, f"did not answer the request '{phase}'")

    def gather(self, tasks: Sequence[Request], sent: Tensors) -> Phases:
        """Let the cohort train, or evaluate, and add up the sealed updates as they come: memory holds one.

        Args:
            tasks: of the cohort.
            sent: what is said of the sum, to all alike.
        """
        messages: list[Message] = [replace(task, extra=task.extra | {self.stream: sent}) for task in tasks]
        waiting = {task.client: task for task in tasks}

        def hear(reply: Reply) -> Failure | None:
            task = waiting.pop(reply.client, None)
            return None if task is None else self._add(reply, task)

        yield Step(messages, hear)
        for name, task in waiting.items():
            yield Failure(name, task.round, f"did not send its {self.sealed} update")

    def _add(self, reply: Reply, task: Request) -> Failure | None:
        """Add a sealed update to the sum, or return why not."""
        if isinstance(reply, Failure):
            if not reply.opened:
                return reply
            # With so few others no sum of this round can be opened: answers to an earlier attempt were lost.
            self.bound_before += 1
            return replace(reply, final=len(self.tasks) - self.bound_before < threshold(len(self.tasks)))
        wanted = (task.round, task.base_version, task.attempt)
        if not isinstance(reply, Update) or (reply.round, reply.base_version, reply.attempt) != wanted:
            return _bad(reply, "sent no update of this round")
        values = reply.streams.get(self.sealed, {})
        try:
            raw = values.get("metrics")
            names = names_of(raw if raw is not None and raw.numel() <= MOST_METRICS else None)
            if set(reply.streams) != {self.sealed} or (reply.weight, reply.metrics) != (1.0, {}):
                raise ClientFailed("more than is sealed")
            self.take(values)
        except ClientFailed:
            return _bad(reply, f"sent an update that is not {self.sealed} as the run says")
        self.added.append(reply.client)
        self.metrics |= set(names)
        return None

    def mean(self, total: Masked) -> Update | None:
        """Return the opened sum as an update, the weighted mean; None where its weights cannot be."""
        update = to_update(total, self.like, self.metrics, self.grid)
        task = self.tasks[self.added[0]]
        return update and replace(
            update,
            client=self.added[0],
            round=task.round,
            base_version=task.base_version,
            attempt=task.attempt,
            members=tuple(sorted(self.added)),
        )

    def too_few(self, clients: Iterable[str]) -> str | None:
        """Return why these clients are too few for a sum; None: they are enough."""
        count = len(list(clients))
        least = max(self.least, self.party.quorum, threshold(len(self.tasks)))
        return f"{count} of {len(self.tasks)} clients are left, and it takes {least}" if count < least else None

    def closed(self, clients: Collection[str], why: str) -> Iterator[Failure]:
        """Yield a failure of every client whose update stays closed."""
        round = next(iter(self.tasks.values())).round
        for name in sorted(clients):
            yield Failure(name, round, f"is in a {self.sealed} sum that stays closed: {why}")


def threshold(count: int) -> int:
    """Return how many of so many have to take part: more than two thirds."""
    return 2 * count // 3 + 1


def _bad(reply: Reply, reason: str) -> Failure:
    return Failure(reply.client, reply.round, reason, bad=True)
