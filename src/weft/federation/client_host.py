"""A client host: some clients, and the one resident model with which they answer messages in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from weft.core.objective import Evaluator
from weft.core.seeds import derive
from weft.core.types import Failure, Message, Probe, Reply, Task
from weft.errors import ClientFailed, LeftRun, SumOpened
from weft.federation.clients import ClientData, Clients, MemoryStore
from weft.federation.conditions import Conditions
from weft.federation.head_start import HeadStart
from weft.federation.plan import Plan
from weft.federation.round import answer
from weft.models.resident import Resident


def silent(message: Message, client: ClientData) -> None:
    """Announce nothing."""


@dataclass(frozen=True)
class ClientHost:
    """Answers tasks for `train_clients` and probes for `eval_clients`; the two differ where all rows are pooled."""

    plan: Plan
    model: Resident
    evaluator: Evaluator
    train_clients: Clients
    eval_clients: Clients
    conditions: Conditions = field(default_factory=Conditions)
    head_start: HeadStart = field(default_factory=HeadStart)

    def by_speed(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages in the order in which their replies arrive: those to faster clients first.

        With over-selection only the first answers are used, so clients of equal speed are ordered at random: by their
        place in the list the last of them would never be used.
        """
        return sorted(messages, key=self._lateness)

    def client_of(self, message: Message) -> ClientData:
        """Return the client that answers, slowed down as simulated; raise ClientFailed where it drops out."""
        if not isinstance(message, Task):
            # The client of the server's own rows trains only, and is probed where updates are tried on them.
            tested = isinstance(message, Probe) and self.eval_clients.has(message.client)
            return (self.eval_clients if tested else self.train_clients).find(message.client)
        # The server's own rows are at the server, which does not drop out, where a rule compares with them.
        trusted = self.plan.aggregator.wants_root and message.client == self.plan.trusted
        if not trusted and self.conditions.fails(message.round, message.attempt, message.client):
            raise ClientFailed("dropped out (client_failure_rate)")
        client = self.train_clients.find(message.client)
        # For an asynchronous server a slow client arrives later, with all its steps; it does not cut them short.
        asynchronous = self.plan.algorithm.buffer is not None
        return client if asynchronous else replace(client, step_fraction=self.conditions.step_fraction(client.index))

    def reply(
        self,
        message: Message,
        announce: Callable[[Message, ClientData], None] = silent,
        memory: MemoryStore | None = None,
        step_fraction: float | None = None,
    ) -> Reply:
        """Answer a message; this is the only place where ClientFailed becomes a Failure reply.

        Args:
            message: to one of the clients.
            announce: called with the message and its client before the answer is computed.
            memory: the client's memory, where the message brought it along (Ray's actors).
            step_fraction: share of the steps that the client makes, where the caller simulates its speed.
        """
        try:
            if isinstance(message, Task | Probe):  # other messages need no model, and do not wait for it
                self.head_start.wait()
            client = self.client_of(message)
            if memory is not None:
                client = replace(client, memory=memory)
            if step_fraction is not None:
                client = replace(client, step_fraction=step_fraction)
            if isinstance(message, Task):
                client = replace(client, begun=self.head_start.take(client))
            announce(message, client)
            return answer(message, self.plan, client, self.model, self.evaluator)
        except ClientFailed as failure:
            opened, left = isinstance(failure, SumOpened), isinstance(failure, LeftRun)
            return Failure(message.client, message.round, str(failure), opened=opened, left=left)

    def go_on(
        self,
        task: Task,
        memory: MemoryStore | None = None,
        step_fraction: float = 1.0,
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Begin the round after a task whose update is on its way, where the algorithm has a delay.

        Args:
            task: the last one that was answered.
            memory: the client's memory after it, where it is not in the client's own store.
            step_fraction: share of the steps that the client makes.
            within: returns the context of the work.
        """
        client = replace(self.train_clients.find(task.client), step_fraction=step_fraction)
        client = client if memory is None else replace(client, memory=memory)
        self.head_start.begin(self.plan, self.model, client, task, within)

    def _lateness(self, message: Message) -> tuple[float, int]:
        if not isinstance(message, Task):
            return 0.0, 0
        purpose = ("arrives", message.round, message.attempt, message.client)
        lot = derive(self.conditions.seed, *purpose) if self.plan.over_selected else 0
        return -self.conditions.speed(self.train_clients.find(message.client).index), lot
